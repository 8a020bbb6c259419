"""Rows with a class each, as token ids and class numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tunesmith.core.errors import DataError, ParameterError, nearest
from tunesmith.data.rows import iter_rows, prompt_text, row_text

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["ClassReport", "class_names", "encode_classes", "texts_of"]


@dataclass
class ClassReport:
    """What became of the rows.

    Attributes:
        n_rows: rows given.
        n_dropped: rows without a class, or without text.
        n_truncated: rows whose end was cut off.
        classes: rows per class, of those that stay.
    """

    n_rows: int
    n_dropped: int
    n_truncated: int
    classes: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)

    def check(self, max_truncated: float, max_dropped: float) -> None:
        """Stop where too much was cut or dropped.

        Raises:
            DataError: a share is above its limit.
        """
        for what, count, limit, advice in (
            ("cut", self.n_truncated, max_truncated, "Raise train.max_length, or preflight.max_truncated."),
            (
                "without a class or text",
                self.n_dropped,
                max_dropped,
                "Raise preflight.max_dropped to go on without them.",
            ),
        ):
            if count > limit * self.n_rows:
                raise DataError(
                    f"{count} of {self.n_rows} rows are {what}, more than the {limit:.0%} that the preflight allows. "
                    f"{advice}"
                )


def texts_of(rows: Dataset, text: str = "prompt") -> list[str]:
    """Return what is classified of each row: what is asked (raw texts are taken whole), or all of it.

    Raises:
        ParameterError: ``text`` is neither ``"prompt"`` nor ``"all"``.
    """
    if text not in ("prompt", "all"):
        raise ParameterError("text", encode_classes, "'prompt' or 'all'", text)
    return [(prompt_text(row) if text == "prompt" else "") or row_text(row) for row in iter_rows(rows)]


def class_names(rows: Dataset, label: str) -> list[str | None]:
    """Return each row's class by name; null and the empty text are none.

    Raises:
        DataError: there is no such column, or it holds numbers that are no classes.
    """
    if label not in rows.column_names:
        raise DataError(
            f"the rows have no column '{label}' with their classes.{nearest(label, rows.column_names)} "
            f"Columns: {', '.join(rows.column_names)}."
        )
    names: list[str | None] = []
    for i, value in enumerate(rows[label]):
        if isinstance(value, (float, list, dict)):
            raise DataError(
                f"a class must be a text or a whole number, one per row; the column '{label}' holds something else.",
                row=i,
                content=repr(value),
            )
        names.append(None if value is None or str(value).strip() == "" else str(value).strip())
    return names


def encode_classes(
    rows: Dataset,
    tokenizer: Any,
    *,
    label: str,
    text: str = "prompt",
    max_length: int | None = 512,
    classes: Sequence[str] | None = None,
) -> tuple[Dataset, list[str], ClassReport]:
    """Encode rows for a classifier.

    Args:
        rows: canonical rows with a column of classes.
        tokenizer: of the model.
        label: that column.
        text: ``"prompt"``: what is asked, ``"all"``: the whole row.
        max_length: longest row in tokens; the end of longer ones is cut off.
        classes: names in the order of the model's outputs; by default those that occur, sorted. Rows of other classes
            are dropped where they are given.

    Returns:
        ``(encoded, classes, report)``: columns ``input_ids`` and ``labels``; time O(tokens).

    Raises:
        DataError: no such column, a class that is no text or whole number, or fewer than two classes.
    """
    from datasets import Dataset

    names = class_names(rows, label)
    texts = texts_of(rows, text)
    found = sorted({name for name in names if name is not None}) if classes is None else list(classes)
    if len(found) < 2:
        raise DataError(
            f"the column '{label}' holds {'one class' if found else 'no class'}; there must be two at least to tell "
            "apart."
        )
    number = {name: i for i, name in enumerate(found)}
    kept = [i for i, name in enumerate(names) if name in number and texts[i].strip()]
    encoded, n_truncated = _token_ids([texts[i] for i in kept], tokenizer, max_length)
    labels = [number[str(names[i])] for i in kept]
    counts = dict.fromkeys(found, 0)
    for i in labels:
        counts[found[i]] += 1
    data = Dataset.from_dict({"input_ids": encoded, "labels": labels})
    return data, found, ClassReport(len(rows), len(rows) - len(kept), n_truncated, counts)


def _token_ids(texts: list[str], tokenizer: Any, max_length: int | None) -> tuple[list[list[int]], int]:
    """Return ids per text, and how many were too long; the tokenizer cuts those, so that its end mark stays."""
    ids: list[list[int]] = tokenizer(texts)["input_ids"] if texts else []
    long = [i for i, row in enumerate(ids) if max_length is not None and len(row) > max_length]
    if long:
        cut = tokenizer([texts[i] for i in long], truncation=True, max_length=max_length)["input_ids"]
        for i, row in zip(long, cut, strict=True):
            ids[i] = row
    return ids, len(long)
