"""A training step of MoSA against one of LoRA with as many trained numbers, and both with two passes, on one model.

    python benchmarks/mosa.py

The 135M demo model in bfloat16, adapters in float32 on query and value of all 30 layers, rank 16, AdamW, batches of
2 x 128 tokens, no checkpointing, one thread. Each arm runs in a process of its own, two turns in alternation; a step's
time is the least processor time of its steps. Two passes add the consistency loss over all logits.
"""

from __future__ import annotations

import time
from typing import Any

from _common import isolated, machine, save, serve_part, versions

ARMS = ("LoRA", "MoSA", "LoRA, two passes", "MoSA, two passes")
STEPS, ROWS, LENGTH = 4, 2, 128


def step(arm: str) -> dict[str, Any]:
    """Time of training steps of one arm."""
    import torch
    from peft import LoraConfig, get_peft_model

    from tunesmith.engine.models import load_model
    from tunesmith.trainers import consistency_loss
    from tunesmith.tuners import MosaConfig

    torch.manual_seed(0)
    model = load_model("smollm2-135m-instruct", dtype="bfloat16", device="cpu")
    places = ["q_proj", "v_proj"]
    config: Any = LoraConfig(r=16, lora_alpha=16, target_modules=places)
    if arm.startswith("MoSA"):
        config = MosaConfig(r=16, num_parts=4, target_modules=places)
    model = get_peft_model(model, config).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-4)
    ids = torch.randint(1000, 40_000, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
    times = []
    for _ in range(STEPS):
        begin = time.process_time()
        first = model(input_ids=ids, labels=ids, use_cache=False)
        loss = first.loss
        if "two" in arm:
            second = model(input_ids=ids, use_cache=False)
            loss = loss + consistency_loss(first.logits[:, :-1], second.logits[:, :-1])
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        times.append(time.process_time() - begin)
    return {"trained": sum(p.numel() for p in trained), "step_s": min(times[1:])}


def main() -> None:
    """Run everything and save docs/benchmarks/mosa.json."""
    found: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
    for _ in range(2):
        for arm, results in found.items():
            results.append(isolated(__file__, "step", one_core=True, arm=arm))
    rows = [
        {
            "arm": arm,
            "trained": results[0]["trained"],
            "step_s": round(min(r["step_s"] for r in results), 3),
        }
        for arm, results in found.items()
    ]
    base = rows[0]["step_s"]
    for row in rows:
        row["time to LoRA"] = round(row["step_s"] / base, 3)
    ratio = {row["arm"]: row["time to LoRA"] for row in rows}
    result = {
        "title": "MoSA: a training step",
        "summary": f"At {rows[1]['trained']:,} trained numbers (LoRA {rows[0]['trained']:,}), a step of MoSA with one "
        f"pass takes {ratio['MoSA']:.2f} times a step of LoRA; with two passes and the consistency loss "
        f"{ratio['MoSA, two passes']:.2f} times, as LoRA with two passes takes {ratio['LoRA, two passes']:.2f} times.",
        "rows": rows,
        "setting": " ".join((__doc__ or "").split("\n\n")[2].split()),
        "command": "python benchmarks/mosa.py",
        "machine": machine(),
        "versions": versions("torch", "transformers", "peft"),
    }
    save("benchmarks", "mosa", result)


if __name__ == "__main__" and not serve_part({"step": step}):
    main()
