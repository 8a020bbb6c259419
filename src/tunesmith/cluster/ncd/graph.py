"""Affinity graph, scale and spectral embedding of NCD spectral clustering (arXiv 2311.05440, Sec. 3.3).

Small sets use all pairs; larger ones a graph of nearest neighbours, joined where it falls apart.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.linalg import eigh
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import ArpackNoConvergence, eigsh
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import euclidean_distances, pairwise_distances_argmin_min

from tunesmith.core.errors import DataError
from tunesmith.numerics.neighbors import nearest_rows

__all__ = [
    "Distances",
    "affinity",
    "all_distances",
    "kernel_width",
    "laplacian",
    "longest_tree_edge",
    "neighbour_distances",
    "spectral_embedding",
]

FULL_SOLVER_ROWS = 1_500  # below, LAPACK is faster than Lanczos steps on a dense matrix


@dataclass(frozen=True)
class Distances:
    """Squared distances between rows, and the longest edge of their minimum spanning tree.

    Attributes:
        squared: ``(n, n)`` array, or a symmetric CSR array that stores the graph's edges (zeros too).
        longest: ``d_max^2``.
    """

    squared: Any
    longest: float


def all_distances(X: NDArray[Any]) -> Distances:
    """Return the distances of all pairs. Time O(n^2 d), memory O(n^2)."""
    squared = euclidean_distances(X, squared=True)
    return Distances(squared, longest_tree_edge(squared))


def longest_tree_edge(squared: NDArray[Any]) -> float:
    """Return the longest edge of a minimum spanning tree of a complete graph.

    Prim's algorithm, which takes an edge of length 0 (duplicate rows) like any other; sparse solvers take it for a
    missing one. Time O(n^2), memory O(n).

    Args:
        squared: ``(n, n)`` symmetric squared distances.
    """
    n = len(squared)
    outside = np.ones(n, dtype=bool)
    outside[0] = False
    nearest = np.array(squared[0], dtype=np.float64)  # to the tree
    longest = 0.0
    for _ in range(n - 1):
        row = int(np.argmin(np.where(outside, nearest, np.inf)))
        longest = max(longest, float(nearest[row]))
        outside[row] = False
        np.minimum(nearest, squared[row], out=nearest)
    return longest


def neighbour_distances(X: NDArray[Any], n_neighbors: int) -> tuple[Distances, int]:
    """Return the distances along a joined graph of nearest neighbours.

    Parts without a link are joined by their shortest links to the rest, round by round (Boruvka), each of which is an
    edge of the minimum spanning tree of all rows. The longest tree edge is that of this graph, at least the true one.

    Args:
        X: ``(n, d)``.
        n_neighbors: links per row, before the graph is made symmetric.

    Returns:
        The distances, and into how many parts the graph of nearest neighbours had fallen. Time O(n^2 d) up to 20,000
        rows and O(n^1.5 d) above, where neighbours are approximate (`nearest_rows`); memory O(n n_neighbors).
    """
    n = len(X)
    n_neighbors = min(n_neighbors, n - 1)
    distance, near = nearest_rows(X, n_neighbors)
    i, j = np.repeat(np.arange(n), n_neighbors), near.ravel()
    edges = _unique_edges(i, j, distance.ravel().astype(np.float64) ** 2, n)
    parts, part = connected_components(_graph(edges[0], edges[1], n), directed=False)
    first = parts
    while parts > 1:
        i, j, squared = (np.concatenate(pair) for pair in zip(edges, _bridges(X, part), strict=True))
        edges = _unique_edges(i, j, squared, n)
        parts, part = connected_components(_graph(edges[0], edges[1], n), directed=False)
    i, j, squared = edges
    both = sparse.coo_array(
        (np.r_[squared, squared], (np.r_[i, j], np.r_[j, i])), shape=(n, n), dtype=X.dtype
    )
    return Distances(both.tocsr(), _threshold(i, j, squared, n)), int(first)


def _unique_edges(i: Any, j: Any, squared: Any, n: int) -> tuple[Any, Any, Any]:
    low, high = np.minimum(i, j), np.maximum(i, j)
    _, first = np.unique(low * n + high, return_index=True)
    return low[first], high[first], squared[first]


def _graph(i: Any, j: Any, n: int) -> Any:
    """Links without lengths, so that one of length 0 is a link."""
    return sparse.coo_array((np.ones(len(i), dtype=np.int8), (i, j)), shape=(n, n)).tocsr()


def _bridges(X: NDArray[Any], part: NDArray[Any]) -> tuple[Any, Any, Any]:
    """The shortest link of each part, but the largest, to the rest."""
    largest = int(np.bincount(part).argmax())
    links = []
    for number in range(int(part.max()) + 1):
        if number == largest:
            continue
        mine, others = np.flatnonzero(part == number), np.flatnonzero(part != number)
        to, distance = pairwise_distances_argmin_min(X[mine], X[others])
        best = int(distance.argmin())
        links.append((mine[best], others[to[best]], float(distance[best]) ** 2))
    i, j, squared = zip(*links, strict=True)
    return np.array(i), np.array(j), np.array(squared)


def _threshold(i: Any, j: Any, squared: Any, n: int) -> float:
    """The least length whose edges, with all shorter ones, connect the graph: the longest edge of its tree."""
    lengths = np.unique(squared)
    low, high = 0, len(lengths) - 1
    while low < high:
        middle = (low + high) // 2
        kept = squared <= lengths[middle]
        if connected_components(_graph(i[kept], j[kept], n), directed=False)[0] == 1:
            high = middle
        else:
            low = middle + 1
    return float(lengths[low])


def kernel_width(longest: float, s_min: float, *, exact: bool = False) -> float:
    """Return sigma^2 for the weakest link of the spanning tree.

    ``-d_max^2 / ln s_min`` as published, under which that link is ``sqrt(s_min)``; ``exact``: half of it, under which
    it is s_min, as the text intends.

    Args:
        longest: ``d_max^2`` > 0.
        s_min: in (0, 1).
        exact: see above.

    Raises:
        DataError: all rows are the same, so that no distance gives a scale.
    """
    if longest <= 0:
        raise DataError("NCDSpectralClustering needs two different rows; all rows are the same.")
    return float(-longest / (np.log(s_min) * (2 if exact else 1)))


def affinity(squared: Any, sigma2: float) -> Any:
    """Return ``exp(-d^2 / (2 sigma^2))`` with a diagonal of 0, dense or sparse as the distances are."""
    if sparse.issparse(squared):
        edges: Any = squared
        return sparse.csr_array(
            (np.exp(edges.data / (-2 * sigma2)), edges.indices, edges.indptr), edges.shape
        )
    A = np.exp(squared / (-2 * sigma2))
    np.fill_diagonal(A, 0)
    return A


def _scaled(A: Any) -> Any:
    """``D^-1/2 A D^-1/2``; the degree of an isolated row is set to 1."""
    degree = np.asarray(A.sum(axis=1)).ravel()
    root = 1 / np.sqrt(np.where(degree > 0, degree, 1))
    if sparse.issparse(A):
        links: Any = A
        return sparse.diags_array(root) @ links @ sparse.diags_array(root)
    return A * root[:, None] * root


def laplacian(A: NDArray[Any]) -> NDArray[Any]:
    """Return ``I - D^-1/2 A D^-1/2`` of a dense affinity ``(n, n)``."""
    L = -_scaled(A)
    L[np.diag_indices_from(L)] += 1
    return np.asarray(L)


def spectral_embedding(
    A: Any, n_components: int, rng: np.random.RandomState
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return eigenvalues and eigenvectors 2 … u + 1 of the normalised Laplacian, without row normalisation.

    Args:
        A: affinity ``(n, n)``, dense or sparse.
        n_components: u < n.
        rng: start of the Lanczos steps.

    Returns:
        Values ``(u + 1,)`` with the first, and vectors ``(n, u)`` without it. Dense and small: O(n^3); else by Lanczos
        steps of O(nonzeros) each. Fewer vectors, with a ``ConvergenceWarning``, if not all converge on a sparse graph.
    """
    n, wanted = A.shape[0], n_components + 1
    dense = not sparse.issparse(A)
    if n <= FULL_SOLVER_ROWS or wanted >= n // 2:
        values, vectors = eigh(laplacian(A if dense else A.toarray()), subset_by_index=[0, wanted - 1])
        return values, vectors[:, 1:]
    M = _scaled(A)
    try:
        values, vectors = eigsh(M, wanted, which="LA", v0=rng.uniform(-1, 1, n).astype(M.dtype), tol=1e-7)
    except ArpackNoConvergence as stopped:
        if dense:
            values, vectors = eigh(laplacian(A), subset_by_index=[0, wanted - 1])
            return values, vectors[:, 1:]
        values, vectors = stopped.eigenvalues, stopped.eigenvectors
        if len(values) < 2:
            raise DataError(
                "the eigenvectors of the neighbour graph did not converge; raise n_neighbors, or s_min."
            ) from None
        warnings.warn(
            f"only {len(values)} of {wanted} eigenvectors converged; the embedding has {len(values) - 1} columns.",
            ConvergenceWarning,
            stacklevel=2,
        )
    order = np.argsort(-values)
    return 1 - values[order], vectors[:, order[1:]]
