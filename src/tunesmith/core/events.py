"""The one event log of a run: ``events.jsonl``, one JSON object a line, appended and flushed at once.

Every stage writes to it; the terminal, the report and the Studio only read it. Reading tolerates a torn last
line, which is what a killed process leaves.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tunesmith.core.files import disk_errors, end_torn_line

__all__ = ["EventLog", "Progress", "read_events"]

Listener = Callable[[dict[str, Any]], None]


class EventLog:
    """Append events to a file and hand them to listeners.

    An event is ``{"t": unix seconds, "kind": str, **fields}``. Kinds in use: ``run``, ``stage`` (status
    ``started`` / ``finished`` / ``skipped`` / ``failed``), ``progress``, ``metric``, ``rows`` (counts in, out,
    dropped by reason), ``drift`` (the verdict on a window of live rows), ``warning``, ``message``, ``result``.

    Args:
        path: the file, created if absent; ``None`` keeps nothing on disk.
        listeners: called with each event (a terminal display, a test).
        context: fields added to each event, for example ``{"arm": "mig", "seed": 0}``.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        listeners: list[Listener] | None = None,
        context: dict[str, Any] | None = None,
    ) -> None:
        self.path = None if path is None else Path(path)
        self.listeners = [] if listeners is None else listeners
        self.context = {} if context is None else context
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            end_torn_line(self.path)

    def with_context(self, **fields: Any) -> EventLog:
        """Return a log on the same file and listeners that adds ``fields`` to each event."""
        return EventLog(self.path, self.listeners, {**self.context, **fields})

    def emit(self, kind: str, **fields: Any) -> None:
        """Append one event; values that JSON does not know are written as their text."""
        event = {"t": round(time.time(), 3), "kind": kind, **self.context, **fields}
        if self.path is not None:
            line = json.dumps(event, ensure_ascii=False, default=_plain) + "\n"
            with disk_errors(self.path), open(self.path, "a", encoding="utf-8") as stream:
                stream.write(line)
        for listener in self.listeners:
            listener(event)

    def warn(self, message: str, **fields: Any) -> None:
        """Append an event of kind ``warning``."""
        self.emit("warning", message=message, **fields)

    def progress(self, what: str, total: int) -> Progress:
        """Return a `Progress` that reports on ``total`` items of ``what``."""
        return Progress(self, what, total)


class Progress:
    """Count items done; writes a ``progress`` event at most once a second, with the remaining time."""

    def __init__(self, log: EventLog, what: str, total: int, every: float = 1.0) -> None:
        self.log, self.what, self.total, self.every = log, what, total, every
        self.done = 0
        self._begin = self._last = time.monotonic()
        self._first = 0

    def start_at(self, done: int) -> None:
        """Say that ``done`` items were found finished; they do not count for the speed."""
        self.done = self._first = done

    def advance(self, count: int = 1) -> None:
        """Say that ``count`` more items are done."""
        self.done += count
        now = time.monotonic()
        if now - self._last >= self.every or self.done >= self.total:
            self._last = now
            speed = (self.done - self._first) / max(now - self._begin, 1e-9)
            left = (self.total - self.done) / speed if speed > 0 else None
            self.log.emit(
                "progress",
                what=self.what,
                done=self.done,
                total=self.total,
                remaining_s=None if left is None else round(left, 1),
            )


def read_events(path: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """Yield the events of a log in order; unreadable lines (torn by a kill) are passed over."""
    try:
        stream = open(path, encoding="utf-8", errors="replace")  # noqa: SIM115  (closed by the with below)
    except FileNotFoundError:
        return
    with stream:
        for line in stream:
            try:
                event = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(event, dict):
                yield event


def _plain(value: Any) -> Any:
    item = getattr(value, "item", None)  # NumPy and torch scalars
    return item() if callable(item) else str(value)
