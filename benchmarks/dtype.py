"""Speed of LoRA training of the demo model: float32 against bfloat16, and against plainer loops.

    python benchmarks/dtype.py

Rows: 24 of 60 to 180 random tokens, the last 20 to 40 of them trained, batches of 8, LoRA r = 16 on all
linear layers. The first step of each run warms up and is not counted; each run has a process of its own. Processor
time is given beside wall time, since it says how busy the machine was with other things.

* float32 and bfloat16: `tunesmith.trainers.train_sft`, which orders rows by length and, on CPU, scores only
  trained positions;
* a plain PEFT loop: shuffled rows, the model's own loss over all positions, AdamW; in bfloat16 also with adapters in
  that type, which PEFT by default keeps in float32;
* TRL's SFTTrainer: as train_sft, but with TRL's loss and order.
"""

from __future__ import annotations

import random
import tempfile
import time
from typing import Any

from _common import isolated, machine, save, serve_part, versions

MODEL = "smollm2-135m-instruct"
ROWS, BATCH = 24, 8


def rows() -> Any:
    """Encoded rows, the same in each process."""
    from datasets import Dataset

    draw = random.Random(0)
    out = []
    for _ in range(ROWS):
        ids = [draw.randrange(100, 40_000) for _ in range(draw.randint(60, 180))]
        answer = draw.randint(20, 40)
        out.append({"input_ids": ids, "labels": [-100] * (len(ids) - answer) + ids[-answer:]})
    return Dataset.from_list(out)


def ours(dtype: str, trl: bool = False) -> dict[str, Any]:
    """Train with train_sft; with ``trl``, with TRL's own loss and order of rows."""
    from tunesmith.core.events import EventLog
    from tunesmith.engine.models import load_model, load_tokenizer
    from tunesmith.trainers import _trl_compat, train_sft

    if trl:
        _trl_compat.MAX_LOGITS = 0
    marks: list[tuple[float, float, int]] = []

    def mark(event: dict[str, Any]) -> None:
        if event["kind"] == "metric":
            marks.append((time.perf_counter(), time.process_time(), event["tokens"]))

    with tempfile.TemporaryDirectory() as folder:
        train_sft(
            load_model(MODEL, dtype=dtype),
            load_tokenizer(MODEL),
            rows(),
            output_dir=folder,
            tuner={"type": "lora", "r": 16},
            batch_size=BATCH,
            log=EventLog(listeners=[mark]),
            train_sampling_strategy="random" if trl else "group_by_length",
        )
    return speed(marks)


def plain(dtype: str, low_adapters: bool = False) -> dict[str, Any]:
    """Train with a loop as one writes it by hand; ``low_adapters`` keeps the adapters in the type of the weights."""
    import torch
    from peft import LoraConfig, get_peft_model

    from tunesmith.engine.models import load_model

    config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    base = load_model(MODEL, dtype=dtype)
    model = get_peft_model(base, config, autocast_adapter_dtype=not low_adapters).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-4)
    data = list(rows())
    random.Random(0).shuffle(data)
    marks, tokens = [], 0
    for begin in range(0, ROWS, BATCH):
        batch = data[begin : begin + BATCH]
        width = max(len(row["input_ids"]) for row in batch)

        def padded(name: str, fill: int, batch: Any = batch, width: int = width) -> Any:
            return torch.tensor([row[name] + [fill] * (width - len(row[name])) for row in batch])

        labels = padded("labels", -100)
        mask = torch.tensor([[i < len(row["input_ids"]) for i in range(width)] for row in batch]).long()
        model(input_ids=padded("input_ids", 0), attention_mask=mask, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        tokens += int(mask.sum())
        marks.append((time.perf_counter(), time.process_time(), tokens))
    return speed(marks)


def speed(marks: list[tuple[float, float, int]]) -> dict[str, Any]:
    """Tokens per second between the first mark and the last, by the clock and by processor time."""
    (begin, used, first), (end, now_used, last) = marks[0], marks[-1]
    return {
        "tokens": last - first,
        "seconds": end - begin,
        "processor_seconds": now_used - used,
        "tokens_per_second": (last - first) / (end - begin),
        "tokens_per_processor_second": (last - first) / (now_used - used),
    }


PARTS = {"ours": ours, "plain": plain}


def report(runs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Put the runs side by side: ratios by the clock, and by processor time, which other programs disturb less."""
    from tunesmith.engine.models import auto_dtype

    ratio, by_processor = (
        runs["bfloat16"][key] / runs["float32"][key]
        for key in ("tokens_per_second", "tokens_per_processor_second")
    )
    chosen = auto_dtype()
    native = chosen == "bfloat16"
    faster = "bfloat16" if ratio > 1 else "float32"
    why = f"the processor has {'' if native else 'no '}bfloat16 instructions (AVX-512-BF16, AMX or ARM bf16)"
    right = "the choice is right" if chosen == faster else f"{faster} would have been faster"
    float32, mixed, low = (
        runs[f"plain PEFT loop, {kind}"]["tokens_per_processor_second"]
        for kind in ("float32", "bfloat16", "bfloat16 with its adapters")
    )
    missed = (
        f"is missed. By processor time a plain loop gains {mixed / float32:.2f} times, and {low / float32:.2f} times "
        "with adapters in bfloat16 too, which do without PEFT's casts to float32 and back but round every update; "
        "the rest is the processor's"
    )
    target = ("is met" if ratio >= 2 else missed) if native else "cannot be tested on this machine"
    return {
        "title": "Training speed by data type",
        "summary": (__doc__ or "").split("\n\n")[0].strip(),
        "verdict": (
            f"auto picks {chosen}: {why}. Measured here, bfloat16 runs at {ratio:.2f} times the tokens/s of "
            f"float32 ({by_processor:.2f} by processor time), so {right}. The target of at least 2 times on "
            f"processors with these instructions {target}."
        ),
        "command": "python benchmarks/dtype.py",
        "machine": machine(),
        "environment": versions("torch", "transformers", "peft", "trl"),
        "chosen_by_auto": chosen,
        "bfloat16_to_float32": ratio,
        "bfloat16_to_float32_by_processor_time": by_processor,
        "runs": [
            {
                "run": name,
                **run,
                "float32_is_faster_by": runs["float32"]["tokens_per_second"] / run["tokens_per_second"],
                "by_processor_time": runs["float32"]["tokens_per_processor_second"]
                / run["tokens_per_processor_second"],
            }
            for name, run in runs.items()
        ],
    }


def main() -> None:
    """Run all, and save the ratios."""
    runs = {
        "float32": isolated(__file__, "ours", dtype="float32"),
        "bfloat16": isolated(__file__, "ours", dtype="bfloat16"),
        "plain PEFT loop, float32": isolated(__file__, "plain", dtype="float32"),
        "plain PEFT loop, bfloat16": isolated(__file__, "plain", dtype="bfloat16"),
        "plain PEFT loop, bfloat16 with its adapters": isolated(
            __file__, "plain", dtype="bfloat16", low_adapters=True
        ),
        "TRL's SFTTrainer, float32": isolated(__file__, "ours", dtype="float32", trl=True),
    }
    save("benchmarks", "dtype", report(runs))


if __name__ == "__main__" and not serve_part(PARTS):
    main()
