"""A training step of masked thought against the plain step, and the masking alone against a loop over rows.

    python benchmarks/masked_thought.py

The 135M demo model in bfloat16 with LoRA in float32 (rank 16 on all linear layers), batches of 2 x 96 tokens of which
64 are trained, no checkpointing, AdamW, one thread. Both trainers share one model and their steps alternate, 30 pairs;
the ratio is that of the least processor times, beside it the median over pairs of neighbours. The masking has the rate
0.4 and mixes mask and random tokens. The loop draws a binomial number of hits per row and then their places, one row
after the other, as the authors' code does.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from typing import Any

from _common import isolated, machine, save, serve_part, timed, versions

PAIRS, ROWS, LENGTH, PROMPT = 30, 2, 96, 32
MASKED = {"rate": 0.4, "mode": "mixed", "replace_rate": 0.5, "mask_token": 3, "warmup": 0.0}


def batch_of(rows: int, length: int, prompt: int) -> dict[str, Any]:
    """Return a batch of random tokens."""
    import torch

    ids = torch.randint(1000, 40_000, (rows, length), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[:, :prompt] = -100
    return {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)}


def steps() -> dict[str, Any]:
    """Times of steps of both trainers, in turn."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from trl import SFTConfig

    from tunesmith.engine.models import load_model, load_tokenizer
    from tunesmith.trainers import MaskedThoughtMixin
    from tunesmith.trainers._trl_compat import Trainer

    torch.manual_seed(0)
    model = load_model("smollm2-135m-instruct", dtype="bfloat16", device="cpu")
    model = get_peft_model(model, LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    tokenizer = load_tokenizer("smollm2-135m-instruct")
    batch = batch_of(ROWS, LENGTH, PROMPT)
    count = (batch["labels"][:, 1:] != -100).sum()

    class Masked(MaskedThoughtMixin, Trainer):
        """Our trainer with tokens hidden."""

    with tempfile.TemporaryDirectory() as folder:
        args = SFTConfig(
            output_dir=folder,
            report_to="none",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            dataset_kwargs={"skip_prepare_dataset": True},
        )
        rows = Dataset.from_dict({name: batch[name].tolist() for name in ("input_ids", "labels")})
        given = {"model": model, "args": args, "train_dataset": rows, "processing_class": tokenizer}
        arms: dict[str, Any] = {"plain": Trainer(**given), "masked": Masked(**given, masked=MASKED)}
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    times: dict[str, list[float]] = {arm: [] for arm in arms}
    for pair in range(PAIRS + 1):
        for arm in ("plain", "masked") if pair % 2 else ("masked", "plain"):
            trainer = arms[arm]
            trainer.state.max_steps, trainer.state.global_step = PAIRS + 1, pair
            begin = time.process_time()
            trainer.training_step(model, dict(batch), count)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            if pair:  # the first pair warms up
                times[arm].append(time.process_time() - begin)
    return times


def masking() -> dict[str, Any]:
    """Time of hiding the tokens of one batch, ours and in a loop."""
    import numpy as np

    from tunesmith.engine.models import load_tokenizer
    from tunesmith.trainers import MaskedThought
    from tunesmith.trainers.masked_thought.settings import check_batch

    corruption = MaskedThought.of(MASKED).corruption(load_tokenizer("smollm2-135m-instruct"))
    rng = np.random.default_rng(0)
    found = {}
    for rows, length in ((ROWS, LENGTH), (64, 512)):
        batch = batch_of(rows, length, PROMPT)

        def ours(batch: dict[str, Any] = batch) -> None:
            for step in range(20):
                check_batch(batch, allow_no_prompt=False)
                corruption(batch, 0.4, step)

        def loop(batch: dict[str, Any] = batch) -> None:
            for _ in range(20):
                ids = batch["input_ids"].clone()
                for row, labels in zip(ids, batch["labels"], strict=True):
                    places = (labels != -100).nonzero()[:, 0].numpy()
                    hits = rng.choice(places, rng.binomial(len(places), 0.4), replace=False)
                    for place in hits:
                        row[place] = int(rng.integers(0, 49_152)) if rng.random() < 0.5 else 3

        ours(), loop()
        found[f"{rows} x {length}"] = [timed(f, 3, time.process_time)[0] / 20 for f in (ours, loop)]
    return found


def main() -> None:
    """Run everything and save docs/benchmarks/masked_thought.json."""
    times = isolated(__file__, "steps", one_core=True)
    alone = isolated(__file__, "masking", one_core=True)
    pairs = [m / p for m, p in zip(times["masked"], times["plain"], strict=True)]
    plain, masked = min(times["plain"]), min(times["masked"])
    ratio = masked / plain
    own = alone[f"{ROWS} x {LENGTH}"][0]
    rows: list[dict[str, Any]] = [
        {
            "what": f"step, {arm}",
            "seconds": round(min(times[arm]), 4),
            "time to plain": round(r, 4),
            "median of pairs": round(middle, 4),
        }
        for arm, r, middle in (("plain", 1.0, 1.0), ("masked", ratio, statistics.median(pairs)))
    ]
    alone.pop("peak_gib")
    for size, (ours, loop) in alone.items():
        rows += [
            {
                "what": f"masking {size}, ours",
                "seconds": round(ours, 6),
                "time to the loop": round(ours / loop, 4),
            },
            {"what": f"masking {size}, loop over rows", "seconds": round(loop, 6), "time to the loop": 1.0},
        ]
    result = {
        "title": "Masked thought: a training step",
        "summary": f"A step with masked thought takes {ratio:.3f} times the plain one (median of pairs "
        f"{statistics.median(pairs):.3f}; at most 1.02 was asked for). The masking itself takes {1000 * own:.2f} ms, "
        f"{own / plain:.2%} of a plain step, and {own / alone[f'{ROWS} x {LENGTH}'][1]:.3f} times a loop over rows.",
        "rows": rows,
        "setting": " ".join((__doc__ or "").split("\n\n")[2].split()),
        "command": "python benchmarks/masked_thought.py",
        "machine": machine(),
        "versions": versions("torch", "transformers", "peft", "trl"),
    }
    save("benchmarks", "masked_thought", result)


if __name__ == "__main__" and not serve_part({"steps": steps, "masking": masking}):
    main()
