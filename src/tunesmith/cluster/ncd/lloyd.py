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

from tunesmith.cluster.ncd._kernels import lower, settle, spread

__all__ = [
    "NovelClusters",
    "Table",
    "class_means",
    "cluster_novel",
    "draw_probabilities",
    "draw_rows",
    "lloyd",
    "open_table",
]

CHUNK = 1024  # rows whose scores stay in the cache until they are read


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


@dataclass(frozen=True)
class Table:
    """Rows without their mean, so that ``|x|^2 - 2 x.c + |c|^2`` loses no digits.

    Attributes:
        rows: ``(n, d)``, C-contiguous.
        shift: ``(d,)``, what was taken from each row.
    """

    rows: NDArray[Any]
    shift: NDArray[Any]

    def assign(
        self, centers: NDArray[Any]
    ) -> tuple[NDArray[np.int32], NDArray[np.float64], NDArray[np.int64]]:
        """Return the nearest of ``centers`` (shifted like the rows) for each row, and sums and counts. O(n k d)."""
        n, d = self.rows.shape
        k = len(centers)
        labels, sums, counts = np.empty(n, np.int32), np.zeros((k, d)), np.zeros(k, np.int64)
        doubled = np.ascontiguousarray(-2 * centers.T)
        squares = np.einsum("ij,ij->i", centers, centers)
        scores = np.empty((CHUNK, k), self.rows.dtype)
        for start in range(0, n, CHUNK):
            rows = self.rows[start : start + CHUNK]
            part = np.matmul(rows, doubled, out=scores[: len(rows)])
            settle(part, squares, rows, labels[start : start + CHUNK], sums, counts)
        return labels, sums, counts


def open_table(X: NDArray[Any]) -> Table:
    """Return the rows of X ``(n, d)`` without their mean; a copy."""
    shift = X.mean(axis=0, dtype=np.float64).astype(X.dtype)
    return Table(np.ascontiguousarray(X - shift), shift)


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
    table: Table, k: int, known: NDArray[Any] | None, power: float, uniform: Uniform
) -> NDArray[np.int64]:
    """Draw k rows, each by its distance to the nearest centroid among known and drawn ones. O(n d (C^l + k)).

    Args:
        table: the unlabelled rows.
        k: C^u.
        known: ``(C^l, d)`` shifted like the rows, or ``None``: then the first row is drawn uniformly.
        power: of the distance, see `draw_probabilities`.
        uniform: gives one number per draw.
    """
    rows = table.rows
    n, chosen = len(rows), []
    nearest = np.full(n, np.inf)
    if known is None:
        chosen.append(min(int(uniform.random_sample() * n), n - 1))
        lower(nearest, rows, rows[chosen[0]])
    else:
        for center in known:
            lower(nearest, rows, center)
    while len(chosen) < k:
        cumulated = np.cumsum(draw_probabilities(np.sqrt(nearest), power))
        place = int(np.searchsorted(cumulated, uniform.random_sample() * cumulated[-1], side="right"))
        chosen.append(min(place, n - 1))
        lower(nearest, rows, rows[chosen[-1]])
    return np.array(chosen, dtype=np.int64)


def lloyd(
    table: Table, centers: NDArray[Any], *, tol: float, max_iter: int, plain: bool = False
) -> tuple[NDArray[Any], float, int, bool]:
    """Assign and average until ``(sum of displacements)^2 < tol``; an empty centroid keeps its place.

    Args:
        table: the rows to assign.
        centers: ``(k, d)`` start, shifted like the rows.
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
        labels, sums, counts = table.assign(centers)
        full = counts > 0
        moved = centers.copy()
        moved[full] = sums[full] / counts[full, None]
        shift = float(np.linalg.norm(moved - centers, axis=1).sum()) ** 2
        if plain:
            before = spread(table.rows, centers, labels, True)
        centers = moved
        converged = shift < tol or shift == 0
    inertia = before if plain else spread(table.rows, centers, table.assign(centers)[0], False)
    return centers, float(inertia), steps, converged


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
        The clustering. Time O(runs steps n C^u d), memory O(n d), a copy of X.
    """
    table = open_table(X)
    fixed = None if known is None else np.asarray(known, dtype=X.dtype) - table.shift
    n_fixed = 0 if fixed is None or not update_known else len(fixed)
    best: tuple[NDArray[Any], float, int, bool] | None = None
    for _ in runs:
        start = table.rows[draw_rows(table, n_novel, fixed, init_power, uniform)]
        if n_fixed:
            start = np.vstack([fixed, start])  # type: ignore[list-item]
        found = lloyd(table, start, tol=tol, max_iter=max_iter, plain=official)
        if best is None or found[1] < best[1]:
            best = found
    assert best is not None, "runs holds at least one item"
    centers, inertia, n_iter, converged = best
    labels = table.assign(centers[n_fixed:])[0].astype(np.int64)
    after = centers[:n_fixed] + table.shift if n_fixed else known
    return NovelClusters(centers[n_fixed:] + table.shift, after, labels, inertia, n_iter, converged)
