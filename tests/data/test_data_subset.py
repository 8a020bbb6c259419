from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from tunesmith.core.errors import DataError, ParameterError
from tunesmith.data import read, write_subset

ROWS: list[dict[str, Any]] = [
    {"prompt": f'q{i}, "é"\n', "completion": f"a{i}", "n": i, "meta": {"k": [i]} if i % 2 else None}
    for i in range(8)
]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """JSON lines written in ways a JSON library would not write them, with a blank and a broken line."""
    path = tmp_path / "in.jsonl"
    lines = [json.dumps(r, ensure_ascii=i % 2 == 0, separators=(" ,", " :  ")) for i, r in enumerate(ROWS)]
    path.write_text("\ufeff" + "\r\n".join([*lines[:3], "", "{broken", *lines[3:]]))
    return path


def test_the_very_bytes_in_the_chosen_order(source: Path, tmp_path: Path) -> None:
    result = read(source)
    assert result.dataset["_row"][:] == [0, 1, 2, 4, 5, 6, 7, 8]
    assert write_subset(result, [6, 1, 3], tmp_path / "out.jsonl") == 3
    lines = [line for line in source.read_text().lstrip("\ufeff").split("\n") if line]
    want = [lines[i] for i in (7, 1, 4)]
    assert (tmp_path / "out.jsonl").read_text().splitlines() == want
    write_subset(result, [6, 1, 3], tmp_path / "file.jsonl", order="file")
    assert (tmp_path / "file.jsonl").read_text().splitlines() == [want[1], want[2], want[0]]
    write_subset(source, [7, 1, 4], tmp_path / "rows.jsonl")
    assert (tmp_path / "rows.jsonl").read_bytes() == (tmp_path / "out.jsonl").read_bytes()


def read_back(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    if path.suffix == ".json":
        return json.loads(path.read_text())
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    with path.open(newline="") as stream:
        rows: list[dict[str, Any]] = list(
            csv.DictReader(stream, delimiter="," if path.suffix == ".csv" else "\t")
        )
    for row in rows:
        row["n"] = int(row["n"])
        row["meta"] = json.loads(row["meta"]) if row["meta"] else None
    return rows


def write_source(path: Path) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=3)
    elif path.suffix == ".json":
        path.write_text(json.dumps({"rows": ROWS}))
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress("".join(json.dumps(r) + "\n" for r in ROWS).encode()))
    elif path.suffix == ".csv":
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, ROWS[0])
            writer.writeheader()
            writer.writerows({**r, "meta": json.dumps(r["meta"]) if r["meta"] else ""} for r in ROWS)
    return path


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".tsv", ".parquet"])
@pytest.mark.parametrize("kind", ["in.parquet", "in.json", "in.jsonl.gz"])
def test_every_kind_to_every_kind(kind: str, ending: str, tmp_path: Path) -> None:
    path = write_source(tmp_path / kind)
    out = tmp_path / f"out{ending}"
    write_subset(path, np.array([5, 0, 2]), out)
    assert read_back(out) == [ROWS[5], ROWS[0], ROWS[2]]


def test_csv_cells_stay_as_they_are(tmp_path: Path) -> None:
    path = write_source(tmp_path / "in.csv")
    write_subset(read(path), [3, 2], tmp_path / "out.csv")
    assert read_back(tmp_path / "out.csv") == [ROWS[3], ROWS[2]]


def test_parquet_keeps_its_types(tmp_path: Path) -> None:
    table = pa.table({"text": ["a", "b"], "v": pa.array([[1], [2]], type=pa.list_(pa.float32()))})
    pq.write_table(table, tmp_path / "in.parquet")
    write_subset(tmp_path / "in.parquet", [1], tmp_path / "out.parquet")
    assert pq.read_schema(tmp_path / "out.parquet").field("v").type == pa.list_(pa.float32())


def test_a_folder_and_a_dataset(tmp_path: Path, write_jsonl: Callable[..., str]) -> None:
    (tmp_path / "in").mkdir()
    write_jsonl(tmp_path / "in" / "a.jsonl", ROWS[:3])
    write_jsonl(tmp_path / "in" / "b.jsonl", ROWS[3:])
    write_subset(read(tmp_path / "in"), [4, 0], tmp_path / "x.jsonl")
    write_subset(tmp_path / "in", [4, 0], tmp_path / "y.jsonl")
    assert read_back(tmp_path / "x.jsonl") == read_back(tmp_path / "y.jsonl") == [ROWS[4], ROWS[0]]
    write_subset(Dataset.from_list(ROWS), [7, 6], tmp_path / "z.jsonl")
    assert read_back(tmp_path / "z.jsonl") == [ROWS[7], ROWS[6]]
    write_subset(read(Dataset.from_list(ROWS)), [1], tmp_path / "w.jsonl")
    assert read_back(tmp_path / "w.jsonl")[0]["messages"][1]["content"] == "a1"


def test_many_rows_of_changing_types_to_parquet(tmp_path: Path) -> None:
    rows = [{"text": "t", "v": i if i < 3000 else str(i)} for i in range(4500)]
    (tmp_path / "in.json").write_text(json.dumps(rows))
    write_subset(tmp_path / "in.json", range(4500), tmp_path / "out.parquet")
    assert pq.read_table(tmp_path / "out.parquet")["v"].to_pylist() == [str(i) for i in range(4500)]


def test_messages_of_errors(source: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ParameterError, match=r"The 'order' parameter of write_subset must be 'chosen' or 'file'\. Got"
    ):
        write_subset(source, [0], tmp_path / "o.jsonl", order="random")
    with pytest.raises(
        ParameterError, match=r"The 'out' parameter of write_subset must be a path that ends in \.json"
    ):
        write_subset(source, [0], tmp_path / "o.xlsx")
    with pytest.raises(
        ParameterError, match=r"must be row numbers that are each named once\. Got 'some twice' instead"
    ):
        write_subset(source, [0, 0], tmp_path / "o.jsonl")
    with pytest.raises(DataError, match=r"in\.jsonl is the source itself, and no input file is ever changed"):
        write_subset(source, [0], source)
    with pytest.raises(
        DataError, match=r"1 of the chosen rows are not in the source \(the highest is row 99\)"
    ):
        write_subset(source, [0, 99], tmp_path / "o.jsonl")
    with pytest.raises(DataError, match="row 8 is not in the source, which has 8 rows"):
        write_subset(read(source), [8], tmp_path / "o.jsonl")
    with pytest.raises(DataError, match="row -1 is not in the source"):
        write_subset(source, [-1], tmp_path / "o.jsonl")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.jsonl"]
