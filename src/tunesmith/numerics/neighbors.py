"""Nearest neighbours of every row of a matrix among the other rows, exact or by an inverted file, and their graph."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from tunesmith.core.errors import ParameterError

__all__ = ["knn_graph", "nearest_rows"]

_EXACT_ROWS = 20_000  # "auto" is exact up to here: a second or two on one core
_PROBES = 16  # lists searched per row
_TRAIN_ROWS_PER_LIST = 40
_BLOCK = 65_536  # rows searched at a time


def nearest_rows(
    X: ArrayLike, k: int, *, method: str = "auto", random_state: int = 0, n_jobs: int | None = None
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return the ``k`` nearest other rows of each row.

    A row is never its own neighbour, also among duplicates: it is left out by its number, not by its distance.

    Args:
        X: ``(n, d)`` finite.
        k: neighbours in [1, n - 1].
        method: ``"exact"``: all pairs in chunks, time O(n^2 d), memory O(n k). ``"approximate"``: FAISS's inverted
            file in float32, ``2 sqrt(n)`` lists of which 16 are searched per row, time O(n^1.5 d). ``"auto"``: exact
            up to 20,000 rows.
        random_state: seed of the lists.
        n_jobs: threads of the exact search, as in scikit-learn; FAISS uses those of OpenMP.

    Returns:
        Euclidean distances ``(n, k)``, ascending, and int64 row numbers ``(n, k)``.

    Raises:
        ParameterError: ``k`` or ``method`` outside its range.
    """
    rows = np.asarray(X)
    n = len(rows)
    if isinstance(k, bool) or not isinstance(k, Integral) or not 1 <= k < n:
        raise ParameterError("k", nearest_rows, f"an int in [1, {n - 1}], fewer than the rows", k)
    if method not in ("auto", "exact", "approximate"):
        raise ParameterError("method", nearest_rows, "one of 'auto', 'exact', 'approximate'", method)
    if method == "exact" or (method == "auto" and n <= _EXACT_ROWS):
        from sklearn.neighbors import NearestNeighbors

        index = NearestNeighbors(n_neighbors=k + 1, algorithm="brute", n_jobs=n_jobs).fit(rows)
        distance, found = index.kneighbors(rows)
    else:
        distance, found = _inverted_file(np.ascontiguousarray(rows, dtype=np.float32), k + 1, random_state)
    return _without_self(distance, found.astype(np.int64, copy=False), k)


def knn_graph(
    X: ArrayLike, k: int, *, method: str = "auto", random_state: int = 0, n_jobs: int | None = None
) -> tuple[sparse.csr_array, NDArray[Any]]:
    """Return the binary graph with an edge from each row to its ``k`` nearest other rows, and the edges' lengths.

    Args:
        X: ``(n, d)`` finite, float32 or float64.
        k: neighbours in [1, n - 1].
        method: see `nearest_rows`.
        random_state: seed of the approximate search.
        n_jobs: threads of the exact search.

    Returns:
        ``(n, n)`` CSR matrix of ones in the dtype of X, not symmetrised, zero diagonal; Euclidean lengths ``(n, k)``
        in the order of the stored entries. Memory O(n k).

    Raises:
        ParameterError: ``k`` or ``method`` outside its range.
    """
    distance, found = nearest_rows(X, k, method=method, random_state=random_state, n_jobs=n_jobs)
    n = len(found)
    order = np.argsort(found, axis=1)
    columns = np.take_along_axis(found, order, axis=1)
    dtype = np.asarray(X).dtype
    ones = np.ones(n * k, dtype if dtype.kind == "f" else np.float64)
    small = np.int32 if n * k < 2**31 else np.int64
    start = np.arange(0, n * k + 1, k, dtype=small)
    graph = sparse.csr_array((ones, columns.ravel().astype(small), start), shape=(n, n))
    return graph, np.take_along_axis(distance, order, axis=1)


def _without_self(
    distance: NDArray[Any], found: NDArray[np.int64], k: int
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Drop each row's own number; where duplicates crowd it out, drop the last neighbour."""
    keep = found != np.arange(len(found))[:, None]
    keep[keep.all(axis=1), -1] = False
    return distance[keep].reshape(-1, k), found[keep].reshape(-1, k)


def _inverted_file(
    x: NDArray[np.float32], k: int, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Search each row in the lists nearest to it; rows of one list are searched together, which caches reward."""
    import faiss

    n, d = x.shape
    lists = max(1, min(round(2 * n**0.5), n // _TRAIN_ROWS_PER_LIST))
    quantizer = faiss.IndexFlatL2(d)
    index = faiss.IndexIVFFlat(quantizer, d, lists)
    index.cp.seed, index.cp.niter, index.cp.max_points_per_centroid = seed % 2**31, 8, _TRAIN_ROWS_PER_LIST
    index.train(x)
    index.add(x)
    index.nprobe = min(lists, _PROBES)
    home = np.empty(n, dtype=np.int64)
    contents: Any = index.invlists
    for number in range(lists):
        if size := contents.list_size(number):
            home[faiss.rev_swig_ptr(contents.get_ids(number), size)] = number
    order = np.argsort(home, kind="stable")
    distance, found = np.empty((n, k), dtype=np.float32), np.empty((n, k), dtype=np.int64)
    for begin in range(0, n, _BLOCK):
        part = order[begin : begin + _BLOCK]
        distance[part], found[part] = index.search(x[part], k)
    short = np.flatnonzero(found[:, -1] < 0)  # the lists searched held fewer than k rows
    if len(short):
        whole = faiss.IndexFlatL2(d)
        whole.add(x)
        distance[short], found[short] = whole.search(x[short], k)
    return np.sqrt(np.maximum(distance, 0)), found
