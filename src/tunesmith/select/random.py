"""Uniform random selection: the baseline that every comparison names."""

from __future__ import annotations

from typing import Any, Self

import numpy as np

from tunesmith.core.errors import DataError
from tunesmith.numerics import row_gumbel
from tunesmith.select._base import Indices, Selector
from tunesmith.select._features import check_rows, fresh_seed, row_count, row_ids

__all__ = ["RandomSelector"]


class RandomSelector(Selector):
    """Choose rows uniformly at random without replacement.

    Each row gets a random key by a hash of seed and row id, and the largest keys win (equivalent to Gumbel
    top-k with equal weights, Vieira 2014). So a smaller budget gives a prefix of a larger one, and shuffled
    rows with their ids give the same rows. Time O(n log n), memory O(n).

    Args:
        random_state: seed; ``None`` draws a fresh one in `fit`.

    Attributes:
        n_rows_: rows seen in `fit`.
        indices_: the last picks, int64.
        scores_: the random keys, float64 ``(n,)``.

    Example:
        >>> from tunesmith.select import RandomSelector
        >>> picks = RandomSelector(random_state=0).fit(range(100)).select(0.1)
        >>> len(picks)
        10
    """

    def __init__(self, *, random_state: int | None = None) -> None:
        self.random_state = random_state

    def fit(self, X: Any = None, y: Any = None, *, ids: Any = None, **features: Any) -> Self:
        """Note the number of rows.

        Args:
            X: anything with rows; may be absent when another feature tells their number.
            y: ignored.
            ids: distinct integers per row to which the randomness belongs; positions by default.
            **features: not used, except that one of them may tell the number of rows.

        Returns:
            self

        Raises:
            DataError: nothing tells the number of rows, there is none, or ids are not distinct integers.
        """
        known = [value for value in (X, ids, *features.values()) if value is not None]
        if not known:
            raise DataError("RandomSelector needs X, or any other feature, to know the number of rows.")
        self.n_rows_ = row_count(known[0])
        check_rows(self.n_rows_, self)
        self._keys = row_gumbel(row_ids(ids, self.n_rows_, self), fresh_seed(self.random_state))
        return self

    def _pick(self, count: int) -> Indices:
        self.scores_ = self._keys
        return np.argsort(-self._keys, kind="stable")[:count]
