"""The classification likelihood that LA-SDP relaxes, and the closed-form covariance step of iLA-SDP.

Zhuang, Chen & Yang, ICML 2023 (arXiv 2209.15097). With labels as parameters and the centres profiled out, twice the
log-likelihood up to constants is linear in the memberships Z_k::

    l = sum_k <A_k, Z_k>,   (A_k)_ij = -1/2 (x_i - x_j)' Sigma_k^-1 (x_i - x_j) - log|Sigma_k|

The form of A_k is derived here from those facts (inferred). With a ridge eps, ``scatter / n_k + eps I`` maximises
``l_eps = sum_k <A_k - eps tr(Sigma_k^-1) 11', Z_k>``, not l: with that term both half-steps ascend the same function
(own derivation).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cholesky, solve_triangular

__all__ = ["Covariances", "affinities", "covariance_step", "distances", "gaussian_scores", "log_likelihood"]

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Covariances:
    """One covariance per group.

    Attributes:
        full: (K, p, p).
        floored: (K,) whether the ridge is larger than the smallest eigenvalue of the group's own covariance.
    """

    full: Matrix
    floored: NDArray[np.bool_]

    def shaped(self, kind: str) -> Matrix:
        """Return the shape of scikit-learn's GaussianMixture: tied (p, p), diag (K, p), spherical (K,)."""
        if kind == "tied":
            return self.full[0]
        if kind == "full":
            return self.full
        diagonal = np.diagonal(self.full, axis1=1, axis2=2)
        return diagonal.copy() if kind == "diag" else diagonal[:, 0].copy()


def distances(Y: Matrix) -> Matrix:
    """Return (n, n) squared Euclidean distances of the rows of Y (n, p), exactly symmetric, zero diagonal."""
    Y = Y - Y.mean(axis=0)
    d = np.einsum("ij,ij->i", Y, Y)
    D = d[:, None] + d - 2 * (Y @ Y.T)
    D = 0.5 * (D + D.T)
    np.maximum(D, 0, out=D)
    np.fill_diagonal(D, 0)
    return np.asarray(D)


def affinities(X: Any, covariances: Any, eps: float = 0.0) -> Matrix:
    """Return A (K, n, n), with the correction for a ridge; O(K n^2 p).

    Args:
        X: (n, p).
        covariances: (K, p, p), positive definite.
        eps: ridge inside the covariances; eps tr(Sigma_k^-1) is taken from every entry.

    Raises:
        numpy.linalg.LinAlgError: a covariance is not positive definite.
    """
    X = np.asarray(X, dtype=np.float64)
    X = X - X.mean(axis=0)
    A = np.empty((len(covariances), len(X), len(X)))
    for k, sigma in enumerate(covariances):
        L = cholesky(sigma, lower=True)
        inverse = solve_triangular(L, np.eye(len(L)), lower=True)
        A[k] = -0.5 * distances(X @ inverse.T)
        A[k] -= 2 * np.log(np.diag(L)).sum() + eps * np.sum(inverse**2)
    return A


def covariance_step(X: Any, Z: Any, kind: str = "full", eps: float = 0.0) -> Covariances:
    """Return the covariances that maximise l_eps given Z; O(K n^2 p).

    Sigma_k = (X' diag(Z_k 1) X - X' Z_k X) / n_k + eps I with n_k = 1' Z_k 1; its diagonal, its mean variance, or the
    average over groups for the other kinds. A group that the joint trace has switched off (n_k < 1/2) takes
    the average.

    Args:
        X: (n, p).
        Z: (K, n, n).
        kind: ``"full"``, ``"diag"``, ``"tied"`` or ``"spherical"``.
        eps: ridge, >= 0, in squared units of X.
    """
    X = np.asarray(X, dtype=np.float64)
    X = X - X.mean(axis=0)
    members = np.asarray(Z).sum(axis=2)  # (K, n)
    counts = members.sum(axis=1)
    scatter = np.stack([(X.T * m) @ X - X.T @ (z @ X) for m, z in zip(members, Z, strict=True)])
    scatter = 0.5 * (scatter + scatter.transpose(0, 2, 1))
    average = scatter.sum(axis=0) / counts.sum()
    p = X.shape[1]
    own = np.stack([s / n if n >= 0.5 else average for s, n in zip(scatter, counts, strict=True)])
    if kind == "tied":
        own = np.repeat(average[None], len(own), axis=0)
    elif kind == "diag":
        own = own * np.eye(p)
    elif kind == "spherical":
        own = np.trace(own, axis1=1, axis2=2)[:, None, None] / p * np.eye(p)
    values, vectors = np.linalg.eigh(own)
    least = max(eps, 1e-12 * float(np.trace(average)) / p)
    if values.min() < 0:  # Z is non-negative only up to the solver's error
        own = (vectors * np.maximum(values, 0)[:, None, :]) @ vectors.transpose(0, 2, 1)
    return Covariances(own + eps * np.eye(p), values[:, 0] < least)


def gaussian_scores(X: Any, means: Any, covariances: Any) -> Matrix:
    """Return (n, K) scores -log|Sigma_k| - (x - mu_k)' Sigma_k^-1 (x - mu_k)."""
    X = np.asarray(X, dtype=np.float64)
    scores = np.empty((len(X), len(means)))
    for k, (mean, sigma) in enumerate(zip(means, covariances, strict=True)):
        L = cholesky(np.asarray(sigma, dtype=np.float64), lower=True)
        white = solve_triangular(L, (X - mean).T, lower=True)
        scores[:, k] = -2 * np.log(np.diag(L)).sum() - np.sum(white**2, axis=0)
    return scores


def log_likelihood(X: Any, labels: Any, covariances: Any) -> float:
    """Return the discrete l of a partition: its centres are the means of its clusters.

    Args:
        X: (n, p).
        labels: (n,) ints in [0, K).
        covariances: (K, p, p).
    """
    X, labels = np.asarray(X, dtype=np.float64), np.asarray(labels)
    total = 0.0
    for k in np.unique(labels):
        rows = X[labels == k]
        total += float(gaussian_scores(rows, [rows.mean(axis=0)], [covariances[k]]).sum())
    return total
