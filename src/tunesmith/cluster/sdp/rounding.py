"""From memberships to labels: spectral rounding, and argmax where each block is a group of its own."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans

__all__ = [
    "all_used",
    "argmax_rounding",
    "by_first_row",
    "leading_vectors",
    "match_groups",
    "spectral_rounding",
]

Labels = NDArray[np.int64]


def argmax_rounding(Z: Any) -> Labels:
    """Return label_i = argmax_k (Z_k 1)_i of Z (K, n, n).

    Meaningless where covariances are equal: then the split of sum_k Z_k among the blocks is not unique.
    """
    return np.argmax(np.asarray(Z).sum(axis=2), axis=0).astype(np.int64)


def leading_vectors(Z: Any, count: int, *, steps: int = 6) -> NDArray[np.float64]:
    """Return about the ``count`` leading eigenvectors of Z (n, n) by a few subspace steps, O(n^2 count).

    Good enough for a candidate partition; `spectral_rounding` is exact.
    """
    start = np.random.default_rng(0).standard_normal((len(Z), min(count + 4, len(Z))))
    for _ in range(steps):
        start = np.linalg.qr(Z @ start)[0]
    vectors = np.linalg.eigh(start.T @ (Z @ start))[1]
    return np.asarray(start @ vectors[:, ::-1][:, :count])


def spectral_rounding(
    Z: Any, n_clusters: int, *, n_init: int = 10, normalise: bool = False, random_state: Any = None
) -> Labels:
    """Return k-means labels of the rows of the K leading eigenvectors of sum_k Z_k.

    Args:
        Z: (g, n, n).
        n_clusters: K.
        n_init: restarts of k-means.
        normalise: scale the rows to length 1 first.
        random_state: of k-means.
    """
    total = np.asarray(Z, dtype=np.float64).sum(axis=0)
    n = len(total)
    vectors = eigh(0.5 * (total + total.T), subset_by_index=(n - n_clusters, n - 1), check_finite=False)[1]
    if normalise:
        vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    model = KMeans(n_clusters, n_init=n_init, random_state=random_state)
    return all_used(model.fit_predict(vectors).astype(np.int64), n_clusters)


def all_used(labels: Labels, n_clusters: int) -> Labels:
    """Give clusters without rows (k-means on duplicates) one row each, from the largest."""
    counts = np.bincount(labels, minlength=n_clusters)
    for empty in np.flatnonzero(counts == 0):
        labels[np.flatnonzero(labels == counts.argmax())[-1]] = empty
        counts = np.bincount(labels, minlength=n_clusters)
    return labels


def by_first_row(labels: Any) -> Labels:
    """Name clusters 0, 1, … in the order of their first rows, so that names do not hang on rounding errors."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse].astype(np.int64)


def match_groups(labels: Labels, Z: Any) -> Labels:
    """Rename clusters so that cluster k overlaps most with the membership Z_k 1 of Z (K, n, n)."""
    members = np.asarray(Z).sum(axis=2)  # (K, n)
    overlap = np.stack([members[:, labels == c].sum(axis=1) for c in range(len(members))], axis=1)
    groups, clusters = linear_sum_assignment(-overlap)
    name = np.empty(len(groups), dtype=np.int64)
    name[clusters] = groups
    return name[labels]
