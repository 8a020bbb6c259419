"""A training step of IAA against LoRA and plain (scattered) adapters with as many trained numbers, on one model.

    python benchmarks/iaa.py

The 135M demo model in bfloat16, adapters in float32, AdamW, batches of 2 x 128 tokens, no checkpointing, one thread.
Each arm runs in a process of its own, two turns in alternation; a step's time is the least processor time of its steps.
Peak memory is that of the process less what the loaded model and the libraries hold. 30 layers of width 576: per layer
an adapter r = 16 trains 19,024 numbers, LoRA r = 10 on query and value 19,200, IAA 8 inside and 8 aside 19,616, beside
both sublayers 20,752.
"""

from __future__ import annotations

import time
from typing import Any

from _common import isolated, machine, save, serve_part, versions

ARMS: dict[str, dict[str, Any]] = {
    "LoRA": {"lora": 10},
    "adapters": {"variant": "none", "r_host": 16},
    "IAA layer": {"variant": "layer", "r_host": 8, "r_aside": 8},
    "IAA sublayer": {"variant": "sublayer", "r_host": 4, "r_aside": 4},
    "IAA chain": {"variant": "chain", "r_host": 8, "r_aside": 8},
}
STEPS, ROWS, LENGTH = 4, 2, 128


def _status(name: str) -> float:
    with open("/proc/self/status", encoding="utf-8") as stream:
        return int(next(line for line in stream if line.startswith(name)).split()[1]) / 1024


def step(arm: str) -> dict[str, Any]:
    """Time and memory of training steps of one arm."""
    import torch
    from peft import LoraConfig, get_peft_model

    from tunesmith.engine.models import load_model
    from tunesmith.tuners import IAAConfig

    torch.manual_seed(0)
    model = load_model("smollm2-135m-instruct", dtype="bfloat16", device="cpu")
    settings = ARMS[arm]
    if "lora" in settings:
        config: Any = LoraConfig(r=settings["lora"], target_modules=["q_proj", "v_proj"])
    else:
        config = IAAConfig(**settings)
    model = get_peft_model(model, config).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-4)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 40_000, (ROWS, LENGTH), generator=generator)
    before, times = _status("VmRSS"), []
    for _ in range(STEPS):
        begin = time.process_time()
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        times.append(time.process_time() - begin)
    return {
        "trained": sum(p.numel() for p in trained),
        "step_s": min(times[1:]),
        "peak_mib": _status("VmHWM") - before,
    }


def main() -> None:
    """Run everything and save docs/benchmarks/iaa.json."""
    found: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
    for _ in range(2):
        for arm, results in found.items():
            results.append(isolated(__file__, "step", one_core=True, arm=arm))
    rows = [
        {
            "arm": arm,
            "trained": results[0]["trained"],
            "step_s": round(min(r["step_s"] for r in results), 3),
            "peak_mib": round(min(r["peak_mib"] for r in results)),
        }
        for arm, results in found.items()
    ]
    by_arm = {row["arm"]: row for row in rows}
    for row in rows:
        for base in ("LoRA", "adapters"):
            row[f"time to {base}"] = round(row["step_s"] / by_arm[base]["step_s"], 3)
            row[f"memory to {base}"] = round(row["peak_mib"] / by_arm[base]["peak_mib"], 3)
    parts = [
        f"{row['arm']} takes {row['time to LoRA']:.2f} times a step of LoRA and {row['time to adapters']:.2f} times "
        f"one of adapters, and {row['memory to LoRA']:.2f} and {row['memory to adapters']:.2f} times the memory"
        for row in rows
        if row["arm"].startswith("IAA")
    ]
    result = {
        "title": "IAA: a training step",
        "summary": f"At about 19,000 trained numbers per layer, {'; '.join(parts)}.",
        "rows": rows,
        "setting": " ".join((__doc__ or "").split("\n\n")[2].split()),
        "command": "python benchmarks/iaa.py",
        "machine": machine(),
        "versions": versions("torch", "transformers", "peft"),
    }
    save("benchmarks", "iaa", result)


if __name__ == "__main__" and not serve_part({"step": step}):
    main()
