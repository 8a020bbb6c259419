"""Rows out of text files: JSON lines, JSON, CSV and TSV, plain or gzipped, as a stream.

A reader yields ``(row number, row or BadRow, size in characters)``. What is broken in one row is reported in
its place, and the rows after it are still read.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import IO, Any

from tunesmith.data._convert import BadRow

__all__ = [
    "CUT",
    "LARGEST_OBJECT",
    "READERS",
    "Bytes",
    "RawRow",
    "delimiter_of",
    "raw_lines",
    "rows_inside",
]

RawRow = tuple[int, Any, int]

CUT = "the gzip file ends early; rows after this one are lost"
# A single value of a JSON list may be this long before it counts as broken.
_LONGEST_VALUE = 1 << 28
# A JSON object with a list inside is read whole.
LARGEST_OBJECT = 1 << 30

csv.field_size_limit(2**31 - 1)


class Bytes(io.RawIOBase):
    """The bytes of a file, through gzip if it is gzipped; ends where gzip data breaks off, and tells.

    Attributes:
        cut: whether the data broke off.
    """

    def __init__(self, path: Path) -> None:
        with open(path, "rb") as stream:
            zipped = stream.read(2) == b"\x1f\x8b"
        self._stream: Any = gzip.open(path, "rb") if zipped else path.open("rb", buffering=0)  # noqa: SIM115
        self.cut = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._stream.read1(len(buffer)) if hasattr(self._stream, "read1") else None
            if data is None:
                return int(self._stream.readinto(buffer))
        except (EOFError, zlib.error, gzip.BadGzipFile):
            self.cut = True
            return 0
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._stream.close()
        super().close()


def read_jsonl(path: Path) -> Iterator[RawRow]:
    """Yield the rows of a JSON-lines file; blank lines are no rows."""
    for number, line in raw_lines(path):
        if isinstance(line, BadRow):
            yield number, line, 0
        else:
            yield number, _json_line(line), len(line)


def raw_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield row number and bytes (without the line's end) of each line that is not blank."""
    with Bytes(path) as raw, io.BufferedReader(raw, 1 << 20) as stream:
        number = 0
        for line in stream:
            if raw.cut and not line.endswith(b"\n"):
                break
            if number == 0:
                line = line.removeprefix(codecs.BOM_UTF8)
            if not line or line.isspace():
                continue
            yield number, line.rstrip(b"\r\n")
            number += 1
        if raw.cut:
            yield number, BadRow(CUT)


def _json_line(line: bytes) -> Any:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        shown = line.decode("utf-8", errors="replace")
        return BadRow("the row is not valid UTF-8", f"byte {error.start + 1}", shown)
    try:
        return _whole_text(json.loads(text), text)
    except json.JSONDecodeError as error:
        return BadRow("the row is not valid JSON", f"{_problem(error)} {error.pos + 1}", text)
    except RecursionError:
        return BadRow("the row is nested too deeply")


def _problem(error: json.JSONDecodeError) -> str:
    return f"{error.msg.removesuffix(' at').removesuffix(' starting')} at character"


def _whole_text(value: Any, source: str) -> Any:
    """Return the value, or a `BadRow` where an escape is half of a surrogate pair, which is no character."""
    if "\\ud" in source or "\\uD" in source:
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            return BadRow("the row has half of a surrogate pair, which is no character")
    return value


def read_json(path: Path) -> Iterator[RawRow]:
    """Yield the rows of a JSON file: of a list as a stream, of an object from the list inside it."""
    with Bytes(path) as raw, io.BufferedReader(raw, 1 << 20) as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape")
        head = text.read(1 << 16)
        rows = _json_list if head.lstrip().startswith("[") else _json_object
        yield from rows(head, text, raw)


def _json_list(buffer: str, stream: IO[str], raw: Bytes) -> Iterator[RawRow]:
    decode = json.JSONDecoder().raw_decode
    at, number, ended = buffer.index("[") + 1, 0, False
    while True:
        while at < len(buffer) and buffer[at] in " \t\r\n,":
            at += 1
        if at < len(buffer) and buffer[at] == "]":
            return
        problem = "the list has no end"
        if at < len(buffer):
            try:
                value, end = decode(buffer, at)
                if end < len(buffer) or ended:
                    yield number, _no_escapes(_whole_text(value, buffer[at:end])), end - at
                    at, number = end, number + 1
                    continue
            except json.JSONDecodeError as error:
                problem = f"{_problem(error)} {error.pos - at + 1} of the row"
                near_end = error.msg.startswith("Unterminated string") or error.pos >= len(buffer) - 16
                ended = ended or not near_end or len(buffer) - at > _LONGEST_VALUE
        if ended:
            broken = BadRow("the JSON list breaks off; rows after this one cannot be read", problem)
            yield number, BadRow(CUT) if raw.cut else broken, 0
            return
        more = stream.read(max(1 << 20, len(buffer) - at))
        buffer, at, ended = buffer[at:] + more, 0, not more


def _json_object(head: str, stream: IO[str], raw: Bytes) -> Iterator[RawRow]:
    rest = stream.read(LARGEST_OBJECT)
    if raw.cut:
        yield 0, BadRow(CUT), 0
        return
    if len(rest) == LARGEST_OBJECT:
        yield 0, BadRow("a JSON object of more than 1 GB cannot be read; write the rows as JSON lines"), 0
        return
    try:
        value = json.loads(head + rest)
    except json.JSONDecodeError as error:
        yield 0, BadRow("the file is not valid JSON", f"{error.msg} in line {error.lineno}"), 0
        return
    for number, row in enumerate(rows_inside(value)):
        yield number, _no_escapes(row), len(rest) // 1000 + 1


def rows_inside(value: Any) -> list[Any]:
    """Return the rows of a JSON object: the one list of objects in it, its columns as lists, or itself."""
    from tunesmith.data.formats import detect

    if not isinstance(value, dict):
        return [value]
    columns = all(isinstance(v, list) and not (v and isinstance(v[0], dict)) for v in value.values())
    if detect(value) is not None and not columns:
        return [value]
    lists = {k: v for k, v in value.items() if isinstance(v, list)}
    of_objects = [v for v in lists.values() if v and isinstance(v[0], dict)]
    if len(of_objects) == 1:
        return list(of_objects[0])
    if lists and len(lists) == len(value) and len({len(v) for v in lists.values()}) == 1:
        return [dict(zip(lists, cells, strict=True)) for cells in zip(*lists.values(), strict=True)]
    return [value]


def _no_escapes(value: Any) -> Any:
    """Return the value, or a `BadRow` where it holds bytes that were not UTF-8 (read as lone surrogates)."""
    if isinstance(value, BadRow):
        return value
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return BadRow("the row is not valid UTF-8")
    return value


def delimiter_of(line: str) -> str | None:
    """Return what separates the cells of a header line, or ``None`` if nothing does."""
    counts = {d: line.count(d) for d in "\t,;|"}
    best = max(counts, key=lambda d: counts[d])
    return best if counts[best] else None


def read_csv(path: Path) -> Iterator[RawRow]:
    """Yield the rows of a CSV or TSV file with a header line; the separator is found in the header."""
    with Bytes(path) as raw, io.BufferedReader(raw, 1 << 20) as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
        first = text.readline()
        cells = csv.reader(chain([first], text), delimiter=delimiter_of(first) or ",", strict=True)
        header = next(cells)
        held: RawRow | None = None  # the last row of a cut file may be whole by its look only
        for number, row in enumerate(_csv_rows(cells)):
            if held is not None:
                yield held
            size = 0 if isinstance(row, BadRow) else sum(map(len, row))
            held = (number, row if isinstance(row, BadRow) else _csv_row(header, row), size)
        if held is not None:
            yield (held[0], BadRow(CUT), 0) if raw.cut else held


def _csv_rows(cells: Iterator[list[str]]) -> Iterator[list[str] | BadRow]:
    while True:
        try:
            row = next(cells)
        except StopIteration:
            return
        except csv.Error as error:
            yield BadRow("the row is not valid CSV", str(error))
        else:
            if row:
                yield row


def _csv_row(header: list[str], cells: list[str]) -> Any:
    if len(cells) != len(header):
        return BadRow(
            "the row has another number of cells than the header", f"{len(cells)} instead of {len(header)}"
        )
    if any("\udc80" <= c <= "\udcff" for cell in cells if not cell.isascii() for c in cell):
        return BadRow("the row is not valid UTF-8")
    return {name: cell if cell else None for name, cell in zip(header, cells, strict=True)}


READERS: dict[str, Callable[[Path], Iterator[RawRow]]] = {
    "jsonl": read_jsonl,
    "json": read_json,
    "csv": read_csv,
}
