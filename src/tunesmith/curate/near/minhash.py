"""Near-duplicate texts: candidates by MinHash and locality-sensitive hashing, each verified exactly.

Broder 1997 (the resemblance of two documents is the Jaccard similarity of their word sequences, and equal MinHashes
occur with that probability); bands of several MinHashes each, Indyk and Motwani 1998. Signatures and the index are
those of the library rensa; what is added here is the exact check and the greedy rule, under which the row that a
duplicate is dropped for is always kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tunesmith.core.errors import ParameterError
from tunesmith.curate.near._words import shingles

__all__ = ["bands", "greedy_minhash"]

_CHUNK = 1000  # rows read at once
_MISS = 0.005  # share of the pairs exactly at the threshold that the index may overlook
_MANY = 16  # candidates above which signatures are compared before sets: forms that differ in a word or two have many
_SIGMAS = (
    5.0  # so far below the threshold an estimate must lie to rule a pair out: 3e-7 at the threshold itself
)


def bands(threshold: float, num_perm: int, miss: float = _MISS) -> tuple[int, int]:
    """Return bands b and MinHashes per band r of an index for pairs of Jaccard similarity ``threshold`` or more.

    A pair of similarity s shares a band with probability 1 - (1 - s^r)^b. The largest r is taken for which pairs
    at the threshold are overlooked with probability ``miss`` at most: the fewest needless comparisons.

    Example:
        >>> bands(0.8, 128)
        (21, 6)
    """
    for r in range(num_perm, 1, -1):
        if (1 - threshold**r) ** (num_perm // r) <= miss:
            return num_perm // r, r
    return num_perm, 1


def greedy_minhash(
    texts: Callable[[NDArray[np.int64]], Sequence[str]],
    n: int,
    threshold: float = 0.8,
    *,
    ngram: int = 3,
    num_perm: int = 128,
    order: ArrayLike | None = None,
    random_state: int = 0,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return for each row the kept row that it nearly repeats, or -1 where it is kept itself.

    In the given order, a row is dropped if its Jaccard similarity to a kept row reaches the threshold, where the
    two are compared as sets of ``ngram`` neighbouring words. The index proposes the kept rows to compare with;
    the similarity is then computed exactly, so that no row is dropped by a chance of hashing. Pairs at the
    threshold are overlooked with probability 0.5 % at most, pairs above it less often.

    Args:
        texts: returns the texts of some row numbers; called again for the kept rows that a row is compared with.
        n: rows.
        threshold: Jaccard similarity in (0, 1].
        ngram: words of a sequence; texts that are no longer are compared as a whole.
        num_perm: MinHashes of a signature; more of them save comparisons and cost memory.
        order: the n row numbers, first come first kept; by default as they stand.
        random_state: seed of the hashes.

    Returns:
        int64 ``(n,)`` rows and float32 ``(n,)`` similarities to them (NaN for kept rows).

        Time O(words), about 10 seconds per million words, and memory O(k) for k kept rows, about 2 KB each,
        as long as few rows resemble one another below the threshold; each such pair costs a comparison of
        signatures, many at a time, and one of sets where the estimate is within five standard deviations.

    Raises:
        ParameterError: a parameter outside its range.
    """
    _check(threshold=threshold, ngram=ngram, num_perm=num_perm)
    from rensa import RMinHash, RMinHashLSH

    count, width = bands(threshold, num_perm)
    index = RMinHashLSH(threshold, count * width, count)
    sequence = np.arange(n) if order is None else np.asarray(order, dtype=np.int64)
    if sequence.shape != (n,) or not np.array_equal(np.sort(sequence), np.arange(n)):
        raise ParameterError("order", greedy_minhash, f"a permutation of 0 … {n - 1}", order)
    duplicate_of = np.full(n, -1, dtype=np.int64)
    similarity = np.full(n, np.nan, dtype=np.float32)
    kept = _Signatures(n, count * width, threshold)
    for begin in range(0, n, _CHUNK):
        rows = sequence[begin : begin + _CHUNK]
        sets = {int(i): shingles(text, ngram) for i, text in zip(rows, texts(rows), strict=True)}
        signatures = {}
        for i, words in sets.items():
            signatures[i] = RMinHash(count * width, random_state & 0x7FFFFFFF)
            # A set has no order that is the same in each process; the signature does not depend on one.
            signatures[i].update(list(words))
        # What the rows will be compared with, as far as it was kept before this chunk, is read in one go.
        here = RMinHashLSH(threshold, count * width, count)  # rows of this chunk that are kept
        near = {i: kept.likely(signatures[i], index.query(signatures[i])) for i in sets}
        wanted = sorted({j for found in near.values() for j in found} - sets.keys())
        if wanted:
            found = texts(np.asarray(wanted, dtype=np.int64))
            sets |= {j: shingles(text, ngram) for j, text in zip(wanted, found, strict=True)}
        for i in map(int, rows):
            best, j = _most_similar(
                i, [*near[i], *kept.likely(signatures[i], here.query(signatures[i]))], sets
            )
            if best >= threshold:
                duplicate_of[i], similarity[i] = j, best
            else:
                for table in (index, here):
                    table.insert(i, signatures[i])
                kept.add(i, signatures[i])
    return duplicate_of, similarity


class _Signatures:
    """Short signatures of the kept rows, to rule candidates out many at a time."""

    def __init__(self, n: int, width: int, threshold: float) -> None:
        # 16 bits of each MinHash: two differ that should not be equal but for one in 65,536.
        self._table = np.empty((min(n, 1024), width), dtype=np.uint16)
        self._place, self._count = np.zeros(n, dtype=np.int32), 0
        spread = (threshold * (1 - threshold) / width) ** 0.5
        self._least = (threshold - _SIGMAS * spread) * width

    def add(self, row: int, signature: Any) -> None:
        """Keep the signature of a row."""
        if self._count == len(self._table):
            self._table = np.concatenate([self._table, np.empty_like(self._table)])
        self._table[self._count] = _short(signature)
        self._place[row] = self._count
        self._count += 1

    def likely(self, signature: Any, candidates: Sequence[int]) -> Sequence[int]:
        """Return the candidates whose estimated similarity may reach the threshold; all where they are few."""
        if len(candidates) <= _MANY:
            return candidates
        rows = np.array(candidates)
        equal = np.count_nonzero(self._table[self._place[rows]] == _short(signature), axis=1)
        found: list[int] = rows[equal >= self._least].tolist()
        return found


def _short(signature: Any) -> NDArray[np.uint16]:
    return np.asarray(signature.digest(), dtype=np.uint32).astype(np.uint16)


def _most_similar(i: int, candidates: Sequence[int], sets: dict[int, set[str]]) -> tuple[float, int]:
    """Return the largest exact similarity of row i to a candidate, and which it is (the lowest number of equals)."""
    best, where = -1.0, -1
    own = sets[i]
    for j in sorted(candidates):
        other = sets[j]
        common = len(own & other)
        value = common / (len(own) + len(other) - common)
        if value > best:
            best, where = value, j
            if value == 1:
                break
    return best, where


def _check(**parameters: Any) -> None:
    threshold = parameters.pop("threshold")
    if isinstance(threshold, bool) or not isinstance(threshold, Real) or not 0 < float(threshold) <= 1:
        raise ParameterError("threshold", greedy_minhash, "a float in (0, 1]", threshold)
    for name, value in parameters.items():
        if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < 1:
            raise ParameterError(name, greedy_minhash, "an int >= 1", value)
