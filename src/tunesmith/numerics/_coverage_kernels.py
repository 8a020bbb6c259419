"""Compiled loops of `tunesmith.numerics.coverage`; numba keeps the machine code on disk after the first use.

``slope`` holds phi'(z) and never rises, so that first-order gains, being sums of products with fixed
non-negative entries in a fixed order, fall monotonically in floating point too. ``base`` holds the factor of
the exact gain that does not depend on the row: ``(z + a)^beta`` or ``exp(-gamma z)``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

__all__ = ["first_gains", "heapify", "pick", "refresh"]


@njit(cache=True)
def refresh(
    labels: Any, z: Any, slope: Any, base: Any, power: bool, strength: float, offset: float, first: bool
) -> None:
    """Bring ``slope`` and ``base`` up to date for some labels."""
    for p in labels:
        if power:
            u = z[p] + offset
            base[p] = u**strength
            now = np.inf if u == 0.0 and strength < 1.0 else strength * u ** (strength - 1.0)
        else:
            base[p] = np.exp(-strength * z[p])
            now = strength * base[p]
        slope[p] = now if first else min(slope[p], now)


@njit(cache=True)
def _gain(
    i: int, indptr: Any, indices: Any, data: Any, z: Any, slope: Any, base: Any,
    exact: bool, power: bool, strength: float, offset: float,
) -> float:  # fmt: skip
    total = 0.0
    for t in range(indptr[i], indptr[i + 1]):
        p, x = indices[t], data[t]
        if not exact:
            total += x * slope[p]
        elif not power:
            total -= base[p] * np.expm1(-strength * x)
        elif z[p] + offset > 0.0:
            total += base[p] * np.expm1(strength * np.log1p(x / (z[p] + offset)))
        else:
            total += x**strength
    return total


@njit(cache=True)
def first_gains(
    indptr: Any, indices: Any, data: Any, z: Any, slope: Any, base: Any,
    exact: bool, power: bool, strength: float, offset: float,
) -> Any:  # fmt: skip
    """Return the gain of every row while nothing is taken."""
    n = len(indptr) - 1
    keys = np.empty(n)
    for i in range(n):
        keys[i] = _gain(i, indptr, indices, data, z, slope, base, exact, power, strength, offset)
    return keys


@njit(cache=True)
def _before(keys: Any, i: int, j: int) -> bool:
    return keys[i] > keys[j] or (keys[i] == keys[j] and i < j)


@njit(cache=True)
def _sift(keys: Any, heap: Any, size: int, at: int) -> None:
    item = heap[at]
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        if child + 1 < size and _before(keys, heap[child + 1], heap[child]):
            child += 1
        if not _before(keys, heap[child], item):
            break
        heap[at] = heap[child]
        at = child
    heap[at] = item


@njit(cache=True)
def heapify(keys: Any) -> Any:
    """Return a max-heap of the row numbers: larger keys first, then lower numbers."""
    n = len(keys)
    heap = np.arange(n)
    for at in range(n // 2 - 1, -1, -1):
        _sift(keys, heap, n, at)
    return heap


@njit(cache=True)
def pick(
    indptr: Any, indices: Any, data: Any, z: Any, slope: Any, base: Any,
    exact: bool, power: bool, strength: float, offset: float,
    keys: Any, heap: Any, fresh: Any, order: Any, gains: Any, start: int, stop: int,
) -> int:  # fmt: skip
    """Fill ``order[start:stop]``; the heap holds the n - start rows not taken yet. Returns the
    evaluations."""
    n = len(keys)
    evaluations = 0
    for step in range(start, stop):
        size = n - step
        while fresh[heap[0]] != step:
            i = heap[0]
            now = _gain(i, indptr, indices, data, z, slope, base, exact, power, strength, offset)
            keys[i] = min(keys[i], now)
            fresh[i] = step
            evaluations += 1
            _sift(keys, heap, size, 0)
        i = heap[0]
        order[step], gains[step] = i, keys[i]
        heap[0] = heap[size - 1]
        _sift(keys, heap, size - 1, 0)
        for t in range(indptr[i], indptr[i + 1]):
            z[indices[t]] += data[t]
        refresh(indices[indptr[i] : indptr[i + 1]], z, slope, base, power, strength, offset, False)
    return evaluations
