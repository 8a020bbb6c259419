"""Prototypes of clusters and the cost of a row under each: means, modes by mean shift, modes among the rows.

Ziko et al. 2021 (arXiv 2106.09516) and 2018 (arXiv 1810.13044): K-means with ``d(x, m) = |x - m|^2``, K-modes with
``d(x, m) = -exp(-|x - m|^2 / (2 sigma^2))``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from tunesmith.cluster.transductive.bound import chunks
from tunesmith.core.errors import DataError, ParameterError

__all__ = ["bandwidth", "class_means", "costs", "mean_shift", "soft_means", "squared_distances"]


def squared_distances(X: NDArray[Any], M: NDArray[Any], out: NDArray[Any] | None = None) -> NDArray[Any]:
    """Return ``|x_p - m_k|^2`` (N, K) in the dtype of X, by one matrix product per chunk."""
    out = np.empty((len(X), len(M)), dtype=X.dtype) if out is None else out
    M = M.astype(X.dtype, copy=False)
    doubled = np.ascontiguousarray(-2 * M.T)
    squares = np.einsum("ij,ij->i", M, M)
    for part in chunks(len(X), max(M.shape)):
        x = X[part]
        d = np.matmul(x, doubled, out=out[part])
        d += squares
        d += np.einsum("ij,ij->i", x, x)[:, None]
        np.maximum(d, 0, out=d)
    return out


def costs(
    X: NDArray[Any], M: NDArray[Any], sigma: float | None = None, out: NDArray[Any] | None = None
) -> NDArray[Any]:
    """Return the unary costs (N, K): squared distances, or ``-exp(-d / (2 sigma^2))`` where sigma is given."""
    a = squared_distances(X, M, out)
    if sigma is not None:
        for part in chunks(*a.shape):
            block = a[part]
            block /= -2 * sigma**2
            np.exp(block, out=block)
            np.negative(block, out=block)
    return a


def class_means(X: NDArray[Any], labels: NDArray[Any], old: NDArray[Any]) -> NDArray[Any]:
    """Return the means (K, D) of the rows with label 0..K-1; -1 belongs to none, an empty class keeps ``old``."""
    K = len(old)
    sums, counts = np.zeros((K, X.shape[1])), np.zeros(K, dtype=np.int64)
    for part in chunks(len(X), X.shape[1]):  # sums of a chunk in the dtype of X, sums of chunks in float64
        named = np.flatnonzero(labels[part] >= 0)
        label, m = labels[part][named], len(named)
        member = sparse.csc_array((np.ones(m, dtype=X.dtype), label, np.arange(m + 1)), shape=(K, m))
        sums += member @ X[part][named]
        counts += np.bincount(label, minlength=K)
    means = old.astype(X.dtype)
    full = counts > 0
    means[full] = sums[full] / counts[full, None]
    return means


def soft_means(X: NDArray[Any], Z: NDArray[Any]) -> NDArray[Any]:
    """Return ``m_k = sum_p z_pk x_p / sum_p z_pk`` (K, D)."""
    sums, mass = np.zeros((Z.shape[1], X.shape[1])), np.zeros(Z.shape[1])
    for part in chunks(len(X), max(X.shape[1], Z.shape[1])):
        sums += Z[part].T @ X[part]
        mass += Z[part].sum(axis=0, dtype=np.float64)
    return (sums / mass[:, None]).astype(X.dtype)


def mean_shift(
    X: ArrayLike,
    start: ArrayLike,
    sigma: float,
    weights: ArrayLike | None = None,
    *,
    tol: float = 1e-5,
    max_iter: int = 1000,
) -> tuple[NDArray[Any], int]:
    """Climb ``sum_p w_p exp(-|x_p - m|^2 / (2 sigma^2))`` from a start to a mode.

    Each step is ``m <- sum_p w_p k(x_p, m) x_p / sum_p w_p k(x_p, m)`` (Fukunaga and Hostetler 1975). The largest
    exponent is taken out first, so a small sigma cannot turn all kernel values into 0.

    Args:
        X: ``(N, D)`` rows.
        start: ``(D,)``.
        sigma: bandwidth > 0, in the units of X.
        weights: ``(N,)`` >= 0, not all 0; all 1 by default.
        tol: stop when ``max |m' - m| < tol max |m|``.
        max_iter: most steps.

    Returns:
        The mode (D,) and the number of steps. Time O(N D) per step.

    Raises:
        ParameterError: sigma is not positive.
    """
    if not sigma > 0:
        raise ParameterError("sigma", mean_shift, "a float > 0", sigma)
    x = np.asarray(X)
    m = np.asarray(start, dtype=x.dtype)
    with np.errstate(divide="ignore"):
        base = 0.0 if weights is None else np.log(np.asarray(weights))
    done = 0
    for done in range(1, max_iter + 1):  # noqa: B007  (returned)
        difference = x - m
        exponent = base - np.einsum("ij,ij->i", difference, difference) / (2 * sigma**2)
        k = np.exp(exponent - exponent.max())
        new = (k @ x / k.sum()).astype(x.dtype)
        small = np.abs(new - m).max() < tol * np.abs(m).max()
        m = new
        if small:
            break
    return m, done


def bandwidth(X: ArrayLike, W: Any, variant: str = "paper") -> float:
    """Return the bandwidth of K-modes, the root of the mean squared length of an edge of the graph.

    Args:
        X: ``(N, D)`` rows.
        W: ``(N, N)`` affinities, sparse or dense.
        variant: ``"paper"`` divides ``sum_pq w_pq |x_p - x_q|^2`` by ``sum w``; ``"official"``, as the authors' code
            has it, by ``5 N`` whatever the number of neighbours.

    Raises:
        DataError: all neighbours are duplicates, which leaves no scale.
    """
    x, w = np.asarray(X), sparse.coo_array(W)
    total, mass = 0.0, 0.0
    for part in chunks(w.nnz, x.shape[1]):
        edge = x[w.coords[0][part]] - x[w.coords[1][part]]
        total += float(np.dot(w.data[part], np.einsum("ij,ij->i", edge, edge)))
        mass += float(w.data[part].sum())
    square = total / (5 * len(x) if variant == "official" else mass) if total > 0 else 0.0
    if square <= 0:
        raise DataError(
            "every row has only duplicates as neighbours, so K-modes has no bandwidth; give sigma."
        )
    return float(np.sqrt(square))
