"""Half fine-tuning against full fine-tuning of the 135M model: seconds of a step, and optimizer state.

    python benchmarks/hft.py

One process, one thread, processor time, float32, AdamW, the same batch of 4 rows of 128 tokens for all. Full
fine-tuning is measured before and after the halves. Of each arm one step warms up, then the least of three counts.
"""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

from _common import isolated, machine, save, serve_part, versions

MODEL = "smollm2-135m-instruct"
ROWS, TOKENS, STEPS = 4, 128, 3

# arm -> arguments of HalfFineTuning; None is full fine-tuning
ARMS: dict[str, dict[str, Any] | None] = {
    "full": None,
    "HFT, draw 0": {"seed": 0},
    "HFT, draw 1": {"seed": 1},
    "HFT, draw 2": {"seed": 2},
    "HFT, balanced by numbers": {"seed": 0, "balance": "params"},
    "HFT, layers only": {"seed": 0, "train_outside": False},
    "full, again": None,
}


def measure() -> dict[str, Any]:
    """All arms, one after the other."""
    import torch

    from tunesmith.engine.models import load_model
    from tunesmith.tuners import HalfFineTuning

    torch.set_num_threads(1)
    model = load_model(MODEL, dtype="float32", device="cpu").train()
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(100, 40_000, (ROWS, TOKENS), generator=draw)
    found = {}
    for arm, arguments in ARMS.items():
        model.requires_grad_(True)
        half = None
        if arguments is not None:
            half = HalfFineTuning(model, **arguments)
            half.new_round()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-6)
        steps = [step(model, optimizer, ids) for _ in range(1 + STEPS)][1:]
        best = min(steps, key=lambda parts: sum(parts.values()))
        state = sum(v.nbytes for s in optimizer.state.values() for v in s.values() if torch.is_tensor(v))
        found[arm] = {
            "step_s": sum(best.values()),
            **best,
            "optimizer_state_mb": state / 1e6,
            "trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "parameters": model.num_parameters(),
            "layer_share": 1.0 if half is None else half.layer_share(),
        }
        optimizer.zero_grad(set_to_none=True)
    return found


def step(model: Any, optimizer: Any, ids: Any) -> dict[str, float]:
    """One step of training, in parts."""
    marks = [time.process_time()]
    loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    marks.append(time.process_time())
    loss.backward()
    marks.append(time.process_time())
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    marks.append(time.process_time())
    forward, backward, update = (b - a for a, b in pairwise(marks))
    return {"forward_s": forward, "backward_s": backward, "optimizer_s": update}


def main() -> None:
    """Run all, and save docs/benchmarks/hft.json."""
    arms = isolated(__file__, "measure", one_core=True)
    peak = arms.pop("peak_gib")
    full = min((arms["full"], arms["full, again"]), key=lambda row: row["step_s"])
    rows = [
        {
            "arm": arm,
            **row,
            "step_to_full": row["step_s"] / full["step_s"],
            "state_to_full": row["optimizer_state_mb"] / full["optimizer_state_mb"],
        }
        for arm, row in arms.items()
    ]
    draws = [row for row in rows if row["arm"].startswith("HFT, draw")]
    step_ratio = sum(row["step_to_full"] for row in draws) / len(draws)
    state_ratio = sum(row["state_to_full"] for row in draws) / len(draws)
    bare = next(row for row in rows if row["arm"] == "HFT, layers only")
    balanced = next(row for row in rows if row["arm"] == "HFT, balanced by numbers")
    inside = bare["trained"] / bare["layer_share"] / full["parameters"]
    result = {
        "title": "Half fine-tuning: step and optimizer state",
        "summary": (
            f"A step takes {step_ratio:.2f} of the full one (mean of three draws; target 0.9: "
            f"{'met' if step_ratio <= 0.9 else 'missed'}), optimizer state {state_ratio:.2f} of the full one: the "
            f"layers, {inside:.0%} of this small model, are halved ({balanced['layer_share']:.3f} with "
            f"balance='params'), and the embeddings, which the paper trains, are not. With the layers alone: step "
            f"{bare['step_to_full']:.2f}, state {bare['state_to_full']:.2f}."
        ),
        "rows": rows,
        "targets": {"step_to_full": 0.9, "state_to_full": "about half"},
        "peak_gib": peak,
        "command": "python benchmarks/hft.py",
        "machine": machine(),
        "versions": versions("torch", "transformers"),
    }
    save("benchmarks", "hft", result)


if __name__ == "__main__" and not serve_part({"measure": measure}):
    main()
