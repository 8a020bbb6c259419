"""Agglomerative clustering by the maximum incremental path integral (Zhang et al. 2013), DEPICT's start on small sets.

W holds exp(-d^2 / s2) on the K nearest neighbours and 1 on the diagonal, T is W with rows normalised. The path
integral of a cluster is S(C) = (1 / |C|^2) 1' (I - z T_CC)^{-1} 1. Points start joined with their nearest neighbours;
then the two clusters whose joint gains most, measured inside their union, are joined until K remain.
"""

from __future__ import annotations

import heapq
import itertools
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

from tunesmith.core.errors import ParameterError

__all__ = ["MAX_ROWS", "PathIntegrals", "nearest_components", "neighbour_graph", "path_integral_labels"]

MAX_ROWS = 20_000  # beyond, thousands of large clusters are merged one by one: k-means is the better start


def neighbour_graph(
    X: NDArray[Any], n_neighbors: int = 20, scale: float = 1.0
) -> tuple[sp.csr_array, float, NDArray[np.intp]]:
    """Return T (n, n) row-stochastic, s2, and each row's nearest neighbour.

    s2 is ``scale`` times the mean squared distance to the first max(n_neighbors, 3) neighbours, doubled until the
    nearest link of every row weighs at least 1e-5. Time O(n^2 d) at worst, memory O(n n_neighbors).
    """
    n = len(X)
    wide = min(max(n_neighbors, 3), n - 1)
    distance, index = NearestNeighbors(n_neighbors=wide).fit(X).kneighbors()
    squared = np.square(distance, dtype=np.float64)
    s2 = max(scale * float(squared.mean()), np.finfo(float).tiny)
    while np.exp(-squared[:, 0].max() / s2) < 1e-5:
        s2 *= 2
    k = min(n_neighbors, wide)
    weights = np.concatenate([np.ones((n, 1)), np.exp(-squared[:, :k] / s2)], axis=1)
    columns = np.concatenate([np.arange(n)[:, None], index[:, :k]], axis=1)
    weights /= weights.sum(axis=1, keepdims=True)
    indptr = np.arange(0, weights.size + 1, k + 1)
    return sp.csr_array((weights.ravel(), columns.ravel(), indptr), shape=(n, n)), s2, index[:, 0]


def nearest_components(nearest: NDArray[np.intp]) -> list[NDArray[np.intp]]:
    """Return the components that arise when every row is joined with its nearest neighbour."""
    n = len(nearest)
    graph = sp.coo_array((np.ones(n), (np.arange(n), nearest)), shape=(n, n))
    count, label = sp.csgraph.connected_components(graph, directed=False)
    order = np.argsort(label, kind="stable")
    return np.split(order, np.cumsum(np.bincount(label, minlength=count))[:-1])


class PathIntegrals:
    """Path integrals of sets of rows and the gain of joining two of them.

    Args:
        T: (n, n) row-stochastic.
        z: damping in (0, 1).
    """

    def __init__(self, T: sp.csr_array, z: float = 0.01) -> None:
        self.T, self.z = T, z

    def _inside(self, rows: NDArray[np.intp], right: NDArray[np.float64]) -> NDArray[np.float64]:
        """Solve (I - z T_CC) x = right. The series sum_j (z T)^j right converges like z^j, T being stochastic."""
        block = self.T[rows][:, rows] * self.z
        x, term = right.copy(), right
        while np.abs(term).max(initial=0.0) > 1e-17:
            term = block @ term
            x += term
        return x

    def alone(self, rows: NDArray[np.intp]) -> float:
        """Return S(C)."""
        return float(self._inside(rows, np.ones(len(rows))).sum()) / len(rows) ** 2

    def gain(self, a: NDArray[np.intp], b: NDArray[np.intp], alone_a: float, alone_b: float) -> float:
        """Return the two members' path integrals inside their union less those alone; 0 if no edge joins them."""
        union = np.concatenate([a, b])
        member = np.zeros((len(union), 2))
        member[: len(a), 0] = 1
        member[len(a) :, 1] = 1
        x = self._inside(union, member)
        inside_a, inside_b = x[: len(a), 0].sum() / len(a) ** 2, x[len(a) :, 1].sum() / len(b) ** 2
        return float(inside_a - alone_a + inside_b - alone_b)


def path_integral_labels(
    X: NDArray[Any], n_clusters: int, *, n_neighbors: int = 20, scale: float = 1.0, z: float = 0.01
) -> NDArray[np.int64]:
    """Cluster rows by AC-PIC.

    Only pairs of clusters with an edge between them can gain, so the gains are kept in a heap of those pairs. When
    no such pair is left (every further gain is exactly 0), the smallest cluster joins the one with the nearest mean.

    Args:
        X: (n, d), n at most 20,000.
        n_clusters: how many to leave.
        n_neighbors: K of the graph (paper: 20).
        scale: a of s2 (paper: 1).
        z: damping of long paths (paper: 0.01).

    Returns:
        (n,) labels. About O(m K) small solves for m clusters after the first joining, memory O(n K).

    Raises:
        ParameterError: more than 20,000 rows, or fewer rows than clusters.
    """
    n = len(X)
    if n > MAX_ROWS:
        raise ParameterError(
            "X", "path_integral_labels", f"at most {MAX_ROWS:,} rows (use k-means beyond)", n
        )
    if n_clusters > n:
        raise ParameterError(
            "n_clusters", "path_integral_labels", f"at most {n}, the number of rows", n_clusters
        )
    if n_clusters == n:
        return np.arange(n)
    T, _, nearest = neighbour_graph(X, n_neighbors, scale)
    members = dict(enumerate(nearest_components(nearest)))
    if len(members) < n_clusters:  # the first joining went too far: start from single rows
        members = {i: np.array([i]) for i in range(n)}
    _agglomerate(X, T, members, n_clusters, z)
    labels = np.empty(n, dtype=np.int64)
    for label, rows in enumerate(sorted(members.values(), key=lambda rows: int(rows[0]))):
        labels[rows] = label
    return labels


def _agglomerate(
    X: NDArray[Any], T: sp.csr_array, members: dict[int, NDArray[np.intp]], n_clusters: int, z: float
) -> None:
    """Join clusters in ``members`` until ``n_clusters`` remain; a joined cluster gets a new number."""
    integrals = PathIntegrals(T, z)
    alone = {c: integrals.alone(rows) for c, rows in members.items()}
    of_row = np.empty(T.shape[0], dtype=np.intp)
    for c, rows in members.items():
        of_row[rows] = c
    links: dict[int, set[int]] = {c: set() for c in members}
    edges = T.tocoo()
    for a, b in set(zip(of_row[edges.row].tolist(), of_row[edges.col].tolist(), strict=True)):
        if a != b:
            links[a].add(b)
            links[b].add(a)

    def entry(a: int, b: int) -> tuple[float, int, int]:
        a, b = min(a, b), max(a, b)
        return -integrals.gain(members[a], members[b], alone[a], alone[b]), a, b

    heap = [entry(a, b) for a in members for b in links[a] if a < b]
    heapq.heapify(heap)
    numbers = itertools.count(max(members) + 1)
    while len(members) > n_clusters:
        a, b = -1, -1
        while heap and (a not in members or b not in members):
            _, a, b = heapq.heappop(heap)
        if a not in members or b not in members:
            a = min(members, key=lambda c: (len(members[c]), c))
            means = {c: X[rows].mean(axis=0) for c, rows in members.items()}
            b = min((c for c in members if c != a), key=lambda c: float(np.square(means[c] - means[a]).sum()))
        new = next(numbers)
        members[new] = np.sort(np.concatenate([members.pop(a), members.pop(b)]))
        alone[new] = integrals.alone(members[new])
        links[new] = {c for c in links.pop(a) | links.pop(b) if c in members}
        for c in links[new]:
            links[c].add(new)
            heapq.heappush(heap, entry(new, c))
