"""Semantic deduplication: rows whose embedding points almost where an earlier row's does.

The greedy rule of Fine-T2I's second stage (arXiv 2602.09439): in a fixed order a row is kept if no row kept before
it reaches the threshold. Connected components, the usual shortcut, would chain 0°, 30°, 60° and 90° into one group
of which only the first stays; the greedy rule keeps two.
"""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tunesmith.core.errors import DataError, ParameterError
from tunesmith.numerics.lloyd import kmeans

__all__ = ["greedy_cosine"]

Vectors = Any  # (n, d), float32 or float64; arithmetic between the two is not typed
_BLOCK = 1024  # rows compared at once
_CHUNK = 8192  # kept rows they are compared with: 1,024 x 8,192 float32 cosines are 32 MB
_PAIRS = 1 << 18  # pairs whose cosine is computed again, at once


def greedy_cosine(
    X: ArrayLike,
    threshold: float,
    *,
    order: ArrayLike | None = None,
    groups: ArrayLike | int = 1,
    probes: int | None = None,
    block: int = _BLOCK,
    random_state: int = 0,
) -> NDArray[np.int64]:
    """Return for each row the earlier row that it repeats, or -1 where it is kept.

    With one group this is the plain greedy rule: row i is kept if and only if ``<x_i, x_j> < t`` for all kept
    rows j before it. With more groups the rule runs inside each group first, then once more, in the same order,
    over the survivors, each of which is compared with those of its ``probes`` nearest other groups. Without a
    limit on probes no two kept rows reach the threshold whatever the groups; still the result may differ from
    the plain one, since a row may fall inside its group to one that then falls itself.

    Cosines that come within rounding of the threshold are computed again in float64, pair by pair, so the
    result does not depend on ``block``.

    Args:
        X: ``(n, d)`` rows of length 1 (or 0: such a row resembles nothing), float32 or float64, may be a memory
            map.
        threshold: t, a cosine; above 1 by more than rounding, such as 1.01, keeps all rows.
        order: the n row numbers, first come first kept; by default as they stand.
        groups: number of k-means groups, or ``(n,)`` labels.
        probes: other groups that a survivor is compared with, by the distance of their centres; ``None`` for
            all.
        block: rows compared at once.
        random_state: seed of k-means.

    Returns:
        int64 ``(n,)``: -1 for kept rows, else the first row in the order that it repeats.

        Time O(n k d) for k kept rows and one group; with G groups O(n^2 d / G) and, with q probes,
        O(n G d + q n^2 d / G) for the second pass; memory O(n + k d) and a block of cosines. With groups the
        pairs of survivors that reach the threshold are held too, few unless the threshold is low.

    Raises:
        ParameterError: a parameter outside its range.
        DataError: a row is not finite or not of length 1; names the first one.
    """
    x: Any = np.asarray(X)
    if x.ndim != 2:
        raise ParameterError("X", greedy_cosine, "an array of shape (n, d)", x.shape)
    if x.dtype not in (np.float32, np.float64):
        x = x.astype(np.float32)
    n = len(x)
    if isinstance(threshold, bool) or not isinstance(threshold, Real) or not np.isfinite(threshold):
        raise ParameterError("threshold", greedy_cosine, "a finite number", threshold)
    if probes is not None and (isinstance(probes, bool) or not isinstance(probes, Integral) or probes < 0):
        raise ParameterError("probes", greedy_cosine, "None or an int >= 0", probes)
    if isinstance(block, bool) or not isinstance(block, Integral) or block < 1:
        raise ParameterError("block", greedy_cosine, "an int >= 1", block)
    _check_rows(x)
    sequence = np.arange(n) if order is None else np.asarray(order, dtype=np.int64)
    if sequence.shape != (n,) or not np.array_equal(np.sort(sequence), np.arange(n)):
        raise ParameterError("order", greedy_cosine, f"a permutation of 0 … {n - 1}", order)
    duplicate_of = np.full(n, -1, dtype=np.int64)
    labels = _labels(x, groups, random_state)
    by_group = [sequence[labels[sequence] == g] for g in range(int(labels.max(initial=-1)) + 1)]
    for rows in by_group:
        _within(x, rows, threshold, int(block), duplicate_of)
    if len(by_group) > 1:
        _across(x, labels, sequence, threshold, probes, duplicate_of)
    return duplicate_of


def _check_rows(x: Vectors) -> None:
    for begin in range(0, len(x), _CHUNK):
        norms = np.linalg.norm(np.asarray(x[begin : begin + _CHUNK], dtype=np.float64), axis=1)
        bad = np.flatnonzero(~((np.abs(norms - 1) < 1e-3) | (norms == 0)))
        if len(bad):
            raise DataError(
                f"the embedding has length {norms[bad[0]]:.4g}; each must be finite and of length 1 (or 0).",
                row=begin + int(bad[0]),
            )


def _labels(x: Vectors, groups: ArrayLike | int, random_state: int) -> NDArray[np.int64]:
    n = len(x)
    if isinstance(groups, Integral) and not isinstance(groups, bool):
        if groups < 1:
            raise ParameterError("groups", greedy_cosine, "an int >= 1 or labels of shape (n,)", groups)
        k = min(int(groups), n)
        if k <= 1:
            return np.zeros(n, dtype=np.int64)
        # A rough partition does: what it separates is compared again in the second pass.
        found = kmeans(x, k, spherical=True, max_iter=5, tol=0.02, random_state=random_state)
        return np.asarray(found.labels, dtype=np.int64)
    labels = np.asarray(groups)
    if labels.shape != (n,):
        raise ParameterError("groups", greedy_cosine, "an int >= 1 or labels of shape (n,)", labels.shape)
    return np.unique(labels, return_inverse=True)[1].astype(np.int64)


def _reaches(x: Vectors, a: NDArray[np.int64], b: NDArray[np.int64], t: float) -> NDArray[np.bool_]:
    """Return for rows a against rows b whether their cosine is at least t, as exact float64 products have it."""
    left, right = np.asarray(x[a]), np.asarray(x[b])
    cosines = left @ right.T
    found = cosines >= t
    # The error of a product of unit vectors is below d units in the last place.
    margin = x.shape[1] * float(np.finfo(x.dtype).eps)
    i, j = np.nonzero(np.abs(cosines - t) <= margin)
    for begin in range(0, len(i), _PAIRS):
        one, two = i[begin : begin + _PAIRS], j[begin : begin + _PAIRS]
        products = left[one].astype(np.float64) * right[two]
        found[one, two] = products.sum(axis=1) >= t
    return found


def _within(
    x: Vectors, rows: NDArray[np.int64], t: float, block: int, duplicate_of: NDArray[np.int64]
) -> None:
    """Apply the greedy rule to ``rows`` in their order."""
    kept: list[NDArray[np.int64]] = []
    for begin in range(0, len(rows), block):
        alive = rows[begin : begin + block]
        for earlier in _chunks(kept):
            hits = _reaches(x, alive, earlier, t)
            hit = hits.any(axis=1)
            duplicate_of[alive[hit]] = earlier[hits[hit].argmax(axis=1)]
            alive = alive[~hit]
            if not len(alive):
                break
        if not len(alive):
            continue
        hits = _reaches(x, alive, alive, t)
        for i in range(len(alive)):
            if duplicate_of[alive[i]] < 0:
                later = alive[i + 1 :][hits[i, i + 1 :]]
                duplicate_of[later[duplicate_of[later] < 0]] = alive[i]
        kept.append(alive[duplicate_of[alive] < 0])


def _chunks(parts: list[NDArray[np.int64]]) -> Iterator[NDArray[np.int64]]:
    """Yield the row numbers of ``parts``, in order, about ``_CHUNK`` at a time."""
    held: list[NDArray[np.int64]] = []
    for part in parts:
        held.append(part)
        if sum(map(len, held)) >= _CHUNK:
            yield np.concatenate(held)
            held = []
    if held:
        yield np.concatenate(held)


def _across(
    x: Vectors,
    labels: NDArray[np.int64],
    sequence: NDArray[np.int64],
    t: float,
    probes: int | None,
    duplicate_of: NDArray[np.int64],
) -> None:
    """Walk the survivors of all groups in order and drop those that repeat one kept before."""
    survivors = sequence[duplicate_of[sequence] < 0]
    rank = np.full(len(x), -1, dtype=np.int64)
    rank[survivors] = np.arange(len(survivors))
    members = [survivors[labels[survivors] == g] for g in range(int(labels.max()) + 1)]
    pairs = []
    for g, visitors in enumerate(_visitors(x, labels, survivors, members, probes)):
        for begin in range(0, len(visitors), _CHUNK):
            a = visitors[begin : begin + _CHUNK]
            for start in range(0, len(members[g]), _BLOCK):
                b = members[g][start : start + _BLOCK]
                i, j = np.nonzero(_reaches(x, a, b, t))
                ranks = np.column_stack([rank[a[i]], rank[b[j]]])
                pairs.append(np.sort(ranks, axis=1))
    found = np.unique(np.concatenate(pairs), axis=0) if pairs else np.empty((0, 2), dtype=np.int64)
    # By the later row, then by the earlier: when a row's turn comes, all before it are settled.
    for earlier, later in found[np.lexsort((found[:, 0], found[:, 1]))].tolist():
        if duplicate_of[survivors[later]] < 0 and duplicate_of[survivors[earlier]] < 0:
            duplicate_of[survivors[later]] = survivors[earlier]


def _visitors(
    x: Vectors,
    labels: NDArray[np.int64],
    survivors: NDArray[np.int64],
    members: list[NDArray[np.int64]],
    probes: int | None,
) -> Iterator[NDArray[np.int64]]:
    """Yield for each group the survivors of other groups that are compared with its own."""
    if probes is None or probes >= len(members) - 1:
        for g in range(len(members)):  # each pair of groups once
            yield survivors[labels[survivors] > g]
        return
    centres = np.stack([x[m].mean(axis=0) if len(m) else np.zeros(x.shape[1], x.dtype) for m in members])
    near = np.empty((len(survivors), probes), dtype=np.int32)
    for begin in range(0, len(survivors), _CHUNK):
        rows = survivors[begin : begin + _CHUNK]
        distance = (centres**2).sum(axis=1) - 2 * (np.asarray(x[rows]) @ centres.T)
        distance[np.arange(len(rows)), labels[rows]] = np.inf
        near[begin : begin + len(rows)] = np.argsort(distance, axis=1, kind="stable")[:, :probes]
    place = np.argsort(near.ravel(), kind="stable")
    ends = np.searchsorted(near.ravel()[place], np.arange(len(members) + 1))
    for g in range(len(members)):
        yield survivors[place[ends[g] : ends[g + 1]] // max(1, probes)]
