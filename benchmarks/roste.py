"""RoSTE: what fake quantisation with rotations costs in training, on the real 135M model.

    python benchmarks/roste.py

One thread, processor time, float32, 2 rows of 256 tokens, W4A4KV4, loss over all positions, AdamW; every arm in a
process of its own, least of two steps. ``forward`` is the pass in training that follows an optimiser step, so the
weights are rotated and rounded anew; ``forward_cached`` the next one, with kept weights; a step is a fresh pass with
backward pass and optimiser. ``naive`` is the arithmetic of the linear layers written down plainly: each quantises its
own input, ``x + (Q(x) - x).detach()``, weights at each pass, rotations as products with the whole matrix; its cache
stays in floating point.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from _common import isolated, machine, save, serve_part, versions

ROWS, LENGTH, SAMPLES = 2, 256, 8
ARMS = ("plain", "online", "none", "folded", "naive")


def _batch(vocabulary: int, rows: int = ROWS) -> dict[str, torch.Tensor]:
    ids = torch.randint(vocabulary, (rows, LENGTH), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


class Naive(torch.nn.Module):
    """A layer of the naive arm."""

    def __init__(self, base: Any, rotation: torch.Tensor) -> None:
        super().__init__()
        self.weight, self.bias, self.R = base.weight, base.bias, rotation

    @staticmethod
    def quantised(x: torch.Tensor) -> torch.Tensor:
        """Equations 1 to 6 as they stand."""
        wide = x.float()
        s = ((wide.amax(-1, keepdim=True) - wide.amin(-1, keepdim=True)) / 15).clamp(min=1e-8)
        z = torch.round(-wide.amin(-1, keepdim=True) / s)
        q = (torch.clamp(torch.round(wide / s) + z, 0, 15) - z) * s
        return x + (q.to(x.dtype) - x).detach()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Q(X R) Q(W R)^T."""
        R = self.R.to(x.dtype)
        return torch.nn.functional.linear(self.quantised(x @ R), self.quantised(self.weight @ R), self.bias)


def measure(arm: str, steps: int) -> dict[str, Any]:
    """One arm: search, forward after a step, cached forward, whole step."""
    from tunesmith.engine.models import load_model
    from tunesmith.numerics.hadamard import RandomHadamard
    from tunesmith.tuners.roste import RosteConfig, apply_roste, roste_state

    torch.set_num_threads(1)
    model = load_model("smollm2-135m-instruct", dtype="float32", device="cpu")
    batch = _batch(model.config.vocab_size)
    search, rotated, sites = 0.0, 0, 0
    if arm == "naive":
        for name, layer in [(n, m) for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)]:
            if name != "lm_head":
                R = RandomHadamard.drawn(layer.in_features, 0).matrix(torch.float32)
                parent, _, child = name.rpartition(".")
                setattr(model.get_submodule(parent), child, Naive(layer, R))
    elif arm != "plain":
        config = RosteConfig(
            layout="folded" if arm == "folded" else "online",
            rotation="none" if arm == "none" else "adaptive",
        )
        rows = _batch(model.config.vocab_size, SAMPLES)["input_ids"]
        samples = [{"input_ids": part} for part in rows.split(ROWS)]
        begin = time.process_time()
        apply_roste(model, config, samples)
        search = time.process_time() - begin
        on = roste_state(model).rotate
        rotated, sites = sum(on.values()), len(on)
    model.train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-6)
    forward, cached, step = [], [], []
    for _ in range(steps):
        begin = time.process_time()
        model(**batch)  # its graph is dropped at once: two in memory slow the second down
        forward.append(time.process_time() - begin)
        begin = time.process_time()
        loss = model(**batch).loss
        cached.append(time.process_time() - begin)
        begin = time.process_time()
        loss.backward()
        optimiser.step()  # rounded weights are out of date from here on
        optimiser.zero_grad()
        step.append(forward[-1] + time.process_time() - begin)
    return {
        "forward_s": min(forward),
        "forward_cached_s": min(cached),
        "step_s": min(step),
        "search_s": search,
        "rotated": rotated,
        "sites": sites,
        "loss": float(loss.detach()),
    }


def summary(arms: dict[str, dict[str, Any]]) -> str:
    """Say what the ratios show."""
    online, none, folded, naive = (arms[arm] for arm in ("online", "none", "folded", "naive"))
    verdict = "met" if max(online["forward_ratio"], folded["forward_ratio"]) <= 2 else "missed"
    return (
        f"135M model, float32, {ROWS} x {LENGTH} random tokens, W4A4KV4: the forward pass after an optimiser step "
        f"takes {online['forward_ratio']:.2f} times the plain one with the {online['rotated']} of {online['sites']} "
        f"rotations that the search chose, {none['forward_ratio']:.2f} without any, {folded['forward_ratio']:.2f} in "
        f"the folded layout; the target of 2 is {verdict}. A whole step: {online['step_ratio']:.2f}, "
        f"{none['step_ratio']:.2f} and {folded['step_ratio']:.2f}. The linear layers written down plainly: forward "
        f"pass {naive['forward_ratio']:.2f}, step {naive['step_ratio']:.2f}. The search over {SAMPLES} rows of "
        f"{LENGTH} tokens takes as long as {online['search_in_plain_steps']:.1f} plain steps "
        f"({online['search_s']:.0f} s). A second pass with kept weights: {online['forward_cached_ratio']:.2f} online, "
        f"{none['forward_cached_ratio']:.2f} without rotations, {folded['forward_cached_ratio']:.2f} folded. Two steps "
        "of each arm on a machine that did other work too: differences of a tenth are noise."
    )


def main() -> None:
    """Run all arms and save docs/benchmarks/roste.json."""
    arms = {arm: isolated(__file__, "measure", one_core=True, arm=arm, steps=2) for arm in ARMS}
    plain = arms["plain"]
    for arm in arms.values():
        for part in ("forward", "forward_cached", "step"):
            arm[f"{part}_ratio"] = arm[f"{part}_s"] / plain[f"{part}_s"]
        arm["search_in_plain_steps"] = arm["search_s"] / plain["step_s"]
    result = {
        "title": "RoSTE: the price of fake quantisation in training",
        "summary": summary(arms),
        "arms": arms,
        "targets": {"forward_ratio": 2.0},
        "command": "python benchmarks/roste.py",
        "machine": machine(),
        "versions": versions("torch", "transformers"),
    }
    save("benchmarks", "roste", result)


if __name__ == "__main__" and not serve_part({"measure": measure}):
    main()
