"""The event log survives a killed writer, and progress tells the remaining time."""

from __future__ import annotations

import builtins
import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tunesmith.core import events
from tunesmith.core.errors import DiskFullError
from tunesmith.core.events import EventLog, Progress, read_events


def test_events_come_back_in_order_with_their_context(tmp_path: Path) -> None:
    path = tmp_path / "run" / "events.jsonl"
    heard: list[dict[str, Any]] = []
    log = EventLog(path, [heard.append])
    log.with_context(arm="mig", seed=0).emit("metric", step=1, loss=np.float32(0.5))
    log.warn("mind the gap", rows=3)
    read = list(read_events(path))
    assert [event["kind"] for event in read] == ["metric", "warning"]
    assert read[0] | {"t": 0} == {"t": 0, "kind": "metric", "arm": "mig", "seed": 0, "step": 1, "loss": 0.5}
    assert read[1]["message"] == "mind the gap"
    assert "arm" not in read[1]
    assert [event["kind"] for event in heard] == ["metric", "warning"]


def test_a_torn_last_line_is_passed_over_and_the_next_event_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    EventLog(path).emit("run", status="started")
    with open(path, "a") as stream:
        stream.write('{"t": 1, "kind": "met')  # what a SIGKILL inside write() leaves
    assert [event["kind"] for event in read_events(path)] == ["run"]
    EventLog(path).emit("run", status="finished")
    assert [event.get("status") for event in read_events(path)] == ["started", "finished"]


def test_lines_that_are_no_objects_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'3\n[1]\n\xff\xfe\n{"kind": "run"}\n')
    assert list(read_events(path)) == [{"kind": "run"}]


def test_an_absent_log_has_no_events(tmp_path: Path) -> None:
    assert list(read_events(tmp_path / "none.jsonl")) == []


def test_a_log_without_a_file_still_tells_its_listeners() -> None:
    heard: list[dict[str, Any]] = []
    EventLog(listeners=[heard.append]).emit("message", text=Path("x"))
    assert heard[0]["kind"] == "message"


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = EventLog(tmp_path / "events.jsonl")

    def full(*args: Any, **kwargs: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(builtins, "open", full)
    with pytest.raises(DiskFullError, match=r"The disk is full: .*events\.jsonl could not be written"):
        log.emit("run")


def test_progress_reports_the_end_and_the_remaining_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(events.time, "monotonic", lambda: now[0])
    heard: list[dict[str, Any]] = []
    progress = Progress(EventLog(listeners=[heard.append]), "rows", 100)
    progress.start_at(40)  # found finished: not part of the speed
    for step in (10, 10, 40):
        now[0] += 2.0
        progress.advance(step)
    assert [(e["done"], e["remaining_s"]) for e in heard] == [(50, 10.0), (60, 8.0), (100, 0.0)]


def test_progress_writes_at_most_once_a_second(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    progress = log.progress("rows", 1000)
    for _ in range(1000):
        progress.advance()
    lines = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert len(lines) < 10
    assert lines[-1]["done"] == 1000
