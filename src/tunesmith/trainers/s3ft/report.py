"""What each row became, counted from the columns that the build leaves."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from tunesmith.core.errors import DataError
from tunesmith.trainers.s3ft.choosing import SOURCES
from tunesmith.trainers.s3ft.rows import AUDIT

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["SelfTargetReport", "self_target_report"]


@dataclass
class SelfTargetReport:
    """What the rows of a build became.

    Attributes:
        n_rows: rows.
        sources: ``"model"``, ``"paraphrase"``, ``"gold"`` -> rows.
        predictions: verdict on the prediction -> rows; rows without one are not counted.
        paraphrases: likewise.
        verbatim: targets of source ``"paraphrase"`` that are the gold answer, white space aside.
        overlap: mean share of words that a paraphrase taken has in common with the gold answer (words of both by words
            of either, with repeats), in [0, 1]; ``None`` without any.
    """

    n_rows: int
    sources: dict[str, int] = field(default_factory=dict)
    predictions: dict[str, int] = field(default_factory=dict)
    paraphrases: dict[str, int] = field(default_factory=dict)
    verbatim: int = 0
    overlap: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    def table(self) -> list[tuple[str, str, int, float]]:
        """Return ``(what, which, rows, share of all rows)``: targets by source, then verdicts by candidate."""
        groups = (
            ("target", self.sources),
            ("prediction", self.predictions),
            ("paraphrase", self.paraphrases),
        )
        return [
            (what, which, count, count / self.n_rows if self.n_rows else 0.0)
            for what, counts in groups
            for which, count in counts.items()
        ]

    def __str__(self) -> str:
        lines = [f"{self.n_rows:,} rows."]
        lines += [
            f"  {what:10}  {which:12} {count:>9,}  {share:6.1%}" for what, which, count, share in self.table()
        ]
        if self.overlap is not None:
            told = "paraphrases are the gold answer word for word; overlap of words"
            lines.append(f"  {self.verbatim:,} {told} {self.overlap:.2f}.")
        return "\n".join(lines)


def self_target_report(dataset: Dataset, source_column: str = "source") -> SelfTargetReport:
    """Count what the rows of `selective_self_targets` became. Time and memory O(texts).

    Args:
        dataset: what it returned, or a selection of it.
        source_column: as it was called there.

    Raises:
        DataError: the rows have no such columns.
    """
    wanted = [source_column, *AUDIT]
    missing = [name for name in wanted if name not in dataset.column_names]
    if missing:
        raise DataError(
            f"the rows have no column {', '.join(map(repr, missing))}; wanted are those that selective_self_targets "
            "returns."
        )
    columns = dataset.select_columns(wanted).with_format(None)[:]
    sources = Counter(columns[source_column])
    taken = [
        (gold.split(), text.split())
        for source, gold, text in zip(
            columns[source_column], columns["s3ft_gold"], columns["s3ft_paraphrase"], strict=True
        )
        if source == "paraphrase"
    ]
    overlaps = [_overlap(Counter(gold), Counter(text)) for gold, text in taken]
    return SelfTargetReport(
        n_rows=len(dataset),
        sources={source: sources[source] for source in SOURCES},
        predictions=_counts(columns["s3ft_prediction_verdict"]),
        paraphrases=_counts(columns["s3ft_paraphrase_verdict"]),
        verbatim=sum(gold == text for gold, text in taken),
        overlap=sum(overlaps) / len(overlaps) if overlaps else None,
    )


def _counts(verdicts: list[str | None]) -> dict[str, int]:
    # What follows a colon is about one row alone.
    found = Counter(verdict.split(":")[0] for verdict in verdicts if verdict is not None)
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def _overlap(a: Counter[str], b: Counter[str]) -> float:
    return (a & b).total() / max(1, (a | b).total())
