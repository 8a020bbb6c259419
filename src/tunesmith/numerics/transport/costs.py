"""Costs between two point sets: a stored matrix where it fits, else blocks, one matrix product each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.core.errors import DataError, ParameterError

__all__ = ["COSTS", "CostBlocks", "check_points", "check_weights", "cost_matrix", "mean_cost"]

COSTS = ("sqeuclidean", "euclidean", "cosine")

Array = NDArray[Any]

# Up to this many scalar differences (about 0.3 s) distances are computed by differences in float64; beyond,
# by |x|^2 + |y|^2 - 2 x.y after centring, whose rounding error is about 1e-7 (float32) of the mean cost.
_BY_DIFFERENCES = 1 << 28
_BLOCK_BYTES = 64 << 20


def check_points(X: Any, name: str, owner: Any, *, minimum: int = 1) -> Array:
    """Return ``X`` as a finite 2-d float32 or float64 array.

    Args:
        X: ``(n, d)`` array-like.
        name: what to call it in messages.
        owner: class or function, for messages.
        minimum: fewest rows.

    Raises:
        DataError: not two-dimensional, too few rows, or a value that is not finite (the first row is named).
    """
    array = np.asarray(X)
    owner = owner if isinstance(owner, str) else type(owner).__name__
    if array.dtype != np.float32 and array.dtype != np.float64:
        try:
            array = array.astype(np.float64)
        except (TypeError, ValueError):
            raise DataError(f"{owner} needs numbers in '{name}', and these are {array.dtype}.") from None
    if array.ndim != 2 or not array.shape[1]:
        raise DataError(
            f"{owner} needs '{name}' as an array of shape (rows, dimensions). Its shape is {array.shape}."
        )
    if array.shape[0] < minimum:
        rows = "one row" if minimum == 1 else f"{minimum} rows"
        raise DataError(f"{owner} needs at least {rows} in '{name}'. It has {array.shape[0]}.")
    bad = np.flatnonzero(~np.isfinite(array.sum(axis=1)))
    bad = bad[~np.isfinite(array[bad]).all(axis=1)]  # a sum can overflow although every entry is finite
    if bad.size:
        raise DataError(
            f"{owner} needs finite numbers in '{name}', and {bad.size} of {array.shape[0]} rows have NaN or "
            "infinity; remove or recompute them.",
            source=name,
            row=int(bad[0]),
        )
    return np.ascontiguousarray(array)


def check_weights(
    weights: Any, n: int, name: str, owner: Any, *, positive: bool = False
) -> NDArray[np.float64]:
    """Return weights that sum to one; uniform for ``None``.

    Raises:
        DataError: wrong length, negative, not finite, or all zero (also any zero if ``positive``).
    """
    if weights is None:
        return np.full(n, 1.0 / n)
    w = np.asarray(weights, dtype=np.float64)
    owner = owner if isinstance(owner, str) else type(owner).__name__
    wanted = "numbers > 0" if positive else "numbers >= 0, not all zero"
    if (
        w.shape != (n,)
        or not np.isfinite(w).all()
        or (w < 0).any()
        or w.sum() <= 0
        or (positive and (w == 0).any())
    ):
        raise DataError(f"{owner} needs '{name}' to be {n} finite {wanted}. Its shape is {w.shape}.")
    return w / w.sum()


class CostBlocks:
    """The cost between ``X`` (n, d) and ``Y`` (m, d), stored or made anew block by block.

    Args:
        X: points, or the ``(n, m)`` cost itself if ``cost="precomputed"``.
        Y: points; ``None`` if the cost is precomputed.
        cost: ``"sqeuclidean"``, ``"euclidean"``, ``"cosine"`` or ``"precomputed"``.
        dtype: float32 or float64.
        max_bytes: the matrix is kept if it needs no more than this.
    """

    def __init__(self, X: Array, Y: Array | None, cost: str, dtype: Any, max_bytes: int) -> None:
        self.dtype = np.dtype(dtype)
        self.stored: Array | None = None
        self.kind = cost
        if cost == "precomputed":
            self.shape = (X.shape[0], X.shape[1])
            self.stored = np.ascontiguousarray(X, dtype=self.dtype)
            return
        assert Y is not None
        self.shape = (X.shape[0], Y.shape[0])
        entries = self.shape[0] * self.shape[1]
        if entries * self.dtype.itemsize <= max_bytes and entries * X.shape[1] <= _BY_DIFFERENCES:
            self.stored = _by_differences(X, Y, cost).astype(self.dtype, copy=False)
            return
        self._left, self._right = _factors(X, Y, cost, self.dtype)
        if entries * self.dtype.itemsize <= max_bytes:
            self.stored = self._fill(np.empty(self.shape, self.dtype), self._left)

    def _fill(self, out: Array, left: Array) -> Array:
        np.matmul(left, self._right.T, out=out)
        if self.kind != "sqeuclidean" or out.dtype == np.float64:
            np.maximum(out, 0, out=out)
        if self.kind == "euclidean":
            np.sqrt(out, out=out)
        return out

    def blocks(self, rows: int | None = None) -> Iterator[tuple[int, int, Array]]:
        """Yield ``(start, stop, cost[start:stop])``; the block is overwritten by the next one."""
        n, m = self.shape
        if self.stored is not None:
            yield 0, n, self.stored
            return
        height = min(n, rows or max(64, _BLOCK_BYTES // (m * self.dtype.itemsize)))
        buffer = np.empty((height, m), self.dtype)
        for start in range(0, n, height):
            stop = min(n, start + height)
            yield start, stop, self._fill(buffer[: stop - start], self._left[start:stop])


def _by_differences(X: Array, Y: Array, cost: str) -> NDArray[np.float64]:
    from scipy.spatial.distance import cdist

    if cost == "cosine":
        return np.maximum(1.0 - _unit(X.astype(np.float64)) @ _unit(Y.astype(np.float64)).T, 0.0)
    return np.asarray(cdist(X, Y, metric=cost), dtype=np.float64)  # type: ignore[call-overload]


def _unit(X: Array) -> Array:
    norm = np.linalg.norm(X, axis=1, keepdims=True)
    return X / np.where(norm > 0, norm, 1)


def _factors(X: Array, Y: Array, cost: str, dtype: Any) -> tuple[Array, Array]:
    """Return L (n, k), R (m, k) with ``L @ R.T`` the cost (its square for "euclidean")."""
    if cost == "cosine":
        left, right = _unit(X), -_unit(Y)
        return _append(left, 1, dtype), _append(right, 1, dtype)
    centre = (X.mean(axis=0, dtype=np.float64) + Y.mean(axis=0, dtype=np.float64)) / 2
    left, right = (X - centre.astype(X.dtype)), (Y - centre.astype(Y.dtype))
    x2 = np.einsum("ij,ij->i", left, left)
    y2 = np.einsum("ij,ij->i", right, right)
    right *= -2
    return _append(left, x2, dtype, 1), _append(right, 1, dtype, y2)


def _append(X: Array, *columns: Any) -> Array:
    first, dtype, *rest = columns
    out = np.empty((X.shape[0], X.shape[1] + 1 + len(rest)), dtype)
    out[:, : X.shape[1]] = X
    for k, column in enumerate((first, *rest)):
        out[:, X.shape[1] + k] = column
    return out


def cost_matrix(
    X: Any, Y: Any, cost: str = "sqeuclidean", *, max_entries: int = 1 << 27
) -> NDArray[np.float64]:
    """Return the ``(n, m)`` cost in float64.

    Args:
        X: ``(n, d)`` points.
        Y: ``(m, d)`` points.
        cost: ``"sqeuclidean"``, ``"euclidean"`` or ``"cosine"`` (1 - cosine).
        max_entries: guard; 2^27 entries are 1 GiB.

    Raises:
        ParameterError: unknown cost.
        DataError: bad points, different dimensions, or more than ``max_entries`` entries.
    """
    X, Y = check_pair(X, Y, cost, "cost_matrix")
    entries = X.shape[0] * Y.shape[0]
    if entries > max_entries:
        raise DataError(
            f"a cost matrix of {X.shape[0]:,} x {Y.shape[0]:,} needs {entries * 8 / 2**30:.1f} GiB; the "
            f"guard is {max_entries:,} entries. Use fewer rows, or sinkhorn, which never stores it."
        )
    source = CostBlocks(X.astype(np.float64), Y.astype(np.float64), cost, np.float64, entries * 8)
    assert source.stored is not None
    return source.stored


def check_pair(X: Any, Y: Any, cost: str, owner: Any, *, minimum: int = 1) -> tuple[Array, Array]:
    """Return both point sets checked, in one float type."""
    if cost not in COSTS:
        raise ParameterError("cost", owner, "one of " + ", ".join(map(repr, COSTS)), cost)
    X = check_points(X, "X", owner, minimum=minimum)
    Y = check_points(Y, "target_embedding", owner)
    if X.shape[1] != Y.shape[1]:
        name = owner if isinstance(owner, str) else type(owner).__name__
        raise DataError(
            f"{name} needs points of one space: X has {X.shape[1]} dimensions, target_embedding has "
            f"{Y.shape[1]}."
        )
    dtype = np.result_type(X.dtype, Y.dtype)
    return X.astype(dtype, copy=False), Y.astype(dtype, copy=False)


def mean_cost(
    X: Array,
    Y: Array,
    cost: str = "sqeuclidean",
    a: NDArray[np.float64] | None = None,
    b: NDArray[np.float64] | None = None,
    *,
    max_rows: int = 2048,
) -> float:
    """Return the mean cost ``sum_ij a_i b_j C_ij`` without the matrix.

    Exact in O((n + m) d) for "sqeuclidean" and "cosine". For "euclidean" at most ``max_rows`` evenly spaced
    rows of each side stand for all (relative error about ``1 / max_rows``).
    """
    if cost == "euclidean":
        i = np.unique(np.linspace(0, X.shape[0] - 1, min(max_rows, X.shape[0])).astype(np.int64))
        j = np.unique(np.linspace(0, Y.shape[0] - 1, min(max_rows, Y.shape[0])).astype(np.int64))
        w = (np.ones(i.size) if a is None else a[i]), (np.ones(j.size) if b is None else b[j])
        if w[0].sum() <= 0:
            w = np.ones(i.size), w[1]
        return float(w[0] @ cost_matrix(X[i], Y[j], cost) @ w[1] / (w[0].sum() * w[1].sum()))
    a = check_weights(a, X.shape[0], "a", "mean_cost")
    b = check_weights(b, Y.shape[0], "b", "mean_cost")
    if cost == "cosine":
        return float(1.0 - (a @ _unit(X)) @ (b @ _unit(Y)))
    mx, my = a @ X, b @ Y
    return float(_spread(X, mx, a) + _spread(Y, my, b) + (mx - my) @ (mx - my))


def _spread(X: Array, mean: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    centred = X - mean.astype(X.dtype)
    return float(weights @ np.einsum("ij,ij->i", centred, centred))
