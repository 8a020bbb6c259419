"""Which scorer ranks a cluster: the one whose values are spread most evenly there (Adapt-infinity, step
4)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tunesmith.core.errors import ParameterError

__all__ = ["choose_scorer", "histogram_entropy"]


def histogram_entropy(values: ArrayLike, bins: int = 50, *, variant: str = "paper") -> float:
    """Return the entropy in bits of a histogram of the standardised values.

    Values are z-scored (missing ones left out), counted in ``bins`` equal bins on [-4, 4] with outliers in
    the end bins, and ``H = -sum p log2 p``. It does not depend on the scorer's scale: H(a x + b) = H(x) for a
    > 0, up to values within rounding of a bin's edge.

    Args:
        values: ``(n,)``; NaN and infinities count as missing.
        bins: number of bins; below a fifth of n, or H says more about n than about the values.
        variant: ``"official"`` reproduces the released code: ``bins`` *edges* at +-4 times the original
            standard deviation, missing values as 0, outliers dropped, empty bins at machine epsilon.

    Returns:
        H in [0, log2(bins)]; 0 for constant values and for none. O(n).

    Raises:
        ParameterError: ``bins`` below 2; ``"official"`` where its own arithmetic divides by zero.
    """
    if bins < 2:
        raise ParameterError("bins", histogram_entropy, "an int >= 2", bins)
    v = np.asarray(values, dtype=np.float64)
    if variant == "official":
        return _official(v, bins)
    v = v[np.isfinite(v)]
    # A range within rounding of the values' size is a constant that went through arithmetic.
    if not len(v) or np.ptp(v) <= 8 * np.finfo(np.float64).eps * np.abs(v).max():
        return 0.0
    v = v / np.abs(v).max()  # so that squares of very large or small scores stay finite
    z = (v - v.mean()) / v.std()
    place = np.clip(np.floor((z + 4) * (bins / 8)), 0, bins - 1).astype(np.int64)
    counts = np.bincount(place, minlength=bins)
    p = counts[counts > 0] / len(v)
    return float(max(0.0, -(p * np.log2(p)).sum()))


def _official(v: NDArray[np.float64], edges: int) -> float:
    v = np.nan_to_num(v)
    deviation = v.std()
    if deviation == 0:
        raise ParameterError(
            "values", histogram_entropy, "not constant with variant='official'", v[:3].tolist()
        )
    z = (v - v.mean()) / deviation
    bounds = np.linspace(-4 * deviation, 4 * deviation, edges)
    place = np.searchsorted(bounds, z, side="left") - 1  # open below, closed above
    counts = np.bincount(place[(place >= 0) & (place < edges - 1)], minlength=edges - 1)
    if not counts.sum():
        raise ParameterError(
            "values", histogram_entropy, "within the bins with variant='official'", v[:3].tolist()
        )
    p = counts / counts.sum()
    p = np.where(p == 0, np.finfo(np.float64).eps, p)
    return float(-(p * np.log2(p)).sum())


def choose_scorer(
    scores: Mapping[str, ArrayLike],
    rows: ArrayLike | None = None,
    *,
    bins: int = 50,
    variant: str = "paper",
) -> tuple[str | None, dict[str, float]]:
    """Return the scorer with the largest entropy among ``rows``, and the entropy of each.

    Args:
        scores: name -> ``(n,)``; the first of equals wins. A scorer that is missing (NaN) for most of the
            rows does not take part there: image grounding, where most rows are text only.
        rows: indices of the cluster's rows; all by default.
        bins: as in `histogram_entropy`.
        variant: as in `histogram_entropy`.

    Returns:
        The name (``None`` where every scorer is mostly missing), and name -> bits.
    """
    entropy: dict[str, float] = {}
    for name, values in scores.items():
        v = np.asarray(values, dtype=np.float64)
        v = v if rows is None else v[np.asarray(rows)]
        if 2 * np.isfinite(v).sum() > len(v):
            entropy[name] = histogram_entropy(v, bins, variant=variant)
    return (max(entropy, key=entropy.__getitem__) if entropy else None), entropy
