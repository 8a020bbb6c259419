"""The contract of a filter or repair: ``fit(dataset)``, ``transform(dataset) -> Dataset``, ``report_``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["CurateReport", "Curator"]


@dataclass
class CurateReport:
    """What a filter did.

    Attributes:
        n_in: rows that came in.
        n_out: rows that went out.
        reasons: dropped rows by reason, most frequent first.
        dropped: ``(row, reason)`` of each dropped row; the row counts those that came in, from 0.
    """

    n_in: int = 0
    n_out: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    dropped: list[tuple[int, str]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"{self.n_in:,} rows in, {self.n_out:,} out."]
        return "\n".join(lines + [f"  {count:,} × {reason}" for reason, count in self.reasons.items()])


class Curator(TransformerMixin, BaseEstimator):
    """Base of the filters: a subclass says in `_reasons` which rows go and why.

    A subclass stores its parameters untouched in ``__init__``. One that learns from data overrides `fit` and
    ends it with ``return super().fit(dataset)``.

    Attributes:
        report_: what the last `transform` did.
    """

    report_: CurateReport

    def fit(self, dataset: Dataset, y: Any = None) -> Self:
        """Learn what `transform` needs; returns ``self``."""
        self.n_rows_ = len(dataset)
        return self

    def transform(self, dataset: Dataset) -> Dataset:
        """Return the rows that stay, in their order, and fill ``report_``.

        Args:
            dataset: canonical rows.

        Returns:
            A selection of ``dataset``; no row is copied or changed.

        Raises:
            NotFittedError: `fit` was not called.
        """
        check_is_fitted(self, "n_rows_")
        dropped = sorted(self._reasons(dataset))
        keep = np.ones(len(dataset), dtype=bool)
        keep[[row for row, _ in dropped]] = False
        self.report_ = CurateReport(
            n_in=len(dataset),
            n_out=int(keep.sum()),
            reasons=dict(Counter(reason for _, reason in dropped).most_common()),
            dropped=dropped,
        )
        return dataset.select(np.flatnonzero(keep))

    def _reasons(self, dataset: Dataset) -> Iterable[tuple[int, str]]:
        """Yield ``(row, reason)`` for each row to drop, each row once."""
        raise NotImplementedError
