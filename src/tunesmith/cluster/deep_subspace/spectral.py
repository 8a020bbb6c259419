"""From self-expressive coefficients to clusters: ridge start, thresholding, shifted Laplacian, k-means.

Sindicic and Kopriva 2025 (arXiv 2504.18179), with the steps of their code; the ridge form is the closed solution of
zero-diagonal least squares.
"""

from __future__ import annotations

import warnings
from numbers import Integral
from typing import Any

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.sparse.linalg import ArpackNoConvergence, eigsh
from sklearn.cluster import KMeans
from sklearn.utils import check_random_state

from tunesmith.core.errors import DataError, ParameterError

__all__ = [
    "affinity_from_coefficients",
    "ridge_coefficients",
    "shifted_laplacian",
    "spectral_from_coefficients",
]

_DENSE = 400  # up to this many rows LAPACK is as fast as Lanczos and never misses a repeated eigenvalue


def ridge_coefficients(X: ArrayLike, lam: float = 1.0) -> NDArray[np.float64]:
    """Return the minimiser of ``|X - C X|_F^2 + lam |C|_F^2`` under ``diag(C) = 0``.

    ``C_ij = -G_ij / G_ii`` with ``G = (X X' + lam I)^-1``.

    Args:
        X: ``(N, D)``; rows of length 1 suit ``lam`` around 1.
        lam: > 0; without it G does not exist where N > D.

    Returns:
        ``(N, N)``, row i the coefficients of sample i. Time O(N^3), memory O(N^2).

    Raises:
        ParameterError: lam is not positive.
    """
    if not lam > 0:
        raise ParameterError("lam", ridge_coefficients, "a float > 0", lam)
    x = np.asarray(X, dtype=np.float64)
    gram = x @ x.T
    gram.flat[:: len(x) + 1] += lam
    factor = scipy.linalg.cho_factor(gram, lower=True, overwrite_a=True, check_finite=False)
    G = scipy.linalg.cho_solve(factor, np.eye(len(x)), overwrite_b=True, check_finite=False)
    C = -G / np.diag(G)[:, None]
    np.fill_diagonal(C, 0)
    return C


def affinity_from_coefficients(C: ArrayLike, subspace_dim: int) -> sparse.csr_array:
    """Return the affinity A: symmetrise |C|, keep the largest entries of each column, symmetrise again.

    Args:
        C: ``(N, N)`` coefficients.
        subspace_dim: d, entries kept per column, ties at the threshold all kept; d >= N keeps everything.

    Returns:
        ``(N, N)`` symmetric, non-negative, about d N to 2 d N entries. Time O(N^2), memory O(N^2).

    Raises:
        ParameterError: d < 1, or C is not square.
    """
    c = np.abs(np.asarray(C))
    if c.ndim != 2 or c.shape[0] != c.shape[1]:
        raise ParameterError("C", affinity_from_coefficients, "a square matrix", c.shape)
    if isinstance(subspace_dim, bool) or not isinstance(subspace_dim, Integral) or subspace_dim < 1:
        raise ParameterError("subspace_dim", affinity_from_coefficients, "an int >= 1", subspace_dim)
    n = len(c)
    S = (c + c.T) / 2
    if subspace_dim < n:
        least = np.partition(S, n - subspace_dim, axis=0)[n - subspace_dim]
        S[least > S] = 0
    S = sparse.csr_array(S)
    return sparse.csr_array((S + S.T) / 2)


def shifted_laplacian(A: Any) -> sparse.csr_array:
    """Return ``M = I + D^(-1/2) A D^(-1/2)``, whose eigenvalues lie in [0, 2].

    2 occurs once per connected component; a row without links has the eigenvalue 1.

    Args:
        A: ``(N, N)`` symmetric, non-negative.
    """
    A = sparse.csr_array(A, dtype=np.float64)
    degree = np.asarray(A.sum(axis=1)).ravel() + np.finfo(np.float64).eps
    scale: Any = sparse.dia_array((1 / np.sqrt(degree)[None], [0]), shape=A.shape)
    return sparse.csr_array(scale @ A @ scale + sparse.eye_array(A.shape[0]))


def spectral_from_coefficients(
    C: ArrayLike,
    n_clusters: int,
    subspace_dim: int,
    *,
    X: ArrayLike | None = None,
    n_init: int = 20,
    random_state: Any = 0,
    start: ArrayLike | None = None,
) -> NDArray[np.int64]:
    """Cluster samples by their self-expressive coefficients.

    The affinity of `affinity_from_coefficients`, the leading eigenvectors of `shifted_laplacian`, rows scaled to
    length 1, k-means.

    Args:
        C: ``(N, N)``; row i holds the coefficients of sample i.
        n_clusters: K in [2, N - 1].
        subspace_dim: d, largest entries kept per column.
        X: ``(N, D)``; where given, a row without links takes the label of its nearest row that has some.
        n_init: restarts of k-means.
        random_state: of k-means and Lanczos.
        start: ``(N,)`` labels to start k-means from, instead of restarts.

    Returns:
        ``(N,)`` labels in [0, K). Time O(N^2) and the eigenvectors, memory O(N^2).

    Raises:
        ParameterError: K or d outside its range.
        DataError: no row has a link to another.
    """
    rng = check_random_state(random_state)
    A = affinity_from_coefficients(C, subspace_dim)
    n = A.shape[0]
    if isinstance(n_clusters, bool) or not isinstance(n_clusters, Integral) or not 2 <= n_clusters < n:
        raise ParameterError("n_clusters", spectral_from_coefficients, f"an int in [2, {n - 1}]", n_clusters)
    alone = np.asarray(A.sum(axis=1)).ravel() == 0
    if alone.all():
        raise DataError("all coefficients are 0, so no row is linked to another.")
    vectors = _leading(shifted_laplacian(A), int(n_clusters), rng)
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = vectors / np.where(length > 0, length, 1)
    seed = int(rng.randint(np.iinfo(np.int32).max))
    init: Any = "k-means++"
    if start is not None:
        given = np.asarray(start)
        means = [vectors[given == k].mean(axis=0) for k in range(n_clusters) if (given == k).any()]
        if len(means) == n_clusters:
            init, n_init = np.array(means), 1
    model = KMeans(n_clusters, init=init, n_init=n_init, max_iter=1000, random_state=seed).fit(vectors)
    labels = model.labels_.astype(np.int64)
    if alone.any():
        _follow(labels, alone, X)
    return labels


def _leading(M: sparse.csr_array, K: int, rng: np.random.RandomState) -> NDArray[np.float64]:
    """Return the eigenvectors (N, K) of the K largest eigenvalues."""
    n = M.shape[0]
    if n > max(_DENSE, 4 * K):
        start = rng.uniform(-1, 1, n)
        try:
            return eigsh(M, k=K, which="LA", v0=start, ncv=min(n, max(2 * K + 1, 40)), maxiter=20 * n)[1]
        except ArpackNoConvergence:
            pass  # eigenvalues too close together for Lanczos
    return scipy.linalg.eigh(M.toarray(), subset_by_index=[n - K, n - 1])[1]


def _follow(labels: NDArray[np.int64], alone: NDArray[np.bool_], X: ArrayLike | None) -> None:
    """Give rows without links the label of the nearest row with links, and say so."""
    what = f"{int(alone.sum())} of {len(labels)} rows have no link to another"
    if X is None:
        warnings.warn(f"{what}; their labels are arbitrary (give X for the nearest row's).", stacklevel=3)
        return
    from sklearn.metrics import pairwise_distances_argmin

    x = np.asarray(X).reshape(len(labels), -1)
    nearest = np.flatnonzero(~alone)[pairwise_distances_argmin(x[alone], x[~alone])]
    labels[alone] = labels[nearest]
    warnings.warn(f"{what}; they take the label of the nearest row that has one.", stacklevel=3)
