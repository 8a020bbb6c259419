"""What the recipe guide's parts cost beside training: ranking runs, and arranging 825,487 rows, against one step.

    python benchmarks/recipe_guide.py

The step is a forward and a backward pass of the 135M demo model in bfloat16 with LoRA of rank 16 on query and value,
2 x 128 tokens: the least of four. Ranked are 20 runs of 1,000 records each. Arranged are three phases of 308,343,
231,178 and 285,966 rows, the sizes of the paper's. Processor time on one thread, everything in one process.
"""

from __future__ import annotations

import time
from typing import Any

from _common import isolated, machine, save, serve_part, timed, versions

SIZES = (308_343, 231_178, 285_966)
RUNS, RECORDS = 20, 1_000


def parts() -> dict[str, Any]:
    """Time everything."""
    import numpy as np
    import torch
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model

    from tunesmith.data import phased, stacked
    from tunesmith.engine.models import load_model
    from tunesmith.trainers import rank_runs

    draw = np.random.default_rng(0)
    runs = {
        f"run {i}": [
            {
                "samples_seen": 16 * (j + 1),
                "loss": 3 - i / 40 - j / RECORDS + draw.normal() / 10,
                "grad_norm": float(np.exp(draw.normal() / 3)),
                "lr": 1e-5,
            }
            for j in range(RECORDS)
        ]
        for i in range(RUNS)
    }
    phases = [Dataset.from_dict({"id": np.arange(n)}) for n in SIZES]
    clock = time.process_time
    seconds = {
        f"rank_runs, {RUNS} runs": timed(lambda: rank_runs(runs, 16 * RECORDS), 5, clock)[0],
        "stacked": timed(lambda: stacked(phases), 3, clock)[0],
        "phased, 1 % replay": timed(lambda: phased(phases, replay=0.01), 3, clock)[0],
    }
    model = load_model("smollm2-135m-instruct", dtype="bfloat16", device="cpu")
    model = get_peft_model(model, LoraConfig(r=16, target_modules=["q_proj", "v_proj"])).train()
    ids = torch.randint(1000, 40_000, (2, 128), generator=torch.Generator().manual_seed(0))

    def step() -> None:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        model.zero_grad(set_to_none=True)

    return {"step": timed(step, 4, clock)[0], "seconds": seconds}


def main() -> None:
    """Run everything and save docs/benchmarks/recipe_guide.json."""
    found = isolated(__file__, "parts", one_core=True)
    rows = [
        {
            "part": part,
            "processor_s": round(seconds, 4),
            "time to one training step": round(seconds / found["step"], 4),
        }
        for part, seconds in found["seconds"].items()
    ]
    result = {
        "title": "The recipe guide: ranking and arranging",
        "summary": f"Ranking {RUNS} runs of {RECORDS:,} records takes {rows[0]['time to one training step']:.2f} of "
        f"one training step of the 135M model on 2 x 128 tokens; stacking {sum(SIZES):,} rows "
        f"{rows[1]['time to one training step']:.2f}, once per run.",
        "rows": rows,
        "step_s": round(found["step"], 3),
        "setting": " ".join((__doc__ or "").split("\n\n")[2].split()),
        "command": "python benchmarks/recipe_guide.py",
        "machine": machine(),
        "versions": versions("torch", "transformers", "datasets", "numpy"),
    }
    save("benchmarks", "recipe_guide", result)


if __name__ == "__main__" and not serve_part({"parts": parts}):
    main()
