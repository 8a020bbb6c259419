"""Reading logs of served requests: JSON lines, gzipped or not, rotated files, folders of them; a stream of rows."""

from __future__ import annotations

import gzip
import json
import os
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunesmith.core.errors import DataError

__all__ = ["Skipped", "log_files", "parse_line", "read_requests", "source_name"]

_LISTED = 20
_NAME = re.compile(r"^(?P<stem>.+?\.(?:jsonl|ndjson|log))(?:[.-](?P<turn>\d+))?(?:\.gz)?$")
_DATE = 6  # digits from which on a rotation's number is a date: later is newer, where 1, 2, 3 go back in time


@dataclass
class Skipped:
    """Rows that could not be used. Places and reasons are kept, contents never.

    Attributes:
        n_rows: lines or rows seen, the skipped ones included.
        reasons: reason -> count.
        places: the first twenty, (``file:line`` or ``row i``, reason).
    """

    n_rows: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    places: list[tuple[str, str]] = field(default_factory=list)

    def add(self, place: str, reason: str) -> None:
        """Count one more."""
        self.reasons[reason] += 1
        if len(self.places) < _LISTED:
            self.places.append((place, reason))

    @property
    def n(self) -> int:
        """How many."""
        return sum(self.reasons.values())

    def nothing_left(self, source: str) -> DataError:
        """Return the error for a source of which no row can be used."""
        if not self.n_rows:
            return DataError("the log is empty: there is no row in it.", source=source)
        reasons = "; ".join(f"{count:,} × {reason}" for reason, count in self.reasons.most_common())
        place, reason = self.places[0]
        return DataError(
            f"0 of {self.n_rows:,} rows can be used: {reasons}. First: {place}: {reason}.", source=source
        )


def read_requests(source: Any, skipped: Skipped | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the rows of a log, each with its place, in the order they were written.

    Lines that are no JSON objects are passed over and counted. One line is held at a time.

    Args:
        source: a file of JSON lines (``.gz`` too), a folder of them with rotated ones (``requests.jsonl.2.gz``,
            ``requests.jsonl.1``, ``requests.jsonl`` are read in this order), a list of such paths, or rows: a
            ``datasets.Dataset`` or an iterable of mappings.
        skipped: counts what was passed over.

    Yields:
        ``(place, row)``, the place as ``file:line`` or ``row i``.

    Raises:
        DataError: there is no such file, a folder holds no log, nothing is in it, or no line is a JSON object.
    """
    skipped = Skipped() if skipped is None else skipped
    paths = _paths(source)
    if paths is None:
        rows: Iterable[tuple[str, Any]] = ((f"row {i}", row) for i, row in enumerate(source))
    else:
        rows = _lines([file for path in paths for file in log_files(path)])
    good = 0
    for place, row in rows:
        skipped.n_rows += 1
        if isinstance(row, Mapping):
            good += 1
            yield place, dict(row)
        else:
            skipped.add(place, str(row) if isinstance(row, _Bad) else "no JSON object")
    if not good:
        raise skipped.nothing_left(source_name(source))


def source_name(source: Any) -> str:
    """Return what a source is called in messages: its path, or "rows"."""
    paths = _paths(source)
    return "rows" if paths is None else ", ".join(str(path) for path in paths)


def log_files(path: str | os.PathLike[str]) -> list[Path]:
    """Return the file, or the logs of a folder: by name, rotated ones before the one still written.

    Raises:
        DataError: there is no such file, or no log in the folder.
    """
    root = Path(path)
    if not root.exists():
        raise DataError("there is no such file or folder.", source=str(path))
    if not root.is_dir():
        return [root]
    found = [
        (file, match) for file in root.rglob("*") if file.is_file() and (match := _NAME.match(file.name))
    ]
    if not found:
        raise DataError(
            "there is no log in this folder: files named *.jsonl, *.ndjson or *.log, with .1, -20260131 or .gz "
            "behind if rotated.",
            source=str(path),
        )
    return [file for file, match in sorted(found, key=lambda pair: (pair[0].parent, *_age(pair[1])))]


def parse_line(line: bytes) -> Any:
    """Return the object of a line, or a reason why it is none (a text of its own class)."""
    try:
        row = json.loads(line.removeprefix(b"\xef\xbb\xbf"))
    except (ValueError, RecursionError):  # not JSON, or not UTF-8, or nested without end
        return _Bad("not JSON")
    return row if isinstance(row, dict) else _Bad("no JSON object")


class _Bad(str):
    """Why a line is no row."""


def _paths(source: Any) -> list[Any] | None:
    if isinstance(source, (str, os.PathLike)):
        return [source]
    if isinstance(source, (list, tuple)) and source and isinstance(source[0], (str, os.PathLike)):
        return list(source)
    return None


def _age(match: re.Match[str]) -> tuple[str, int, int]:
    turn = match["turn"]
    if turn is None:
        return match["stem"], 2, 0
    return (match["stem"], 0, int(turn)) if len(turn) >= _DATE else (match["stem"], 1, -int(turn))


def _lines(files: list[Path]) -> Iterator[tuple[str, Any]]:
    for file in files:
        with open(file, "rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
        number = 0
        try:
            with gzip.open(file) if packed else open(file, "rb") as stream:
                for number, line in enumerate(stream, 1):
                    if line.strip():
                        yield f"{file.name}:{number}", parse_line(line)
        except (EOFError, zlib.error, gzip.BadGzipFile):
            yield f"{file.name}:{number + 1}", _Bad("the compressed file is cut off here")
