"""The contract of a filter or repair: ``fit(dataset)``, ``transform(dataset) -> Dataset``, ``report_``."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from tunesmith.core.files import atomic_open, read_json, write_json

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["DETAIL", "CurateReport", "Curator"]

DETAIL = " → "
"""What follows it in a reason is about that row alone (the row it repeats, a score) and is not counted apart."""


def _kinds(reasons: Iterable[str]) -> Counter[str]:
    return Counter(reason.partition(DETAIL)[0] for reason in reasons)


@dataclass
class CurateReport:
    """What a filter or repair did. Rows count those that came in, from 0.

    Attributes:
        n_in: rows that came in.
        n_out: rows that went out.
        reasons: dropped rows by reason, most frequent first; what a reason says about one row alone, after an
            arrow, is left out here.
        dropped: ``(row, reason)`` of each dropped row.
        changed: ``(row, reason, old, new)`` of each changed row; ``old`` and ``new`` are the texts before and
            after.
        noted: ``(row, reason)`` of each row that was kept although something is to be said about it, for example
            that it could not be judged.
    """

    n_in: int = 0
    n_out: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    dropped: list[tuple[int, str]] = field(default_factory=list)
    changed: list[tuple[int, str, str, str]] = field(default_factory=list)
    noted: list[tuple[int, str]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    def lines(self) -> Iterator[dict[str, Any]]:
        """Yield one object for each row that was not simply kept: ``row``, ``action``, ``reason``, and for a
        changed row ``old`` and ``new``; in the order of the rows."""
        found: list[dict[str, Any]] = [
            {"row": row, "action": "drop", "reason": reason} for row, reason in self.dropped
        ]
        found += [
            {"row": row, "action": "change", "reason": reason, "old": old, "new": new}
            for row, reason, old, new in self.changed
        ]
        found += [{"row": row, "action": "keep", "reason": reason} for row, reason in self.noted]
        return iter(sorted(found, key=lambda line: line["row"]))

    def table(self) -> list[tuple[str, str, int]]:
        """Return ``(action, reason, rows)``, dropped rows first, each group most frequent first."""
        groups = (
            ("dropped", self.reasons),
            ("changed", _kinds(reason for _, reason, _, _ in self.changed)),
            ("kept", _kinds(reason for _, reason in self.noted)),
        )
        return [
            (action, reason, count)
            for action, counts in groups
            for reason, count in sorted(counts.items(), key=lambda item: -item[1])
        ]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the report as JSON, whole or not at all."""
        write_json(path, self.to_dict())

    def save_lines(self, path: str | os.PathLike[str]) -> None:
        """Write `lines` as JSON lines, whole or not at all."""
        with atomic_open(path) as stream:
            for line in self.lines():
                stream.write(json.dumps(line, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> CurateReport:
        """Read what `save` wrote."""
        values = read_json(path)
        lists = {name: [tuple(row) for row in values[name]] for name in ("dropped", "changed", "noted")}
        return cls(**{**values, **lists})

    def __str__(self) -> str:
        lines = [f"{self.n_in:,} rows in, {self.n_out:,} out."]
        for action, reason, count in self.table():
            lines.append(f"  {count:,} × {'' if action == 'dropped' else action + ': '}{reason}")
        return "\n".join(lines)


class Curator(TransformerMixin, BaseEstimator):
    """Base of the filters and repairs: a subclass says in `_reasons` which rows go and why.

    A subclass stores its parameters untouched in ``__init__``. One that learns from data overrides `fit` and
    ends it with ``return super().fit(dataset)``. One that changes rows or adds columns overrides `transform`
    and calls `_finish` for the selection and the report.

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
        return self._finish(dataset, self._reasons(dataset))

    def _finish(
        self,
        dataset: Dataset,
        dropped: Iterable[tuple[int, str]],
        changed: Iterable[tuple[int, str, str, str]] = (),
        noted: Iterable[tuple[int, str]] = (),
    ) -> Dataset:
        """Fill ``report_`` and return the rows that are not dropped, as they came in."""
        dropped = sorted(dropped)
        keep = np.ones(len(dataset), dtype=bool)
        keep[[row for row, _ in dropped]] = False
        self.report_ = CurateReport(
            n_in=len(dataset),
            n_out=int(keep.sum()),
            reasons=dict(_kinds(reason for _, reason in dropped).most_common()),
            dropped=dropped,
            changed=sorted(changed),
            noted=sorted(noted),
        )
        return dataset.select(np.flatnonzero(keep))

    def _reasons(self, dataset: Dataset) -> Iterable[tuple[int, str]]:
        """Yield ``(row, reason)`` for each row to drop, each row once."""
        raise NotImplementedError
