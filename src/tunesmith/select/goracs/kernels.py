"""Compiled loops of GORACS: the estimate of a row, and a quick rise of the semi-dual after an exchange."""

from __future__ import annotations

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

__all__ = ["ascend", "estimate_parallel", "estimate_serial"]

Matrix = NDArray[np.float64]
Indices = NDArray[np.int64]


@njit(cache=True, nogil=True)
def _estimate(
    k: int, cost: Matrix, rows: Indices, rest: Matrix, n: int, rank: int, out: Matrix, y: Matrix
) -> None:
    a = cost[rows[k]] - (rest[0] if rest.shape[0] == 1 else rest[k])
    cut = np.partition(a, rank)[rank]
    total = 0.0
    for v in range(a.size):
        total += min(a[v] - cut, 0.0)
    y[k] = cut
    out[k] = total / a.size + cut / n


@njit(cache=True, nogil=True)
def estimate_serial(
    cost: Matrix, rows: Indices, rest: Matrix, n: int, rank: int, out: Matrix, y: Matrix
) -> None:
    for k in range(rows.size):
        _estimate(k, cost, rows, rest, n, rank, out, y)


@njit(parallel=True, cache=True, nogil=True)
def estimate_parallel(
    cost: Matrix, rows: Indices, rest: Matrix, n: int, rank: int, out: Matrix, y: Matrix
) -> None:
    for k in prange(rows.size):
        _estimate(k, cost, rows, rest, n, rank, out, y)


@njit(cache=True, nogil=True)
def _column(reduced: Matrix, v: int, best: Matrix, second: Matrix, who: Indices, next_: Indices) -> None:
    """Find the two smallest reduced costs of a column and their rows."""
    low, high, a, b = np.inf, np.inf, -1, -1
    for s in range(reduced.shape[0]):
        x = reduced[s, v]
        if x < low:
            low, high, a, b = x, low, s, a
        elif x < high:
            high, b = x, s
    best[v], second[v], who[v], next_[v] = low, high, a, b


@njit(cache=True, nogil=True)
def _rise(reduced: Matrix, u: Matrix, rank: int, limit: float, rounds: int) -> float:
    """Raise ``mean(u) + mean_v min_s reduced_sv`` one coordinate at a time; see `ascend`."""
    n, V = reduced.shape
    best, second = np.empty(V), np.empty(V)
    who, next_ = np.empty(V, np.int64), np.empty(V, np.int64)
    for v in range(V):
        _column(reduced, v, best, second, who, next_)
    value = u.mean() + best.mean()
    a = np.empty(V)
    for turn in range(rounds):
        before = value
        for s in range(n):
            for v in range(V):
                a[v] = reduced[s, v] - (second[v] if who[v] == s else best[v])
            step = np.partition(a, rank)[rank]
            if step == 0.0:
                continue
            u[s] += step
            for v in range(V):
                x = reduced[s, v] - step
                reduced[s, v] = x
                if who[v] == s:
                    if x <= second[v]:
                        best[v] = x
                    else:
                        _column(reduced, v, best, second, who, next_)
                elif next_[v] == s:
                    if step < 0.0 or x < best[v]:
                        _column(reduced, v, best, second, who, next_)
                    else:
                        second[v] = x
                elif x < best[v]:
                    second[v], next_[v] = best[v], who[v]
                    best[v], who[v] = x, s
                elif x < second[v]:
                    second[v], next_[v] = x, s
            value = u.mean() + best.mean()
            if value >= limit:
                return value
        # Rises shrink from round to round: one that would not get there at its present pace never will.
        if value + (value - before) * (rounds - 1 - turn) < limit:
            break
    return value


@njit(parallel=True, cache=True, nogil=True)
def ascend(
    cost: Matrix,
    rows: Indices,
    dual: Matrix,
    i: int,
    outside: Indices,
    start: Matrix,
    rank: int,
    limit: float,
    rounds: int,
    bound: Matrix,
    duals: Matrix,
) -> None:
    """Lower bounds of the transport cost after exchanging member i for each of some outsiders.

    Any dual gives a lower bound through the semi-dual; each coordinate has its maximum at the R-th smallest
    reduced cost. A round over the n members costs about 3 n V operations, some hundredths of an exact solve,
    and brings the bound close to the exact value. It stops as soon as the bound reaches ``limit``: such a
    pair cannot help.

    Args:
        cost: ``(T, V)``.
        rows: ``(n,)`` members.
        dual: ``(n,)`` their dual.
        i: position of the member that goes.
        outside: ``(k,)`` rows that may come.
        start: ``(k,)`` dual to give them at first.
        rank: R - 1.
        limit: value that an exchange must stay below.
        rounds: most rounds.
        bound: ``(k,)`` output.
        duals: ``(k, n)`` output, the newcomer's at position i.
    """
    n, V = rows.size, cost.shape[1]
    for k in prange(outside.size):
        reduced = np.empty((n, V))
        for s in range(n):
            duals[k, s] = start[k] if s == i else dual[s]
            row = outside[k] if s == i else rows[s]
            for v in range(V):
                reduced[s, v] = cost[row, v] - duals[k, s]
        bound[k] = _rise(reduced, duals[k], rank, limit, rounds)
