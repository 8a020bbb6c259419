"""k-means on the unlabelled rows beside centroids that are already known (the core of NCD k-means).

Troisemaine et al. 2024 (arXiv 2311.05440), Sec. 3.2. Symbols: X^u ``(n, d)`` unlabelled rows, C^u novel clusters,
C^l known classes whose centroids are their means. The known centroids act through the draw of the novel ones only.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tunesmith.numerics._lloyd_rows import Rows, open_rows

__all__ = ["NovelClusters", "class_means", "cluster_novel", "draw_probabilities", "draw_rows", "lloyd"]


class Uniform(Protocol):
    """Where uniform numbers come from: a ``numpy.random.RandomState``, or a script in a test."""

    def random_sample(self) -> float:
        """Return a number in [0, 1)."""
        ...


@dataclass(frozen=True)
class NovelClusters:
    """A clustering of the unlabelled rows.

    Attributes:
        centers: ``(C^u, d)`` novel centroids.
        known: ``(C^l, d)`` known centroids afterwards, or ``None``; moved only under ``update_known``.
        labels: int64 ``(n,)``, nearest novel centroid.
        inertia: what the restarts are compared by.
        n_iter: Lloyd steps.
        converged: the stopping rule was met before ``max_iter``.
    """

    centers: NDArray[Any]
    known: NDArray[Any] | None
    labels: NDArray[np.int64]
    inertia: float
    n_iter: int
    converged: bool


def class_means(X: NDArray[Any], y: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the sorted classes and their means ``(C^l, d)`` in the dtype of X. O(n d)."""
    classes, code = np.unique(y, return_inverse=True)
    sums = np.zeros((len(classes), X.shape[1]))
    np.add.at(sums, code, X)
    return classes, (sums / np.bincount(code)[:, None]).astype(X.dtype)


def draw_probabilities(distances: NDArray[Any], power: float) -> NDArray[np.float64]:
    """Return ``D_i^power / sum D^power`` (k-means++ for 2); uniform where every D is 0.

    Args:
        distances: ``(n,)`` D_i, distance to the nearest centroid so far.
        power: 2 as in k-means++, 1 in the authors' code.
    """
    weights = np.asarray(distances, dtype=np.float64) ** power
    total = weights.sum()
    return weights / total if total > 0 else np.full(len(weights), 1 / len(weights))


def draw_rows(
    rows: Rows, k: int, known: NDArray[Any] | None, power: float, uniform: Uniform
) -> NDArray[np.int64]:
    """Draw k rows, each by its distance to the nearest centroid among known and drawn ones. O(n d (C^l + k)).

    Args:
        rows: the unlabelled rows.
        k: C^u.
        known: ``(C^l, d)`` as the rows are seen, or ``None``: then the first row is drawn uniformly.
        power: of the distance, see `draw_probabilities`.
        uniform: gives one number per draw.
    """
    if known is None:
        chosen = [min(int(uniform.random_sample() * rows.n), rows.n - 1)]
        nearest = _squared(rows, chosen[-1])
    else:
        chosen = []
        nearest = rows.distances(known, rows.assign(None, known)[0])
    while len(chosen) < k:
        cumulated = np.cumsum(draw_probabilities(np.sqrt(nearest), power))
        place = int(np.searchsorted(cumulated, uniform.random_sample() * cumulated[-1], side="right"))
        chosen.append(min(place, rows.n - 1))
        np.minimum(nearest, _squared(rows, chosen[-1]), out=nearest)
    return np.array(chosen, dtype=np.int64)


def _squared(rows: Rows, row: int) -> NDArray[np.float64]:
    return rows.distances(rows.take([row]), np.zeros(rows.n, dtype=np.int32))


def lloyd(
    rows: Rows, centers: NDArray[Any], *, tol: float, max_iter: int, plain: bool = False
) -> tuple[NDArray[Any], float, int, bool]:
    """Assign and average until ``(sum of displacements)^2 < tol``; an empty centroid keeps its place.

    Args:
        rows: the rows to assign.
        centers: ``(k, d)`` start, as the rows are seen.
        tol: in squared units of X.
        max_iter: most steps.
        plain: inertia as in the authors' code: the sum of plain distances to the centroids before the last move.
            Otherwise the sum of squared distances to the final ones.

    Returns:
        Centroids, inertia, steps, and whether the rule was met. O(n k d) a step.
    """
    converged, steps, before = False, 0, 0.0
    while steps < max_iter and not converged:
        steps += 1
        labels, _, sums, counts = rows.assign(None, centers)
        full = counts > 0
        moved = centers.copy()
        moved[full] = sums[full] / counts[full, None]
        shift = float(np.linalg.norm(moved - centers, axis=1).sum()) ** 2
        if plain:
            before = float(np.sqrt(rows.distances(centers, labels)).sum())
        centers = moved
        converged = shift < tol or shift == 0
    inertia = before if plain else rows.inertia(centers, rows.assign(None, centers)[0])
    return centers, inertia, steps, converged


def cluster_novel(
    X: NDArray[Any],
    n_novel: int,
    known: NDArray[Any] | None,
    uniform: Uniform,
    *,
    init_power: float = 2,
    tol: float = 1e-4,
    max_iter: int = 300,
    runs: Iterable[int] = range(10),
    official: bool = False,
    update_known: bool = False,
) -> NovelClusters:
    """Cluster the unlabelled rows into ``n_novel`` clusters; of all runs the one of least inertia is returned.

    Args:
        X: ``(n, d)`` float32 or float64, finite, n >= n_novel.
        n_novel: C^u.
        known: ``(C^l, d)`` or ``None``.
        uniform: source of the draws.
        init_power: see `draw_probabilities`.
        tol: see `lloyd`.
        max_iter: see `lloyd`.
        runs: one restart for each item.
        official: the authors' inertia, see `lloyd`.
        update_known: rows may be assigned to known centroids too, which move (the paper's ablation, App. D).

    Returns:
        The clustering. Time O(runs steps n C^u d), memory O(n) beside X.
    """
    rows = open_rows(X, dtype=X.dtype, spherical=False)
    fixed = None if known is None else rows.center_in(np.asarray(known))
    n_fixed = 0 if fixed is None or not update_known else len(fixed)
    best: tuple[NDArray[Any], float, int, bool] | None = None
    for _ in runs:
        start = rows.take(draw_rows(rows, n_novel, fixed, init_power, uniform))
        if n_fixed:
            start = np.vstack([fixed, start])  # type: ignore[list-item]
        found = lloyd(rows, start, tol=tol, max_iter=max_iter, plain=official)
        if best is None or found[1] < best[1]:
            best = found
    assert best is not None, "runs holds at least one item"
    centers, inertia, n_iter, converged = best
    labels = rows.assign(None, centers[n_fixed:])[0].astype(np.int64)
    after = rows.center_out(centers[:n_fixed]) if n_fixed else known
    return NovelClusters(rows.center_out(centers[n_fixed:]), after, labels, inertia, n_iter, converged)
