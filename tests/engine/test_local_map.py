from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tunesmith.core.errors import ParameterError
from tunesmith.core.events import EventLog
from tunesmith.engine.local import finished, map_rows


def test_equals_a_plain_call_whatever_the_chunk(tmp_path: Path) -> None:
    want = np.arange(103, dtype=np.float64) ** 2
    for chunk in (1, 7, 103, 500):
        got = map_rows(
            lambda i: i.astype(float) ** 2, 103, tmp_path / str(chunk), dtype=np.float64, chunk=chunk
        )
        np.testing.assert_array_equal(got, want)
        assert isinstance(got, np.memmap)
        assert [p.name for p in (tmp_path / str(chunk)).iterdir()] == ["rows.npy"]


def test_width_dtype_and_empty(tmp_path: Path) -> None:
    got = map_rows(lambda i: np.stack([i, -i], axis=1), 10, tmp_path / "a", dtype=np.int32, width=2, chunk=3)
    assert got.shape == (10, 2)
    assert got.dtype == np.int32
    assert got[9].tolist() == [9, -9]
    assert map_rows(lambda i: i, 0, tmp_path / "b", width=4).shape == (0, 4)
    assert map_rows(lambda i: i, 0, tmp_path / "b", width=4).shape == (0, 4)


def test_an_error_in_the_middle_loses_nothing_scored(tmp_path: Path) -> None:
    calls: list[int] = []

    def breaks_at_60(indices: np.ndarray) -> Any:
        if len(calls) == 6:
            raise RuntimeError("worker died")
        calls.append(int(indices[0]))
        return indices * 2

    with pytest.raises(RuntimeError, match="worker died"):
        map_rows(breaks_at_60, 100, tmp_path, dtype=np.int64, chunk=10)
    again: list[int] = []

    def works(indices: np.ndarray) -> Any:
        again.append(int(indices[0]))
        return indices * 2

    events: list[dict[str, Any]] = []
    got = map_rows(works, 100, tmp_path, dtype=np.int64, chunk=10, log=EventLog(listeners=[events.append]))
    assert calls == [0, 10, 20, 30, 40, 50]
    assert again == [60, 70, 80, 90]
    np.testing.assert_array_equal(got, np.arange(100) * 2)
    assert events[-1]["done"] == events[-1]["total"] == 100
    assert events[-1]["remaining_s"] == 0


def test_a_finished_result_is_not_computed_again(tmp_path: Path) -> None:
    assert finished(tmp_path) is None
    map_rows(lambda i: i, 5, tmp_path, dtype=np.int64)

    def fails(indices: np.ndarray) -> Any:
        raise AssertionError

    np.testing.assert_array_equal(map_rows(fails, 5, tmp_path, dtype=np.int64), np.arange(5))
    np.testing.assert_array_equal(finished(tmp_path), np.arange(5))


def test_a_torn_chunk_is_computed_again(tmp_path: Path) -> None:
    np.save(tmp_path / "rows-0-4.npy", np.full(4, 7.0, dtype=np.float32))
    (tmp_path / "rows-4-8.npy").write_bytes((tmp_path / "rows-0-4.npy").read_bytes()[:-3])
    got = map_rows(lambda i: i, 8, tmp_path, chunk=4)
    assert got.tolist() == [7, 7, 7, 7, 4, 5, 6, 7]  # the whole chunk was trusted, the torn one was not


def test_another_chunk_size_leaves_no_files_behind(tmp_path: Path) -> None:
    np.save(tmp_path / "rows-0-4.npy", np.zeros(4, dtype=np.float32))
    assert map_rows(lambda i: i, 8, tmp_path, chunk=3).tolist() == list(range(8))
    assert [p.name for p in tmp_path.iterdir()] == ["rows.npy"]


def test_messages_of_errors(tmp_path: Path) -> None:
    with pytest.raises(
        ParameterError, match=r"The 'chunk' parameter of map_rows must be an int >= 1\. Got 0"
    ):
        map_rows(lambda i: i, 3, tmp_path, chunk=0)
    with pytest.raises(
        ParameterError,
        match=r"The 'function' parameter of map_rows must be a callable that returns shape \(3,\)\. Got",
    ):
        map_rows(lambda i: i[:2], 3, tmp_path)


def test_a_killed_process_continues_and_equals_a_straight_run(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import os, signal, sys
        from tunesmith.engine.local import map_rows

        def work(indices):
            if indices[0] == int(sys.argv[2]):
                os.kill(os.getpid(), signal.SIGKILL)
            return indices ** 3

        map_rows(work, 50, sys.argv[1], dtype="float64", chunk=10)
        """
    )
    folder = tmp_path / "killed"
    run = [sys.executable, "-c", script, str(folder)]
    assert subprocess.run([*run, "30"], check=False).returncode == -signal.SIGKILL
    assert sorted(p.name for p in folder.glob("rows-*")) == [
        "rows-0-10.npy",
        "rows-10-20.npy",
        "rows-20-30.npy",
    ]
    subprocess.run([*run, "-1"], check=True)
    map_rows(lambda i: i**3, 50, tmp_path / "straight", dtype=np.float64, chunk=10)
    assert (folder / "rows.npy").read_bytes() == (tmp_path / "straight" / "rows.npy").read_bytes()
