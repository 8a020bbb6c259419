"""What there is to look at: texts, images, vectors or a table, read from whatever the user names."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from tunesmith.core.errors import DataError, ParameterError, shorten
from tunesmith.core.events import EventLog

if TYPE_CHECKING:
    from datasets import Dataset
    from pandas import DataFrame

    from tunesmith.data import ReadReport

__all__ = ["IMAGE_ENDINGS", "KINDS", "Material", "open_material"]

Kind = Literal["text", "images", "vectors", "table"]
KINDS: tuple[Kind, ...] = ("text", "images", "vectors", "table")
IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_TABLES = {".csv": ",", ".tsv": "\t", ".parquet": None, ".jsonl": None, ".ndjson": None, ".json": None}
_VECTORS = (".npy", ".npz")


@dataclass
class Material:
    """The rows, in one of four forms.

    Attributes:
        kind: which of the fields below is set.
        source: what was asked for.
        how: sentences on how it was read.
        dataset: canonical rows, for texts.
        report: how they were read, for texts.
        frame: the table.
        vectors: float32 (n, d).
        paths: image files that can be opened.
        bad: ``(file, row, reason, snippet)`` of what could not be used.
    """

    kind: Kind
    source: str
    how: list[str] = field(default_factory=list)
    dataset: Dataset | None = None
    report: ReadReport | None = None
    frame: DataFrame | None = None
    vectors: NDArray[np.float32] | None = None
    paths: list[Path] = field(default_factory=list)
    bad: list[tuple[str, int, str, str]] = field(default_factory=list)

    def where(self, i: int) -> tuple[str, int]:
        """Return source and row number of row ``i``, as error messages name them."""
        if self.dataset is not None:
            row = self.dataset[i]
            return str(row.get("_source") or self.source), int(row.get("_row", i))
        if self.paths:
            root = Path(self.source).expanduser()
            path = self.paths[i]
            return str(path.relative_to(root) if path.is_relative_to(root) else path), i
        return self.source, i

    def __len__(self) -> int:
        for rows in (self.dataset, self.frame, self.vectors):
            if rows is not None:
                return len(rows)
        return len(self.paths)


def open_material(
    source: Any, *, kind: str = "auto", max_rows: int | None = None, log: EventLog | None = None
) -> Material:
    """Read ``source`` and tell what it is.

    A folder of images and no data files, ``.npy`` and ``.npz`` are taken by their names; rows of a known text
    format are texts; a file of other columns is a table. Arrays are vectors, data frames tables.

    Args:
        source: a path, a Hub id, ``demo:NAME``, a ``datasets.Dataset``, a data frame or an array.
        kind: one of `KINDS`, where the guess is wrong.
        max_rows: look at the first so many rows alone.
        log: receives progress and warnings.

    Raises:
        DataError: nothing is there, or it cannot be read as ``kind``.
        ParameterError: ``kind`` is not known, or ``max_rows`` is not positive.
    """
    if kind not in ("auto", *KINDS):
        raise ParameterError("kind", "look", "one of 'auto', " + ", ".join(map(repr, KINDS)), kind)
    if max_rows is not None and (isinstance(max_rows, bool) or not isinstance(max_rows, int) or max_rows < 1):
        raise ParameterError("max_rows", "look", "an int >= 1", max_rows)
    found = _guess(source) if kind == "auto" else kind
    if found == "images":
        return _images(source, max_rows)
    if found == "vectors":
        return _vectors(source, max_rows)
    if found == "table":
        return _table(source, max_rows)
    from tunesmith.data import read

    result = read(source, max_rows=max_rows, log=log)
    return Material(
        "text",
        result.report.source,
        list(result.report.how),
        dataset=result.dataset,
        report=result.report,
        bad=result.report.bad,
    )


def _guess(source: Any) -> Kind:
    import pandas as pd

    if isinstance(source, np.ndarray):
        return "vectors"
    if isinstance(source, pd.DataFrame):
        return "table"
    if not isinstance(source, (str, os.PathLike)):
        return "text" if _reads(next(iter(source), {})) else "table"
    path = Path(source).expanduser()
    if path.is_dir():
        endings = {p.suffix.lower() for p in path.rglob("*") if p.is_file()}
        data = endings & {*_TABLES, ".arrow", ".gz"}
        return "images" if endings & set(IMAGE_ENDINGS) and not data else "text"
    if path.suffix.lower() in _VECTORS:
        return "vectors"
    if path.is_file() and path.suffix.lower() in _TABLES and not any(map(_reads, _first_rows(path))):
        return "table"
    return "text"


def _first_rows(path: Path, n: int = 20) -> list[dict[str, Any]]:
    """Return some rows; a file that cannot be read gives one that passes for text, whose reader says why."""
    from tunesmith.data.sources import find_sources

    readable: list[dict[str, Any]] = [{"text": ""}]
    try:
        source = find_sources(path)[0]
        if hasattr(source, "tables"):
            rows = [row for table in source.tables(n) for row in table.to_pylist()][:n]
        else:
            rows = [row for _, (_, row, _) in zip(range(n), source.rows(), strict=False)]
    except DataError:
        return readable
    return [row for row in rows if isinstance(row, dict)] or readable


def _reads(row: Any) -> bool:
    """Say whether a row is of a known text format and not merely a table with a word in it."""
    from tunesmith.data.formats import detect

    return isinstance(row, dict) and detect(row) is not None


def _cut(n: int, max_rows: int | None) -> str:
    return f"{n:,} rows" + (
        "." if max_rows is None or n < max_rows else f"; no more were read (max_rows={max_rows:,})."
    )


def _images(source: Any, max_rows: int | None) -> Material:
    from PIL import Image, UnidentifiedImageError

    root = Path(source).expanduser()
    files = sorted(p for p in root.rglob("*") if p.is_file() and p.suffix.lower() in IMAGE_ENDINGS)
    if not files:
        raise DataError(f"there are no images ({', '.join(IMAGE_ENDINGS)}) in the folder.", source=str(root))
    good, bad = [], []
    for i, path in enumerate(files[:max_rows]):
        try:
            with Image.open(path) as image:
                image.verify()
            good.append(path)
        except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
            bad.append((str(path.relative_to(root)), i, "the image cannot be opened", shorten(str(error))))
    if not good:
        raise DataError(
            f"none of the {len(bad):,} images can be opened; the first: {bad[0][3]}", source=str(root)
        )
    how = [f"{root} is a folder of images.", _cut(len(good), max_rows).replace("rows", "images")]
    return Material("images", str(source), how, paths=good, bad=bad)


def _vectors(source: Any, max_rows: int | None) -> Material:
    name, how = "array", []
    if not isinstance(source, np.ndarray):
        name = str(source)
        try:
            source = np.load(Path(source).expanduser(), mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DataError(f"the array cannot be read: {shorten(str(error))}", source=name) from error
        if not isinstance(source, np.ndarray):  # .npz
            shapes = {key: source[key].shape for key in source.files}
            two = [key for key, shape in shapes.items() if len(shape) == 2]
            if not two:
                raise DataError(f"it holds no two-dimensional array; found {shapes}.", source=name)
            how.append(f"Of its arrays ({', '.join(shapes)}) '{two[0]}' was read.")
            source = source[two[0]]
    if source.ndim != 2 or source.dtype.kind not in "fiub" or not source.shape[0] or not source.shape[1]:
        raise DataError(
            f"vectors must be numbers of shape (rows, columns); got {source.dtype} of shape {source.shape}.",
            source=name,
        )
    array = np.asarray(source[:max_rows], dtype=np.float32)
    fine = np.isfinite(array).all(axis=1)
    bad = [(name, int(i), "a value is not finite", "") for i in np.flatnonzero(~fine)]
    if not fine.any():
        raise DataError("every row has a value that is not finite.", source=name)
    how.append(f"Vectors of {array.shape[1]:,} numbers, {_cut(int(fine.sum()), max_rows)}")
    return Material("vectors", name, how, vectors=array[fine], bad=bad)


def _table(source: Any, max_rows: int | None) -> Material:
    import pandas as pd

    if isinstance(source, pd.DataFrame):
        name, frame = "data frame", source
    elif isinstance(source, (str, os.PathLike)):
        name = str(source)
        frame = _read_table(Path(source).expanduser(), name)
    else:
        name, frame = "dataset", source.to_pandas()
    frame = frame.iloc[:max_rows].reset_index(drop=True)
    if not len(frame) or not len(frame.columns):
        raise DataError("the table has no rows.", source=name)
    frame.columns = [str(c) for c in frame.columns]
    how = [
        f"A table of {len(frame.columns):,} columns (no text format fits its columns), {_cut(len(frame), max_rows)}"
    ]
    return Material("table", name, how, frame=frame)


def _read_table(path: Path, name: str) -> DataFrame:
    import pandas as pd

    ending = path.suffix.lower()
    try:
        if ending == ".parquet":
            return pd.read_parquet(path)
        if ending in (".jsonl", ".ndjson", ".json"):
            return pd.read_json(path, lines=ending != ".json")
        return pd.read_csv(path, sep=_TABLES.get(ending, ","))
    except (OSError, ValueError, UnicodeError) as error:
        raise DataError(f"the table cannot be read: {shorten(str(error))}", source=name) from error
