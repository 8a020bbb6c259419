"""How many rows each cluster gets (Adapt-infinity, step 5)."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tunesmith.core.errors import ParameterError
from tunesmith.numerics.allocation import allocate

__all__ = ["density_quota", "spread_quota", "waterfill"]


def waterfill(sizes: ArrayLike, budget: int, *, variant: str = "paper") -> NDArray[np.int64]:
    """Share a budget equally among groups, none above its size.

    Groups are visited from the smallest to the largest (ties: lowest index first), each taking
    ``min(size, floor(what is left / groups left))``. Sizes (10, 50, 100) and 90 give (10, 40, 40).

    Args:
        sizes: ``(k,)`` rows per group, >= 0.
        budget: rows wanted, >= 0.
        variant: ``"official"`` reproduces the released code: shares are rounded up, a group's excess is
            spread over the rest, and the sum can exceed the budget.

    Returns:
        int64 ``(k,)`` summing to ``min(budget, sum(sizes))`` (``"paper"``). O(k log k).

    Raises:
        ParameterError: a negative number, or ``"official"`` with a budget it cannot place (it divides by zero
            there).
    """
    counts = np.asarray(sizes, dtype=np.int64)
    if counts.ndim != 1 or (counts < 0).any():
        raise ParameterError("sizes", waterfill, "a vector of whole numbers >= 0", sizes)
    if budget < 0:
        raise ParameterError("budget", waterfill, "an int >= 0", budget)
    order = np.argsort(counts, kind="stable")
    out = np.zeros(len(counts), dtype=np.int64)
    if variant == "official":
        return _official(counts, order, budget, out)
    left = int(budget)
    for visited, group in enumerate(order):
        out[group] = min(int(counts[group]), left // (len(order) - visited))
        left -= int(out[group])
    return out


def _official(
    counts: NDArray[np.int64], order: NDArray[np.int64], budget: int, out: NDArray[np.int64]
) -> NDArray[np.int64]:
    share = -(-budget // max(len(order), 1))
    for visited, group in enumerate(order):
        size, after = int(counts[group]), len(order) - visited - 1
        out[group] = min(size, share)
        if size < share:
            if after == 0:
                raise ParameterError("budget", waterfill, f"at most {counts.sum()}, the pool's size", budget)
            # Fraction: the released float arithmetic is exact at these sizes, and so is this.
            share = math.ceil(share + Fraction(share - size, after))
    return out


def spread_quota(values: ArrayLike, labels: ArrayLike, k: int, budget: int) -> NDArray[np.int64]:
    """Share a budget in proportion to the (population) standard deviation of a score inside each cluster.

    The released code's option ``score_weighted`` with EL2N, made exact: it truncates and under-fills.

    Args:
        values: ``(n,)`` score per row; NaN is left out.
        labels: ``(n,)`` cluster of each row in [0, k).
        k: clusters.
        budget: in [0, n].

    Returns:
        int64 ``(k,)`` summing to ``budget``.
    """
    v, group = np.asarray(values, dtype=np.float64), np.asarray(labels, dtype=np.int64)
    deviation = np.zeros(k)
    for cluster in range(k):
        inside = v[(group == cluster) & np.isfinite(v)]
        deviation[cluster] = inside.std() if len(inside) else 0.0
    return allocate(deviation, budget, np.bincount(group, minlength=k))


def density_quota(
    features: ArrayLike, labels: ArrayLike, centers: ArrayLike, *, variant: str = "paper"
) -> NDArray[np.float64]:
    """Return shares in proportion to a cluster's spread times its distance from the other clusters.

    The released code's option ``dbp`` (density-based pruning): mean distance of its rows to the centre, times
    mean distance of the centre to the other centres.

    Args:
        features: ``(n, p)``.
        labels: ``(n,)`` cluster of each row in [0, k).
        centers: ``(k, p)``.
        variant: ``"official"`` takes the Frobenius norm of the differences to all centres instead of their
            mean.

    Returns:
        float64 ``(k,)`` summing to 1.
    """
    x, c = np.asarray(features, dtype=np.float64), np.asarray(centers, dtype=np.float64)
    group = np.asarray(labels, dtype=np.int64)
    distance = np.linalg.norm(x - c[group], axis=1)
    rows = np.bincount(group, minlength=len(c))
    spread = np.bincount(group, weights=distance, minlength=len(c)) / np.maximum(rows, 1)
    apart = np.linalg.norm(c[:, None] - c[None], axis=2)
    separation = np.linalg.norm(apart, axis=1) if variant == "official" else apart.sum(1) / max(len(c) - 1, 1)
    weight = spread * separation
    total = weight.sum()
    return weight / total if total > 0 else np.full(len(c), 1 / len(c))
