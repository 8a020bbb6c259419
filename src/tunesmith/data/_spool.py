"""Columns of any rows into one Arrow file, chunk by chunk, whatever types the rows turn out to have.

Types are known only when the last row was seen. So each chunk is written with its own types, and at the end
all chunks are copied once into the final file under the types that fit them all. Where no type fits (a number
in one row, an object in the next, or objects with different keys) a column becomes JSON text, and says so.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["ColumnSpool", "to_array"]

_TEXTS = pa.list_(pa.string())
_INT64 = range(-(2**63), 2**63)


class ColumnSpool:
    """Collects chunks of columns on disk; memory is one chunk.

    Args:
        folder: an empty folder for the chunks.
        types: columns whose type is given; they come first in the file, in this order, and only if a chunk
            has them.
    """

    def __init__(self, folder: Path, types: dict[str, pa.DataType]) -> None:
        self.folder, self.given = folder, types
        self.types: dict[str, pa.DataType] = {}
        self.as_json: set[str] = set()
        self._cells: dict[str, set[str]] = {}
        self._parts: list[Path] = []

    def add(self, columns: dict[str, Any], cells: Sequence[str] = ()) -> None:
        """Write a chunk.

        Args:
            columns: name -> Arrow array or list of Python values, all of one length.
            cells: names of columns that hold a text file's cells; they end as numbers when all of them can
                be.
        """
        arrays = {}
        for name, values in columns.items():
            if name in self.given:
                arrays[name] = pa.array(values, type=self.given[name])
                continue
            arrays[name], is_json = to_array(values)
            if is_json:
                self.as_json.add(name)
            known = self.types.get(name, pa.null())
            merged = _unify(known, arrays[name].type)
            if merged is None:
                self.as_json.add(name)
            self.types[name] = pa.string() if merged is None else merged
            if name in cells and arrays[name].type == pa.string():
                self._cells.setdefault(name, {"int64", "double"}).intersection_update(_numeric(arrays[name]))
        for name in arrays:
            if name in self.given:
                self.types.setdefault(name, self.given[name])
        part = self.folder / f"{len(self._parts):06d}.arrow"
        table = pa.table(arrays)
        with pa.OSFile(str(part), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        self._parts.append(part)

    def finish(self, path: Path) -> None:
        """Copy all chunks into one Arrow stream file at ``path`` and delete them."""
        for name, numbers in self._cells.items():
            if numbers and name not in self.as_json and self.types[name] == pa.string():
                self.types[name] = pa.int64() if "int64" in numbers else pa.float64()
        names = [n for n in self.given if n in self.types] + [n for n in self.types if n not in self.given]
        # A column without any value has no type; text is what readers cope with.
        types = {n: pa.string() if pa.types.is_null(self.types[n]) else self.types[n] for n in names}
        schema = pa.schema(types.items())
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            for part in self._parts:
                with pa.memory_map(str(part)) as source:
                    table = pa.ipc.open_stream(source).read_all().combine_chunks()
                    columns = [self._cast(table, name, schema.field(name).type) for name in names]
                    writer.write_table(pa.table(columns, schema=schema))
                part.unlink()

    def _cast(self, table: pa.Table, name: str, to: pa.DataType) -> pa.Array:
        if name not in table.column_names:
            return pa.nulls(len(table), to)
        array = table.column(name).combine_chunks()
        if isinstance(array, pa.ChunkedArray):  # more than one chunk survives only past 2 GB of text
            array = pa.concat_arrays(array.chunks)
        if array.type == to:
            return array
        if name in self.as_json and to == pa.string():
            return pa.array([_json(v) for v in array.to_pylist()], type=to)
        if not pa.types.is_nested(to):
            return array.cast(to, safe=False)  # long integers lose digits beside fractions
        return pa.array(array.to_pylist(), type=to)


def to_array(values: Any) -> tuple[pa.Array, bool]:
    """Return an Arrow array of the values, and whether they had to become JSON text."""
    if isinstance(values, (pa.Array, pa.ChunkedArray)):
        return values, False
    kinds = set(map(type, values))
    simple = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
    if (
        len(kinds - {type(None)}) == 1
        and (only := (kinds - {type(None)}).pop()) in simple
        and only is not int
    ):
        return pa.array(values, type=simple[only]), False
    kind: pa.DataType | None = pa.null()
    for value in values:
        kind = _unify(kind, _kind(value))
        if kind is None:
            return pa.array([_json(v) for v in values], type=pa.string()), True
    return pa.array(values, type=kind), False


def _kind(value: Any) -> pa.DataType | None:
    """Return the Arrow type of a Python value, or ``None`` where only JSON holds it."""
    if value is None:
        return pa.null()
    if isinstance(value, bool):
        return pa.bool_()
    if isinstance(value, int):
        return pa.int64() if value in _INT64 else None
    if isinstance(value, float):
        return pa.float64()
    if isinstance(value, str):
        return pa.string()
    if isinstance(value, (list, tuple)):
        if all(type(item) is str for item in value) and value:
            return _TEXTS
        inside: pa.DataType | None = pa.null()
        for item in value:
            inside = _unify(inside, _kind(item))
        return None if inside is None else pa.list_(inside)
    if isinstance(value, dict) and value and all(isinstance(k, str) for k in value):
        fields = [(key, _kind(item)) for key, item in value.items()]
        return None if any(t is None for _, t in fields) else pa.struct(fields)
    return None


def _unify(a: pa.DataType | None, b: pa.DataType | None) -> pa.DataType | None:
    """Return the type that holds values of both without changing them, or ``None``."""
    if a is None or b is None:
        return None
    if a == b or pa.types.is_null(b):
        return a
    if pa.types.is_null(a):
        return b
    if all(pa.types.is_integer(t) or pa.types.is_floating(t) for t in (a, b)):
        return pa.int64() if pa.types.is_integer(a) and pa.types.is_integer(b) else pa.float64()
    if pa.types.is_list(a) and pa.types.is_list(b):
        inside = _unify(a.value_type, b.value_type)
        return None if inside is None else pa.list_(inside)
    if pa.types.is_struct(a) and pa.types.is_struct(b) and [f.name for f in a] == [f.name for f in b]:
        fields = [(f.name, _unify(f.type, g.type)) for f, g in zip(a, b, strict=True)]
        return None if any(t is None for _, t in fields) else pa.struct(fields)
    text = {pa.string(), pa.large_string()}
    return pa.large_string() if {a, b} <= text else None


def _json(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def _numeric(cells: pa.Array) -> set[str]:
    """Return which number types hold all of these texts; "007" is none, as its zeros would be lost."""
    found = set()
    for name, pattern in (
        ("int64", r"^-?(0|[1-9][0-9]{0,17})$"),
        ("double", r"^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?$|^(nan|NaN|inf|-inf)$"),
    ):
        if pc.all(pc.match_substring_regex(cells, pattern)).as_py() is not False:
            found.add(name)
    return found
