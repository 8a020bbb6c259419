"""What reading found: the report, the result, and a row in one line."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from tunesmith.core.errors import shorten
from tunesmith.data.rows import row_kind

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["ReadReport", "ReadResult", "first_row"]


@dataclass
class ReadReport:
    """How rows were read.

    Attributes:
        source: what was asked for.
        format: the format of most rows.
        how: sentences on how the rows were read, the first row's rendering last.
        n_read: rows found.
        n_kept: rows in the dataset.
        bad: ``(file, row, reason, snippet)`` of the first 1,000 rows that could not be used.
        reasons: exact count of the rows that could not be used, by reason.
        files: name in ``_source`` -> path, for sources that are files.
    """

    source: str
    format: str = ""
    how: list[str] = field(default_factory=list)
    n_read: int = 0
    n_kept: int = 0
    bad: list[tuple[str, int, str, str]] = field(default_factory=list)
    reasons: dict[str, int] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [*self.how, f"{self.n_read:,} rows read, {self.n_kept:,} kept."]
        lines += [f"  {count:,} × {reason}" for reason, count in self.reasons.items()]
        lines += [f"  {file}, row {row}: {reason}: {snippet}" for file, row, reason, snippet in self.bad[:5]]
        return "\n".join(lines)


@dataclass
class ReadResult:
    """The rows and how they were read."""

    dataset: Dataset
    report: ReadReport


def first_row(row: dict[str, Any]) -> str:
    kind = row_kind(row)
    if kind == "messages":
        parts = [f"{m['role']}: {shorten(m['content'], 80)}" for m in row["messages"]]
        if len(parts) > 4:
            parts = [*parts[:3], f"… {len(parts) - 4} more turns …", parts[-1]]
    elif kind == "text":
        parts = [shorten(row["text"], 160)]
    else:
        parts = [
            f"{n}: {shorten(str(row[n]), 80)}"
            for n in ("anchor", "positive", "negative", "score")
            if row.get(n) is not None
        ]
    return "The first row reads: " + " | ".join(parts)
