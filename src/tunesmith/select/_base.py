"""The contract of an offline selector: ``fit(X, y=None, **features)``, then ``select(budget)``."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from tunesmith.core.errors import ParameterError

__all__ = ["Selector", "resolve_budget"]

Indices = NDArray[np.int64]


def resolve_budget(budget: int | float, n: int, owner: Any) -> int:
    """Return the number of rows that ``budget`` stands for among ``n``.

    Args:
        budget: an int is a number of rows in [1, n]; a float in (0, 1] is a share, rounded as Python rounds
            (halves to even) and never below one row.
        n: rows to choose from.
        owner: the selector, for the message.

    Raises:
        ParameterError: the budget is neither.
    """
    expected = f"an int in [1, {n}] or a float in (0, 1]"
    if isinstance(budget, (bool, np.bool_)):
        raise ParameterError("budget", owner, expected, budget)
    if isinstance(budget, Integral) and 1 <= budget <= n:
        return int(budget)
    if isinstance(budget, Real) and not isinstance(budget, Integral) and 0 < budget <= 1 and n >= 1:
        return max(1, round(float(budget) * n))
    raise ParameterError("budget", owner, expected, budget)


class Selector(BaseEstimator):
    """Base of the offline selectors.

    A subclass stores its parameters untouched in ``__init__``, sets ``n_rows_`` in ``fit`` and implements
    `_pick`. After `select`, ``indices_`` holds the picks in order and ``scores_`` one float per row of the
    pool (what the method ranked by; NaN for rows it did not score).

    Attributes:
        requires: names of the features that `fit` needs as keywords; ``"embedding"`` is passed as ``X``.
    """

    requires: ClassVar[tuple[str, ...]] = ()

    n_rows_: int
    indices_: Indices
    scores_: NDArray[np.float64]

    def required_features(self) -> tuple[str, ...]:
        """Names of the features that `fit` needs with the present parameters."""
        return self.requires

    def fit(self, X: Any = None, y: Any = None, **features: Any) -> Self:
        """Learn what `select` needs; returns ``self``."""
        raise NotImplementedError

    def select(self, budget: int | float) -> Indices:
        """Choose rows.

        Args:
            budget: rows (int in [1, n]) or share (float in (0, 1]).

        Returns:
            int64 indices in pick order, all distinct.

        Raises:
            NotFittedError: `fit` was not called.
            ParameterError: the budget is outside its range.
        """
        check_is_fitted(self, "n_rows_")
        count = resolve_budget(budget, self.n_rows_, self)
        self.indices_ = np.asarray(self._pick(count), dtype=np.int64)
        return self.indices_

    def _pick(self, count: int) -> Indices:
        """Return ``count`` distinct indices; sets ``scores_``."""
        raise NotImplementedError
