"""Learning rate and schedule of activation tuning."""

from __future__ import annotations

from statistics import median
from typing import Any

import torch

from tunesmith.audit.backdoor.encoders import DualEncoder

__all__ = ["SCHEDULES", "schedule_of", "suggested_rate"]

SCHEDULES = ("constant", "cosine", "restart")


def suggested_rate(model: DualEncoder) -> float:
    """Return a learning rate for a model's size: 0.6 times the median of rms / fan-in over the tower's matrices.

    A step of AdamW moves each weight by about the rate, and an output by that times the fan-in; so the output moves by
    a fixed share of what the weights make of it. For CLIP's widths this is near the paper's 8e-6, for the towers of our
    bench near 1e-3. Kept within [2e-6, 1e-3].

    Args:
        model: its image tower is read.
    """
    ratios = [
        float(p.detach().square().mean().sqrt()) / p[0].numel()
        for p in model.image_parameters().values()
        if p.dim() > 1
    ]
    return min(1e-3, max(2e-6, 0.6 * median(ratios))) if ratios else 2e-6


def schedule_of(optimizer: torch.optim.Optimizer, kind: str, steps: int) -> Any:
    """Return a scheduler of torch, see `ActivationTuner`.

    Args:
        optimizer: with its first rate.
        kind: one of `SCHEDULES`.
        steps: of the tuning.
    """
    if kind == "restart":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100, eta_min=1e-7)
    if kind == "cosine":
        low = optimizer.param_groups[0]["lr"] / 20
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps, eta_min=low)
    return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
