"""Per-example gradients of the demo model: a sketch of each, against one backward pass each.

    python benchmarks/projected_gradients.py

64 rows of the demo pool under the 135M demo model in its own type. The peer makes one forward and backward pass per
row and does *nothing* with the gradient, which favours it: a dense projection of 135M numbers to 1,024 would cost a
thousand times the pass. Ours gives the sketches (and, apart, the exact norms) of the same gradients. Once for all
weights and once for LoRA adapters on all linear layers.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch

from _common import isolated, machine, save, serve_part, timed, versions

ROWS, DIM = 64, 1024


def part(lora: bool) -> dict[str, Any]:
    """All ways on the same rows and weights."""
    from tunesmith.data import read
    from tunesmith.data.preflight import encode_dataset
    from tunesmith.engine.models import load_model, load_tokenizer
    from tunesmith.numerics import ExampleGradients
    from tunesmith.tuners import peft_config

    name = "smollm2-135m-instruct"
    model, tokenizer = load_model(name), load_tokenizer(name)
    if lora:
        from peft import get_peft_model

        torch.manual_seed(0)
        model = get_peft_model(model, peft_config("lora", r=16, target_modules="all-linear"))
        for key, parameter in model.named_parameters():
            if "lora_B" in key:  # at its start B is zero, and so is the gradient of A
                torch.nn.init.normal_(parameter, std=0.01)
    pool = read("demo:messy", max_rows=ROWS).dataset
    rows = list(encode_dataset(pool, tokenizer, max_length=512)[0])
    wanted = [p for p in model.parameters() if p.requires_grad]
    gradients = ExampleGradients(model, method="batched")

    def each() -> None:
        for row in rows:
            ids, labels = (torch.tensor([row[c]]) for c in ("input_ids", "labels"))
            model(input_ids=ids, labels=labels, use_cache=False).loss.backward()
            for p in wanted:
                p.grad = None

    model.eval()
    each_s, _ = timed(each, repeats=3)
    sketch_s, sketches = timed(lambda: gradients.project(rows, dim=DIM), repeats=3)
    norm_s, norms = timed(lambda: gradients.norms(rows), repeats=3)
    loop = ExampleGradients(model, method="loop").project(rows[:8], dim=DIM)
    off = np.linalg.norm(sketches[:8] - loop, axis=1) / np.linalg.norm(loop, axis=1)
    return {
        "parameters": "LoRA, r=16, all linear layers" if lora else "all",
        "trained_numbers": sum(p.numel() for p in wanted),
        "dtype": str(model.dtype).removeprefix("torch."),
        "rows": len(rows),
        "mean_tokens": float(np.mean([len(row["input_ids"]) for row in rows])),
        "one_backward_each_s": each_s,
        "sketches_s": sketch_s,
        "norms_s": norm_s,
        "ratio_sketches": each_s / sketch_s,
        "ratio_norms": each_s / norm_s,
        "off_the_loop": float(np.median(off)),
        "squared_length_over_norm": float(np.median((sketches**2).sum(1) / norms**2)),
    }


def main() -> None:
    """Run both and save docs/benchmarks/projected_gradients.json."""
    full, lora = (isolated(__file__, "part", lora=flag) for flag in (False, True))
    result = {
        "title": "Per-example projected gradients",
        "summary": "; ".join(
            f"{row['parameters']} ({row['trained_numbers'] / 1e6:.1f}M numbers): sketches of {DIM:,} "
            f"{row['ratio_sketches']:.1f} times and exact norms {row['ratio_norms']:.1f} times faster than one "
            f"backward pass each ({row['rows']} rows of {row['mean_tokens']:.0f} tokens, "
            f"{1000 * row['sketches_s'] / row['rows']:.0f} ms a row)"
            for row in (full, lora)
        )
        + ".",
        "parts": [full, lora],
        "targets": {"ratio": 2},
        "command": "python benchmarks/projected_gradients.py",
        "machine": machine(),
        "versions": versions("torch", "transformers", "peft"),
    }
    save("benchmarks", "projected_gradients", result)


if __name__ == "__main__" and not serve_part({"part": part}):
    sys.exit(main())
