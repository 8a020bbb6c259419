"""Map a function over row numbers in chunks that survive a kill, into one memory-mapped array.

Each finished chunk is a file of its own, written under a temporary name and renamed. A process that dies, or
a scorer that raises, loses at most the chunk it was in; the next call with the same folder goes on from
there.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from tunesmith.core.errors import ParameterError
from tunesmith.core.events import EventLog
from tunesmith.core.files import atomic_open

__all__ = ["finished", "map_rows"]

_RESULT = "rows.npy"


def map_rows(
    function: Callable[[NDArray[np.int64]], Any],
    n: int,
    folder: str | os.PathLike[str],
    *,
    dtype: DTypeLike = np.float32,
    width: int | None = None,
    chunk: int = 1024,
    log: EventLog | None = None,
    what: str = "rows",
) -> NDArray[Any]:
    """Return ``function`` applied to the rows 0 … n-1, computed chunk by chunk and kept in ``folder``.

    The folder stands for one computation: whatever the result depends on (texts, parameters, model) must be
    part of its name, since a finished result found there is returned as it is. Memory: one chunk of results.

    Args:
        function: takes int64 row numbers of shape ``(b,)``, returns ``(b,)`` or, with ``width``, ``(b,
            width)``.
        n: number of rows; 0 gives an empty array.
        folder: where chunks and the result are kept; created if absent.
        dtype: of the result.
        width: columns of the result; ``None`` for one value a row, without an axis for it.
        chunk: rows a call. What a kill can lose, so seconds to a minute of work.
        log: receives ``progress`` events with the remaining time.
        what: what is being done, for these events.

    Returns:
        A read-only memory map of shape ``(n,)`` or ``(n, width)``.

    Raises:
        ParameterError: ``chunk`` is not positive, or the function returned another shape than promised.
        DiskFullError: a chunk could not be written.
    """
    if chunk < 1:
        raise ParameterError("chunk", map_rows, "an int >= 1", chunk)
    root = Path(folder)
    result = root / _RESULT
    shape: tuple[int, ...] = (n,) if width is None else (n, width)
    if not _is_whole(result, shape, dtype):
        starts = range(0, n, chunk)
        _compute(function, n, root, starts, np.dtype(dtype), shape[1:], chunk, log or EventLog(), what)
        _join(root, starts, result, np.dtype(dtype), shape, chunk)
    if not np.prod(shape):  # an empty file cannot be mapped
        return np.empty(shape, dtype=dtype)
    return np.load(result, mmap_mode="r")


def finished(folder: str | os.PathLike[str]) -> NDArray[Any] | None:
    """Return the finished result of `map_rows` in ``folder`` (else ``None``)."""
    path = Path(folder) / _RESULT
    try:
        return np.load(path, mmap_mode="r")
    except (OSError, ValueError):  # absent; or empty, which cannot be mapped and costs nothing to make again
        return None


def _compute(
    function: Callable[[NDArray[np.int64]], Any],
    n: int,
    root: Path,
    starts: range,
    dtype: np.dtype[Any],
    tail: tuple[int, ...],
    chunk: int,
    log: EventLog,
    what: str,
) -> None:
    rows = {start: min(chunk, n - start) for start in starts}
    missing = [s for s in starts if not _is_whole(_part(root, s, rows[s]), (rows[s], *tail), dtype)]
    progress = log.progress(what, n)
    progress.start_at(n - sum(rows[s] for s in missing))
    for start in missing:
        indices = np.arange(start, start + rows[start], dtype=np.int64)
        values = np.asarray(function(indices), dtype=dtype)
        if values.shape != (rows[start], *tail):
            raise ParameterError(
                "function", map_rows, f"a callable that returns shape {(rows[start], *tail)}", values.shape
            )
        with atomic_open(_part(root, start, rows[start]), "wb") as stream:
            np.save(stream, values)
        progress.advance(rows[start])


def _join(
    root: Path, starts: range, result: Path, dtype: np.dtype[Any], shape: tuple[int, ...], chunk: int
) -> None:
    parts = [_part(root, s, min(chunk, shape[0] - s)) for s in starts]
    with atomic_open(result, "wb") as stream:
        np.lib.format.write_array_header_1_0(
            stream,
            {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape},
        )
        for part in parts:
            stream.write(np.ascontiguousarray(np.load(part)).data)
    for part in root.glob("rows-*.npy"):  # with those of an earlier call that used another chunk size
        part.unlink(missing_ok=True)


def _part(root: Path, start: int, count: int) -> Path:
    return root / f"rows-{start}-{start + count}.npy"


def _is_whole(path: Path, shape: tuple[int, ...], dtype: DTypeLike) -> bool:
    """Whether ``path`` holds an array of that shape and type; a torn or foreign file is not one."""
    if not path.exists():
        return False
    try:
        array = np.load(path, mmap_mode="r" if np.prod(shape) else None)
    except (OSError, ValueError):
        return False
    return array.shape == shape and array.dtype == np.dtype(dtype)
