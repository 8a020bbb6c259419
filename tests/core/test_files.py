"""Files are whole or absent, also when the disk fills up or the writer fails half-way."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.core import files
from tunesmith.core.errors import DiskFullError, TunesmithError

FULL = (
    r"The disk is full: .*a\.json could not be written\. Everything finished before is intact; free "
    "some space "
    r"and run the same command again to continue\."
)


def no_space(*args: Any, **kwargs: Any) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_file_appears_only_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.txt"
    with files.atomic_open(path) as stream:
        stream.write("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert os.listdir(path.parent) == ["a.txt"]


def test_a_failing_writer_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write() -> None:
        with files.atomic_open(path) as stream:
            stream.write("ne")
            raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        write()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_full_disk_keeps_the_old_file_and_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "a.json"
    files.write_json(path, {"old": 1})
    monkeypatch.setattr(os, call, no_space)
    with pytest.raises(DiskFullError, match=FULL):
        files.write_json(path, {"new": 2})
    assert files.read_json(path) == {"old": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_full_disk_while_opening(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "open", no_space, raising=False)
    with pytest.raises(DiskFullError, match=FULL):
        files.write_json(tmp_path / "a.json", {})
    assert os.listdir(tmp_path) == []


def test_an_exceeded_quota_reads_like_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(DiskFullError, match="The disk is full"), files.disk_errors(tmp_path):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")


def test_other_disk_errors_are_not_called_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), files.disk_errors(tmp_path):
        raise PermissionError(errno.EACCES, "Permission denied")


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    for content in ("first", "second"):
        with files.atomic_dir(tmp_path / "d") as folder:
            (folder / content).write_text(content)
    assert os.listdir(tmp_path / "d") == ["second"]
    assert os.listdir(tmp_path) == ["d"]


def test_a_failing_folder_leaves_the_old_one_and_the_next_writer_cleans_up(tmp_path: Path) -> None:
    with files.atomic_dir(tmp_path / "d") as folder:
        (folder / "old").touch()

    def write() -> None:
        with files.atomic_dir(tmp_path / "d") as folder:
            (folder / "torn").touch()
            raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        write()
    assert os.listdir(tmp_path / "d") == ["old"]
    with files.atomic_dir(tmp_path / "d") as folder:
        assert os.listdir(folder) == []
    assert sorted(os.listdir(tmp_path)) == ["d"]


def test_a_full_disk_while_filling_a_folder(tmp_path: Path) -> None:
    full = pytest.raises(DiskFullError, match=r"The disk is full: .*d could not be written")
    with full, files.atomic_dir(tmp_path / "d"):
        no_space()
    assert not (tmp_path / "d").exists()


def test_json_keeps_text_and_ends_with_a_line(tmp_path: Path) -> None:
    files.write_json(tmp_path / "a.json", {"é": ["\u2028", None, 1.5]})
    assert (tmp_path / "a.json").read_text(encoding="utf-8").endswith("}\n")
    assert files.read_json(tmp_path / "a.json") == {"é": ["\u2028", None, 1.5]}


@given(st.lists(st.text(), max_size=4), st.lists(st.text(), max_size=4))
def test_hash_text_separates_its_parts(a: list[str], b: list[str]) -> None:
    assert (files.hash_text(*a) == files.hash_text(*b)) == (a == b)


def test_hash_of_json_does_not_depend_on_key_order() -> None:
    assert files.hash_json({"a": 1, "b": [2]}) == files.hash_json({"b": [2], "a": 1})
    assert files.hash_json({"a": 1}) != files.hash_json({"a": 1.5})


def test_hash_of_a_tree_sees_names_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "t" / "sub").mkdir(parents=True)
    (tmp_path / "t" / "sub" / "a").write_text("x")
    first = files.hash_tree(tmp_path / "t")
    (tmp_path / "t" / "sub" / "a").rename(tmp_path / "t" / "sub" / "b")
    second = files.hash_tree(tmp_path / "t")
    (tmp_path / "t" / "sub" / "b").write_text("y")
    third = files.hash_tree(tmp_path / "t")
    assert len({first, second, third}) == 3
    (tmp_path / "t" / "README.md").write_text("a card")
    assert files.hash_tree(tmp_path / "t") != third
    assert files.hash_tree(tmp_path / "t", without=["README.md"]) == third
    assert files.hash_tree(tmp_path / "t" / "sub" / "b") == files.hash_file(tmp_path / "t" / "sub" / "b")


def test_inside_refuses_what_leaves_the_folder(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "link").symlink_to(tmp_path)
    assert files.inside(tmp_path / "run", "a/b") == (tmp_path / "run" / "a" / "b").resolve()
    for name in ("../x", "/etc/passwd", "a/../../x", "link/x"):
        with pytest.raises(
            TunesmithError, match=r"The path .* leaves the folder .*, which is not permitted\."
        ):
            files.inside(tmp_path / "run", name)


def test_cache_dir_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "mine"))
    assert files.cache_dir("models", "a") == tmp_path / "mine" / "models" / "a"
    assert (tmp_path / "mine" / "models" / "a").is_dir()
    monkeypatch.delenv("TUNESMITH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert files.cache_dir() == tmp_path / "xdg" / "tunesmith"
