"""Weighted draws without replacement inside groups, by Gumbel keys that belong to rows.

Adding independent Gumbel noise to log-weights and taking the k largest keys draws k rows without replacement,
in law the same as k successive softmax draws (Gumbel top-k). The noise is a hash of (seed, row id), so
shuffling the rows shuffles the answer and nothing else.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["group_softmax", "row_gumbel", "top_by_group", "weighted_draw"]


def row_gumbel(ids: ArrayLike, seed: int) -> NDArray[np.float64]:
    """Return one standard Gumbel number per row id, a function of ``seed`` and the id alone.

    Args:
        ids: ``(n,)`` integers.
        seed: any integer.

    Returns:
        float64 ``(n,)``; finite. O(n).
    """
    state = np.asarray(ids, dtype=np.int64).astype(np.uint64)
    with np.errstate(over="ignore"):
        state = _mix(state + _mix(np.array([seed % 2**64], dtype=np.uint64)))
    # 53 random bits in the middle of 2^53 equal cells: never 0 and never 1.
    uniform = ((state >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return -np.log(-np.log(uniform))


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """One step of splitmix64 (Steele, Lea and Flood 2014): a bijection with full avalanche."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def weighted_draw(
    log_weights: ArrayLike,
    labels: ArrayLike,
    counts: ArrayLike,
    *,
    seed: int,
    ids: ArrayLike | None = None,
) -> NDArray[np.int64]:
    """Draw ``counts[j]`` rows of group j without replacement, with probabilities ``softmax(log_weights)``
    there.

    Args:
        log_weights: ``(n,)`` finite; any size, only differences inside a group matter.
        labels: ``(n,)`` group of each row, in [0, k).
        counts: ``(k,)`` rows to draw, at most the group's size.
        seed: of the noise.
        ids: ``(n,)`` integers to which the noise is attached; the positions by default.

    Returns:
        int64 indices, see `top_by_group`. O(n log n) for all groups together.
    """
    group = np.asarray(labels, dtype=np.int64)
    keys = _below_group_maximum(np.asarray(log_weights, dtype=np.float64), group)
    keys = keys + row_gumbel(np.arange(len(group)) if ids is None else ids, seed)
    return top_by_group(keys, group, counts)


def top_by_group(keys: ArrayLike, labels: ArrayLike, counts: ArrayLike) -> NDArray[np.int64]:
    """Return the ``counts[j]`` rows with the largest keys of each group j; ties go to the lowest index.

    Args:
        keys: ``(n,)`` float, without NaN.
        labels: ``(n,)`` group of each row, in [0, k).
        counts: ``(k,)`` rows to take, at most the group's size.

    Returns:
        int64 indices: the best row of each group first, then the second best of each, and so on.
    """
    keys, group = np.asarray(keys, dtype=np.float64), np.asarray(labels, dtype=np.int64)
    wanted = np.asarray(counts, dtype=np.int64)
    order = np.lexsort((-keys, group))  # stable, so equal keys stay in index order
    sizes = np.bincount(group, minlength=len(wanted))
    rank = np.arange(len(group)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    taken = rank < wanted[group[order]]
    chosen, rank = order[taken], rank[taken]
    return chosen[np.lexsort((group[chosen], rank))].astype(np.int64)


def group_softmax(log_weights: ArrayLike, labels: ArrayLike) -> NDArray[np.float64]:
    """Return ``exp(q_i) / sum over i's group of exp(q)`` for each row; finite for any finite input.

    Args:
        log_weights: ``(n,)`` finite.
        labels: ``(n,)`` group of each row, in [0, k).

    Returns:
        float64 ``(n,)`` that sums to 1 in each group.
    """
    group = np.asarray(labels, dtype=np.int64)
    raised = np.exp(_below_group_maximum(np.asarray(log_weights, dtype=np.float64), group))
    return np.asarray(raised / np.bincount(group, weights=raised)[group], dtype=np.float64)


def _below_group_maximum(values: NDArray[np.float64], group: NDArray[np.int64]) -> NDArray[np.float64]:
    largest = np.full(int(group.max(initial=-1)) + 1, -np.inf)
    np.maximum.at(largest, group, values)
    return values - largest[group]
