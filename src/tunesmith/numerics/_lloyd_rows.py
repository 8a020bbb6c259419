"""Rows as k-means reads them: in chunks, in one dtype, shifted by their mean or scaled to length 1."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from tunesmith.core.errors import DataError

__all__ = ["Rows", "open_rows"]

_CHUNK_BYTES = 16 << 20  # of the largest temporary: wide enough for BLAS, small enough for a cache


class Rows:
    """A matrix and how to see it.

    Args:
        X: ``(n, d)``, not copied.
        dtype: of the computation.
        shift: ``(d,)`` subtracted from every row, so that ``|x|^2 - 2 x.c + |c|^2`` loses no digits.
        spherical: scale rows and centres to length 1 (zero rows stay zero).
    """

    def __init__(self, X: Any, dtype: Any, shift: NDArray[np.float64], spherical: bool) -> None:
        self.X, self.dtype, self.spherical = X, np.dtype(dtype), spherical
        self.n, self.d = X.shape
        self.shift = shift.astype(self.dtype)

    def take(self, where: Any) -> NDArray[Any]:
        """Return some rows (a slice or indices) as they are seen."""
        block = np.asarray(self.X[where], dtype=self.dtype)
        if self.spherical:
            return _unit(block)
        return block - self.shift

    def center_in(self, centers: NDArray[Any]) -> NDArray[Any]:
        """Return centres given by the caller as the rows are seen."""
        if centers.ndim != 2 or centers.shape[1] != self.d:
            return centers
        return (
            _unit(centers.astype(self.dtype)) if self.spherical else centers.astype(self.dtype) - self.shift
        )

    def center_out(self, centers: NDArray[Any]) -> NDArray[Any]:
        """The inverse of `center_in`."""
        return centers if self.spherical else centers + self.shift

    def renorm(self, centers: NDArray[Any]) -> NDArray[Any]:
        """Scale averaged centres to length 1 where directions are clustered."""
        return _unit(centers) if self.spherical else centers

    def chunks(self, subset: NDArray[np.int64] | None, width: int) -> Iterator[tuple[slice, NDArray[Any]]]:
        """Yield positions and rows; ``width`` is the number of values per row of the caller's temporary."""
        n = self.n if subset is None else len(subset)
        step = int(np.clip(_CHUNK_BYTES // (self.dtype.itemsize * max(width, self.d)), 64, 16_384))
        for start in range(0, n, step):
            at = slice(start, min(start + step, n))
            yield at, self.take(at if subset is None else subset[at])

    def assign(
        self, subset: NDArray[np.int64] | None, centers: NDArray[Any]
    ) -> tuple[NDArray[np.int32], NDArray[Any], NDArray[np.float64], NDArray[np.int64]]:
        """Return labels, squared distances, sums and counts per cluster, for all rows or a subset."""
        k = len(centers)
        n = self.n if subset is None else len(subset)
        labels, best = np.empty(n, dtype=np.int32), np.empty(n, dtype=self.dtype)
        sums, counts = np.zeros((k, self.d)), np.zeros(k, dtype=np.int64)
        doubled = np.ascontiguousarray(-2 * centers.T)
        squares = np.einsum("ij,ij->i", centers, centers)
        for at, block in self.chunks(subset, k):
            scores = block @ doubled
            scores += squares
            near = scores.argmin(axis=1)
            m = len(block)
            labels[at] = near
            norms = np.einsum("ij,ij->i", block, block)
            np.maximum(scores[np.arange(m), near] + norms, 0, out=best[at])
            member = sparse.csc_array((np.ones(m, self.dtype), near, np.arange(m + 1)), shape=(k, m))
            sums += member @ block
            counts += np.bincount(near, minlength=k)
        return labels, best, sums, counts

    def distances(self, centers: NDArray[Any], labels: NDArray[np.int32]) -> NDArray[np.float64]:
        """Squared distances of all rows to their centres, from differences (exact to rounding)."""
        out = np.empty(self.n)
        for at, block in self.chunks(None, self.d):
            block = block - centers[labels[at]]
            out[at] = np.einsum("ij,ij->i", block, block)
        return out

    def inertia(self, centers: NDArray[Any], labels: NDArray[np.int32]) -> float:
        """Sum of `distances`."""
        return float(self.distances(centers, labels).sum())


def open_rows(X: ArrayLike, *, dtype: Any, spherical: bool) -> Rows:
    """Check a matrix in one pass and return it as `Rows`.

    Raises:
        DataError: it is sparse, not two-dimensional, empty, not numeric, or not finite.
    """
    if sparse.issparse(X):
        raise DataError("k-means needs a dense matrix of shape (rows, columns), but got a sparse one.")
    array = np.asarray(X) if not isinstance(X, np.ndarray) else X
    if array.ndim != 2 or 0 in array.shape:
        raise DataError(
            f"k-means needs a matrix of shape (rows, columns), neither 0, but got shape {array.shape}."
        )
    if array.dtype.kind not in "fiub":
        raise DataError(f"k-means needs numbers, but got values of type {array.dtype}.")
    if dtype is None:
        dtype = np.float64 if array.dtype == np.float64 else np.float32
    rows = Rows(array, dtype, np.zeros(array.shape[1]), spherical)
    total = np.zeros(rows.d)
    for at, block in Rows(array, dtype, total, False).chunks(None, rows.d):
        total = total + block.sum(axis=0, dtype=np.float64)
        if not np.isfinite(total).all():
            bad = ~np.isfinite(block).all(axis=1)
            first = at.start + int(np.argmax(bad))
            raise DataError("the matrix holds a value that is not a finite number.", row=first)
    if not spherical:
        rows.shift = (total / rows.n).astype(rows.dtype)
    return rows


def _unit(block: NDArray[Any]) -> NDArray[Any]:
    length = np.sqrt(np.einsum("ij,ij->i", block, block))
    length[length == 0] = 1
    return np.asarray(block / length[:, None])
