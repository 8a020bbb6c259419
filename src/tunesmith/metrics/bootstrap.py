"""Intervals for the difference of two methods that were scored on the same items."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tunesmith.core.errors import ParameterError

__all__ = ["paired_bootstrap"]

BLOCK = 4_000_000  # resampled item counts held at once: 32 MB


def paired_bootstrap(
    a: ArrayLike, b: ArrayLike, n_resamples: int = 10_000, seed: int = 0, alpha: float = 0.05
) -> dict[str, Any]:
    """Return the mean difference ``a - b`` with its percentile interval (Efron and Tibshirani 1993, chapter
    13).

    Items are resampled with their pairs intact. Given several seeds, as (seeds, items), each resample draws
    items and, independently, seeds, both with replacement: every seed was scored on the same items, so the
    two are crossed. Two or three seeds say little about the spread between seeds, and the interval cannot say
    more than they do.

    The p-value is two-sided for "no difference": the share of resamples that lie at least as far from the
    observed difference as that lies from 0, with one added above and below (Davison and Hinkley 1997, section
    4.4), so it is never 0. Time O(resamples x items); memory 32 MB.

    Args:
        a: (items,) or (seeds, items) scores.
        b: scores of the same shape, on the same items.
        n_resamples: resamples, at least 100.
        seed: of the resampling.
        alpha: 1 - coverage, in (0, 1).

    Returns:
        ``delta``, ``low``, ``high``, ``p_value``, ``n`` (items) and ``n_seeds``.

    Raises:
        ParameterError: shapes differ, there is no item, a score is not finite, or a parameter is out of
            range.
    """
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if x.shape != y.shape or x.ndim not in (1, 2) or x.size == 0:
        raise ParameterError(
            "b", paired_bootstrap, f"of the shape of a, (items,) or (seeds, items): {x.shape}", y.shape
        )
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ParameterError("a", paired_bootstrap, "finite in each score, as must b", "NaN or infinity")
    if n_resamples < 100:
        raise ParameterError("n_resamples", paired_bootstrap, "an int of at least 100", n_resamples)
    if not 0 < alpha < 1:
        raise ParameterError("alpha", paired_bootstrap, "a float in (0, 1)", alpha)
    difference = np.atleast_2d(x - y)
    delta = float(difference.mean())
    draws = _resampled(difference, n_resamples, np.random.default_rng(seed))
    low, high = np.quantile(draws, [alpha / 2, 1 - alpha / 2])
    # Sums over resampled items round in another order than the mean, so ties are compared with some slack.
    slack = 1e-12 * max(1.0, float(np.abs(difference).max()))
    extreme = int((np.abs(draws - delta) >= abs(delta) - slack).sum())
    return {
        "delta": delta,
        "low": float(low),
        "high": float(high),
        "p_value": (1 + extreme) / (1 + n_resamples),
        "n": difference.shape[1],
        "n_seeds": difference.shape[0],
    }


def _resampled(difference: NDArray[np.float64], count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return ``count`` means over resampled seeds and items, from how often each is drawn."""
    seeds, items = difference.shape
    block = max(1, BLOCK // items)
    out = np.empty(count)
    for begin in range(0, count, block):
        size = min(block, count - begin)
        drawn = rng.multinomial(items, np.full(items, 1 / items), size=size)
        by_seed = drawn @ difference.T / items
        weights = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=size) / seeds
        out[begin : begin + size] = (by_seed * weights).sum(axis=1)
    return out
