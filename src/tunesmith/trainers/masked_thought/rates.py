"""How the mask rate rises over a training, and the learning rate that the authors use on large sets."""

from __future__ import annotations

import math

from tunesmith.core.errors import ParameterError

__all__ = ["cosine_then_linear", "mask_rate"]


def mask_rate(
    step: float,
    total_steps: float,
    p_max: float = 0.4,
    warmup: float = 2 / 3,
    start: float = 0.0,
    variant: str = "paper",
) -> float:
    """Return ``p(s) = min(p_max, p_max * s / (rho * S + 1))``, the mask rate of an optimiser step.

    Chen et al. 2024 (arXiv 2403.02178), section 3.2: a large rate needs the warm-up, a small one works without.

    Args:
        step: s, finished optimiser steps, 0 in the first.
        total_steps: S, optimiser steps of the training.
        p_max: rate after the warm-up, in [0, 1].
        warmup: rho, share of the steps in which the rate rises; 0 gives ``p_max`` from ``start`` on.
        start: share of the steps before the rise, with rate 0 (an option of the authors' that the paper does not use).
        variant: ``"official"`` leaves out the + 1, as the authors' collators for MetaMath and MAmmoTH do; those count
            the calls of one process, 1 in the first.

    Returns:
        A rate in [0, p_max], not falling with the step.

    Raises:
        ParameterError: a value is outside its set.
    """
    for name, value in (("p_max", p_max), ("warmup", warmup), ("start", start)):
        if not 0 <= value <= 1:
            raise ParameterError(name, mask_rate, "a float in [0, 1]", value)
    if variant not in ("paper", "official"):
        raise ParameterError("variant", mask_rate, "'paper' or 'official'", variant)
    since = step - start * total_steps
    if since < 0:
        return 0.0
    if warmup == 0:
        return float(p_max)
    return min(p_max, p_max * since / (warmup * total_steps + (variant == "paper")))


def cosine_then_linear(
    step: int, total_steps: int, warmup_steps: int = 0, min_ratio: float = 0.05, decay_until: float = 0.6
) -> float:
    """Return the factor of the learning rate in the authors' runs on MetaMath and MAmmoTH.

    It rises over ``warmup_steps``, falls as a cosine to ``min_ratio`` at the share ``decay_until`` of the steps, and
    then in a line to 0. For ``torch.optim.lr_scheduler.LambdaLR``.

    Args:
        step: finished optimiser steps.
        total_steps: of the training.
        warmup_steps: of the learning rate, fewer than ``decay_until * total_steps``.
        min_ratio: where the cosine ends, in [0, 1].
        decay_until: share of the steps at which it does, in (0, 1).
    """
    if step < warmup_steps:
        return step / warmup_steps
    turn = decay_until * total_steps
    if step <= turn:
        share = (step - warmup_steps) / (turn - warmup_steps)
        return min_ratio + (1 - min_ratio) * 0.5 * (1 + math.cos(math.pi * share))
    return min_ratio * max(0.0, (total_steps - step) / (total_steps - turn))
