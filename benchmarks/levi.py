"""LEVI against its base alone: a forward pass; and against full fine-tuning: a training step and its memory.

    python benchmarks/levi.py        (run again until done)

Bases: the bundled MiniLM (6 layers of 384; 16 x 64 tokens), ViT-base (12 layers of 768, random weights; one image of
224 x 224), the 135M demo model in bfloat16 (30 layers of 576; 128 tokens). LEVI as by default: 4 layers, adapters of
width 256, its own view. One thread, processor time. Forward: without gradients, base and LEVI in turns in one
process, the least of five of each. Step: AdamW, a process of its own per arm, the least of four; memory is the peak
during the steps beyond what the process holds before them.
"""

from __future__ import annotations

import gc
import sys
import time
from pathlib import Path
from typing import Any

from _common import isolated, machine, save, serve_part, timed, versions

sys.path.append(str(Path(__file__).resolve().parent / "claims"))
from _parts import stretch

BASES = {"minilm": "MiniLM", "vit": "ViT-base", "demo": "135M demo model"}
STEPS = ("full fine-tuning", "LEVI, tuned base", "LEVI, LoRA", "LEVI, frozen base", "LEVI, cached features")


def load(base: str) -> tuple[Any, dict[str, Any]]:
    """Return a base and one batch."""
    import torch

    generator = torch.Generator().manual_seed(0)
    if base == "vit":
        from transformers import ViTConfig, ViTModel

        return ViTModel(ViTConfig(), add_pooling_layer=False), {
            "pixel_values": torch.randn(1, 3, 224, 224, generator=generator)
        }
    if base == "demo":
        from tunesmith.engine.models import load_model

        model = load_model("smollm2-135m-instruct", dtype="bfloat16", device="cpu").model
        ids = torch.randint(1000, 40_000, (1, 128), generator=generator)
    else:
        from transformers import BertModel

        from tunesmith.engine.models import resolve_encoder

        model = BertModel.from_pretrained(resolve_encoder("minilm"))
        ids = torch.randint(1000, 30_000, (16, 64), generator=generator)
    return model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def memory(field: str) -> float:
    """Return a line of this process's status, in MiB (Linux)."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[field].split()[0]) / 1024


def forward(base: str) -> dict[str, Any]:
    """Seconds of a pass through base and LEVI."""
    import torch

    from tunesmith.models import LEVI, LeviConfig

    plain, batch = load(base)
    model = LEVI(LeviConfig(num_labels=2), plain).eval()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    whole = sum(p.numel() for p in plain.parameters())
    times = {"base": float("inf"), "LEVI": float("inf")}
    own = {"use_cache": False} if base == "demo" else {}
    with torch.no_grad():
        for _ in range(5):
            for name, call in (("base", lambda: plain(**batch, **own)), ("LEVI", lambda: model(**batch))):
                times[name] = min(times[name], timed(call, clock=time.process_time)[0])
    return {**times, "trained": trained, "base_parameters": whole}


def step(base: str, arm: str) -> dict[str, Any]:
    """Seconds and memory of a training step."""
    import torch

    from tunesmith.models import LEVI, LeviConfig

    torch.manual_seed(0)
    plain, batch = load(base)
    batch["labels"] = torch.arange(len(next(iter(batch.values())))) % 2
    settings: dict[str, Any] = {}
    if arm in ("LEVI, tuned base", "full fine-tuning"):
        settings["freeze_base"] = False
    if arm == "full fine-tuning":  # a linear head on the mean of the last layer's tokens
        settings |= {
            "layers": [plain.config.num_hidden_layers],
            "adapter_width": 0,
            "norm": False,
            "view": "custom",
        }
    if arm == "LEVI, LoRA":
        places = ["q_proj", "v_proj"] if base == "demo" else ["query", "value"]
        settings["lora"] = {"r": 16, "target_modules": places}
    view = silent() if arm == "full fine-tuning" else None
    model = LEVI(LeviConfig(num_labels=2, view_size=1 if view else None, **settings), plain, view).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5)
    if arm == "LEVI, cached features":
        batch["layer_features"] = model.compute_layer_features(**batch)
        del model.base
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = memory("VmRSS")
    best = float("inf")
    for _ in range(4):
        begin = time.process_time()
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        best = min(best, time.process_time() - begin)
    return {"step_s": best, "trained": sum(p.numel() for p in trained), "step_mib": memory("VmHWM") - before}


def silent() -> Any:
    """Return a view that says nothing."""
    import torch

    class Silent(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return torch.zeros(len(input_ids), 1)

    return Silent()


def run(job: str) -> dict[str, Any]:
    """Run one part in a process of its own."""
    part, base, *arm = job.split(": ")
    return isolated(__file__, part, one_core=True, base=base, **({"arm": arm[0]} if arm else {}))


def main() -> None:
    """Run what is missing and save docs/benchmarks/levi.json."""
    jobs = [
        *(f"forward: {b}" for b in BASES),
        *(f"step: {b}: {arm}" for b in ("minilm", "demo") for arm in STEPS),
    ]
    found = stretch("levi-benchmark", jobs, run)
    rows, key = [], "step's memory, MiB"
    for job, result in found.items():
        part, base, *arm = job.split(": ")
        row: dict[str, Any] = {"measure": f"{part}, {BASES[base]}", "trained": result["trained"]}
        if part == "forward":
            row |= {
                "arm": "LEVI",
                "time, s": round(result["LEVI"], 3),
                "ratio": round(result["LEVI"] / result["base"], 3),
            }
            row["share of the base's parameters"] = round(result["trained"] / result["base_parameters"], 4)
        else:
            full = found[f"step: {base}: full fine-tuning"]["step_s"]
            row |= {
                "arm": arm[0],
                "time, s": round(result["step_s"], 3),
                "ratio": round(result["step_s"] / full, 3),
            }
            row[key] = round(result["step_mib"])
        rows.append(row)
    ratios = [row["ratio"] for row in rows if row["measure"].startswith("forward")]
    steps = {row["arm"]: row for row in rows if row["measure"] == "step, MiniLM"}
    frozen, cached = steps["LEVI, frozen base"], steps["LEVI, cached features"]
    save(
        "benchmarks",
        "levi",
        {
            "title": "LEVI: forward pass and training step",
            "summary": f"A forward pass takes {min(ratios):.2f} to {max(ratios):.2f} times its base's (asked for: at "
            f"most 1.3). On MiniLM a training step takes {frozen['ratio']:.2f} times one of full fine-tuning, and "
            f"{cached['ratio']:.3f} times with cached features; its memory beyond the loaded model is "
            f"{frozen[key]:,} MiB and {cached[key]:,} MiB, against {steps['full fine-tuning'][key]:,} MiB.",
            "rows": rows,
            "setting": " ".join((__doc__ or "").split("\n\n")[2].split()),
            "command": "python benchmarks/levi.py",
            "machine": machine(),
            "versions": versions("torch", "transformers", "peft"),
        },
    )


if __name__ == "__main__" and not serve_part({"forward": forward, "step": step}):
    main()
