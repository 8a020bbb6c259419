"""What was generated and judged, kept line by line, so that a build that dies or fails goes on from there."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tunesmith.core.errors import TunesmithError
from tunesmith.core.events import read_events
from tunesmith.core.files import append_text, cache_dir, hash_json

__all__ = ["Journal", "key_of"]

EVERY = 1.0  # seconds of work that a kill may lose, beside the batch it is in


def key_of(*parts: Any) -> str:
    """Return 32 hex digits for values that JSON knows; others count by their text."""
    return hash_json(parts)[:32]


class Journal:
    """Replies and verdicts by key, in two append-only files of a folder.

    A line that a kill has torn is passed over, and what it held is made again. Several builds may use one folder: keys
    tell apart what they ask. Memory: all replies.

    Args:
        folder: created if absent; ``None`` for one in the user's cache that goes when the build ends well.

    Attributes:
        replies: key -> (text, whether it was cut short).
        verdicts: key -> verdict.
    """

    def __init__(self, folder: str | os.PathLike[str] | None) -> None:
        self._passing = folder is None
        self.folder = Path(tempfile.mkdtemp(dir=cache_dir("s3ft")) if folder is None else folder)
        self.replies: dict[str, tuple[str, bool]] = {}
        self.verdicts: dict[str, bool] = {}
        for line in read_events(self.folder / "replies.jsonl"):
            if isinstance(line.get("text"), str):
                self.replies[str(line.get("key"))] = line["text"], line.get("cut") is True
        for line in read_events(self.folder / "verdicts.jsonl"):
            if isinstance(line.get("right"), bool):
                self.verdicts[str(line.get("key"))] = line["right"]
        self._waiting: dict[str, list[dict[str, Any]]] = {"replies": [], "verdicts": []}
        self._written = time.monotonic()

    def reply(self, key: str, text: str, cut_short: bool) -> None:
        """Keep a reply."""
        self.replies[key] = text, cut_short
        self._add("replies", {"key": key, "text": text, **({"cut": True} if cut_short else {})})

    def verdict(self, key: str, right: bool) -> None:
        """Keep a verdict."""
        self.verdicts[key] = right
        self._add("verdicts", {"key": key, "right": right})

    def write(self) -> None:
        """Bring what waits to the disk.

        Raises:
            DiskFullError: there is no room.
        """
        for name, lines in self._waiting.items():
            if lines:
                text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
                append_text(self.folder / f"{name}.jsonl", text)
                lines.clear()
        self._written = time.monotonic()

    def told(self) -> str:
        """Say where everything is and how to go on."""
        return f"Nothing is lost: give folder={str(self.folder)!r} to go on from here."

    def _add(self, name: str, line: dict[str, Any]) -> None:
        self._waiting[name].append(line)
        if time.monotonic() - self._written > EVERY:
            self.write()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.write()
        if error is None or not (self.replies or self.verdicts):
            if self._passing:
                shutil.rmtree(self.folder, ignore_errors=True)
        elif not (isinstance(error, TunesmithError) and str(self.folder) in str(error)):
            error.add_note(self.told())
