"""The run directory: who may use it, which stages are done, and what continues where.

A stage is a folder. On entry its ``STARTED.json`` names the hash of everything that the stage depends on; the
marker ``DONE.json`` is written last. A folder whose hash differs is emptied before the stage begins, one with
the same hash keeps what an interrupted run left in it (training checkpoints), and one that is done is not run
again.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tunesmith.core.errors import RunDirectoryError
from tunesmith.core.events import EventLog
from tunesmith.core.files import disk_errors, hash_json, read_json, write_json

__all__ = ["RunDirectory"]

STARTED, DONE, LOCK, RECIPE = "STARTED.json", "DONE.json", ".lock", "recipe.lock.yaml"


class RunDirectory:
    """A folder that one process at a time works in.

    Args:
        path: the folder; created if absent.

    Raises:
        RunDirectoryError: the path is a file, or holds something that is not a run.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if self.path.exists() and not self.path.is_dir():
            raise RunDirectoryError(f"The output {path} is a file; give a folder for the run.")
        if self.path.is_dir():
            content = {p.name for p in self.path.iterdir()}
            if content and not content & {LOCK, RECIPE}:
                raise RunDirectoryError(
                    f"The folder {path} is not empty and holds no run ({RECIPE} is missing), so nothing is "
                    "written into it. Choose another output=DIR."
                )
        with disk_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the directory; the operating system frees it when the process ends, however it ends.

        Raises:
            RunDirectoryError: another process holds it.
        """
        with open(self.path / LOCK, "a+", encoding="utf-8") as stream:
            if not _try_lock(stream):
                stream.seek(0)
                holder = stream.read().strip() or "unknown"
                raise RunDirectoryError(
                    f"The run directory {self.path} is in use by process {holder}. Wait until it ends, or give "
                    "another output=DIR."
                )
            stream.truncate(0)
            stream.write(str(os.getpid()))
            stream.flush()
            yield

    def stage(
        self,
        log: EventLog,
        name: str,
        folder: str,
        inputs: Any,
        build: Callable[[Path], dict[str, Any] | None],
    ) -> str:
        """Run a stage unless it is done; return the hash of its inputs, for the stages after it.

        Args:
            log: receives ``stage`` events with status and seconds.
            name: the stage's name in events.
            folder: its folder below the run directory.
            inputs: everything the result depends on, as JSON values.
            build: writes into the folder; what it returns is added to the ``finished`` event and the marker.
        """
        key = hash_json(inputs)
        path = self.path / folder
        if (done := _read(path / DONE)) and done.get("key") == key:
            log.emit("stage", stage=name, status="skipped")
            return key
        started = _read(path / STARTED)
        if path.exists() and (started is None or started.get("key") != key):
            shutil.rmtree(path)
        path.mkdir(parents=True, exist_ok=True)
        write_json(path / STARTED, {"key": key})
        log.emit("stage", stage=name, status="started")
        begin = time.monotonic()
        try:
            with disk_errors(path):
                facts = build(path) or {}
        except BaseException as error:
            with suppress(OSError):
                log.emit("stage", stage=name, status="failed", error=f"{type(error).__name__}: {error}")
            raise
        facts = {**facts, "seconds": round(time.monotonic() - begin, 2)}
        write_json(path / DONE, {**facts, "key": key})
        log.emit("stage", **{**facts, "stage": name, "status": "finished"})
        return key


def _read(path: Path) -> dict[str, Any] | None:
    try:
        value = read_json(path)
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _try_lock(stream: Any) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        try:
            msvcrt.locking(stream.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        except OSError:
            return False
        return True
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
