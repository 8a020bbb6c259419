"""Events of a run on the terminal: progress bars where there is one, plain lines where there is not."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TextIO

from tunesmith._cli.tables import time_text

__all__ = ["Display", "PlainDisplay", "RichDisplay", "line_of", "open_display"]

Event = dict[str, Any]


def line_of(event: Event) -> str | None:
    """Return the line that tells of an event, or None for one that has none (progress, training steps)."""
    kind, where = event.get("kind"), _where(event)
    if kind == "stage":
        stage, status = event.get("stage"), event.get("status")
        if status == "started":
            return f"{where}{stage} …"
        if status == "skipped":
            return f"{where}{stage}: done before"
        if status == "failed":
            return f"{where}{stage}: failed ({event.get('error')})"
        return f"{where}{stage}: done in {time_text(event.get('seconds'))}"
    if kind == "rows":
        reasons = event.get("reasons") or {}
        left_out = "".join(f"; {count:,} {reason}" for reason, count in reasons.items())
        rows_in, rows_out = event.get("rows_in"), event.get("rows_out")
        return f"{where}{event.get('stage')}: {rows_in:,} rows in, {rows_out:,} out{left_out}"
    if kind == "warning":
        return f"warning: {where}{event.get('message')}"
    if kind == "message":
        return f"{where}{event.get('message')}"
    if kind == "metric" and "validation_loss" in event:
        return f"{where}step {event.get('step')}: validation loss {event['validation_loss']:.4f}"
    return None


def _where(event: Event) -> str:
    if "arm" not in event:
        return ""
    seed = f", seed {event['seed']}" if "seed" in event else ""
    return f"[{event['arm']}{seed}] "


class Display:
    """A listener for `EventLog`; a context manager, so that bars are taken away however the block ends."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self._warned: set[str] = set()
        self._loss: float | None = None

    def __call__(self, event: Event) -> None:
        """Show one event; equal warnings are shown once."""
        if event.get("kind") == "progress":
            self.progress(event)
            return
        if event.get("kind") == "metric" and "loss" in event:
            self._loss = event["loss"]
        line = line_of(event)
        if line is None or (event.get("kind") == "warning" and line in self._warned):
            return
        if event.get("kind") == "warning":
            self._warned.add(line)
        if event.get("kind") == "stage":
            self._loss = None
            self.stage(event)
        self.write(line)

    def progress(self, event: Event) -> None:
        """Show how far something is."""
        raise NotImplementedError

    def stage(self, event: Event) -> None:
        """Take note that a stage began or ended."""

    def write(self, line: str) -> None:
        """Show a line."""
        print(line, file=self.stream, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def _what(self, event: Event) -> str:
        loss = "" if self._loss is None else f" (loss {self._loss:.4f})"
        return f"{_where(event)}{event.get('what')}{loss}"


class PlainDisplay(Display):
    """Lines only: for a pipe, a file, a job's log.

    Args:
        stream: where to.
        every: seconds between two lines on the progress of one thing.
        clock: for tests.
    """

    def __init__(
        self, stream: TextIO, every: float = 15.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(stream)
        self.every, self.clock = every, clock
        self._last: dict[str, float] = {}

    def progress(self, event: Event) -> None:
        done, total = event.get("done", 0), event.get("total")
        key = f"{_where(event)}{event.get('what')}"
        now = self.clock()
        if now - self._last.setdefault(key, now) < self.every:
            return
        self._last[key] = now
        of = "" if total is None else f" of {total:,}"
        left = event.get("remaining_s")
        self.write(
            f"{self._what(event)}: {done:,}{of}" + ("" if left is None else f", {time_text(left)} left")
        )


class RichDisplay(Display):
    """One bar per thing in progress, with the remaining time; everything else scrolls above."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self.console = Console(file=stream, highlight=False, soft_wrap=True)
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
            console=self.console,
            transient=True,
        )
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.stop()

    def progress(self, event: Event) -> None:
        key = f"{_where(event)}{event.get('what')}"
        done, total = event.get("done", 0), event.get("total")
        if key not in self._tasks:
            self._tasks[key] = self.bars.add_task("", total=total, left="")
        left = event.get("remaining_s")
        self.bars.update(
            self._tasks[key],
            description=_plain(self._what(event)),
            completed=done,
            total=total,
            left="" if left is None else f"{time_text(left)} left",
        )
        if total is not None and done >= total:
            self.bars.remove_task(self._tasks.pop(key))

    def stage(self, event: Event) -> None:
        for task in self._tasks.values():
            self.bars.remove_task(task)
        self._tasks.clear()

    def write(self, line: str) -> None:
        style = "yellow" if line.startswith("warning: ") else None
        self.console.print(line, style=style, markup=False)


def open_display(stream: TextIO | None = None) -> Display:
    """Return the display that fits the stream, standard error by default."""
    stream = sys.stderr if stream is None else stream
    return RichDisplay(stream) if stream.isatty() else PlainDisplay(stream)


def _plain(text: str) -> str:
    return text.replace("[", "\\[")  # rich reads [arm] as markup
