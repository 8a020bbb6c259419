"""The statistics of drift, each usable alone: stability index, Kolmogorov-Smirnov, kernel two-sample test.

PSI and its limits are those of arXiv 2408.13296, stage 7, as commonly used; MMD is Gretton, Borgwardt, Rasch,
Schölkopf, Smola, "A Kernel Two-Sample Test", JMLR 13 (2012), equation 3.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tunesmith.core.errors import DataError, ParameterError
from tunesmith.core.seeds import child_seed

__all__ = [
    "ALERT",
    "WARN",
    "KernelTest",
    "bin_edges",
    "gaussian_kernel",
    "kernel_two_sample",
    "kolmogorov_smirnov",
    "median_distance",
    "mmd2_unbiased",
    "population_stability_index",
    "psi",
    "psi_of_counts",
]

WARN, ALERT = 0.1, 0.25
"""The customary fixed limits of PSI. Without any drift its mean is about (B - 1) (1 / n_window + 1 / n_reference)."""
FLOOR = 1e-4
_MEDIAN_ROWS = 1_000  # enough for a median of distances to three digits
_CHUNK = 4_096

Array = NDArray[np.float64]


def psi(expected: ArrayLike, actual: ArrayLike) -> float:
    """Return the population stability index of two histograms: sum over bins of (a - e) ln(a / e).

    Counts are turned into shares; shares are floored at 1e-4 and renormalised. Symmetric in its arguments, 0 for equal
    shares alone. Customary limits: 0.1 look, 0.25 act (`WARN`, `ALERT`); they hold for windows of at least some 200
    rows.

    Args:
        expected: (B,) counts or shares of the reference.
        actual: (B,) counts or shares of the window, bins in the same order.

    Raises:
        ParameterError: shapes differ, a value is negative or not finite, or a histogram is empty.
    """
    e, a = (np.asarray(values, dtype=np.float64) for values in (expected, actual))
    if e.ndim != 1 or e.shape != a.shape or not e.size:
        raise ParameterError(
            "actual", psi, f"of the shape of expected, {e.shape}, one value per bin", a.shape
        )
    for name, values in (("expected", e), ("actual", a)):
        if not np.isfinite(values).all() or (values < 0).any() or values.sum() <= 0:
            raise ParameterError(
                name, psi, "finite and >= 0 in each bin, with a sum above 0", values.tolist()
            )
    return float(psi_of_counts(e, a))


def psi_of_counts(expected: Array, actual: Array) -> Any:
    """Return the index over the last axis of counts or shares (..., B) that need no check.

    A bin that is empty in both takes no part.
    """
    used = (expected + actual) > 0
    e, a = _shares(expected, used), _shares(actual, used)
    return ((a - e) * np.log(np.where(used, a, 1) / np.where(used, e, 1))).sum(axis=-1)


def _shares(counts: Array, used: NDArray[np.bool_]) -> Array:
    shares = np.where(used, np.maximum(counts / counts.sum(axis=-1, keepdims=True), FLOOR), 0)
    return np.asarray(shares / shares.sum(axis=-1, keepdims=True))


def bin_edges(reference: ArrayLike, bins: int = 10) -> Array:
    """Return the inner edges of the bins: the reference's quantiles 1/bins ... (bins - 1)/bins, equal ones once.

    A reference of at most ``bins`` distinct values gets a bin for each of them, with edges halfway between, so that
    flags and small counts are compared value by value. The bin of x is the number of edges below it:
    ``np.searchsorted(edges, x)``.

    Args:
        reference: (n,) finite.
        bins: B >= 2.

    Returns:
        At most B - 1 increasing edges (one more for the two open ends of few distinct values).
    """
    values = np.asarray(reference, dtype=np.float64)
    distinct = np.unique(values[: 50 * bins])
    if len(distinct) <= bins and len(distinct := np.unique(values)) <= bins:
        # and a bin on either side for what the reference never shows
        apart = 0.5 * np.diff(distinct).min() if len(distinct) > 1 else 0.5 * max(1.0, abs(distinct[0]))
        middle = distinct[:-1] + 0.5 * np.diff(distinct)
        return np.concatenate([[distinct[0] - apart], middle, [distinct[-1] + apart]])
    return np.unique(np.quantile(values, np.arange(1, bins) / bins))


def population_stability_index(reference: ArrayLike, window: ArrayLike, bins: int = 10) -> float:
    """Return the `psi` of two samples, over bins whose edges are the reference's deciles (see `bin_edges`).

    Invariant under the order of the rows, and, but for rounding, under increasing maps of both samples. Without drift
    its mean is about (B - 1)(1/m + 1/n): 0.05 for 200 rows against a large reference, 0.2 for 50. Time
    O((n + m) log n), memory O(n + m).

    Args:
        reference: (n,) numbers.
        window: (m,) numbers.
        bins: B >= 2.

    Raises:
        ParameterError: ``bins`` is below 2.
        DataError: a sample is empty or not finite.
    """
    if isinstance(bins, bool) or not isinstance(bins, int) or bins < 2:
        raise ParameterError("bins", population_stability_index, "an int >= 2", bins)
    x, y = _sample(reference, "reference"), _sample(window, "window")
    edges = bin_edges(x, bins)
    counts = [np.bincount(np.searchsorted(edges, v), minlength=len(edges) + 1).astype(float) for v in (x, y)]
    return float(psi_of_counts(counts[0], counts[1]))


def kolmogorov_smirnov(reference: ArrayLike, window: ArrayLike) -> tuple[float, float]:
    """Return the largest distance of the two empirical distribution functions and its two-sided p-value (SciPy's).

    The p-value is too large where values are tied (flags, counts). Time O((n + m) log(n + m)).

    Raises:
        DataError: a sample is empty or not finite.
    """
    from scipy.stats import ks_2samp

    found = ks_2samp(_sample(reference, "reference"), _sample(window, "window"))
    return float(found.statistic), float(found.pvalue)


class KernelTest(NamedTuple):
    """Result of `kernel_two_sample`."""

    statistic: float
    """Unbiased estimate of the squared discrepancy; may be negative."""
    p_value: float
    bandwidth: float
    n_reference: int
    """Rows of the reference that were used."""


def kernel_two_sample(
    reference: ArrayLike,
    window: ArrayLike,
    *,
    bandwidth: float | None = None,
    n_permutations: int = 399,
    max_reference: int = 2_000,
    random_state: int = 0,
) -> KernelTest:
    """Test whether two sets of vectors come from one distribution, by the unbiased MMD^2 with a Gaussian kernel.

    The p-value counts permutations of the pooled rows and is exact: P(p <= a) <= a without drift. At most
    ``max_reference`` rows of the reference, drawn at random, take part: N = that + m. Time O(N^2 (d + permutations)),
    memory O(N^2): 18 MB for 2,000 + 250 rows, however large the reference.

    Args:
        reference: (n, d), or (n,) numbers; a memory map is not copied as a whole.
        window: (m, d).
        bandwidth: sigma of exp(-|x - y|^2 / (2 sigma^2)); None: the median distance within the reference.
        n_permutations: B; the smallest p-value is 1 / (B + 1).
        max_reference: most rows of the reference.
        random_state: seed of rows and permutations.

    Raises:
        ParameterError: a parameter is out of range.
        DataError: fewer than 2 rows, other widths, or a value that is not finite.
    """
    from tunesmith.audit.drift.replays import KernelPart, memberships, p_value

    for name, value, least in (("n_permutations", n_permutations, 1), ("max_reference", max_reference, 2)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ParameterError(name, kernel_two_sample, f"an int >= {least}", value)
    X, Y = _rows(reference, "reference"), _rows(window, "window", finite=True)
    if X.shape[1] != Y.shape[1]:
        raise DataError(f"the window has rows of {Y.shape[1]} numbers, the reference of {X.shape[1]}.")
    rng = np.random.default_rng(child_seed(random_state, "kernel-rows"))
    if len(X) > max_reference:
        X = X[np.sort(rng.choice(len(X), max_reference, replace=False))]
    X = _rows(X, "reference", finite=True)
    width = median_distance(X, random_state) if bandwidth is None else _positive(bandwidth)
    members = memberships(len(X), len(Y), n_permutations, child_seed(random_state, "permutations"))
    values = KernelPart(X, width, members).statistics(Y)
    return KernelTest(float(values[0]), p_value(values), width, len(X))


def mmd2_unbiased(X: ArrayLike, Y: ArrayLike, bandwidth: float) -> float:
    """Return the unbiased estimate of MMD^2: means of k over distinct pairs of X and of Y, less twice that across.

    Chunked: time O((n + m)^2 d), memory O((n + m) d + 4,096 max(n, m)), no n x n matrix.

    Args:
        X: (n, d), n >= 2.
        Y: (m, d), m >= 2.
        bandwidth: sigma > 0.

    Raises:
        ParameterError: ``bandwidth`` is not positive.
        DataError: fewer than 2 rows, other widths, or a value that is not finite.
    """
    A, B = _rows(X, "X", finite=True), _rows(Y, "Y", finite=True)
    if A.shape[1] != B.shape[1]:
        raise DataError(f"Y has rows of {B.shape[1]} numbers, X of {A.shape[1]}.")
    sigma = _positive(bandwidth)

    def total(P: NDArray[Any], Q: NDArray[Any]) -> float:
        chunks = range(0, len(P), _CHUNK)
        return sum(float(gaussian_kernel(P[i : i + _CHUNK], Q, sigma).sum(dtype=np.float64)) for i in chunks)

    n, m = len(A), len(B)
    within = (total(A, A) - n) / (n * (n - 1)) + (total(B, B) - m) / (m * (m - 1))
    return within - 2 * total(A, B) / (n * m)


def gaussian_kernel(X: NDArray[Any], Y: NDArray[Any], bandwidth: float) -> NDArray[Any]:
    """Return exp(-|x - y|^2 / (2 sigma^2)), (n, m), in the dtype of the rows; equal rows give 1."""
    squared = (X**2).sum(axis=1)[:, None] + (Y**2).sum(axis=1)[None, :] - 2 * (X @ Y.T)
    return np.exp(np.maximum(squared, 0, out=squared) * (-0.5 / bandwidth**2))


def median_distance(X: NDArray[Any], random_state: int = 0) -> float:
    """Return the median distance of distinct rows (of at most 1,000 drawn ones); 1 where all rows are equal."""
    from scipy.spatial.distance import pdist

    if len(X) > _MEDIAN_ROWS:
        rng = np.random.default_rng(child_seed(random_state, "bandwidth"))
        X = X[np.sort(rng.choice(len(X), _MEDIAN_ROWS, replace=False))]
    distances = pdist(np.asarray(X, dtype=np.float64))
    distances = distances[distances > 0]
    return float(np.median(distances)) if len(distances) else 1.0


def _positive(bandwidth: float) -> float:
    if isinstance(bandwidth, bool) or not isinstance(bandwidth, (int, float)) or not 0 < bandwidth < math.inf:
        raise ParameterError("bandwidth", "mmd2_unbiased", "a finite number > 0", bandwidth)
    return float(bandwidth)


def _sample(values: ArrayLike, name: str) -> Array:
    found = np.asarray(values, dtype=np.float64)
    if found.ndim != 1 or not found.size:
        raise DataError(f"the {name} must be a row of at least one number; its shape is {found.shape}.")
    if not np.isfinite(found).all():
        first = int(np.flatnonzero(~np.isfinite(found))[0])
        raise DataError(f"the {name} has a value that is not finite.", row=first)
    return found


def _rows(values: ArrayLike, name: str, finite: bool = False) -> NDArray[Any]:
    found = np.asarray(values)
    if found.dtype != np.float32:
        found = found.astype(np.float64)
    if found.ndim == 1:
        found = found[:, None]
    if found.ndim != 2 or len(found) < 2:
        raise DataError(f"the {name} must have at least two rows of numbers; its shape is {found.shape}.")
    if finite and not np.isfinite(found).all():
        first = int(np.flatnonzero(~np.isfinite(found).all(axis=1))[0])
        raise DataError(f"the {name} has a value that is not finite.", row=first)
    return found
