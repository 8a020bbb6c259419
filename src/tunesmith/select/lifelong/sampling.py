"""Coverage-centric stratified sampling, CCS, on one score (Adapt-infinity, step 6; Zheng et al., ICLR
2023)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tunesmith.core.errors import ParameterError
from tunesmith.select.lifelong.budgets import waterfill

__all__ = ["coverage_sample"]

Indices = NDArray[np.int64]


def coverage_sample(
    values: ArrayLike,
    budget: int,
    rng: np.random.Generator | None = None,
    *,
    strata: int = 50,
    trim: float = 0.05,
    variant: str = "paper",
) -> Indices:
    """Draw rows from all strata of a score, after leaving out its extremes.

    The lowest and the highest ``trim`` of the values are left out, the rest of the range is cut into
    ``strata`` equal widths, and the budget is shared over the non-empty ones (`waterfill`, ties at random),
    so the direction of the score does not matter. Rows are drawn uniformly without replacement inside a
    stratum. If fewer rows than the budget survive, all take part; rows without a score come last, when the
    scored ones do not suffice.

    Args:
        values: ``(n,)``; NaN and infinities count as missing.
        budget: rows wanted, >= 0; more than n gives all n.
        rng: source of the draws; ``None`` takes the lowest indices of each stratum.
        strata: number of strata, >= 1.
        trim: share left out at each end, in [0, 0.5).
        variant: ``"official"`` reproduces the released code: strata from the top down, shares rounded up and
            renewed only after a stratum that was too small, the row at the low threshold left out, missing
            values as 0. The total may miss the budget.

    Returns:
        int64 distinct positions, exactly ``min(budget, n)`` of them (``"paper"``); lowest stratum first. O(n
        log n).

    Raises:
        ParameterError: a parameter outside its range.
    """
    for name, good, expected, got in (
        ("budget", budget >= 0, "an int >= 0", budget),
        ("strata", strata >= 1, "an int >= 1", strata),
        ("trim", 0 <= trim < 0.5, "a float in [0, 0.5)", trim),
    ):
        if not good:
            raise ParameterError(name, coverage_sample, expected, got)
    v = np.asarray(values, dtype=np.float64)
    if variant == "official":
        return _top_down(np.nan_to_num(v), budget, rng, strata, trim)
    scored = np.flatnonzero(np.isfinite(v))
    kept = scored[_within(v[scored], trim)]
    if len(kept) < budget:
        kept = scored
    groups = _strata(v[kept], strata)
    sizes = np.bincount(groups)
    # Equal strata take turns at random: by index the rows left over would always go to the highest scores,
    # all of them where there are fewer rows to draw than strata.
    turn = np.arange(len(sizes)) if rng is None or len(sizes) == 1 else rng.permutation(len(sizes))
    quotas = np.zeros(len(sizes), dtype=np.int64)
    quotas[turn] = waterfill(sizes[turn], budget)
    picks = [_draw(kept[groups == j], int(q), rng) for j, q in enumerate(quotas) if q]
    lacking = np.flatnonzero(~np.isfinite(v))
    missing = min(budget, len(v)) - sum(map(len, picks))
    return np.concatenate([*picks, _draw(lacking, missing, rng)])


def _within(v: NDArray[np.float64], trim: float) -> NDArray[np.bool_]:
    if not len(v):
        return np.zeros(0, dtype=np.bool_)
    low, high = np.sort(v)[[int(trim * len(v)), len(v) - 1 - int(trim * len(v))]]
    return (v >= low) & (v <= high)


def _strata(v: NDArray[np.float64], strata: int) -> Indices:
    """Return the stratum of each value, renumbered so that empty ones do not exist."""
    if not len(v):
        return np.zeros(0, dtype=np.int64)
    width = np.ptp(v)
    place = np.zeros(len(v)) if width == 0 else np.floor((v - v.min()) / width * strata)
    return np.unique(np.clip(place, 0, strata - 1), return_inverse=True)[1].astype(np.int64)


def _draw(rows: Indices, count: int, rng: np.random.Generator | None) -> Indices:
    return rows[:count] if rng is None else rng.choice(rows, size=min(count, len(rows)), replace=False)


def _top_down(
    v: NDArray[np.float64], budget: int, rng: np.random.Generator | None, strata: int, trim: float
) -> Indices:
    ordered = np.sort(v)
    low, high = ordered[int(trim * len(v))], ordered[int((1 - trim) * len(v))]
    width, top = (high - low) / strata, high
    left, share = budget, -(-budget // strata)
    picks = []
    for done in range(1, strata + 1):
        bottom = top - width
        rows = np.flatnonzero((v > bottom) & (v <= top))
        picks.append(_draw(rows, share, rng))
        left -= len(picks[-1])
        if len(rows) < share and done < strata:
            share = max(0, -(-left // (strata - done)))
        top = bottom
    return np.concatenate(picks)
