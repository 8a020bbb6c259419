"""What a data source is: found, told apart by content and not by ending, and read as a stream of rows."""

from __future__ import annotations

import codecs
import difflib
import io
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.core.errors import DataError, nearest, shorten
from tunesmith.core.files import atomic_open, cache_dir, hash_file, hash_text
from tunesmith.data._text_rows import LARGEST_OBJECT, READERS, Bytes, RawRow, delimiter_of, rows_inside

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["FileSource", "TableSource", "find_sources"]

_SAMPLE = 1 << 16
_ENDINGS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
_KINDS = {
    "jsonl": "JSON lines",
    "json": "JSON",
    "csv": "CSV or TSV",
    "parquet": "Parquet",
    "arrow": "an Arrow file",
}
_PACKED = {
    b"PK\x03\x04": "a zip archive",
    b"\x28\xb5\x2f\xfd": "compressed by zstd",
    b"BZh": "compressed by bzip2",
    b"\xfd7zXZ": "compressed by xz",
}


@dataclass
class FileSource:
    """Text file whose rows come one by one.

    Attributes:
        name: shown in reports and kept in the column ``_source``.
        path: the file.
        kind: ``"jsonl"``, ``"json"`` or ``"csv"``.
        how: sentences on how the file is read.
    """

    name: str
    path: Path
    kind: str
    how: list[str] = field(default_factory=list)

    def fingerprint(self) -> str:
        """Return a hash of the content."""
        return _file_hash(self.path)

    def rows(self) -> Iterator[RawRow]:
        """Yield row number, row or what is wrong with it, and its size in characters."""
        return READERS[self.kind](self.path)


@dataclass
class TableSource:
    """Typed columns: Parquet, Arrow, a ``save_to_disk`` folder, a set of the Hub, a ``datasets.Dataset``."""

    name: str
    how: list[str] = field(default_factory=list)
    path: Path | None = None
    dataset: Dataset | None = None

    def fingerprint(self) -> str:
        """Return a hash of the content."""
        if self.dataset is not None:
            return hash_text(str(self.dataset._fingerprint), *self.dataset.column_names)
        assert self.path is not None
        return _file_hash(self.path)

    def tables(self, batch_size: int = 2000) -> Iterator[Any]:
        """Yield ``pyarrow`` tables of at most ``batch_size`` rows, in order."""
        import pyarrow as pa

        if self.dataset is not None:
            yield from self.dataset.with_format("arrow").iter(batch_size=batch_size)
            return
        assert self.path is not None
        try:
            for batch in _batches(self.path, batch_size):
                yield pa.Table.from_batches([batch])
        except (pa.ArrowInvalid, pa.ArrowException, OSError) as error:
            raise DataError(
                f"the file cannot be read: {shorten(str(error))} It may be cut off; write it again.",
                source=self.name,
            ) from error


Source = FileSource | TableSource


def find_sources(source: Any) -> list[Source]:
    """Return what ``source`` stands for: a file, the files of a folder, an Arrow folder, a set of the Hub.

    Args:
        source: a path, a Hub id (``owner/name``), either with ``#split`` behind it, or a
            ``datasets.Dataset``.

    Raises:
        DataError: there is no such file, the file is empty or of no known kind, a folder has no data files, a
            split is missing, or the Hub has no such set.
    """
    if not isinstance(source, (str, os.PathLike)):
        return [_dataset_source("dataset", source, None)]
    text, _, split = os.fspath(source).partition("#")
    path = Path(text).expanduser()
    if path.is_dir():
        return _folder(path, split or None)
    if path.exists():
        return [_file(path, path.name)]
    if Path(os.fspath(source)).exists():  # a file with # in its name
        return [_file(Path(os.fspath(source)), Path(os.fspath(source)).name)]
    if _looks_like_a_path(text):
        raise DataError(f"there is no file {text}.{_near_files(path)}")
    return [_hub(text, split or None)]


def _looks_like_a_path(text: str) -> bool:
    endings = (*_ENDINGS, ".gz", ".txt")
    return text.count("/") != 1 or text.startswith((".", "/", "~")) or text.lower().endswith(endings)


def _near_files(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f" The folder {folder} does not exist either."
    names = sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
    close = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
    known = [n for n in names if _plain_name(Path(n)).endswith(tuple(_ENDINGS))][:5]
    if close:
        return f" Nearest names there: {', '.join(close)}."
    return f" Data files there: {', '.join(known)}." if known else f" There are no data files in {folder}."


def _folder(path: Path, split: str | None) -> list[Source]:
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        from datasets import load_from_disk

        try:
            found = load_from_disk(str(path))
        except (FileNotFoundError, ValueError, OSError) as error:
            message = f"the Arrow folder cannot be read: {shorten(str(error))}"
            raise DataError(message, source=str(path)) from error
        return [_dataset_source(path.name, found, split)]
    files = sorted(p for p in path.rglob("*") if p.is_file() and _plain_name(p).endswith(tuple(_ENDINGS)))
    if split is not None:
        files = [p for p in files if p.stem.split(".")[0].startswith(split) or p.parent.name == split]
    if not files:
        what = "" if split is None else f" of a split '{split}'"
        raise DataError(
            f"the folder holds no data files{what}; {', '.join(_ENDINGS)} (also .gz) and folders written by "
            "datasets' save_to_disk can be read.",
            source=str(path),
        )
    return [_file(p, p.relative_to(path).as_posix()) for p in files]


def _dataset_source(name: str, found: Any, split: str | None) -> TableSource:
    how = []
    if hasattr(found, "keys"):  # a DatasetDict
        splits = list(found)
        chosen = split or ("train" if "train" in splits else splits[0])
        if chosen not in splits:
            raise DataError(
                f"there is no split '{chosen}'.{nearest(chosen, splits)} Splits: {', '.join(splits)}.",
                source=name,
            )
        if split is None and len(splits) > 1:
            how.append(
                f"{name} has the splits {', '.join(splits)}; {chosen} was read (name#split picks one)."
            )
        found = found[chosen]
    if not hasattr(found, "column_names") or not hasattr(found, "with_format"):
        raise DataError(
            f"a data source must be a path, a Hub id or a datasets.Dataset, not {type(found).__name__}."
        )
    return TableSource(name, [*how, f"{name} was read as a table of {len(found):,} rows."], dataset=found)


def _hub(name: str, split: str | None) -> TableSource:
    from datasets import load_dataset

    try:
        found = load_dataset(name)
    except Exception as error:  # the libraries below raise some twenty classes here, all of them "not there"
        offline = os.environ.get("HF_HUB_OFFLINE") == "1"
        raise DataError(
            f"'{name}' is no file or folder here, and the Hub gave no such data set"
            f"{' (it is switched off by HF_HUB_OFFLINE)' if offline else ''}: {shorten(str(error))}"
        ) from error
    return _dataset_source(name, found, split)


def _file(path: Path, name: str) -> Source:
    with Bytes(path) as raw:
        sample = b""
        while len(sample) < _SAMPLE and (more := raw.read(_SAMPLE - len(sample))):
            sample += more
        cut = raw.cut
    zipped = _is_gzip(path)
    if not sample.removeprefix(codecs.BOM_UTF8).strip():
        if cut:
            raise DataError(
                "the gzip file is cut off before its first row; nothing can be read.", source=name
            )
        raise DataError("the file is empty.", source=name)
    kind = _kind(sample, path, name)
    lower = _plain_name(path)
    told = next((k for ending, k in _ENDINGS.items() if lower.endswith(ending)), None)
    how = f"{name} was read as {_KINDS[kind]}{', through gzip' if zipped else ''}"
    how += f", which it is by its content; its name says {_KINDS[told]}." if told not in (None, kind) else "."
    if kind not in READERS:
        if zipped:
            raise DataError(f"the file is {_KINDS[kind]} inside gzip; unpack it first.", source=name)
        return TableSource(name, [how], path=path)
    return FileSource(name, path, kind, [how])


def _kind(sample: bytes, path: Path, name: str) -> str:
    """Return the kind of a file by its first bytes."""
    if sample.startswith(b"PAR1"):
        return "parquet"
    if sample.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
        return "arrow"
    for magic, what in _PACKED.items():
        if sample.startswith(magic):
            raise DataError(f"the file is {what}; unpack it first.", source=name)
    if sample.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError("the file is UTF-16 text; save it as UTF-8.", source=name)
    control = sum(byte < 9 or 13 < byte < 32 for byte in sample)
    if b"\0" in sample or control > len(sample) // 100:
        raise DataError(
            "the file is binary and of no known kind. JSON lines, JSON, CSV, Parquet and Arrow are read.",
            source=name,
        )
    text = sample.decode("utf-8-sig", errors="replace").lstrip()
    # not splitlines: U+2028 and U+0085 may stand inside a JSON string
    lines = [line for line in re.split(r"\r\n|\n|\r", text) if line.strip()]
    if text.startswith("["):
        return "jsonl" if len(lines) > 1 and all(_is_json(x, list) for x in lines[:2]) else "json"
    if text.startswith("{") and len(lines) == 1:
        return _one_line(path)
    if any(_is_json(line, (dict, list)) for line in lines[:20]):
        return "jsonl"
    if text.startswith("{"):  # one object over several lines
        return "json"
    lower = _plain_name(path)
    if "json" in lower and any(_is_json(line, str) for line in lines[:20]):
        return "jsonl"
    if delimiter_of(lines[0]) is not None or lower.endswith((".csv", ".tsv")):
        return "csv"
    raise DataError(
        "the file is text, but neither JSON lines, JSON, CSV nor TSV.", source=name, content=lines[0]
    )


def _is_json(line: str, kinds: Any) -> bool:
    try:
        return isinstance(json.loads(line), kinds)
    except ValueError:
        return False


def _one_line(path: Path) -> str:
    """Return the kind of a file whose first line is an object longer than the sample, or its only line."""
    with Bytes(path) as raw, io.BufferedReader(raw) as stream:
        line, more = stream.readline(LARGEST_OBJECT), stream.read(1)
    if more:
        return "jsonl"
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except ValueError:
        return "jsonl"
    return "json" if rows_inside(value) != [value] else "jsonl"


def _plain_name(path: Path) -> str:
    return path.name.lower().removesuffix(".gz")


def _is_gzip(path: Path) -> bool:
    with open(path, "rb") as stream:
        return stream.read(2) == b"\x1f\x8b"


def _batches(path: Path, batch_size: int) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with open(path, "rb") as stream:
        magic = stream.read(6)
    if magic.startswith(b"PAR1"):
        with pq.ParquetFile(path) as parquet:
            yield from parquet.iter_batches(batch_size=batch_size)
        return
    with pa.memory_map(str(path)) as source:
        if magic == b"ARROW1":
            reader = pa.ipc.open_file(source)
            batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
        else:
            batches = iter(pa.ipc.open_stream(source))
        for batch in batches:
            for begin in range(0, len(batch), batch_size):
                yield batch.slice(begin, batch_size)


def _file_hash(path: Path) -> str:
    """Return the hash of a file's bytes; remembered for as long as its size and times stay."""
    facts = path.stat()
    marks = f"{facts.st_size}:{facts.st_mtime_ns}:{facts.st_ctime_ns}:{facts.st_ino}"
    note = cache_dir("hashes") / hash_text(str(path.resolve()), marks)
    if not note.exists():
        digest = hash_file(path)
        with atomic_open(note) as stream:
            stream.write(digest)
        return digest
    return note.read_text()
