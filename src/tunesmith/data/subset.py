"""Writing chosen rows out of a source, as they stood in it."""

from __future__ import annotations

import csv
import io
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tunesmith.core.errors import DataError, ParameterError
from tunesmith.core.files import atomic_open
from tunesmith.data._convert import BadRow
from tunesmith.data._spool import ColumnSpool
from tunesmith.data._text_rows import raw_lines
from tunesmith.data.reader import ReadResult
from tunesmith.data.sources import FileSource, TableSource, find_sources

__all__ = ["WRITERS", "write_subset"]

_CHUNK = 2000
WRITERS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")


def write_subset(
    source: Any,
    indices: Sequence[int] | NDArray[np.int64],
    out: str | os.PathLike[str],
    *,
    order: str = "chosen",
) -> int:
    """Write the rows ``indices`` of a source to a file, with their original fields.

    From JSON lines to JSON lines the very bytes of each row are copied. Rows stream through: memory does not
    grow with the source, and of the chosen rows only their places are held (for Parquet the chosen rows
    themselves, whose types are kept).

    Args:
        source: a `ReadResult` (``indices`` count the rows of its dataset), or anything that
            `tunesmith.data.read` takes (``indices`` count the source's own rows from 0, as ``_row`` does;
            over the files of a folder they run on). A ``datasets.Dataset`` is written as it stands.
        indices: k row numbers, in any order, each once.
        out: ends in ``.jsonl``, ``.json``, ``.csv``, ``.tsv`` or ``.parquet``.
        order: ``"chosen"`` writes in the order of ``indices``, ``"file"`` in that of the source.

    Returns:
        k, the number of rows written.

    Raises:
        ParameterError: ``order`` or the ending of ``out`` is none of these, or a row is named twice.
        DataError: a row is not in the source, or ``out`` is the source itself.
    """
    target = Path(out)
    if order not in ("chosen", "file"):
        raise ParameterError("order", write_subset, "'chosen' or 'file'", order)
    if target.suffix.lower() not in WRITERS:
        raise ParameterError("out", write_subset, "a path that ends in " + ", ".join(WRITERS), str(out))
    chosen = np.asarray(indices, dtype=np.int64).reshape(-1)
    if len(np.unique(chosen)) != len(chosen):
        raise ParameterError("indices", write_subset, "row numbers that are each named once", "some twice")
    sources, places = _locate(source, chosen)
    for s in sources:
        if s.path is not None and target.exists() and os.path.samefile(s.path, target):
            raise DataError(
                f"{target} is the source itself, and no input file is ever changed. Name another file."
            )
    if order == "file":
        places = sorted(places)
    rank = {place: i for i, place in enumerate(places)}
    if len(rank) != len(places):
        raise ParameterError("indices", write_subset, "row numbers that are each named once", "some twice")
    if all(isinstance(s, TableSource) for s in sources) and target.suffix == ".parquet":
        _write_tables(sources, rank, target)
    else:
        with tempfile.TemporaryDirectory(prefix="tunesmith-") as scratch:
            _write_rows(sources, rank, target, Path(scratch))
    return len(rank)


Place = tuple[int, int]  # which source, which of its rows


def _locate(source: Any, chosen: NDArray[np.int64]) -> tuple[list[FileSource | TableSource], list[Place]]:
    if isinstance(source, ReadResult):
        if not source.report.files:  # not from files: the rows are the dataset's own
            return [TableSource("dataset", dataset=_without_places(source.dataset))], _checked(
                chosen, len(source.dataset)
            )
        _checked(chosen, len(source.dataset))
        sources = [s for path in source.report.files.values() for s in find_sources(path)]
        names = {name: i for i, name in enumerate(source.report.files)}
        picked = source.dataset.select_columns(["_row", "_source"])[chosen.tolist()]
        return sources, [(names[s], r) for s, r in zip(picked["_source"], picked["_row"], strict=True)]
    sources = find_sources(source)
    if len(sources) == 1:
        if isinstance(sources[0], TableSource) and sources[0].dataset is not None:
            return sources, _checked(chosen, len(sources[0].dataset))
        return sources, _checked(chosen, None)
    starts = np.cumsum([0, *(_count(s) for s in sources)])
    _checked(chosen, int(starts[-1]))
    of = np.searchsorted(starts, chosen, side="right") - 1
    return sources, [(int(s), int(i - starts[s])) for s, i in zip(of, chosen, strict=True)]


def _checked(chosen: NDArray[np.int64], n: int | None) -> list[Place]:
    wrong = chosen[(chosen < 0) | ((chosen >= n) if n is not None else False)]
    if len(wrong):
        raise DataError(f"row {wrong[0]} is not in the source" + (f", which has {n:,} rows." if n else "."))
    return [(0, int(i)) for i in chosen]


def _count(source: FileSource | TableSource) -> int:
    if isinstance(source, TableSource):
        return sum(len(table) for table in source.tables())
    return sum(1 for _ in source.rows())


def _without_places(dataset: Any) -> Any:
    return dataset.remove_columns([c for c in ("_row", "_source") if c in dataset.column_names])


def _write_tables(sources: list[Any], rank: dict[Place, int], target: Path) -> None:
    """Parquet from typed tables: the chosen rows are gathered with their types and put in order."""
    parts, ranks = [], []
    for s, source in enumerate(sources):
        start = 0
        for table in source.tables():
            hits = [i for i in range(len(table)) if (s, start + i) in rank]
            parts.append(table.take(pa.array(hits, type=pa.int64())))
            ranks += [rank[s, start + i] for i in hits]
            start += len(table)
    _all_found(rank, len(ranks))
    table = pa.concat_tables(parts, promote_options="permissive").take(pa.array(np.argsort(ranks)))
    with atomic_open(target, "wb") as stream:
        pq.write_table(table, stream)


def _write_rows(sources: list[Any], rank: dict[Place, int], target: Path, scratch: Path) -> None:
    """Spool the chosen rows in file order as lines, then write them in rank order."""
    begins, lengths = np.zeros(len(rank), dtype=np.int64), np.zeros(len(rank), dtype=np.int64)
    found = 0
    with open(scratch / "rows.jsonl", "wb+") as spool:
        for s, source in enumerate(sources):
            for number, line in _lines(source):
                at = rank.get((s, number))
                if at is not None:
                    data = line() if callable(line) else line
                    begins[at], lengths[at] = spool.tell(), len(data)
                    spool.write(data)
                    found += 1
        _all_found(rank, found)
        with atomic_open(target, "wb") as stream:
            _WRITE[target.suffix.lower()](_in_order(spool, begins, lengths), stream, scratch)


def _in_order(spool: IO[bytes], begins: NDArray[np.int64], lengths: NDArray[np.int64]) -> Iterator[bytes]:
    for begin, length in zip(begins, lengths, strict=True):
        spool.seek(begin)
        yield spool.read(length)


def _all_found(rank: dict[Place, int], found: int) -> None:
    if found < len(rank):
        last = max(number for _, number in rank)
        raise DataError(
            f"{len(rank) - found:,} of the chosen rows are not in the source (the highest is row {last:,})."
        )


def _lines(source: FileSource | TableSource) -> Iterator[tuple[int, Any]]:
    """Yield row number and the row as one line of JSON (bytes, or a function that makes them when chosen)."""
    if isinstance(source, TableSource):
        start = 0
        for table in source.tables():
            for i in range(len(table)):
                yield start + i, lambda table=table, i=i: _dump(table.slice(i, 1).to_pylist()[0])
            start += len(table)
    elif source.kind == "jsonl":
        yield from (item for item in raw_lines(source.path) if isinstance(item[1], bytes))
    else:
        for number, row, _ in source.rows():
            if not isinstance(row, BadRow):
                yield number, lambda row=row: _dump(row)


def _dump(row: Any) -> bytes:
    return json.dumps(row, ensure_ascii=False, default=str).encode("utf-8")


def _to_jsonl(rows: Iterator[bytes], stream: IO[bytes], scratch: Path) -> None:
    for row in rows:
        stream.write(row + b"\n")


def _to_json(rows: Iterator[bytes], stream: IO[bytes], scratch: Path) -> None:
    for i, row in enumerate(rows):
        stream.write((b"[\n" if i == 0 else b",\n") + row)
    stream.write(b"\n]\n")


def _to_cells(delimiter: str) -> Any:
    def write(rows: Iterator[bytes], stream: IO[bytes], scratch: Path) -> None:
        held = scratch / "held.jsonl"
        names: dict[str, None] = {}
        with open(held, "wb") as spool:
            for row in rows:
                names.update(dict.fromkeys(_as_object(row)))
                spool.write(row + b"\n")
        text = io.TextIOWrapper(stream, encoding="utf-8", newline="", write_through=True)
        writer = csv.DictWriter(text, list(names), delimiter=delimiter, lineterminator="\n")
        writer.writeheader()
        with open(held, "rb") as spool:
            for line in spool:
                writer.writerow({k: _cell(v) for k, v in _as_object(line).items()})
        text.detach()

    return write


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value, ensure_ascii=False)


def _to_parquet(rows: Iterator[bytes], stream: IO[bytes], scratch: Path) -> None:
    folder = scratch / "chunks"
    folder.mkdir()
    spool = ColumnSpool(folder, {})
    chunk: list[dict[str, Any]] = []
    for row in rows:
        chunk.append(_as_object(row))
        if len(chunk) == _CHUNK:
            spool.add(_columns(chunk))
            chunk = []
    if chunk:
        spool.add(_columns(chunk))
    spool.finish(scratch / "all.arrow")
    with pa.memory_map(str(scratch / "all.arrow")) as source:
        reader = pa.ipc.open_stream(source)
        with pq.ParquetWriter(stream, reader.schema) as writer:
            for batch in reader:
                writer.write_batch(batch)


def _columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    names = dict.fromkeys(key for row in rows for key in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _as_object(row: bytes) -> dict[str, Any]:
    value = json.loads(row)
    return value if isinstance(value, dict) else {"text": value}


_WRITE: dict[str, Any] = {
    ".jsonl": _to_jsonl,
    ".json": _to_json,
    ".csv": _to_cells(","),
    ".tsv": _to_cells("\t"),
    ".parquet": _to_parquet,
}
