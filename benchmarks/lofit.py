"""LoFiT's step against LoRA's and against the naive form, on the 135M demo model and one batch.

    python benchmarks/lofit.py

Four rows of 64 tokens, float32 and bfloat16 bases with float32 adapters, forward, backward and an AdamW step. The arms
take turns; each figure is the least of nine rounds after one that warms up, in processor time of one thread. LoRA has
r = 8 on the query and value projections, the paper's comparison. The naive form is that of the authors' code: a scale
and an offset on every head of every layer in the forward pass, those of the heads that were not chosen held at 0 by a
mask.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from _common import isolated, machine, save, serve_part, versions

MODEL = "smollm2-135m-instruct"
ROWS, TOKENS, ROUNDS, TENTH = 4, 64, 9, 27


def heads(lowest: int) -> list[list[int]]:
    """A tenth of the heads, spread over the layers from ``lowest`` on."""
    layers = range(lowest, 30)
    return [[layers[i % len(layers)], i // len(layers)] for i in range(TENTH)]


def naive(model: Any) -> list[Any]:
    """Put ``(1 + A) z + v`` before every output projection, with a mask over the heads; return v's."""
    import torch

    chosen = {tuple(pair) for pair in heads(0)}
    kept = []
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for i, block in enumerate(model.model.layers):
        mask = torch.tensor([[float((i, head) in chosen)] for head in range(9)]).expand(9, 64).reshape(-1)
        A, v = torch.zeros(576), torch.nn.Parameter(1e-3 * torch.randn(576))
        block.self_attn.o_proj.register_forward_pre_hook(
            lambda _, x, A=A, v=v, mask=mask: ((1 + A * mask) * x[0] + v * mask).to(x[0].dtype)
        )
        kept.append(v)
    return kept


def arm(name: str, dtype: str) -> tuple[Any, list[Any]]:
    """Return the model and what is trained."""
    import torch
    from peft import LoraConfig, get_peft_model

    from tunesmith.engine.models import load_model
    from tunesmith.tuners import LofitConfig

    torch.manual_seed(0)
    model = load_model(MODEL, dtype=dtype)
    if name == "naive":
        return model, naive(model)
    configs = {
        "LoRA": LoraConfig(r=8, target_modules=["q_proj", "v_proj"]),
        "LoFiT, 27 heads in all layers": LofitConfig(heads=heads(0)),
        "LoFiT, 27 heads in the upper third": LofitConfig(heads=heads(20)),
        "LoFiT, all 270 heads": LofitConfig(),
        "head selection": LofitConfig(stage="select"),
    }
    model = get_peft_model(model, configs[name])
    return model, [p for p in model.parameters() if p.requires_grad]


ARMS = (
    "LoRA",
    "LoFiT, 27 heads in all layers",
    "LoFiT, 27 heads in the upper third",
    "LoFiT, all 270 heads",
    "head selection",
    "naive",
)


def measure(dtype: str) -> dict[str, Any]:
    """All arms in one process, in turns."""
    import torch

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(100, 40_000, (ROWS, TOKENS), generator=generator)
    steps: dict[str, Callable[[], None]] = {}
    parameters = {}
    for name in ARMS:
        model, trained = arm(name, dtype)
        parameters[name] = sum(p.numel() for p in trained)
        optimizer = torch.optim.AdamW(trained, lr=1e-3)

        def step(model: Any = model, optimizer: Any = optimizer) -> None:
            model.train()
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        steps[name] = step
    times: dict[str, list[float]] = {name: [] for name in ARMS}
    for _ in range(ROUNDS + 1):
        for name, step in steps.items():
            begin = time.process_time()
            step()
            times[name].append(time.process_time() - begin)
    return {
        "dtype": dtype,
        "arms": {
            name: {
                "parameters": 27 * 64 if name == "naive" else parameters[name],
                "step_s": min(values[1:]),
                "ratio_to_lora": min(values[1:]) / min(times["LoRA"][1:]),
            }
            for name, values in times.items()
        },
    }


def main() -> None:
    """Run both types and save docs/benchmarks/lofit.json."""
    runs = [isolated(__file__, "measure", one_core=True, dtype=dtype) for dtype in ("float32", "bfloat16")]
    lora = runs[0]["arms"]["LoRA"]["parameters"]

    def span(name: str) -> str:
        values = sorted(run["arms"][name]["ratio_to_lora"] for run in runs)
        return f"{values[0]:.2f} to {values[-1]:.2f}"

    worst, upper, every = ARMS[1:4]
    share = {name: lora / runs[0]["arms"][name]["parameters"] for name in ARMS}
    met = all(run["arms"][name]["ratio_to_lora"] <= 1 for run in runs for name in (worst, every))
    result = {
        "title": "LoFiT: a training step against LoRA's",
        "summary": (
            f"Time of a step relative to LoRA (r = 8, query and value), float32 and bfloat16: {span(worst)} with a "
            f"tenth of the heads spread over all layers (1/{share[worst]:.0f} of LoRA's parameters), {span(upper)} "
            f"with them in the upper third, where backward ends there, {span(every)} with all heads "
            f"(1/{share[every]:.0f}). Head selection: {span('head selection')}. The naive form: {span('naive')}. "
            f"Target of at most 1.0 with at most 1/20 of the parameters: {'met' if met else 'missed'}."
        ),
        "runs": runs,
        "targets": {"ratio_to_lora": 1.0, "share_of_parameters": 0.05},
        "command": "python benchmarks/lofit.py",
        "machine": machine(),
        "versions": versions("torch", "transformers", "peft"),
    }
    save("benchmarks", "lofit", result)


if __name__ == "__main__" and not serve_part({"measure": measure}):
    main()
