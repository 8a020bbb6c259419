"""Compiled loops of NCD k-means; numba keeps the machine code on disk after the first use."""

from __future__ import annotations

from typing import Any

from numba import njit

__all__ = ["lower", "settle", "spread"]


@njit(cache=True)
def settle(scores: Any, squares: Any, rows: Any, labels: Any, sums: Any, counts: Any) -> None:
    """Give each row the first centroid of least ``score + square``, and add the row to its sum."""
    k, d = scores.shape[1], rows.shape[1]
    for i in range(len(rows)):
        least, at = scores[i, 0] + squares[0], 0
        for j in range(1, k):
            value = scores[i, j] + squares[j]
            if value < least:
                least, at = value, j
        labels[i] = at
        counts[at] += 1
        for c in range(d):
            sums[at, c] += rows[i, c]


@njit(cache=True)
def lower(nearest: Any, rows: Any, center: Any) -> None:
    """Lower the squared distances ``nearest`` by those to one more centroid."""
    for i in range(len(rows)):
        total = 0.0
        for c in range(rows.shape[1]):
            difference = rows[i, c] - center[c]
            total += difference * difference
        nearest[i] = min(nearest[i], total)


@njit(cache=True)
def spread(rows: Any, centers: Any, labels: Any, plain: bool) -> float:
    """Sum the squared (or ``plain``) distances of rows to their centroids."""
    inertia = 0.0
    for i in range(len(rows)):
        total = 0.0
        for c in range(rows.shape[1]):
            difference = rows[i, c] - centers[labels[i], c]
            total += difference * difference
        inertia += total**0.5 if plain else total
    return inertia
