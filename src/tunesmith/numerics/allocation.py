"""Split a whole number among groups in proportion to weights."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tunesmith.core.errors import ParameterError

__all__ = ["allocate"]

# A quota this close below a whole number counts as that number: w * budget / sum(w) is exact to about 1e-16
# relative, so for budgets up to 1e6 true fractions (at least 1 / sum of integer weights) stay far above it.
_ROUND = 9


def allocate(
    weights: ArrayLike, budget: int, capacity: ArrayLike, *, owner: object = "allocate"
) -> NDArray[np.int64]:
    """Split ``budget`` among groups in proportion to ``weights``, never above ``capacity``.

    Largest remainder: each group gets the whole part of its quota ``w_j * budget / sum(w)``, and what is left
    goes to the largest fractions, the lowest index first among equals. What overflows a full group is split
    again among the groups with room, in proportion to their weights (equally when all of these are 0), until
    the whole budget is spent.

    Args:
        weights: ``(k,)``, finite and >= 0.
        budget: whole number in [0, sum of ``capacity``].
        capacity: ``(k,)`` whole numbers >= 0.
        owner: who asks, for the messages.

    Returns:
        int64 ``(k,)`` that sums to ``budget``. Time O(k log k) per split; at most k + 1 splits, usually two.

    Raises:
        ParameterError: weights negative or not finite, shapes that differ, or a budget beyond the capacity.
    """
    w = np.asarray(weights, dtype=np.float64)
    room = np.asarray(capacity, dtype=np.int64)
    if w.ndim != 1 or not np.isfinite(w).all() or (w < 0).any():
        raise ParameterError("weights", owner, "a vector of finite numbers >= 0", weights)
    if room.shape != w.shape or (room < 0).any():
        raise ParameterError("capacity", owner, f"{len(w)} whole numbers >= 0, one per weight", capacity)
    if not 0 <= budget <= room.sum():
        raise ParameterError("budget", owner, f"in [0, {room.sum()}], the sum of the capacities", budget)
    counts = np.zeros(len(w), dtype=np.int64)
    left = int(budget)
    while left:
        is_open = np.flatnonzero(counts < room)
        share = np.minimum(_largest_remainder(w[is_open], left), (room - counts)[is_open])
        counts[is_open] += share
        left -= int(share.sum())
    return counts


def _largest_remainder(weights: NDArray[np.float64], budget: int) -> NDArray[np.int64]:
    largest = weights.max()
    weights = weights / largest if largest > 0 else np.ones_like(weights)  # also keeps the sum finite
    quota = np.round(weights * budget / weights.sum(), _ROUND)
    counts = np.floor(quota).astype(np.int64)
    order = np.argsort(-np.round(quota - counts, _ROUND), kind="stable")
    missing = budget - int(counts.sum())
    counts[order[:missing]] += 1
    return counts
