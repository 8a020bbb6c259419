"""Putting groups of rows into words: the words that tell a group from the rest, and its most typical rows."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["central_rows", "group_names", "telling_words"]

Labels = NDArray[np.int64]

SAMPLE = 5_000  # words of about this many rows are telling enough
LONGEST = 2_000  # characters of a row that are looked at
_WORD = re.compile(r"[^\W\d_]{3,}")


def telling_words(
    texts: Callable[[NDArray[np.int64]], Sequence[str]], labels: Labels, per_group: int = 3
) -> dict[int, list[str]]:
    """Return for each group the words whose share of its rows most exceeds their share of all rows.

    A word's score is its share of the group's rows times the logarithm of the lift, with one row added to the
    word's count outside, so that words of a single row do not win. At most about 5,000 evenly spaced rows are
    read, 2,000 characters each.

    Args:
        texts: returns the texts of some rows.
        labels: (n,) group of each row; rows of a negative group count only for the share of all rows.
        per_group: words per group.

    Returns:
        Group -> words, most telling first; a group may have none.
    """
    rows = np.arange(0, len(labels), max(1, len(labels) // SAMPLE))
    overall: Counter[str] = Counter()
    inside: dict[int, Counter[str]] = {int(g): Counter() for g in np.unique(labels) if g >= 0}
    sizes: Counter[int] = Counter()
    for row, text in zip(rows, texts(rows), strict=True):
        words = set(_WORD.findall(text.casefold()[:LONGEST]))
        overall.update(words)
        if labels[row] >= 0:
            inside[int(labels[row])].update(words)
            sizes[int(labels[row])] += 1
    best = {}
    for group, found in inside.items():
        score = {
            word: (n / sizes[group]) * np.log((n + 1) / sizes[group] * len(rows) / (overall[word] + 1))
            for word, n in found.items()
            if n > 1
        }
        best[group] = sorted(score, key=lambda word: (-score[word], word))[:per_group]
    return best


def group_names(words: dict[int, list[str]]) -> dict[int, str]:
    """Return a name per group, different for each: its words, or its number counted from 1."""
    names = {group: ", ".join(found) or f"cluster {group + 1}" for group, found in words.items()}
    twice = {name for name, n in Counter(names.values()).items() if n > 1}
    return {group: f"{name} ({group + 1})" if name in twice else name for group, name in names.items()}


def central_rows(X: Any, labels: Labels, per_group: int = 3) -> dict[int, Labels]:
    """Return for each group the rows nearest to its mean, nearest first.

    Args:
        X: float (n, d); may be a memory map.
        labels: (n,); rows of a negative group are left out.
        per_group: rows per group.

    Time O(n d), memory O(k d) beside a chunk.
    """
    groups = [int(g) for g in np.unique(labels) if g >= 0]
    found = {}
    for group in groups:
        members = np.flatnonzero(labels == group)
        part = np.asarray(X[members], dtype=np.float64)
        distance = np.linalg.norm(part - part.mean(axis=0), axis=1)
        found[group] = members[np.argsort(distance, kind="stable")[:per_group]]
    return found
