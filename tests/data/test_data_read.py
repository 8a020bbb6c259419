from __future__ import annotations

import csv
import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

from tunesmith.core.errors import DataError, ParameterError, UnknownNameError
from tunesmith.data import read
from tunesmith.data import reader as reader_module

ROWS = [{"question": f"what is {i}?", "answer": f"it is {i}", "level": i / 2} for i in range(6)]
Write = Callable[..., str]


def answers(dataset: Dataset) -> list[str]:
    return [row["messages"][-1]["content"] for row in dataset]


def error_of(source: Any, **options: Any) -> str:
    with pytest.raises(DataError) as error:
        read(source, **options)
    return str(error.value)


# -- every kind of file --


def write_kind(path: Path, kind: str) -> str:
    table = pa.Table.from_pylist(ROWS)
    if kind == "jsonl":
        path.write_text("".join(json.dumps(r) + "\n" for r in ROWS))
    elif kind == "json":
        path.write_text(json.dumps(ROWS, indent=1))
    elif kind == "json-object":
        path.write_text(json.dumps({"version": 1, "data": ROWS}))
    elif kind == "json-columns":
        path.write_text(json.dumps({k: [r[k] for r in ROWS] for k in ROWS[0]}))
    elif kind in ("csv", "tsv"):
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, ROWS[0], delimiter="\t" if kind == "tsv" else ",")
            writer.writeheader()
            writer.writerows(ROWS)
    elif kind == "parquet":
        pq.write_table(table, path)
    elif kind == "arrow":
        with pa.ipc.new_file(str(path), table.schema) as writer:
            writer.write_table(table)
    return str(path)


KINDS = ["jsonl", "json", "json-object", "json-columns", "csv", "tsv", "parquet", "arrow"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_same_rows(kind: str, tmp_path: Path) -> None:
    result = read(write_kind(tmp_path / f"rows.{kind.split('-')[0]}", kind))
    assert answers(result.dataset) == [r["answer"] for r in ROWS]
    assert result.dataset["level"][:] == [r["level"] for r in ROWS]
    assert result.dataset["_row"][:] == list(range(6))
    assert set(result.dataset["_source"][:]) == {f"rows.{kind.split('-')[0]}"}
    assert result.report.format == "prompt_completion"
    assert (result.report.n_read, result.report.n_kept, result.report.bad) == (6, 6, [])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet", "txt"])
def test_the_content_decides_and_not_the_ending(kind: str, ending: str, tmp_path: Path) -> None:
    result = read(write_kind(tmp_path / f"rows.{ending}", kind))
    assert len(result.dataset) == 6
    told = {"jsonl": "JSON lines", "csv": "CSV or TSV", "parquet": "Parquet"}
    real = "csv" if kind == "tsv" else kind.split("-")[0]
    wrong = ending in told and real != ending
    assert ("which it is by its content; its name says" in result.report.how[0]) == wrong


@pytest.mark.parametrize("kind", ["jsonl", "json", "json-object", "csv"])
def test_gzip_of_the_text_kinds(kind: str, tmp_path: Path) -> None:
    plain = write_kind(tmp_path / "plain", kind)
    path = tmp_path / f"rows.{kind.split('-')[0]}.gz"
    path.write_bytes(gzip.compress(Path(plain).read_bytes()))
    result = read(path)
    assert answers(result.dataset) == [r["answer"] for r in ROWS]
    assert "through gzip" in result.report.how[0]


def test_arrow_folders(tmp_path: Path) -> None:
    data = Dataset.from_list(ROWS)
    data.save_to_disk(str(tmp_path / "one"))
    DatasetDict({"train": data.select([0, 1]), "test": data.select([2])}).save_to_disk(str(tmp_path / "two"))
    assert answers(read(tmp_path / "one").dataset) == [r["answer"] for r in ROWS]
    both = read(str(tmp_path / "two"))
    assert len(both.dataset) == 2
    assert both.report.how[0] == "two has the splits train, test; train was read (name#split picks one)."
    assert answers(read(f"{tmp_path / 'two'}#test").dataset) == ["it is 2"]
    assert error_of(f"{tmp_path / 'two'}#tets") == (
        "two: there is no split 'tets'. Did you mean 'test'? Splits: train, test."
    )


def test_a_folder_of_files(tmp_path: Path, write_jsonl: Write) -> None:
    (tmp_path / "sub").mkdir()
    write_jsonl(tmp_path / "b.jsonl", ROWS[:2])
    write_jsonl(tmp_path / "sub" / "a.jsonl", ROWS[2:])
    (tmp_path / "README.md").write_text("not data")
    result = read(tmp_path)
    assert list(zip(result.dataset["_source"][:], result.dataset["_row"][:], strict=True)) == [
        ("b.jsonl", 0),
        ("b.jsonl", 1),
        *(("sub/a.jsonl", i) for i in range(4)),
    ]


def test_the_hub_is_read_by_datasets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_jsonl: Write
) -> None:
    (tmp_path / "owner" / "name").mkdir(parents=True)
    write_jsonl(tmp_path / "owner" / "name" / "train.jsonl", ROWS)
    import datasets

    whole, asked = datasets.load_dataset, []

    def local(name: str) -> Any:
        asked.append(name)
        return whole(str(tmp_path / name))

    monkeypatch.setattr(datasets, "load_dataset", local)
    assert answers(read("owner/name#train").dataset) == [r["answer"] for r in ROWS]
    assert asked == ["owner/name"]


def test_a_set_the_hub_does_not_give() -> None:
    message = error_of("nobody/nothing")
    assert message.startswith(
        "'nobody/nothing' is no file or folder here, and the Hub gave no such data set (it is switched off by "
        "HF_HUB_OFFLINE): "
    )


def test_a_dataset_is_read_again(tmp_path: Path, write_jsonl: Write) -> None:
    first = read(write_jsonl(tmp_path / "a.jsonl", ROWS)).dataset
    again = read(first.select([3, 1]))
    assert answers(again.dataset) == ["it is 3", "it is 1"]
    assert again.dataset["_row"][:] == [0, 1]
    assert "The column '_row' was kept under the name 'source_row'." in again.report.how
    assert again.dataset["source_row"][:] == [3, 1]
    assert error_of(7) == "a data source must be a path, a Hub id or a datasets.Dataset, not int."


def test_a_demo_set(monkeypatch: pytest.MonkeyPatch) -> None:
    from tunesmith.data import demo

    rows = [
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": str(i)}]}
        for i in range(5)
    ]
    monkeypatch.setattr(
        demo, "load", lambda name: Dataset.from_list(rows) if name == "messy" else None, raising=False
    )
    result = read("demo:messy", max_rows=3)
    assert answers(result.dataset) == ["0", "1", "2"]
    assert (result.report.format, result.report.n_kept) == ("messages", 3)
    assert result.report.how == [
        "demo:messy is a built-in set of 5 conversations.",
        "The first row reads: user: q | assistant: 0",
    ]


# -- what the report says --


def test_the_report_shows_how_rows_were_read(tmp_path: Path, write_jsonl: Write) -> None:
    rows = [{"instruction": f"add {i}", "input": "", "output": f"is {i}"} for i in range(5)]
    rows += [{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}]
    rows += [{"text": "raw"}, {"instruction": "x", "output": ""}, {"a": 1}, ["list"], {}]
    path = write_jsonl(tmp_path / "mix.jsonl", rows)
    Path(path).write_text(Path(path).read_text() + '{"instruction": "cut\n"just a string"\n')
    result = read(path)
    report = result.report
    assert report.how == [
        "mix.jsonl was read as JSON lines.",
        "Format alpaca, by 6 of the first 10 rows: instruction and input became the question, output the answer.",
        "Columns that were read: input, instruction, messages, output.",
        "Rows of other formats were read too: 1 of messages.",
        "The first row reads: user: add 0 | assistant: is 0",
    ]
    assert (report.n_read, report.n_kept) == (13, 6)
    assert report.bad == [
        ("mix.jsonl", 6, "the row is raw text among rows of the format alpaca", '{"text": "raw"}'),
        ("mix.jsonl", 7, "the answer is empty", '{"instruction": "x", "output": ""}'),
        ("mix.jsonl", 8, "the row is of no known format (its keys are a)", '{"a": 1}'),
        ("mix.jsonl", 9, "the row must be an object with keys (it is a list)", '["list"]'),
        ("mix.jsonl", 10, "the row is empty", "{}"),
        (
            "mix.jsonl",
            11,
            "the row is not valid JSON (Unterminated string at character 17)",
            '{"instruction": "cut',
        ),
        ("mix.jsonl", 12, "the row is raw text among rows of the format alpaca", '"just a string"'),
    ]
    assert sum(report.reasons.values()) == 7
    assert report.reasons["the row is raw text among rows of the format alpaca"] == 2
    assert result.dataset["_row"][:] == [0, 1, 2, 3, 4, 5]
    assert "7" not in str(report).splitlines()[0]
    assert "13 rows read, 6 kept." in str(report)


def test_no_row_can_be_used(tmp_path: Path, write_jsonl: Write) -> None:
    path = write_jsonl(tmp_path / "x.jsonl", [{"a": 1}, {"a": 2}, {"question": "q", "answer": ""}])
    assert error_of(path) == (
        f"{path}: 0 of 3 rows can be used: 2 × the row is of no known format; 1 × the answer is empty. First: "
        'x.jsonl, row 0: the row is of no known format (its keys are a): {"a": 1}. Known formats: preference, '
        "messages, sharegpt, alpaca, prompt_completion, pairs, text; columns can be renamed with columns: "
        "{their_name: our_name}."
    )


def test_bad_rows_are_listed_up_to_a_thousand_and_counted_exactly(tmp_path: Path, write_jsonl: Write) -> None:
    path = write_jsonl(tmp_path / "x.jsonl", [*ROWS, *({"question": "q", "answer": ""} for _ in range(1500))])
    report = read(path).report
    assert len(report.bad) == 1000
    assert report.reasons == {"the answer is empty": 1500}


def test_log_and_cache(tmp_path: Path, write_jsonl: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    from tunesmith.core.events import EventLog

    events: list[dict[str, Any]] = []
    path = write_jsonl(tmp_path / "log.jsonl", [*ROWS, {"question": "q", "answer": ""}])
    first = read(path, log=EventLog(listeners=[events.append]))
    assert [e["message"] for e in events if e["kind"] == "warning"] == [
        f"{path}: 1 of 7 rows could not be used: 1 × the answer is empty."
    ]
    monkeypatch.setattr(reader_module._Reading, "write", lambda *a: pytest.fail("read again"))
    second = read(path)
    assert second.report.to_dict() == first.report.to_dict()
    assert second.dataset.to_list() == first.dataset.to_list()


def test_a_changed_file_is_read_again(tmp_path: Path, write_jsonl: Write) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ROWS[:2])
    assert len(read(path).dataset) == 2
    write_jsonl(path, ROWS[:3])
    assert len(read(path).dataset) == 3


# -- columns, formats, max_rows --


def test_columns_are_renamed(tmp_path: Path, write_jsonl: Write) -> None:
    path = write_jsonl(tmp_path / "c.jsonl", [{"frage": "q", "antwort": "a", "text": "t"}] * 2)
    result = read(path, columns={"frage": "question", "antwort": "answer", "text": "note"})
    assert answers(result.dataset) == ["a", "a"]
    assert result.dataset["note"][:] == ["t", "t"]
    assert "Renamed: frage to question, antwort to answer, text to note." in result.report.how
    assert error_of(path, columns={"frag": "question"}) == (
        "c.jsonl: columns renames 'frag', which the rows do not have. Did you mean 'frage'? Their columns: frage, "
        "antwort, text."
    )
    assert error_of(path, columns={"frage": "text"}) == (
        "c.jsonl: columns renames 'frage' to 'text', but the rows have a column 'text' already. Rename that one "
        "too, for example text: text_before."
    )


def test_a_named_format_is_taken_for_every_row(tmp_path: Path, write_jsonl: Write) -> None:
    path = write_jsonl(tmp_path / "f.jsonl", [{"text": "t", "question": "q", "answer": "a"}, {"text": "u"}])
    assert read(path, format="text").dataset["text"][:] == ["t", "u"]
    assert read(path).report.format == "prompt_completion"
    strict = read(path, format="prompt_completion")
    assert strict.report.bad[0][:3] == (
        "f.jsonl",
        1,
        "missing key 'completion' or 'response' or 'answer' … (the row has text)",
    )
    with pytest.raises(UnknownNameError, match="There is no data format named 'shargpt'"):
        read(path, format="shargpt")


def test_max_rows(tmp_path: Path, write_jsonl: Write) -> None:
    path = write_jsonl(tmp_path / "m.jsonl", ROWS)
    result = read(path, max_rows=4)
    assert (result.report.n_read, len(result.dataset)) == (4, 4)
    with pytest.raises(
        ParameterError, match=r"The 'max_rows' parameter of read must be an int >= 1\. Got 0 instead"
    ):
        read(path, max_rows=0)


# -- the user's other columns --


def test_columns_of_mixed_types_become_json_text(tmp_path: Path, write_jsonl: Write) -> None:
    extras = [
        {
            "mixed": 1,
            "obj": {"a": 1},
            "num": 1,
            "ragged": [1],
            "late": None,
            "same": {"k": [1]},
            "big": 2**70,
        },
        {
            "mixed": "two",
            "obj": {"b": 2},
            "num": 2.5,
            "ragged": ["x"],
            "late": "x",
            "same": {"k": []},
            "big": 1,
        },
        {"mixed": None, "obj": None, "num": None, "ragged": None, "only": True},
    ]
    path = write_jsonl(tmp_path / "t.jsonl", [{**ROWS[i], **e} for i, e in enumerate(extras)])
    result = read(path)
    data = result.dataset
    assert data["mixed"][:] == ["1", "two", None]
    assert data["obj"][:] == ['{"a": 1}', '{"b": 2}', None]
    assert data["num"][:] == [1.0, 2.5, None]
    assert data["ragged"][:] == ["[1]", '["x"]', None]
    assert data["late"][:] == [None, "x", None]
    assert data["same"][:] == [{"k": [1]}, {"k": []}, None]
    assert data["big"][:] == [str(2**70), "1", None]
    assert data["only"][:] == [None, None, True]
    assert (
        "Values differ in type from row to row, so they are kept as JSON text: big, mixed, obj, ragged."
        in result.report.how
    )


def test_types_that_differ_between_chunks(
    tmp_path: Path, write_jsonl: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_module, "_CHUNK_ROWS", 2)
    values = [1, 2, 3.5, 4, "x", {"y": 1}]
    lists = [[], [], [1], [2.5], None, []]
    rows = [{**ROWS[i], "v": v, "w": w} for i, (v, w) in enumerate(zip(values, lists, strict=True))]
    del rows[2]["level"], rows[3]["level"]
    data = read(write_jsonl(tmp_path / "t.jsonl", rows)).dataset
    assert data["v"][:] == ["1", "2", "3.5", "4.0", "x", '{"y": 1}']
    assert data["w"][:] == [[], [], [1.0], [2.5], None, []]
    assert data["level"][:] == [0, 0.5, None, None, 2, 2.5]


def test_csv_cells_become_numbers_only_where_all_can(tmp_path: Path) -> None:
    path = tmp_path / "n.csv"
    path.write_text("prompt,completion,i,f,zeros,s\nq,a,1,0.5,007,1\nq,b,,-2e3,1,x\n")
    data = read(path).dataset
    assert data["i"][:] == [1, None]
    assert data["f"][:] == [0.5, -2000.0]
    assert data["zeros"][:] == ["007", "1"]
    assert data["s"][:] == ["1", "x"]


def test_typed_tables_keep_their_types(tmp_path: Path) -> None:
    import datetime

    table = pa.table(
        {
            "question": ["q", None, "r"],
            "answer": ["a", "b", "c"],
            "embedding": pa.array([[1, 2], [3, 4], [5, 6]], type=pa.list_(pa.float32())),
            "when": [datetime.date(2024, 1, d) for d in (1, 2, 3)],
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    result = read(tmp_path / "t.parquet")
    assert result.dataset.features["embedding"].feature.dtype == "float32"
    assert result.dataset["when"][:] == [datetime.date(2024, 1, 1), datetime.date(2024, 1, 3)]
    assert result.dataset["_row"][:] == [0, 2]
    assert result.report.bad[0][1] == 1


# -- bad input --


def test_empty_files(tmp_path: Path) -> None:
    (tmp_path / "e.jsonl").write_text("")
    (tmp_path / "b.jsonl").write_text("\ufeff \n\n")
    (tmp_path / "e.jsonl.gz").write_bytes(gzip.compress(b""))
    (tmp_path / "e.json").write_text("[]")
    (tmp_path / "h.csv").write_text("prompt,completion\n")
    assert error_of(tmp_path / "e.jsonl") == "e.jsonl: the file is empty."
    assert error_of(tmp_path / "b.jsonl") == "b.jsonl: the file is empty."
    assert error_of(tmp_path / "e.jsonl.gz") == "e.jsonl.gz: the file is empty."
    assert error_of(tmp_path / "e.json") == f"{tmp_path / 'e.json'}: there are no rows in it."
    assert error_of(tmp_path / "h.csv") == f"{tmp_path / 'h.csv'}: there are no rows in it."


def test_a_missing_file_names_its_neighbours(tmp_path: Path, write_jsonl: Write) -> None:
    write_jsonl(tmp_path / "train.jsonl", ROWS)
    assert error_of(tmp_path / "trian.jsonl") == (
        f"there is no file {tmp_path / 'trian.jsonl'}. Nearest names there: train.jsonl."
    )
    assert error_of(tmp_path / "zzz.csv") == (
        f"there is no file {tmp_path / 'zzz.csv'}. Data files there: train.jsonl."
    )
    assert (
        error_of("./no/such/x.csv")
        == "there is no file ./no/such/x.csv. The folder no/such does not exist either."
    )
    (tmp_path / "empty").mkdir()
    assert error_of(tmp_path / "empty" / "x.csv").endswith(
        f"There are no data files in {tmp_path / 'empty'}."
    )
    assert error_of(tmp_path / "empty") == (
        f"{tmp_path / 'empty'}: the folder holds no data files; .jsonl, .ndjson, .json, .csv, .tsv, .parquet, .arrow "
        "(also .gz) and folders written by datasets' save_to_disk can be read."
    )


def test_binary_and_packed_files(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(random.Random(0).randbytes(5000))
    assert error_of(tmp_path / "x.jsonl") == (
        "x.jsonl: the file is binary and of no known kind. JSON lines, JSON, CSV, Parquet and Arrow are read."
    )
    (tmp_path / "x.zip").write_bytes(b"PK\x03\x04" + bytes(50))
    assert error_of(tmp_path / "x.zip") == "x.zip: the file is a zip archive; unpack it first."
    (tmp_path / "u.jsonl").write_bytes('{"text": "x"}'.encode("utf-16"))
    assert error_of(tmp_path / "u.jsonl") == "u.jsonl: the file is UTF-16 text; save it as UTF-8."
    (tmp_path / "p.gz").write_bytes(gzip.compress(Path(write_kind(tmp_path / "p", "parquet")).read_bytes()))
    assert error_of(tmp_path / "p.gz") == "p.gz: the file is Parquet inside gzip; unpack it first."
    (tmp_path / "prose.txt").write_text("Once upon a time\nthere was a file.\n")
    assert error_of(tmp_path / "prose.txt") == (
        "prose.txt: the file is text, but neither JSON lines, JSON, CSV nor TSV. The row reads: Once upon a time"
    )


def test_a_damaged_table(tmp_path: Path) -> None:
    whole = Path(write_kind(tmp_path / "p.parquet", "parquet")).read_bytes()
    (tmp_path / "p.parquet").write_bytes(whole[:-20])
    message = error_of(tmp_path / "p.parquet")
    assert message.startswith("p.parquet: the file cannot be read: ")
    assert message.endswith("It may be cut off; write it again.")
    Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "d"))
    next((tmp_path / "d").glob("*.arrow")).unlink()
    assert error_of(tmp_path / "d").startswith(f"{tmp_path / 'd'}: the Arrow folder cannot be read: ")


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv"])
def test_truncated_gzip_keeps_the_rows_before_the_cut(kind: str, tmp_path: Path) -> None:
    rng = random.Random(0)
    rows = [{"prompt": f"q{i}", "completion": "".join(rng.choices("abcdefgh ", k=300))} for i in range(400)]
    if kind == "csv":
        text = "prompt,completion\n" + "".join(f"{r['prompt']},{r['completion']}\n" for r in rows)
    else:
        text = json.dumps(rows) if kind == "json" else "".join(json.dumps(r) + "\n" for r in rows)
    data = gzip.compress(text.encode())
    (tmp_path / f"t.{kind}.gz").write_bytes(data[: len(data) // 2])
    result = read(tmp_path / f"t.{kind}.gz")
    n = len(result.dataset)
    assert 150 < n < 250
    assert answers(result.dataset) == [r["completion"] for r in rows[:n]]
    cut = "the gzip file ends early; rows after this one are lost"
    assert result.report.bad == [(f"t.{kind}.gz", n, cut, "")]


def test_gzip_cut_before_the_first_row(tmp_path: Path) -> None:
    data = gzip.compress(json.dumps(ROWS[0]).encode())
    (tmp_path / "t.jsonl.gz").write_bytes(data[:11])
    assert error_of(tmp_path / "t.jsonl.gz") == (
        "t.jsonl.gz: the gzip file is cut off before its first row; nothing can be read."
    )


def test_a_json_list_that_breaks_off(tmp_path: Path) -> None:
    text = json.dumps(ROWS)
    (tmp_path / "cut.json").write_text(text[: text.index("what is 4") - 5])
    result = read(tmp_path / "cut.json")
    assert answers(result.dataset) == [f"it is {i}" for i in range(4)]
    assert result.report.bad[0][:2] == ("cut.json", 4)
    assert result.report.bad[0][2].startswith(
        "the JSON list breaks off; rows after this one cannot be read ("
    )
    (tmp_path / "typo.json").write_text(text.replace('"question": "what is 2', '"question" "what is 2'))
    report = read(tmp_path / "typo.json").report
    assert report.n_kept == 2
    assert "Expecting ':' delimiter at character 13 of the row" in report.bad[0][2]
    (tmp_path / "bad.json").write_text('{\n"data": [}')
    assert "the file is not valid JSON (Expecting value in line 2)" in error_of(tmp_path / "bad.json")


def test_a_row_of_five_megabytes(tmp_path: Path, write_jsonl: Write) -> None:
    long = "x" * 5_000_000
    rows = [{"prompt": long, "completion": "a"}, {"prompt": "q", "completion": ""}, {"prompt": long}]
    result = read(write_jsonl(tmp_path / "l.jsonl", rows))
    assert len(result.dataset[0]["messages"][0]["content"]) == 5_000_000
    assert "(4,999,920 more characters)" in result.report.how[-1]
    assert all(len(snippet) < 250 for *_, snippet in result.report.bad)
    (tmp_path / "one.json").write_text(json.dumps({"data": [{"text": long}]}))
    assert len(read(tmp_path / "one.json").dataset) == 1


def test_bom_and_bad_utf8(tmp_path: Path) -> None:
    lines = [json.dumps(r).encode() for r in ROWS[:3]]
    lines[1] = lines[1].replace(b"it is", b"caf\xe9")
    (tmp_path / "b.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(lines))
    result = read(tmp_path / "b.jsonl")
    assert answers(result.dataset) == ["it is 0", "it is 2"]
    assert result.report.bad[0][1:3] == (1, "the row is not valid UTF-8 (byte 42)")
    (tmp_path / "b.csv").write_bytes(b"\xef\xbb\xbfprompt,completion\nq,a\nq,caf\xe9\n")
    assert answers(read(tmp_path / "b.csv").dataset) == ["a"]
    (tmp_path / "b.json").write_bytes(b'[{"text": "a"}, {"text": "caf\xe9"}, {"text": "b"}]')
    report = read(tmp_path / "b.json").report
    assert (report.n_kept, report.reasons) == (2, {"the row is not valid UTF-8": 1})
    (tmp_path / "s.jsonl").write_text('{"text": "a\\ud83d"}\n{"text": "\\ud83d\\ude00"}\n')
    report = read(tmp_path / "s.jsonl").report
    assert report.reasons == {"the row has half of a surrogate pair, which is no character": 1}


def test_bad_csv_rows(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text('prompt,completion\n"two\nlines",a\nq\n\n"x"y,b\nq,c\n')
    result = read(tmp_path / "c.csv")
    assert answers(result.dataset) == ["a", "c"]
    assert result.dataset[0]["messages"][0]["content"] == "two\nlines"
    assert [b[1:3] for b in result.report.bad] == [
        (1, "the row has another number of cells than the header (1 instead of 2)"),
        (2, "the row is not valid CSV (',' expected after '\"')"),
    ]
    assert result.dataset["_row"][:] == [0, 3]


def test_input_is_not_touched(tmp_path: Path, write_jsonl: Write) -> None:
    path = Path(write_jsonl(tmp_path / "k.jsonl", ROWS))
    before = (path.read_bytes(), path.stat().st_mtime_ns)
    read(path)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    assert [p.name for p in tmp_path.iterdir()] == ["k.jsonl"]


def test_a_failed_read_leaves_nothing_in_the_cache(tmp_path: Path, write_jsonl: Write) -> None:
    from tunesmith.core.files import cache_dir

    before = {p.name for p in cache_dir("datasets").iterdir()}
    error_of(write_jsonl(tmp_path / "x.jsonl", [{"a": 1}]))
    assert {p.name for p in cache_dir("datasets").iterdir()} == before


def test_a_full_disk(tmp_path: Path, write_jsonl: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    from tunesmith.core.errors import DiskFullError

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(reader_module.ColumnSpool, "finish", full)
    with pytest.raises(DiskFullError, match="The disk is full"):
        read(write_jsonl(tmp_path / "full.jsonl", ROWS))
