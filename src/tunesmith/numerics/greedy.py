"""Greedy choice under gains that can only fall."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

__all__ = ["lazy_greedy"]


def lazy_greedy(
    gain: Callable[[int], float],
    take: Callable[[int], None],
    n: int,
    budget: int,
    *,
    upper: Iterable[float] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Pick ``budget`` of ``n`` items, each time the one with the largest gain; ties go to the lowest index.

    Exact where gains never rise as items are taken (a monotone submodular objective, or a first-order gain
    with a falling slope): a gain computed earlier is then an upper bound, and an item whose fresh gain is
    still on top of the heap beats all others (Minoux 1978).

    Args:
        gain: present gain of item i.
        take: called with each pick, after which gains may have fallen.
        n: number of items.
        budget: in [0, n].
        upper: n upper bounds of the first gains; computed by ``gain`` when absent.

    Returns:
        int64 picks in order and their float64 gains. O(n) gains to begin with, then usually a few per pick;
        at worst n per pick.
    """
    bounds = (gain(i) for i in range(n)) if upper is None else upper
    known = upper is None
    heap = [(-float(bound), i) for i, bound in enumerate(bounds)]
    heapq.heapify(heap)
    fresh_at = np.full(n, 0 if known else -1)
    picks = np.empty(budget, dtype=np.int64)
    gains = np.empty(budget)
    for step in range(budget):
        while True:
            top, i = heap[0]
            if fresh_at[i] == step:
                break
            fresh_at[i] = step
            heapq.heapreplace(heap, (max(-float(gain(i)), top), i))
        heapq.heappop(heap)
        picks[step], gains[step] = i, -top
        take(i)
    return picks, gains
