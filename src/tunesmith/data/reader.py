"""Reading training rows of any known format into a canonical dataset, and telling how they were read."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from tunesmith.core.errors import DataError, ParameterError, nearest, shorten
from tunesmith.core.events import EventLog
from tunesmith.core.files import cache_dir, disk_errors, hash_json, read_json, write_json
from tunesmith.data import formats
from tunesmith.data._report import ReadReport, ReadResult, first_row
from tunesmith.data._spool import ColumnSpool
from tunesmith.data.formats import BadRow
from tunesmith.data.sources import FileSource, TableSource, find_sources

__all__ = ["ReadReport", "ReadResult", "read"]

# Part of the cache key: raise it when the same file would be read into other rows.
_VERSION = 1
_SAMPLE = 1000
_BAD_LISTED = 1000
# A chunk is written when it has this many rows or characters, whichever comes first.
_CHUNK_ROWS, _CHUNK_SIZE = 5000, 1 << 25
_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_CANONICAL = {
    "messages": _MESSAGES,
    "rejected": _MESSAGES,
    "text": pa.string(),
    "anchor": pa.string(),
    "positive": pa.string(),
    "negative": pa.string(),
    "score": pa.float64(),
}
_OF_FAMILY = {
    "messages": ("messages", "rejected"),
    "text": ("text",),
    "pairs": ("anchor", "positive", "negative", "score"),
}
_PLACE = {"_row": pa.int64(), "_source": pa.string()}


def read(
    source: Any,
    *,
    format: str = "auto",
    columns: dict[str, str] | None = None,
    max_rows: int | None = None,
    log: EventLog | None = None,
) -> ReadResult:
    """Read rows into a canonical dataset.

    The dataset is an Arrow file in the user's cache, named by the hash of the content and of the parameters,
    so that a second read only opens it. Rows stream through in chunks: memory does not grow with the file.
    Time: about a minute for a million conversations.

    Args:
        source: a file (JSON lines, JSON, CSV, TSV, Parquet, Arrow; the text kinds also gzipped), a folder of
            such files, a folder of ``save_to_disk``, a Hub id, or ``demo:NAME``. ``#split`` behind a folder
            or Hub id picks a split. A ``datasets.Dataset`` is read as well.
        format: one of `tunesmith.data.formats.FORMATS`, or ``"auto"`` to tell it from the rows. A named
            format is taken for every row; ``"auto"`` also reads rows of other formats of the same family.
        columns: ``{their_name: our_name}``, renamed before anything else.
        max_rows: stop after this many rows.
        log: receives progress and warnings.

    Returns:
        Dataset with ``messages`` (and ``rejected``), or ``text``, or ``anchor`` and ``positive`` (and
        ``negative``, ``score``), then the user's other columns, then ``_row`` and ``_source``.

    Raises:
        DataError: the source cannot be found or read, ``columns`` names what is not there, the rows are of no
            known format, or not a single row could be used.
        UnknownNameError: there is no such format.
        ParameterError: ``max_rows`` is not positive.
    """
    log = EventLog() if log is None else log
    if max_rows is not None and (isinstance(max_rows, bool) or not isinstance(max_rows, int) or max_rows < 1):
        raise ParameterError("max_rows", read, "an int >= 1", max_rows)
    if format != "auto":
        formats.get(format)
    if isinstance(source, str) and source.startswith("demo:"):
        return _demo(source, max_rows)
    sources = find_sources(source)
    name = os.fspath(source) if isinstance(source, (str, os.PathLike)) else "dataset"
    prints = [[s.name, s.fingerprint(), getattr(s, "kind", "table")] for s in sources]
    key = hash_json([_VERSION, prints, format, columns or {}, max_rows])[:32]
    folder = cache_dir("datasets") / key
    if not folder.exists():
        _Reading(name, sources, format, columns or {}, max_rows, log).write(folder)
    report = ReadReport(**read_json(folder / "report.json"))
    report.source = name
    report.bad = [(file, row, reason, snippet) for file, row, reason, snippet in report.bad]
    report.files = {s.name: str(s.path) for s in sources if s.path is not None}
    if report.reasons:
        worst = "; ".join(f"{count:,} × {reason}" for reason, count in list(report.reasons.items())[:3])
        log.warn(
            f"{name}: {report.n_read - report.n_kept:,} of {report.n_read:,} rows could not be used: {worst}."
        )
    from datasets import Dataset

    return ReadResult(Dataset.from_file(str(folder / "rows.arrow")), report)


def _demo(source: str, max_rows: int | None) -> ReadResult:
    from tunesmith.data import demo

    rows = demo.load(source.removeprefix("demo:"))
    n = len(rows)
    if max_rows is not None and max_rows < n:
        rows = rows.select(range(max_rows))
    how = [f"{source} is a built-in set of {n:,} conversations.", first_row(rows[0])]
    return ReadResult(rows, ReadReport(source, "messages", how, len(rows), len(rows)))


class _Reading:
    """One pass over the sources into a folder of the cache."""

    def __init__(
        self,
        name: str,
        sources: list[FileSource | TableSource],
        format_name: str,
        columns: dict[str, str],
        max_rows: int | None,
        log: EventLog,
    ) -> None:
        self.sources, self.columns, self.max_rows, self.log = sources, columns, max_rows, log
        self.report = ReadReport(name, how=[line for s in sources for line in s.how])
        self.strict = format_name != "auto"
        self.main = formats.get(format_name) if self.strict else None
        self.others: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.used: set[str] = set()
        self.first = ""

    def write(self, folder: Path) -> None:
        """Read everything; ``folder`` appears only when all is done."""
        for left in folder.parent.glob(f"{folder.name}.*.partial"):
            if not _is_alive(int(left.suffixes[-2][1:])):  # of a process that was killed
                shutil.rmtree(left, ignore_errors=True)
        partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            with disk_errors(folder):
                spool = ColumnSpool(partial, _CANONICAL)
                for source in self.sources:
                    self._read(source, spool)
                self._check()
                spool.finish(partial / "rows.arrow")
                self._tell(spool)
                write_json(partial / "report.json", self.report.to_dict())
                if not folder.exists():  # another process may have read the same source meanwhile
                    os.replace(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _read(self, source: FileSource | TableSource, spool: ColumnSpool) -> None:
        chunks = _text_chunks(source) if isinstance(source, FileSource) else _table_chunks(source)
        cells = isinstance(source, FileSource) and source.kind == "csv"
        for rows, table in chunks:
            if self.max_rows is not None:
                rows = rows[: self.max_rows - self.report.n_read]
            if not rows:
                return
            if self.report.n_read == 0 or self.main is None:
                self._look(source, [row for _, row in rows if isinstance(row, dict)])
            self._convert(source, rows, table, cells, spool)
            self.log.emit("progress", what=f"reading {source.name}", done=self.report.n_read, total=None)

    def _look(self, source: FileSource | TableSource, rows: list[dict[str, Any]]) -> None:
        """Settle names and format from the first rows that there are."""
        if not rows:
            return
        keys = list(dict.fromkeys(str(key) for row in rows[:_SAMPLE] for key in row))
        for theirs, ours in self.columns.items():
            if theirs not in keys:
                raise DataError(
                    f"columns renames '{theirs}', which the rows do not have.{nearest(theirs, keys)} "
                    f"Their columns: {', '.join(keys)}.",
                    source=source.name,
                )
            if ours in keys and ours not in self.columns:
                raise DataError(
                    f"columns renames '{theirs}' to '{ours}', but the rows have a column '{ours}' already. "
                    f"Rename that one too, for example {ours}: {ours}_before.",
                    source=source.name,
                )
        if self.main is not None:
            return
        sample = [self._renamed(row) for row in rows[:_SAMPLE]]
        votes = formats.vote(sample)
        if votes:
            winner, count = votes.most_common(1)[0]
            self.main = formats.get(winner)
            self.report.how.append(
                f"Format {winner}, by {count:,} of the first {len(sample):,} rows: {self.main.meaning}."
            )

    def _renamed(self, row: dict[str, Any]) -> dict[str, Any]:
        if not self.columns:
            return row
        return {self.columns.get(key, key): value for key, value in row.items()}

    def _convert(
        self,
        source: FileSource | TableSource,
        rows: list[tuple[int, Any]],
        table: Any,
        cells: bool,
        spool: ColumnSpool,
    ) -> None:
        kept: list[int] = []
        places: list[int] = []
        fields: list[dict[str, Any]] = []
        extras: list[dict[str, Any]] = []
        for position, (number, row) in enumerate(rows):
            self.report.n_read += 1
            try:
                converted, extra = self._row(row)
            except BadRow as error:
                self._bad(source.name, number, error, row)
                continue
            kept.append(position)
            places.append(number)
            fields.append(converted)
            extras.append(extra)
        if not kept:
            return
        assert self.main is not None
        if not self.report.n_kept:
            self.first = first_row(fields[0])
        self.report.n_kept += len(kept)
        names = [n for n in _OF_FAMILY[self.main.family] if any(f.get(n) is not None for f in fields)]
        columns: dict[str, Any] = {name: [f.get(name) for f in fields] for name in names}
        if table is not None:
            columns |= self._table_extras(table, kept)
            more: list[str] = []
        else:
            more = list(dict.fromkeys(key for extra in extras for key in extra))
            columns |= {self._free_name(key): [extra.get(key) for extra in extras] for key in more}
        columns["_row"] = pa.array(places, type=pa.int64())
        columns["_source"] = pa.array([source.name] * len(kept), type=pa.string())
        spool.add(columns, cells=[self._free_name(key) for key in more] if cells else ())

    def _row(self, row: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the canonical columns of a row, and the user's columns that did not go into them."""
        if isinstance(row, BadRow):
            raise row
        if isinstance(row, str):
            row = {"text": row}
        if not isinstance(row, dict):
            raise BadRow("the row must be an object with keys", f"it is a {type(row).__name__}")
        if not row:
            raise BadRow("the row is empty")
        row = self._renamed(row)
        if self.main is None:
            self.main = formats.detect(row)
            if self.main is None:
                raise BadRow("the row is of no known format", f"its keys are {', '.join(map(str, row))}")
        found, converted = formats.convert(row, self.main, strict=self.strict)
        if found is not self.main:
            self.others[found.name] += 1
        self.notes.update(converted.notes)
        self.used.update(converted.used)
        return converted.fields, {k: v for k, v in row.items() if k not in converted.used}

    def _table_extras(self, table: Any, kept: list[int]) -> dict[str, Any]:
        """Return the user's other columns of a typed table, with their types."""
        names = [self.columns.get(n, n) for n in table.column_names]
        rows = table.rename_columns(names).take(pa.array(kept, type=pa.int64())).combine_chunks()
        return {
            self._free_name(name): rows.column(name).combine_chunks()
            for name in names
            if name not in self.used
        }

    def _free_name(self, name: str) -> str:
        """Return the name of a user's column, changed where it is one of ours."""
        if name in _PLACE or name in _CANONICAL:
            self.notes[f"the column '{name}' was kept under the name 'source_{name.strip('_')}'"] = 0
            return f"source_{name.strip('_')}"
        return str(name)

    def _bad(self, file: str, number: int, error: BadRow, row: Any) -> None:
        self.reasons[error.reason] += 1
        if len(self.report.bad) < _BAD_LISTED:
            whole = row.raw if isinstance(row, BadRow) else json.dumps(row, ensure_ascii=False, default=str)
            snippet = shorten(whole)
            self.report.bad.append((file, number, str(error), snippet))

    def _check(self) -> None:
        self.report.reasons = dict(self.reasons.most_common())
        if self.report.n_kept:
            return
        if not self.report.n_read:
            raise DataError("there are no rows in it.", source=self.report.source)
        reasons = "; ".join(f"{count:,} × {reason}" for reason, count in self.report.reasons.items())
        file, row, reason, snippet = self.report.bad[0]
        raise DataError(
            f"0 of {self.report.n_read:,} rows can be used: {reasons}. First: {file}, row {row}: {reason}"
            f"{': ' + snippet if snippet else ''}. Known formats: {', '.join(formats.FORMATS)}; columns can "
            "be renamed with columns: {their_name: our_name}.",
            source=self.report.source,
        )

    def _tell(self, spool: ColumnSpool) -> None:
        how = self.report.how
        assert self.main is not None
        self.report.format = self.main.name
        if self.strict:
            how.append(f"Format {self.main.name}, as asked: {self.main.meaning}.")
        if self.columns:
            how.append("Renamed: " + ", ".join(f"{a} to {b}" for a, b in self.columns.items()) + ".")
        how.append("Columns that were read: " + ", ".join(sorted(self.used)) + ".")
        if self.others:
            listed = ", ".join(f"{count:,} of {name}" for name, count in self.others.most_common())
            how.append(f"Rows of other formats were read too: {listed}.")
        for note, count in sorted(self.notes.items()):
            how.append(f"{note[0].upper()}{note[1:]}{f' ({count:,} rows)' if count else ''}.")
        if spool.as_json:
            names = ", ".join(sorted(spool.as_json))
            how.append(f"Values differ in type from row to row, so they are kept as JSON text: {names}.")
        how.append(self.first)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)  # signal 0 only asks
    except ProcessLookupError:
        return False
    except OSError:  # there, and not ours
        return True
    return True


def _text_chunks(source: FileSource) -> Iterator[tuple[list[tuple[int, Any]], None]]:
    rows: list[tuple[int, Any]] = []
    total = 0
    for number, row, size in source.rows():
        rows.append((number, row))
        total += size
        if len(rows) >= _CHUNK_ROWS or total >= _CHUNK_SIZE:
            yield rows, None
            rows, total = [], 0
    yield rows, None


def _table_chunks(source: TableSource) -> Iterator[tuple[list[tuple[int, Any]], Any]]:
    start = itertools.count()
    for table in source.tables():
        yield [(next(start), _without_nulls(row)) for row in table.to_pylist()], table


def _without_nulls(row: dict[str, Any]) -> dict[str, Any]:
    """Drop what a table pads with: a key that is null in a row of a table says nothing about that row."""
    return {k: v for k, v in row.items() if v is not None}
