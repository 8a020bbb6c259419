"""Following a log that grows: whole new lines since the last look, none lost and none twice."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tunesmith.audit.drift.reading import Skipped, parse_line
from tunesmith.core.errors import DataError

__all__ = ["NewRows", "new_rows"]

_HEAD = 256
_MOST = 1 << 26  # bytes read in one go: 64 MB


@dataclass(frozen=True)
class NewRows:
    """What was appended to a log.

    Attributes:
        rows: the objects, in order.
        place: JSON-able; hand it to the next call, and keep it with whatever was made of the rows.
        skipped: lines that are no JSON objects.
        notice: empty, or that the file was rotated or cut and what that means.
        more: whether more whole lines are there already (a call reads at most 64 MB).
    """

    rows: list[dict[str, Any]]
    place: dict[str, Any]
    skipped: Skipped
    notice: str = ""
    more: bool = False


def new_rows(path: str | os.PathLike[str], place: dict[str, Any] | None = None) -> NewRows:
    """Return the rows whose lines were finished since ``place``.

    A last line without its line end is left for the next call. A file that was renamed and begun anew (rotation) is
    read to its end under its new name, if that is in the same folder and not compressed yet, before the new one; a file
    that became shorter or begins otherwise (copied and truncated) is read from the start. Look more often than the log
    rotates: a file between the two is not found.

    Args:
        path: a log of JSON lines, not compressed. It may be absent for now.
        place: of the last call; None begins at the start.

    Raises:
        DataError: ``place`` is none, or the path is a folder.
    """
    log = Path(path)
    if log.is_dir():
        raise DataError("this is a folder; follow one file.", source=str(path))
    if place is not None and not {"offset", "inode", "head", "line"} <= set(place):
        raise DataError("the place to go on from is not one that new_rows returned.", source=str(path))
    skipped, rows, notice = Skipped(), [], ""
    try:
        stream = open(log, "rb")  # noqa: SIM115  (closed by the with below)
    except FileNotFoundError:
        return NewRows([], place or _place(0, 0, 0, b""), skipped)
    with stream:
        inode = os.fstat(stream.fileno()).st_ino
        offset, line = (place["offset"], place["line"]) if place else (0, 0)
        if place and offset and not _same(stream, place, inode):
            before = _renamed(log, place)
            if before is not None:
                with open(before, "rb") as old:
                    found, _, _, _ = _read(old, before.name, offset, line, skipped, last=True)
                    rows += found
                notice = f"{log.name} was rotated: the rest of it was read from {before.name}."
            elif inode == place["inode"]:
                notice = (
                    f"{log.name} was cut or overwritten: it is read from its start; lines written between the last "
                    "look and the cut are lost."
                )
            else:
                notice = (
                    f"{log.name} was rotated, and the earlier file is gone or compressed: lines written to it after "
                    "the last look were not read."
                )
            offset = line = 0
        found, offset, line, more = _read(stream, log.name, offset, line, skipped, last=False)
        rows += found
        stream.seek(0)
        head = stream.read(min(_HEAD, offset))
    return NewRows(rows, _place(offset, line, inode, head), skipped, notice, more)


def _place(offset: int, line: int, inode: int, head: bytes) -> dict[str, Any]:
    return {"offset": offset, "line": line, "inode": inode, "head": hashlib.sha256(head).hexdigest()}


def _same(stream: BinaryIO, place: dict[str, Any], inode: int) -> bool:
    """Whether the open file is the one of ``place``, at least as long, with the same first bytes."""
    if inode != place["inode"] or os.fstat(stream.fileno()).st_size < place["offset"]:
        return False
    stream.seek(0)
    return hashlib.sha256(stream.read(min(_HEAD, place["offset"]))).hexdigest() == place["head"]


def _renamed(log: Path, place: dict[str, Any]) -> Path | None:
    """Return the file of the same folder that is the one of ``place`` under another name."""
    for file in sorted(log.parent.iterdir()):
        if file != log and file.is_file() and file.stat().st_ino == place["inode"]:
            with open(file, "rb") as stream:
                if _same(stream, place, place["inode"]):
                    return file
    return None


def _read(
    stream: BinaryIO, name: str, offset: int, line: int, skipped: Skipped, *, last: bool
) -> tuple[list[dict[str, Any]], int, int, bool]:
    """Return rows, offset and line behind the last whole line, and whether there is more.

    ``last``: nobody writes to the file any more, so everything is read and a line without an end is whole.
    """
    rows = []
    begin = offset
    stream.seek(offset)
    for text in stream:
        if not text.endswith(b"\n") and not last:
            break
        offset += len(text)
        line += 1
        if text.strip():
            skipped.n_rows += 1
            row = parse_line(text)
            if isinstance(row, dict):
                rows.append(row)
            else:
                skipped.add(f"{name}:{line}", str(row))
        if offset - begin >= _MOST and not last:
            return rows, offset, line, True
    return rows, offset, line, False
