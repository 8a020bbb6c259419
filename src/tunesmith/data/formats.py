"""The formats of training rows, and telling them apart by the rows themselves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tunesmith.core.errors import UnknownNameError
from tunesmith.data import _convert
from tunesmith.data._convert import COMPLETIONS, CONVERSATIONS, PAIRS, PROMPTS, TEXTS, BadRow, Converted

__all__ = ["FORMATS", "BadRow", "Converted", "Format", "convert", "detect", "get", "vote"]

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Format:
    """A way of writing rows.

    Attributes:
        name: as in a recipe's ``data.format``.
        family: ``"messages"``, ``"pairs"`` or ``"text"``: the canonical columns it becomes.
        fits: whether a row (its keys with a value, the row) is written this way.
        convert: returns the canonical columns or raises `BadRow`.
        meaning: how it is read, in words.
    """

    name: str
    family: str
    fits: Callable[[set[str], Row], bool]
    convert: Callable[[Row], Converted]
    meaning: str


def _turn_has(key: str) -> Callable[[set[str], Row], bool]:
    def fits(keys: set[str], row: Row) -> bool:
        for name in CONVERSATIONS:
            if name in keys:
                turns = _convert.turns_of(row[name])
                if turns:
                    return isinstance(turns[0], dict) and key in turns[0]
                return key == "role" and name == "messages"  # so that its conversion says what is wrong
        return False

    return fits


# The order decides for rows that fit several: preference sets often repeat the chosen messages, for example.
FORMATS: dict[str, Format] = {
    f.name: f
    for f in (
        Format(
            "preference",
            "messages",
            lambda keys, row: {"chosen", "rejected"} <= keys,
            _convert.preference,
            "prompt and chosen became a conversation, rejected the answer to avoid",
        ),
        Format(
            "messages",
            "messages",
            _turn_has("role"),
            _convert.conversation,
            "each row is a conversation of messages with role and content",
        ),
        Format(
            "sharegpt",
            "messages",
            _turn_has("from"),
            _convert.conversation,
            "each row is a conversation of turns with from and value",
        ),
        Format(
            "alpaca",
            "messages",
            lambda keys, row: "instruction" in keys and not keys.isdisjoint(COMPLETIONS),
            _convert.alpaca,
            "instruction and input became the question, output the answer",
        ),
        Format(
            "prompt_completion",
            "messages",
            lambda keys, row: any(
                p in keys and not keys.isdisjoint(c for c in COMPLETIONS if c != p) for p in PROMPTS
            ),
            _convert.prompt_completion,
            "one column became the question, the other the answer",
        ),
        Format(
            "pairs",
            "pairs",
            lambda keys, row: any(a in keys and b in keys for a, b in PAIRS),
            _convert.pairs,
            "two texts that belong together became anchor and positive",
        ),
        Format(
            "text",
            "text",
            lambda keys, row: not keys.isdisjoint(TEXTS),
            _convert.text,
            "each row is raw text",
        ),
    )
}


def get(name: str) -> Format:
    """Return the format of that name.

    Raises:
        UnknownNameError: there is none.
    """
    if name not in FORMATS:
        raise UnknownNameError("data format", name, [*FORMATS, "auto"])
    return FORMATS[name]


def detect(row: Row, prefer: str | None = None) -> Format | None:
    """Return the format a row is written in, or ``None``.

    Args:
        row: keys with their values; a key whose value is null counts only where nothing else fits.
        prefer: the format to take when the row fits it among others.
    """
    for keys in ({k for k, v in row.items() if v is not None}, set(row)):
        if prefer is not None and FORMATS[prefer].fits(keys, row):
            return FORMATS[prefer]
        for candidate in FORMATS.values():
            if candidate.fits(keys, row):
                return candidate
    return None


def vote(rows: Iterable[Row]) -> Counter[str]:
    """Return how many of the rows are written in each format (rows of no known one are not counted)."""
    return Counter(found.name for found in map(detect, rows) if found is not None)


def convert(row: Row, main: Format, *, strict: bool = False) -> tuple[Format, Converted]:
    """Convert a row of a file whose rows are mostly of the format ``main``.

    Args:
        row: keys with their values.
        main: the file's format.
        strict: take no other format than ``main``.

    Returns:
        The format the row was in, and its canonical columns.

    Raises:
        BadRow: the row cannot be used.
    """
    found = main if strict else detect(row, prefer=main.name)
    if found is None:
        raise BadRow("the row is of no known format", f"its keys are {', '.join(map(str, row)) or 'none'}")
    if found.family != main.family:
        kinds = {"messages": "a conversation", "pairs": "a pair of texts", "text": "raw text"}
        raise BadRow(f"the row is {kinds[found.family]} among rows of the format {main.name}")
    return found, found.convert(row)
