"""Reading a canonical row: its prompt, its answer, its whole text.

A canonical row has ``messages`` (a conversation), ``text`` (raw text), or ``anchor`` and ``positive`` (a
pair).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "TEXT_COLUMNS",
    "completion_text",
    "iter_rows",
    "last_answer",
    "prompt_messages",
    "prompt_text",
    "row_kind",
    "row_text",
    "take_rows",
]

Row = Mapping[str, Any]

# The columns that make up what a row says; everything else is about the row.
TEXT_COLUMNS = ("messages", "rejected", "text", "anchor", "positive", "negative")


def row_kind(row: Row) -> str:
    """Return ``"messages"``, ``"text"`` or ``"pairs"``."""
    if row.get("messages") is not None:
        return "messages"
    return "text" if row.get("text") is not None else "pairs"


def prompt_messages(row: Row) -> list[dict[str, str]]:
    """Return the messages before the last assistant turn; all of them where there is none."""
    messages = list(row["messages"])
    last = last_answer(messages)
    return messages if last is None else messages[:last]


def prompt_text(row: Row) -> str:
    """Return what is asked: contents of the messages before the last answer, joined by line breaks.

    A pair's prompt is its anchor; raw text has none (empty string).
    """
    kind = row_kind(row)
    if kind == "messages":
        return "\n".join(m["content"] for m in prompt_messages(row))
    return "" if kind == "text" else str(row["anchor"])


def completion_text(row: Row) -> str:
    """Return the answer: content of the last assistant turn, a pair's positive, or the whole raw text."""
    kind = row_kind(row)
    if kind == "messages":
        last = last_answer(row["messages"])
        return "" if last is None else str(row["messages"][last]["content"])
    return str(row["text"] if kind == "text" else row["positive"])


def row_text(row: Row) -> str:
    """Return the row as plain text, for embedding and for looking at: contents joined by line breaks."""
    kind = row_kind(row)
    if kind == "messages":
        return "\n".join(m["content"] for m in row["messages"])
    return str(row["text"]) if kind == "text" else f"{row['anchor']}\n{row['positive']}"


def take_rows(dataset: Any, indices: Sequence[int] | NDArray[np.int64]) -> list[dict[str, Any]]:
    """Return the text columns of the rows ``indices`` of a ``datasets.Dataset`` as dictionaries."""
    table = _text_only(dataset)[np.asarray(indices)]
    return list(table.to_pylist())


def iter_rows(dataset: Any, batch_size: int = 1000) -> Iterator[dict[str, Any]]:
    """Yield the text columns of each row, reading ``batch_size`` rows at a time."""
    for table in _text_only(dataset).iter(batch_size=batch_size):
        yield from table.to_pylist()


def _text_only(dataset: Any) -> Any:
    columns = [c for c in TEXT_COLUMNS if c in dataset.column_names]
    return dataset.select_columns(columns).with_format("arrow")


def last_answer(messages: Sequence[Mapping[str, str]]) -> int | None:
    """Return the place of the last assistant turn, ``None`` where there is none."""
    for i in range(len(messages) - 1, -1, -1):
        if messages[i]["role"] == "assistant":
            return i
    return None
