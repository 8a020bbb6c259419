"""Logs of requests: files, rotated ones, folders, damage; following one that grows."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

from tunesmith.audit.drift import new_rows, read_requests
from tunesmith.audit.drift.reading import Skipped, log_files
from tunesmith.core.errors import DataError


def lines(*numbers: int) -> bytes:
    return b"".join(json.dumps({"i": i}).encode() + b"\n" for i in numbers)


def numbers(found: Any) -> list[int]:
    return [row["i"] for row in found]


def test_rotated_files_are_read_in_the_order_they_were_written(tmp_path: Path) -> None:
    (tmp_path / "requests.jsonl").write_bytes(lines(4))
    (tmp_path / "requests.jsonl.1").write_bytes(lines(3))
    (tmp_path / "requests.jsonl.2.gz").write_bytes(gzip.compress(lines(2)))
    (tmp_path / "requests.jsonl.10.gz").write_bytes(gzip.compress(lines(1)))
    (tmp_path / "notes.txt").write_text("no log")
    (tmp_path / "b").mkdir()
    for name, i in (("x.log-20260102", 6), ("x.log-20251231", 5), ("x.log", 7)):
        (tmp_path / "b" / name).write_bytes(lines(i))
    assert [row["i"] for _, row in read_requests(tmp_path)] == [1, 2, 3, 4, 5, 6, 7]
    found = list(read_requests([tmp_path / "b" / "x.log", tmp_path / "requests.jsonl.1"]))
    assert found == [("x.log:1", {"i": 7}), ("requests.jsonl.1:1", {"i": 3})]
    assert log_files(tmp_path / "notes.txt") == [tmp_path / "notes.txt"]


def test_rows_at_hand_are_read_too() -> None:
    skipped = Skipped()
    assert list(read_requests([{"i": 1}, "no row", {"i": 2}], skipped)) == [
        ("row 0", {"i": 1}),
        ("row 2", {"i": 2}),
    ]
    assert skipped.places == [("row 1", "no JSON object")]
    assert skipped.n_rows == 3


def test_damaged_lines_are_passed_over_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b"\xef\xbb\xbf" + lines(1) + b'{"i": 2\n\n[3]\n\xff\n' + b"[" * 9000 + b"\n" + lines(4)[:-1]
    )
    skipped = Skipped()
    assert numbers(row for _, row in read_requests(path, skipped)) == [1, 4]
    assert skipped.reasons == {"not JSON": 3, "no JSON object": 1}
    assert skipped.places[0] == ("a.jsonl:2", "not JSON")
    assert (skipped.n, skipped.n_rows) == (4, 6)
    packed = gzip.compress(lines(*range(2000)))
    (tmp_path / "b.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    skipped = Skipped()
    found = numbers(row for _, row in read_requests(tmp_path / "b.jsonl.gz", skipped))
    assert found == list(range(len(found)))
    assert 0 < len(found) < 2000
    assert skipped.places == [(f"b.jsonl.gz:{len(found) + 1}", "the compressed file is cut off here")]


def test_logs_of_which_nothing_can_be_read(tmp_path: Path) -> None:
    def message(source: Any) -> str:
        with pytest.raises(DataError) as error:
            list(read_requests(source))
        return str(error.value).replace(str(tmp_path), "")

    (tmp_path / "empty.jsonl").write_text("\n \n")
    (tmp_path / "bad.jsonl").write_text("{\n7\n")
    (tmp_path / "folder").mkdir()
    assert message(tmp_path / "empty.jsonl") == "/empty.jsonl: the log is empty: there is no row in it."
    assert message([]) == "rows: the log is empty: there is no row in it."
    assert message(tmp_path / "none") == "/none: there is no such file or folder."
    assert message(tmp_path / "folder") == (
        "/folder: there is no log in this folder: files named *.jsonl, *.ndjson or *.log, with .1, -20260131 or .gz "
        "behind if rotated."
    )
    assert message(tmp_path / "bad.jsonl") == (
        "/bad.jsonl: 0 of 2 rows can be used: 1 × not JSON; 1 × no JSON object. First: bad.jsonl:1: not JSON."
    )


def test_following_loses_no_line_and_repeats_none(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    assert new_rows(path).rows == []  # not there yet
    whole = lines(*range(40))
    found, place, written = [], None, 0
    for end in (1, 9, 10, 57, 57, 200, len(whole) - 1, len(whole)):
        with open(path, "ab") as stream:
            stream.write(whole[written:end])
        written = end
        seen = new_rows(path, json.loads(json.dumps(place)))
        found, place = [*found, *numbers(seen.rows)], seen.place
        assert seen.notice == ""
        assert found == list(range(whole[:end].count(b"\n")))
    assert found == list(range(40))
    with open(path, "ab") as stream:
        stream.write(b"{]\n\n" + lines(40))
    seen = new_rows(path, place)
    assert numbers(seen.rows) == [40]
    assert seen.skipped.places == [("a.jsonl:41", "not JSON")]


def test_following_reads_a_rotated_file_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(1, 2))
    place = new_rows(path).place
    with open(path, "ab") as stream:
        stream.write(lines(3)[:-1])  # the writer stopped before the line end
    path.rename(tmp_path / "a.jsonl.1")
    path.write_bytes(lines(4, 5))
    seen = new_rows(path, place)
    assert numbers(seen.rows) == [3, 4, 5]
    assert seen.notice == "a.jsonl was rotated: the rest of it was read from a.jsonl.1."
    assert new_rows(path, seen.place).rows == []


def test_following_tells_what_may_be_lost(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(1, 2))
    place = new_rows(path).place
    path.write_bytes(lines(3))  # shorter, the same file
    seen = new_rows(path, place)
    assert numbers(seen.rows) == [3]
    assert seen.notice.startswith("a.jsonl was cut or overwritten: it is read from its start")
    path.write_bytes(lines(4, 5, 6, 7))  # longer, and begins otherwise
    again = new_rows(path, seen.place)
    assert numbers(again.rows) == [4, 5, 6, 7]
    assert again.notice.startswith("a.jsonl was cut or overwritten")
    other = tmp_path / "other"
    other.write_bytes(lines(8))
    os.replace(other, path)  # another file, the old one gone
    last = new_rows(path, again.place)
    assert numbers(last.rows) == [8]
    assert last.notice == (
        "a.jsonl was rotated, and the earlier file is gone or compressed: lines written to it after the last look were "
        "not read."
    )


def test_following_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tunesmith.audit.drift import following

    monkeypatch.setattr(following, "_MOST", 20)
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(*range(9)))
    found, place, more = [], None, True
    while more:
        seen = new_rows(path, place)
        found, place, more = [*found, *numbers(seen.rows)], seen.place, seen.more
    assert found == list(range(9))


def test_following_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"this is a folder; follow one file\."):
        new_rows(tmp_path)
    with pytest.raises(DataError, match=r"the place to go on from is not one that new_rows returned\."):
        new_rows(tmp_path / "a", {"offset": 3})
