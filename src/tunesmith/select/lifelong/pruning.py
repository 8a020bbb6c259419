"""Permanent pruning of near-duplicates inside clusters (Adapt-infinity, step 8; SemDeDup, arXiv
2303.09540)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tunesmith.select.lifelong.budgets import waterfill
from tunesmith.select.lifelong.features import unit_rows

__all__ = ["duplicate_scores", "prune_duplicates"]

_BLOCK = 4096  # rows of a cluster compared at once: 4,096 x 10,000 float32 cosines are 160 MB


def duplicate_scores(vectors: ArrayLike, labels: ArrayLike) -> NDArray[np.float32]:
    """Return for each row its largest cosine to an earlier row of its cluster, at least 0.

    ``M_j = max(0, max_{i < j, same cluster} cos(h_i, h_j))``; the first row of a cluster has 0. So of a group
    of duplicates the first is the one that looks new.

    Args:
        vectors: ``(n, d)``; rows are scaled to unit length, a zero row resembles nothing.
        labels: ``(n,)`` clusters.

    Returns:
        float32 ``(n,)``. Time O(d sum_c n_c^2), memory one block of 4,096 x n_c cosines.
    """
    h, group = unit_rows(vectors)[0], np.asarray(labels)
    out = np.zeros(len(h), dtype=np.float32)
    for cluster in np.unique(group):
        rows = np.flatnonzero(group == cluster)
        part = h[rows]
        for begin in range(0, len(rows), _BLOCK):
            end = min(begin + _BLOCK, len(rows))
            cosines = part[begin:end] @ part[:end].T
            earlier = np.arange(end)[None] < np.arange(begin, end)[:, None]
            out[rows[begin:end]] = np.max(cosines, axis=1, initial=0.0, where=earlier)
    return out


def prune_duplicates(
    vectors: ArrayLike, labels: ArrayLike, max_size: int, *, variant: str = "paper"
) -> NDArray[np.int64]:
    """Return the rows to keep: in each cluster those least like an earlier one, shared over clusters by size.

    Large clusters lose most; a cluster smaller than its share is untouched, and none is emptied while
    ``max_size`` is at least the number of clusters.

    Args:
        vectors: ``(n, d)`` semantic vectors.
        labels: ``(n,)`` clusters.
        max_size: rows to keep, >= 0.
        variant: ``"official"`` shares as `waterfill` does under that name.

    Returns:
        int64 ascending indices, ``min(max_size, n)`` of them (``"paper"``).
    """
    group = np.unique(np.asarray(labels), return_inverse=True)[1]
    quotas = waterfill(np.bincount(group), max_size, variant=variant)
    m = duplicate_scores(vectors, group)
    kept = [
        rows[np.argsort(m[rows], kind="stable")[:quota]]
        for rows, quota in ((np.flatnonzero(group == j), q) for j, q in enumerate(quotas))
    ]
    return np.sort(np.concatenate(kept)).astype(np.int64) if kept else np.zeros(0, dtype=np.int64)
