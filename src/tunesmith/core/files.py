"""Files that are whole or absent: everything is written under a temporary name and renamed.

A process killed at any point leaves either the old file or the new one, plus at most a ``.partial`` left-over
that the next writer of the same name removes.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO, Any

from tunesmith.core.errors import DiskFullError, TunesmithError

__all__ = [
    "append_text",
    "atomic_dir",
    "atomic_open",
    "cache_dir",
    "disk_errors",
    "end_torn_line",
    "hash_file",
    "hash_json",
    "hash_text",
    "hash_tree",
    "inside",
    "read_json",
    "write_json",
]

_PARTIAL = ".partial"


def cache_dir(*parts: str) -> Path:
    """Return (and create) a folder of the user's cache: ``$TUNESMITH_CACHE`` or ``~/.cache/tunesmith``."""
    base = os.environ.get("TUNESMITH_CACHE")
    if base is None:
        base = str(Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "tunesmith")
    folder = Path(base, *parts)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def disk_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn "no space left" while writing below ``path`` into a `DiskFullError` that says what to do."""
    try:
        yield
    except OSError as error:
        if isinstance(error, TunesmithError) or error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskFullError(
            f"The disk is full: {path} could not be written. Everything finished before is intact; free some "
            "space and run the same command again to continue."
        ) from error


@contextlib.contextmanager
def atomic_open(path: str | os.PathLike[str], mode: str = "w") -> Iterator[IO[Any]]:
    """Open ``path`` for writing; it appears under its name only when the block ends without an error."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.{os.getpid()}{_PARTIAL}")
    try:
        with disk_errors(target):
            with open(partial, mode, encoding=None if "b" in mode else "utf-8") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_dir(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary folder that becomes ``path`` (replacing it) when the block ends without an error."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + _PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    with disk_errors(target):
        yield partial
        if target.exists():
            shutil.rmtree(target)
        os.replace(partial, target)


def append_text(path: str | os.PathLike[str], text: str) -> None:
    """Append whole lines to a file, created if absent, and wait until they are on the disk.

    A kill leaves at most the last line torn; the next call ends it, so that it spoils no other.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with disk_errors(target):
        end_torn_line(target)
        with open(target, "ab") as stream:
            stream.write(text.encode("utf-8", "surrogatepass"))
            stream.flush()
            os.fsync(stream.fileno())


def end_torn_line(path: Path) -> None:
    """Close a line that a killed writer left open, so that the next one starts on its own."""
    if path.exists() and path.stat().st_size:
        with open(path, "rb+") as stream:
            stream.seek(-1, os.SEEK_END)
            if stream.read(1) != b"\n":
                stream.write(b"\n")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write ``value`` as indented JSON, atomically."""
    with atomic_open(path) as stream:
        json.dump(value, stream, indent=2, ensure_ascii=False, default=str)
        stream.write("\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def hash_text(*texts: str) -> str:
    """Return the SHA-256 hex digest of the texts; their boundaries count."""
    digest = hashlib.sha256()
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return digest.hexdigest()


def hash_json(value: Any) -> str:
    """Return the SHA-256 hex digest of ``value`` in canonical JSON (keys sorted)."""
    return hash_text(json.dumps(value, sort_keys=True, ensure_ascii=False, default=str))


def hash_file(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 hex digest of a file's bytes, read in blocks."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def hash_tree(folder: str | os.PathLike[str], without: Collection[str] = ()) -> str:
    """Return one digest for the names and bytes of all files below ``folder`` (or of one file).

    Args:
        folder: folder or file.
        without: names of files at its top that are left out.
    """
    root = Path(folder)
    if root.is_file():
        return hash_file(root)
    left_out = {root / name for name in without}
    files = sorted(p for p in root.rglob("*") if p.is_file() and p not in left_out)
    return hash_text(*(f"{p.relative_to(root).as_posix()}={hash_file(p)}" for p in files))


def inside(root: str | os.PathLike[str], name: str | os.PathLike[str]) -> Path:
    """Return ``root / name`` resolved, refusing a path that leaves ``root``.

    Raises:
        TunesmithError: the path escapes ``root`` (``..``, an absolute path, or a link to elsewhere).
    """
    base = Path(root).resolve()
    path = (base / name).resolve()
    if not path.is_relative_to(base):
        raise TunesmithError(f"The path {name} leaves the folder {root}, which is not permitted.")
    return path
