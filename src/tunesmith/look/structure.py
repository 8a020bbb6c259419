"""How vectors lie: a map, clusters, rows that stand apart, and rows that nearly repeat one another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.groups import central_rows

__all__ = ["Structure", "find_outliers", "structure_of"]

Rows = NDArray[np.int64]

SAMPLE = (
    10_000  # rows among which neighbours are looked for: 384 columns x 10^5 rows take about 13 s on one core
)
NEIGHBOUR = 5  # the distance to the fifth neighbour survives small groups of copies
FENCE = 3.0  # Tukey's "far out": so many interquartile ranges above the third quartile
LISTED = 10


@dataclass(frozen=True)
class Structure:
    """What `structure_of` found.

    Attributes:
        xy: float32 (n, 2) places on the map, in [-1, 1].
        cluster: int64 (n,), numbered from the largest.
        central: cluster -> rows nearest to its mean, nearest first.
        outliers: rows that stand apart, farthest first.
        distance: float32 (n,) to the fifth neighbour.
    """

    xy: NDArray[np.float32]
    cluster: Rows
    central: dict[int, Rows]
    outliers: Rows
    distance: NDArray[np.float32]


def structure_of(vectors: Any, seed: int = 0, examples: int = 3) -> Structure:
    """Lay vectors out, cluster them and find those that stand apart.

    Time: see `tunesmith.recipe.report.maps.pool_map`, and O(n s d) for the neighbours, s = min(n, 10,000).

    Args:
        vectors: float (n, d), finite.
        seed: of the samples, t-SNE and k-means.
        examples: central rows per cluster.
    """
    from tunesmith.recipe.report.maps import pool_map

    xy, cluster = pool_map(vectors, seed)
    labels = cluster.astype(np.int64)
    outliers, distance = find_outliers(vectors, seed)
    return Structure(xy, labels, central_rows(vectors, labels, examples), outliers, distance)


def find_outliers(vectors: Any, seed: int = 0) -> tuple[Rows, NDArray[np.float32]]:
    """Return the rows whose fifth neighbour is unusually far, and that distance for every row.

    Neighbours are looked for among at most 10,000 random rows, never the row itself. A row stands apart beyond
    the third quartile of the distances plus three interquartile ranges.

    Returns:
        int64 rows, farthest first, and float32 (n,) distances; fewer than 20 rows have no outliers.
    """
    import faiss

    n = len(vectors)
    if n < 20:
        return np.zeros(0, dtype=np.int64), np.zeros(n, dtype=np.float32)
    rng = np.random.default_rng(seed)
    sample = np.sort(rng.choice(n, SAMPLE, replace=False)) if n > SAMPLE else np.arange(n)
    place = np.full(n, -1, dtype=np.int64)
    place[sample] = np.arange(len(sample))
    index = faiss.IndexFlatL2(vectors.shape[1])
    index.add(np.ascontiguousarray(vectors[sample], dtype=np.float32))
    distance = np.empty(n, dtype=np.float32)
    for begin in range(0, n, 8192):
        part = np.ascontiguousarray(vectors[begin : begin + 8192], dtype=np.float32)
        squared, near = index.search(part, min(NEIGHBOUR + 1, len(sample)))
        itself = near == place[begin : begin + len(part), None]
        squared[itself] = np.inf  # goes to the end when sorted
        squared = np.sort(squared, axis=1)
        column = min(NEIGHBOUR, squared.shape[1] - 1) - 1
        distance[begin : begin + len(part)] = np.sqrt(np.maximum(squared[:, column], 0))
    low, high = np.quantile(distance, [0.25, 0.75])
    far = np.flatnonzero(distance > high + FENCE * max(high - low, 1e-6 * max(float(high), 1e-12)))
    return far[np.argsort(-distance[far], kind="stable")], distance
