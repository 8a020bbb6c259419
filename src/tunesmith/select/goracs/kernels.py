"""Compiled loops of GORACS: what rows would bring as members, as far as a limit asks to know it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

__all__ = ["raise_parallel", "raise_serial"]

Matrix = NDArray[np.float64]
Indices = NDArray[np.int64]


@njit(cache=True, nogil=True)
def _value(row: Matrix, rest: Matrix, y: float, n: int) -> float:
    """``F(y) = mean_v min(C_v - y - rest_v, 0) + y / n``."""
    total = 0.0
    for v in range(row.size):
        total += min(row[v] - y - rest[v], 0.0)
    return total / row.size + y / n


@njit(cache=True, nogil=True)
def _raise(
    k: int,
    cost: Matrix,
    rows: Indices,
    rest: Matrix,
    kept: float,
    n: int,
    rank: int,
    limit: float,
    bound: Matrix,
    y: Matrix,
) -> None:
    """Raise ``bound[k]`` to ``kept + max_y F(y)``, or to what the given y reaches if that is the limit."""
    # Any y gives a bound, and one near the best is at hand: most rows reach the limit without a partition.
    row, others = cost[rows[k]], rest[0] if rest.shape[0] == 1 else rest[k]
    reached = kept + _value(row, others, y[k], n)
    if reached < limit:
        cut = np.partition(row - others, rank)[rank]
        reached = kept + _value(row, others, cut, n)
        if reached > bound[k]:
            y[k] = cut
    bound[k] = max(bound[k], reached)


@njit(cache=True, nogil=True)
def raise_serial(cost: Matrix, rows: Indices, *arguments: Any) -> None:
    for k in range(rows.size):
        _raise(k, cost, rows, *arguments)


@njit(parallel=True, cache=True, nogil=True)
def raise_parallel(cost: Matrix, rows: Indices, *arguments: Any) -> None:
    for k in prange(rows.size):
        _raise(k, cost, rows, *arguments)
