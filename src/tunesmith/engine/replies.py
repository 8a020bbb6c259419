"""Replies of a language model kept on disk, so that a run that dies, or is repeated, asks for nothing twice."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from tunesmith.core.errors import DiskFullError, ParameterError, TunesmithError
from tunesmith.core.events import EventLog
from tunesmith.core.files import cache_dir, hash_json
from tunesmith.engine.chats import Chat, ChatModel, CutShort, Failure, Reply, ask

__all__ = ["CachedLLM"]

_LOOKUP = 500  # keys per query; SQLite takes 32,766 at most


class CachedLLM:
    """A language model whose replies are kept: one that was given before comes from disk.

    Chats are asked in chunks, and each chunk is committed before the next is asked. A process that dies, or a model
    that raises, loses the chunk it was in; the next call goes on from there. Failures are not kept, so that the next
    call tries them again. The file is an SQLite database named by the model's fingerprint: memory does not grow with
    what is in it, several processes may use it, and a kill leaves it whole.

    Args:
        llm: a model with a ``fingerprint``.
        folder: where the file is; by default in the user's cache.
        chunk: chats asked between commits: what a kill can lose, and a multiple of what the model works on at once.
        log: receives ``progress`` events.

    Attributes:
        hits: replies that came from disk.
        asked: chats that the model was asked.

    Raises:
        ParameterError: the model has no fingerprint, or ``chunk`` is below 1.
    """

    def __init__(
        self,
        llm: ChatModel,
        folder: str | os.PathLike[str] | None = None,
        *,
        chunk: int = 256,
        log: EventLog | None = None,
    ) -> None:
        if not isinstance(getattr(llm, "fingerprint", None), str):
            raise ParameterError("llm", self, "a model with a text 'fingerprint' that names its replies", llm)
        if isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1:
            raise ParameterError("chunk", self, "an int >= 1", chunk)
        self.llm, self.folder, self.chunk, self.log = llm, folder, chunk, log
        self.hits = self.asked = 0

    @property
    def fingerprint(self) -> str:
        """That of the model."""
        return str(self.llm.fingerprint)  # type: ignore[attr-defined]

    def __call__(
        self,
        chats: Sequence[Chat],
        *,
        temperature: float = 0.0,
        max_new_tokens: int = 256,
        seeds: Sequence[int] | None = None,
    ) -> list[Reply]:
        """Return a reply to each chat; see `tunesmith.engine.ChatModel`.

        Raises:
            DiskFullError: replies could not be written; those before are kept.
            TunesmithError: the file of kept replies is damaged.
        """
        numbers = list(range(len(chats)) if seeds is None else seeds)
        keys = [
            # A reply at temperature 0 depends on no seed.
            bytes.fromhex(
                hash_json([[dict(m) for m in chat], temperature, max_new_tokens, n if temperature else None])
            )[:16]
            for chat, n in zip(chats, numbers, strict=True)
        ]
        path = (
            cache_dir("replies") if self.folder is None else Path(self.folder)
        ) / f"{self.fingerprint[:32]}.sqlite"
        path.parent.mkdir(parents=True, exist_ok=True)
        with _database(path) as base:
            found: dict[bytes, Reply] = dict(_kept(base, list(dict.fromkeys(keys))))
            self.hits += sum(key in found for key in keys)
            missing = {key: i for i, key in reversed(list(enumerate(keys))) if key not in found}
            todo = sorted(missing.values())
            progress = None if self.log is None or not todo else self.log.progress("replies", len(todo))
            for begin in range(0, len(todo), self.chunk):
                part = todo[begin : begin + self.chunk]
                replies = ask(
                    self.llm,
                    [chats[i] for i in part],
                    temperature=temperature,
                    max_new_tokens=max_new_tokens,
                    seeds=[numbers[i] for i in part],
                )
                self.asked += len(part)
                found.update((keys[i], reply) for i, reply in zip(part, replies, strict=True))
                base.executemany(
                    "INSERT OR REPLACE INTO replies VALUES (?, ?)",
                    [
                        (keys[i], reply.encode("utf-8", "surrogatepass"))
                        for i, reply in zip(part, replies, strict=True)
                        if not isinstance(reply, Failure)
                    ],
                )
                base.executemany(
                    "INSERT OR IGNORE INTO cut_short VALUES (?)",
                    [
                        (keys[i],)
                        for i, reply in zip(part, replies, strict=True)
                        if isinstance(reply, CutShort)
                    ],
                )
                base.commit()
                if progress is not None:
                    progress.advance(len(part))
        return [found[key] for key in keys]

    def __deepcopy__(self, memo: Any) -> Self:
        return self

    def __repr__(self) -> str:
        return f"CachedLLM({self.llm!r})"


def _kept(base: sqlite3.Connection, keys: list[bytes]) -> Iterator[tuple[bytes, str]]:
    for begin in range(0, len(keys), _LOOKUP):
        part = keys[begin : begin + _LOOKUP]
        marks = ", ".join("?" * len(part))
        query = f"SELECT key, reply, key IN cut_short FROM replies WHERE key IN ({marks})"
        for key, reply, cut in base.execute(query, part):
            text = bytes(reply).decode("utf-8", "surrogatepass")
            yield bytes(key), CutShort(text) if cut else text


@contextlib.contextmanager
def _database(path: Path) -> Iterator[sqlite3.Connection]:
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=60)) as base:
            base.execute(
                "CREATE TABLE IF NOT EXISTS replies (key BLOB PRIMARY KEY, reply BLOB NOT NULL) WITHOUT ROWID"
            )
            # A table of its own, so that files of kept replies from before it can still be read.
            base.execute("CREATE TABLE IF NOT EXISTS cut_short (key BLOB PRIMARY KEY) WITHOUT ROWID")
            yield base
    except sqlite3.DatabaseError as error:
        if "full" in str(error):
            raise DiskFullError(
                f"The disk is full: {path} could not be written. Replies kept before are intact; free some space "
                "and run the same command again to continue."
            ) from error
        raise TunesmithError(
            f"The kept replies in {path} cannot be used ({error}). If the file is damaged, remove it; the replies in "
            "it will be asked for again."
        ) from error
