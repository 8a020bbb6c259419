"""Tokenise the rows to train on and count, before a model is loaded, what would go wrong in silence.

Trainers cut long rows and filter rows without labels with a progress bar as the only sign (huggingface/trl
issues 6668 and 2400). Here each cut and each dropped row is counted and listed with its reason, and a run can
be stopped when there are too many.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from tunesmith.core.errors import DataError, ParameterError, shorten
from tunesmith.data.templates import EncodedRow, encode_messages, encode_text

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["LOSSES", "PreflightReport", "encode_dataset"]

LOSSES = ("completion", "assistant", "all")
LISTED = 1_000  # rows listed by number and reason; the counts stay exact beyond


@dataclass
class PreflightReport:
    """What became of each row.

    Attributes:
        n_rows: rows given.
        n_kept: rows that can be trained on.
        n_truncated: kept rows whose end was cut off.
        n_dropped: rows left out, for any reason.
        n_without_labels: those of them in which no trained token is left.
        reasons: count of dropped rows by reason.
        dropped: ``(row, reason)`` of the first 1,000 dropped rows; row numbers count from 0 in the dataset
            given.
        truncated: ``(row, length before the cut)`` of the first 1,000 cut rows.
        tokens: tokens of the kept rows.
        trained_tokens: those that are learned (a row's first token has nothing before it, so it never is).
        max_length: the limit that was applied; None for none.
        longest: tokens of the longest row before any cut.
        median_length: median tokens of the kept rows.
        sample: the first kept row as ``(token text, trained)``.
    """

    n_rows: int
    n_kept: int = 0
    n_truncated: int = 0
    n_dropped: int = 0
    n_without_labels: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    dropped: list[tuple[int, str]] = field(default_factory=list)
    truncated: list[tuple[int, int]] = field(default_factory=list)
    tokens: int = 0
    trained_tokens: int = 0
    max_length: int | None = None
    longest: int = 0
    median_length: float = 0.0
    sample: list[tuple[str, bool]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values for JSON."""
        return asdict(self)

    def check(self, max_truncated: float, max_dropped: float) -> None:
        """Stop when too large a share of the rows was cut or dropped.

        Args:
            max_truncated: greatest permitted share of cut rows, in [0, 1].
            max_dropped: greatest permitted share of dropped rows, in [0, 1].

        Raises:
            DataError: a share is exceeded; says the counts and what to do.
        """
        if self.n_truncated > max_truncated * self.n_rows:
            raise DataError(
                f"{self._share(self.n_truncated)} were cut at max_length={self.max_length}, more than "
                f"max_truncated={max_truncated:.1%} permits; the longest row has {self.longest:,} tokens. "
                "Raise train.max_length, take long rows out, or raise preflight.max_truncated."
            )
        if self.n_dropped > max_dropped * self.n_rows:
            raise DataError(
                f"{self._share(self.n_dropped)} cannot be trained on, more than "
                f"max_dropped={max_dropped:.1%} permits: {self._why()}. Repair these rows, raise "
                "train.max_length if answers were cut off, or raise preflight.max_dropped."
            )

    def _share(self, count: int) -> str:
        return f"{count:,} of {self.n_rows:,} rows ({count / self.n_rows:.1%})"

    def _why(self) -> str:
        return "; ".join(f"{count:,} × {reason}" for reason, count in Counter(self.reasons).most_common(3))


def encode_dataset(
    dataset: Dataset, tokenizer: Any, *, max_length: int | None, loss: str = "completion"
) -> tuple[Dataset, PreflightReport]:
    """Tokenise canonical rows (``messages`` or ``text``) for training.

    Args:
        dataset: canonical rows.
        tokenizer: a transformers tokenizer.
        max_length: longest row in tokens, at least 2; the end is cut. ``None`` cuts nothing.
        loss: ``"completion"`` learns the last answer, ``"assistant"`` every assistant turn, ``"all"`` all
            tokens.

    Returns:
        The encoded rows (``input_ids`` and ``labels``: lists of int32 of equal length, -100 where nothing is
        learned; ``_index``: the row's number in ``dataset``) and the report. Time and memory are linear in
        tokens.

    Raises:
        DataError: no row is left to train on.
        ParameterError: ``loss`` or ``max_length`` is outside its permitted set.
    """
    import pyarrow as pa
    from datasets import Dataset

    if loss not in LOSSES:
        raise ParameterError("loss", "encode_dataset", f"one of {', '.join(map(repr, LOSSES))}", loss)
    if max_length is not None and max_length < 2:
        raise ParameterError("max_length", "encode_dataset", "an int of at least 2 or None", max_length)
    report = PreflightReport(n_rows=len(dataset), max_length=max_length)
    ids: list[np.ndarray[Any, Any]] = []
    labels: list[np.ndarray[Any, Any]] = []
    kept: list[int] = []
    reasons: Counter[str] = Counter()
    for index, row in enumerate(dataset):
        try:
            encoded = _encode(row, tokenizer, loss)
        except DataError as error:
            reason = str(error)
        except (
            Exception
        ) as error:  # a chat template is foreign code: whatever it raises concerns this row only
            reason = f"the chat template fails: {type(error).__name__}: {shorten(str(error), 120)}"
        else:
            report.longest = max(report.longest, len(encoded.input_ids))
            row_ids, row_labels = _arrays(encoded, max_length)
            if (row_labels != -100).any():
                if len(encoded.input_ids) > len(row_ids):
                    report.n_truncated += 1
                    if len(report.truncated) < LISTED:
                        report.truncated.append((index, len(encoded.input_ids)))
                ids.append(row_ids)
                labels.append(row_labels)
                kept.append(index)
                continue
            report.n_without_labels += 1
            reason = (
                f"max_length={max_length} cuts off every trained token"
                if len(encoded.input_ids) > len(row_ids)
                else "no token of the row is trained"
            )
        report.n_dropped += 1
        reasons[reason] += 1
        if len(report.dropped) < LISTED:
            report.dropped.append((index, reason))
    report.reasons = dict(reasons.most_common())
    report.n_kept = len(kept)
    if not kept:
        why = f": {report._why()}" if reasons else ""
        raise DataError(
            f"There is nothing to train on: none of the {report.n_rows:,} rows can be used{why}."
            if report.n_rows
            else "There is nothing to train on: the dataset has no rows."
        )
    lengths = np.array([len(row) for row in ids])
    report.tokens = int(lengths.sum())
    report.trained_tokens = int(sum((row != -100).sum() for row in labels))
    report.median_length = float(np.median(lengths))
    report.sample = [
        (tokenizer.decode([int(token)]), bool(label != -100))
        for token, label in zip(ids[0], labels[0], strict=True)
    ]
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
    columns = {
        name: pa.LargeListArray.from_arrays(offsets, pa.array(np.concatenate(rows)))
        for name, rows in (("input_ids", ids), ("labels", labels))
    }
    table = pa.table({**columns, "_index": pa.array(np.array(kept, dtype=np.int64))})
    return Dataset(table), report


def _encode(row: dict[str, Any], tokenizer: Any, loss: str) -> EncodedRow:
    if row.get("messages"):
        return encode_messages(row["messages"], tokenizer, loss=loss)
    if isinstance(row.get("text"), str) and row["text"]:
        return encode_text(row["text"], tokenizer)
    raise DataError("the row has neither messages nor text")


def _arrays(row: EncodedRow, max_length: int | None) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return ids and labels, cut; the first token has nothing before it, so it carries no label."""
    ids = np.array(row.input_ids[:max_length], dtype=np.int32)
    labels = np.where(np.array(row.trained[:max_length], dtype=bool), ids, np.int32(-100))
    labels[:1] = -100
    return ids, labels.astype(np.int32)
