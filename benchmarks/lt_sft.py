"""LT-SFT: choosing among 135M entries, and the cost of a step of the sparse phase against full fine-tuning.

    python benchmarks/lt_sft.py

SmolLM2-135M in float32, one thread, processor time. Choosing: K = 8 % of all entries by streaming histograms, against
one sort of all differences in one vector. Steps: AdamW, the same batches of 2 rows of 64 tokens; full fine-tuning, the
sparse phase as the authors' code does it (dense gradients, masked, and dense moments), and ours (values and moments of
the K entries). Each in a process of its own, twice in turn; a step's time is the median.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from typing import Any

from _common import isolated, machine, save, serve_part, timed, versions

MODEL = "smollm2-135m-instruct"
SHARE = 0.08  # K_T of the paper: 8.0 % of mBERT


def load() -> Any:
    """Return the model in float32."""
    from tunesmith.engine.models import load_model

    return load_model(MODEL, dtype="float32", device="cpu")


def resident_mb() -> float:
    """Return the resident memory now, in MB."""
    with open("/proc/self/status", encoding="utf-8") as stream:
        return int(next(line for line in stream if line.startswith("VmRSS")).split()[1]) / 1e3


def choose(naive: bool) -> dict[str, Any]:
    """Choose K of all entries of a model that moved a little everywhere."""
    import torch

    from tunesmith.tuners import global_top_k

    model = load()
    generator = torch.Generator().manual_seed(0)
    base = {n: p.detach().clone() for n, p in model.named_parameters()}
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1e-3 * torch.randn(p.shape, generator=generator))
    total = sum(t.numel() for t in base.values())
    k = round(SHARE * total)

    def ours() -> Any:
        return global_top_k(base, model, k)

    def sort() -> Any:
        flat = torch.cat([(p.detach() - base[n]).abs().reshape(-1) for n, p in model.named_parameters()])
        return torch.topk(flat, k).values

    with open("/proc/self/clear_refs", "w", encoding="utf-8") as stream:
        stream.write("5")  # start the high-water mark again from here
    before = resident_mb()
    seconds, found = timed(sort if naive else ours, clock=time.process_time)
    with open("/proc/self/status", encoding="utf-8") as stream:
        peak = int(next(line for line in stream if line.startswith("VmHWM")).split()[1]) / 1e3
    if not naive:
        moved = dict(model.named_parameters())
        values = [(moved[n].detach() - base[n]).abs().reshape(-1)[index] for n, index in found.items()]
        found = torch.cat(values)
    least = float(found.min())  # ties have one value, so equal counts above it mean equal sets but for ties
    return {
        "entries": total,
        "k": len(found),
        "seconds": seconds,
        "extra_mb": peak - before,
        "least": least,
        "above_least": int((found > least).sum()),
    }


def steps(arm: str, count: int, rows: int, length: int) -> dict[str, Any]:
    """Train some steps; return the median processor time of a step and the optimiser's memory."""
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from tunesmith.engine.silence import quiet
    from tunesmith.trainers import LotteryTicketMixin
    from tunesmith.tuners.sparse import random_positions

    class Lottery(LotteryTicketMixin, Trainer):
        """Ours."""

    class Clock(TrainerCallback):
        """Processor time of each step, and what the optimiser holds."""

        def __init__(self) -> None:
            self.times: list[float] = []
            self.state_mb = self.gradient_mb = 0.0

        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            self.begin = time.process_time()

        def on_pre_optimizer_step(self, *args: Any, model: Any = None, **kwargs: Any) -> None:
            held = [p.grad for p in model.parameters() if p.grad is not None]
            self.gradient_mb = sum(g.numel() * g.element_size() for g in held) / 1e6

        def on_step_end(self, *args: Any, optimizer: Any = None, **kwargs: Any) -> None:
            self.times.append(time.process_time() - self.begin)
            held = [t for s in optimizer.state.values() for t in s.values() if torch.is_tensor(t)]
            self.state_mb = sum(t.numel() * t.element_size() for t in held) / 1e6

    class Masked(TrainerCallback):
        """Zero the gradients of what is not chosen, as the authors' code does."""

        def __init__(self, rest: dict[str, Any]) -> None:
            self.rest = rest

        def on_pre_optimizer_step(self, *args: Any, model: Any = None, **kwargs: Any) -> None:
            for name, p in model.named_parameters():
                if p.grad is not None:
                    p.grad.masked_fill_(self.rest[name], 0.0)

    model = load()
    sizes = {n: p.numel() for n, p in model.named_parameters()}
    k = round(SHARE * sum(sizes.values()))
    ids = torch.randint(1000, 40000, (rows * count, length), generator=torch.Generator().manual_seed(0))
    data = [{"input_ids": row, "labels": row} for row in ids]
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder, quiet(python_warnings=True):
        args = TrainingArguments(
            output_dir=folder, per_device_train_batch_size=rows, max_steps=count, learning_rate=1e-5, use_cpu=True,
            save_strategy="no", logging_strategy="no", disable_tqdm=True, report_to="none",
        )  # fmt: skip
        if arm == "sparse":
            lottery = {"num_params": k, "method": "random", "sparse_steps": count, "freeze_layer_norm": False}
            trainer: Any = Lottery(model, args, train_dataset=data, callbacks=[clock], lottery=lottery)
        else:
            trainer = Trainer(model, args, train_dataset=data)
            if arm == "masked":
                picks = random_positions(sizes, k, 0)
                rest = {n: torch.ones(p.shape, dtype=torch.bool) for n, p in model.named_parameters()}
                for name, index in picks.items():
                    rest[name].view(-1)[index] = False
                trainer.add_callback(Masked(rest))
            trainer.add_callback(clock)
        trainer.train()
    return {
        "step_s": statistics.median(clock.times[1:]),
        "slowest_s": max(clock.times[1:]),
        "optimizer_mb": clock.state_mb,
        "gradient_mb": clock.gradient_mb,
        "k": k,
        "parameters": sum(sizes.values()),
    }


def main() -> None:
    """Run everything and save docs/benchmarks/lt_sft.json."""
    ours, naive = (isolated(__file__, "choose", one_core=True, naive=n) for n in (False, True))
    same = all(ours[key] == naive[key] for key in ("k", "least", "above_least"))
    arms = ("full", "masked", "sparse")
    size = {"count": 5, "rows": 2, "length": 64}
    runs = {arm: [] for arm in arms}  # type: dict[str, list[dict[str, Any]]]
    for _ in range(2):
        for arm in arms:
            runs[arm].append(isolated(__file__, "steps", one_core=True, arm=arm, **size))
    best = {arm: min(found, key=lambda r: r["step_s"]) for arm, found in runs.items()}
    ratio = best["sparse"]["step_s"] / best["full"]["step_s"]
    result = {
        "title": "LT-SFT: the choice of entries and the sparse phase",
        "summary": (
            f"The {ours['k']:,} entries that moved most of {ours['entries']:,}: {ours['seconds']:.1f} s and "
            f"{ours['extra_mb']:.0f} MB beyond the two models (result included), the same entries as one sort "
            f"but for ties at the least: {'yes' if same else 'no'} ({naive['seconds']:.1f} s, "
            f"{naive['extra_mb']:.0f} MB). A step of the sparse phase takes {ratio:.2f} times that of full "
            f"fine-tuning, with {best['sparse']['optimizer_mb']:.0f} MB of optimiser state instead of "
            f"{best['full']['optimizer_mb']:.0f} MB and {best['sparse']['gradient_mb']:.0f} MB of gradients instead of "
            f"{best['full']['gradient_mb']:.0f} MB; with dense masks, as in the authors' code, "
            f"{best['masked']['step_s'] / best['full']['step_s']:.2f} times and "
            f"{best['masked']['optimizer_mb']:.0f} MB."
        ),
        "choose": [{"arm": "histograms", **ours}, {"arm": "one sort", **naive}],
        "steps": [{"arm": arm, "run": i + 1, **run} for arm in arms for i, run in enumerate(runs[arm])],
        "ratio": ratio,
        "targets": {"choose_s": 10, "ratio": 1.1},
        "command": "python benchmarks/lt_sft.py",
        "machine": machine(),
        "versions": versions("torch", "transformers"),
    }
    save("benchmarks", "lt_sft", result)


if __name__ == "__main__" and not serve_part({"choose": choose, "steps": steps}):
    main()
