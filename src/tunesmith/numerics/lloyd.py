"""k-means for many rows: seeding and the first steps on nested samples, a few passes over everything.

Own code because the libraries at hand are several times slower at the sizes tunesmith is for (see
docs/benchmarks): a centre is known to about 1/sqrt(rows per cluster), so early steps on all rows waste their
precision. Every step is Lloyd's: assign by one matrix product per chunk, then average.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tunesmith.core.errors import DataError, ParameterError
from tunesmith.numerics._lloyd_rows import Rows, open_rows

__all__ = ["KMeansResult", "kmeans", "nearest_center"]

_SEED_ROWS = 20_000  # least rows of the first sample
_ROWS_PER_CLUSTER = 16  # of the first sample
_GROWTH = 4  # each sample is this many times the one before
_SAMPLE_TOL = 3e-3  # a sample is left when a step gains less; its own optimum is not the pool's
_SAMPLE_STEPS = 100  # never reached in practice; a bound for adversarial data


@dataclass(frozen=True)
class KMeansResult:
    """A clustering.

    Attributes:
        centers: ``(k, d)`` in the dtype of the computation.
        labels: int32 ``(n,)``, the nearest centre of each row (lowest number among equals).
        inertia: sum of squared distances to the nearest centres.
        n_iter: steps over all rows (those on samples are not counted).
    """

    centers: NDArray[Any]
    labels: NDArray[np.int32]
    inertia: float
    n_iter: int


def kmeans(
    X: ArrayLike,
    n_clusters: int,
    *,
    init: str | ArrayLike = "k-means++",
    n_init: int = 1,
    max_iter: int = 100,
    tol: float = 5e-4,
    random_state: int | None = None,
    spherical: bool = False,
    dtype: Any = None,
) -> KMeansResult:
    """Minimise ``sum_i min_j ||x_i - c_j||^2``.

    Greedy k-means++ on a random sample of ``max(20000, 16 k)`` rows, Lloyd steps there until one gains less
    than 0.3 %, then on samples four times as large each, then on all rows until a step gains less than
    ``tol``. Pools no larger than the first sample get plain k-means++ and Lloyd. A cluster that loses all its
    rows gets the row farthest from its centre.

    Args:
        X: ``(n, d)`` array or memory map, finite; read in chunks, never copied as a whole.
        n_clusters: k in [1, n]. Fewer distinct rows than k leave clusters without rows.
        init: ``"k-means++"``, or ``(k, d)`` centres, from which all steps go over all rows.
        n_init: seedings to try; they are compared after the steps on the first sample.
        max_iter: most steps over all rows.
        tol: stop when a step lowers the inertia by less than this share; 0 runs until no row changes cluster.
        random_state: seed; ``None`` takes a fresh one.
        spherical: cluster directions: rows and centres are scaled to length 1.
        dtype: float32 or float64; by default float64 for float64 input, else float32.

    Returns:
        Centres, labels and inertia that belong together. Time O(n k d) per step over all rows, a few such
        steps for all samples together, O(k^2 d log k) for the seeding; memory O(n + k d) plus one chunk.

    Raises:
        ParameterError: a parameter outside its range.
        DataError: X is not a dense matrix of finite numbers; names the first bad row.
    """
    rows = open_rows(X, dtype=dtype, spherical=spherical)
    n = rows.n
    if isinstance(n_clusters, bool) or not isinstance(n_clusters, Integral) or not 1 <= n_clusters <= n:
        raise ParameterError("n_clusters", kmeans, f"an int in [1, {n}]", n_clusters)
    for name, value in (("n_init", n_init), ("max_iter", max_iter)):
        if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
            raise ParameterError(name, kmeans, "an int >= 1", value)
    if not 0 <= tol < 1:
        raise ParameterError("tol", kmeans, "a float in [0, 1)", tol)
    k = int(n_clusters)
    rng = np.random.default_rng(random_state)
    if isinstance(init, str):
        if init != "k-means++":
            raise ParameterError("init", kmeans, "'k-means++' or an array (n_clusters, d)", init)
        centers = _centers_from_samples(rows, k, int(n_init), int(max_iter), tol, rng)
    else:
        centers = rows.center_in(np.asarray(init))
        if centers.shape != (k, rows.d):
            raise ParameterError("init", kmeans, f"an array of shape {(k, rows.d)}", centers.shape)
    centers, labels, steps = _lloyd(rows, None, centers, int(max_iter), tol)
    return KMeansResult(rows.center_out(centers), labels, rows.inertia(centers, labels), steps)


def nearest_center(X: ArrayLike, centers: ArrayLike) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """Return the nearest centre of each row and the squared distance to it, in chunks.

    Args:
        X: ``(n, d)`` finite.
        centers: ``(k, d)``.

    Returns:
        int32 labels ``(n,)`` and float64 squared distances ``(n,)``. O(n k d) time, O(n) memory.
    """
    rows = open_rows(X, dtype=None, spherical=False)
    inside = rows.center_in(np.asarray(centers))
    if inside.ndim != 2 or inside.shape[1] != rows.d:
        raise DataError(f"the centres have shape {inside.shape}, but the rows have {rows.d} columns.")
    labels, _, _, _ = rows.assign(None, inside)
    return labels, rows.distances(inside, labels)


def _centers_from_samples(
    rows: Rows, k: int, n_init: int, max_iter: int, tol: float, rng: np.random.Generator
) -> NDArray[Any]:
    """Return centres that have converged on the largest sample below all rows; seeds where there is none."""
    size = min(rows.n, max(_SEED_ROWS, _ROWS_PER_CLUSTER * k))
    shuffled = np.arange(rows.n) if size == rows.n else rng.permutation(rows.n)
    first = np.sort(shuffled[:size])
    block = rows.take(first)
    centers = _seed(block, k, rng)
    if size == rows.n and n_init == 1:
        return centers
    limits = (max_iter, tol) if size == rows.n else (_SAMPLE_STEPS, _SAMPLE_TOL)
    best = np.inf
    for attempt in range(n_init):
        tried, labels, _ = _lloyd(rows, first, centers if attempt == 0 else _seed(block, k, rng), *limits)
        spread = float(((block - tried[labels]).astype(np.float64) ** 2).sum())
        if spread < best:
            best, centers = spread, tried
    while (size := size * _GROWTH) < rows.n:
        centers, _, _ = _lloyd(rows, np.sort(shuffled[:size]), centers, _SAMPLE_STEPS, _SAMPLE_TOL)
    return centers


def _lloyd(
    rows: Rows, subset: NDArray[np.int64] | None, centers: NDArray[Any], max_iter: int, tol: float
) -> tuple[NDArray[Any], NDArray[np.int32], int]:
    """Repeat assign and average; returns centres and the labels that belong to them."""
    before, old = np.inf, None
    for step in range(1, max_iter + 1):
        labels, best, sums, counts = rows.assign(subset, centers)
        inertia = float(best.sum(dtype=np.float64))
        settled = old is not None and bool(np.array_equal(labels, old))
        if settled or before - inertia < tol * before < np.inf or step == max_iter:
            break
        before, old = inertia, labels
        centers = _average(rows, subset, centers, labels, best, sums, counts)
    return centers, labels, step


def _average(
    rows: Rows,
    subset: NDArray[np.int64] | None,
    centers: NDArray[Any],
    labels: NDArray[np.int32],
    best: NDArray[Any],
    sums: NDArray[np.float64],
    counts: NDArray[np.int64],
) -> NDArray[Any]:
    """Return the means of the clusters; an empty cluster gets the row farthest from its centre."""
    empty = np.flatnonzero(counts == 0)
    if len(empty):
        far = np.argsort(-best, kind="stable")[: len(empty)]
        far = far[best[far] > 0]  # with fewer distinct rows than clusters some stay empty where they are
        where = far if subset is None else subset[far]
        moved = rows.take(where).astype(np.float64)
        np.subtract.at(sums, labels[far], moved)
        np.subtract.at(counts, labels[far], 1)
        sums[empty[: len(far)]] = moved
        counts[empty[: len(far)]] = 1
    full = counts > 0
    new = centers.copy()
    new[full] = sums[full] / counts[full, None]
    return rows.renorm(new)


def _seed(block: NDArray[Any], k: int, rng: np.random.Generator) -> NDArray[Any]:
    """Greedy k-means++ (Arthur and Vassilvitskii 2007): each centre is the best of 2 + ln k weighted
    draws."""
    m = len(block)
    norms = np.einsum("ij,ij->i", block, block)
    trials = 2 + int(np.log(k))
    chosen = np.empty(k, dtype=np.int64)
    chosen[0] = rng.integers(m)
    closest = _to(block, norms, chosen[:1])[:, 0]
    for j in range(1, k):
        total = np.cumsum(closest, dtype=np.float64)
        if total[-1] <= 0:  # every row sits on a centre: the rest are rows not used yet
            unused = np.setdiff1d(np.arange(m), chosen[:j])
            chosen[j:] = rng.choice(unused, size=k - j, replace=False)
            break
        draws = np.searchsorted(total, rng.random(trials) * total[-1], side="right")
        candidates = np.minimum(draws, m - 1)
        distance = np.minimum(_to(block, norms, candidates), closest[:, None])
        best = int(np.argmin(distance.sum(axis=0, dtype=np.float64)))
        chosen[j], closest = candidates[best], np.ascontiguousarray(distance[:, best])
    return block[chosen]


def _to(block: NDArray[Any], norms: NDArray[Any], chosen: NDArray[np.int64]) -> NDArray[Any]:
    distance = norms[:, None] + norms[chosen] - 2 * (block @ block[chosen].T)
    distance[chosen, np.arange(len(chosen))] = 0
    return np.maximum(distance, 0, out=distance)
