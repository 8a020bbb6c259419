"""Lay a pool out in two dimensions: rows that read alike lie together, and clusters give regions to count."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["pool_map"]

EXACT_ROWS = 2_000  # t-SNE of this many rows takes about 5 s on two cores; beyond, a sample of them
NEIGHBOURS = 5  # sample rows whose mean places a row outside the sample


def pool_map(embedding: Any, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Return coordinates and cluster of each row.

    Up to 2,000 rows: t-SNE (van der Maaten & Hinton 2008) of the first 50 principal components, started from
    the first two. More rows: t-SNE of a sample of 2,000; every other row stands at the mean of its 5 nearest
    rows of the sample, weighted by inverse distance. Clusters are k-means on the same components, about
    sqrt(n / 4) of them, between 2 and 16.

    Args:
        embedding: float array (n, d), rows of unit length or not; may be a memory map.
        seed: of the sample, t-SNE and k-means.

    Returns:
        ``xy`` float32 (n, 2) scaled into [-1, 1], and ``cluster`` int32 (n,), numbered from the largest.

    Complexity: O(n d) to project, O(s log s) with s <= 2,000 for t-SNE, O(n s) in blocks to place the others.
    """
    rows = np.asarray(embedding)
    n = len(rows)
    if n < 5:
        line = np.linspace(-1, 1, n) if n > 1 else np.zeros(n)
        return np.stack([line, np.zeros(n)], axis=1).astype(np.float32), np.zeros(n, dtype=np.int32)
    from sklearn.cluster import MiniBatchKMeans

    rng = np.random.default_rng(seed)
    sample = np.arange(n) if n <= EXACT_ROWS else np.sort(rng.choice(n, EXACT_ROWS, replace=False))
    flat = _components(rows, sample)
    xy = np.empty((n, 2), dtype=np.float32)
    xy[sample] = _tsne(flat[sample], seed)
    if len(sample) < n:
        rest = np.setdiff1d(np.arange(n), sample)
        xy[rest] = _place(flat[rest], flat[sample], xy[sample])
    xy -= (xy.max(axis=0) + xy.min(axis=0)) / 2
    xy /= max(float(np.abs(xy).max()), 1e-12)
    k = int(np.clip(round(np.sqrt(n / 4)), 2, 16))
    labels = MiniBatchKMeans(k, random_state=seed, n_init=3, batch_size=2048).fit_predict(flat)
    order = np.argsort(-np.bincount(labels, minlength=k), kind="stable")
    rank = np.empty(k, dtype=np.int32)
    rank[order] = np.arange(k, dtype=np.int32)
    return xy, rank[labels]


def _components(rows: NDArray[Any], sample: NDArray[np.int64], width: int = 50) -> NDArray[np.float32]:
    """Project onto the first principal components of the sample."""
    fit = rows[sample].astype(np.float64)
    mean = fit.mean(axis=0)
    _, _, basis = np.linalg.svd(fit - mean, full_matrices=False)
    basis = basis[: min(width, *fit.shape)]
    basis *= np.sign(basis[np.arange(len(basis)), np.abs(basis).argmax(axis=1)])[
        :, None
    ]  # a fixed orientation
    out = np.empty((len(rows), len(basis)), dtype=np.float32)
    for begin in range(0, len(rows), 65_536):
        out[begin : begin + 65_536] = (rows[begin : begin + 65_536] - mean) @ basis.T
    return out


def _tsne(flat: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    from sklearn.manifold import TSNE

    if not np.any(np.ptp(flat, axis=0) > 1e-6):  # all rows alike: t-SNE has nothing to lay out
        return np.zeros((len(flat), 2), dtype=np.float32)
    start = np.zeros((len(flat), 2), dtype=np.float32)
    start[:, : min(2, flat.shape[1])] = flat[:, :2]
    start *= 1e-4 / max(float(start[:, 0].std()), 1e-12)
    perplexity = min(30.0, (len(flat) - 1) / 3)
    tsne = TSNE(2, perplexity=perplexity, init=start, random_state=seed, max_iter=750)
    return tsne.fit_transform(flat).astype(np.float32)


def _place(
    rest: NDArray[np.float32], sample: NDArray[np.float32], xy: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Put each row at the weighted mean of its nearest rows of the sample."""
    from sklearn.neighbors import NearestNeighbors

    search = NearestNeighbors(n_neighbors=NEIGHBOURS, algorithm="brute").fit(sample)
    out = np.empty((len(rest), 2), dtype=np.float32)
    for begin in range(0, len(rest), 8_192):
        distance, near = search.kneighbors(rest[begin : begin + 8_192])
        weight = 1.0 / np.maximum(distance, 1e-6)
        weight /= weight.sum(axis=1, keepdims=True)
        out[begin : begin + 8_192] = np.einsum("nk,nkd->nd", weight, xy[near])
    return out
