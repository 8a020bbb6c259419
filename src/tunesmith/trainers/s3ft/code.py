"""A judge that runs code: a candidate is right if the row's tests pass, in a process with little that it may do."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tunesmith.core.errors import DataError, ParameterError, TunesmithError
from tunesmith.core.files import hash_json
from tunesmith.trainers.s3ft.judges import Row, column_of
from tunesmith.trainers.s3ft.prompts import Prompt

__all__ = ["PythonTests", "code_of", "passes"]

RUNNER = Path(__file__).with_name("_sandboxed.py")
_FENCE = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)```", re.DOTALL | re.IGNORECASE)


class PythonTests:
    """Right where the code in the candidate passes every test of the row.

    The code is what stands between the marks, else in the last code fence, else the whole text. It runs in a Python
    process of its own, without site-packages, in an empty folder that is removed, with limits on processor time,
    memory, files and processes, without the network, without writing files, starting programs or reading any file but
    Python's own; after ``timeout`` seconds all of it is killed. Success is told by a secret number after the tests, so
    that a program that ends early does not pass. This stops accidents and careless code, not an attacker who knows it:
    for text from an untrusted model run the build in a container. POSIX only. Takes lists, ``workers`` at a time.

    Args:
        column: where the tests are: a text, or a list of texts, of Python, such as ``"assert f(2) == 4"``.
        setup: column of code that is run before the candidate, if the rows have it.
        marks: what begins and ends the code.
        timeout: seconds of processor and of wall-clock time, above 0.
        memory_mb: most memory, in MB of 10^6, at least 64.
        workers: processes at a time; half of the processors by default.

    Raises:
        ParameterError: a limit outside its set.
        TunesmithError: not a POSIX system.

    References:
        The marks and three tests per task are those of the paper's MBPP prompt (arXiv 2502.08130); the limits are ours.
    """

    batched = True

    def __init__(
        self,
        column: str = "tests",
        *,
        setup: str = "setup",
        marks: tuple[str, str] = ("[[BEGIN]]", "[[DONE]]"),
        timeout: float = 5.0,
        memory_mb: int = 512,
        workers: int | None = None,
    ) -> None:
        if isinstance(timeout, bool) or not 0 < timeout < 1e6:
            raise ParameterError("timeout", self, "a number of seconds above 0", timeout)
        if isinstance(memory_mb, bool) or not isinstance(memory_mb, int) or memory_mb < 64:
            raise ParameterError("memory_mb", self, "an int >= 64", memory_mb)
        if workers is not None and (isinstance(workers, bool) or not isinstance(workers, int) or workers < 1):
            raise ParameterError("workers", self, "an int >= 1 or None", workers)
        if len(marks) != 2 or not all(isinstance(mark, str) and mark for mark in marks):
            raise ParameterError("marks", self, "two texts", marks)
        if os.name != "posix":
            raise TunesmithError("PythonTests needs the limits of a POSIX system; run the build on one.")
        self.column, self.setup = column, setup
        self.marks = (marks[0], marks[1])
        self.timeout, self.memory_mb, self.workers = float(timeout), memory_mb, workers
        self.fingerprint = hash_json(["tests", column, setup, list(marks), self.timeout, memory_mb])

    def __call__(
        self, prompts: Sequence[Prompt], candidates: Sequence[str], golds: Sequence[str], rows: Sequence[Row]
    ) -> list[bool]:
        """Return b verdicts.

        Raises:
            DataError: a row has no tests, or an empty list of them.
        """
        work = [(self._before(row), code_of(text, self.marks), self._tests(row)) for text, row in
                zip(candidates, rows, strict=True)]  # fmt: skip
        count = self.workers or max(1, (os.cpu_count() or 2) // 2)
        with ThreadPoolExecutor(max_workers=min(count, max(1, len(work)))) as pool:
            return list(pool.map(lambda w: passes(*w, timeout=self.timeout, memory_mb=self.memory_mb), work))

    def _tests(self, row: Row) -> str:
        tests = column_of(row, self.column)
        text = tests if isinstance(tests, str) else "\n".join(map(str, tests))
        if not text.strip():
            raise DataError(f"the column '{self.column}' has no tests.")
        return text

    def _before(self, row: Row) -> str:
        return str(row.get(self.setup) or "")


def code_of(text: str, marks: tuple[str, str]) -> str:
    """Return the code in an answer: between the first marks, else in the last fence, else all of it."""
    begin = text.find(marks[0])
    if begin >= 0:
        inside = text[begin + len(marks[0]) :]
        end = inside.find(marks[1])
        text = inside if end < 0 else inside[:end]
    fences = _FENCE.findall(text)
    return str(fences[-1]) if fences else text


def passes(setup: str, code: str, tests: str, *, timeout: float, memory_mb: int) -> bool:
    """Run three pieces of Python one after the other in a limited process; return whether all went through."""
    secret = secrets.token_hex(16)
    given = json.dumps(
        {
            "parts": [setup, code, tests],
            "secret": secret,
            "seconds": max(1, int(timeout + 1)),
            "bytes": memory_mb * 10**6,
        }
    )
    # Nothing of our environment goes along: it may hold keys.
    environment = {"PATH": "/nonexistent", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"}
    with tempfile.TemporaryDirectory(prefix="tunesmith-code-") as folder:
        process: Any = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", "-X", "utf8", str(RUNNER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env=environment,
            start_new_session=True,
        )
        try:
            out, _ = process.communicate(given.encode("utf-8"), timeout=timeout)
        except subprocess.TimeoutExpired:
            out = b""
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with whatever it started
            process.communicate()
    return bool(out.strip().endswith(secret.encode()))
