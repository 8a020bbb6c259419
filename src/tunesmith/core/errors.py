"""The errors a user can meet, all in the package's one form.

Parameter errors read like scikit-learn's; data errors name file and row; configuration errors name line and
column and the nearest valid name. None of them is a bare ``KeyError``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

__all__ = [
    "ConfigError",
    "DataError",
    "DiskFullError",
    "MissingModelError",
    "ParameterError",
    "RunDirectoryError",
    "TrainingError",
    "TunesmithError",
    "UnknownNameError",
    "nearest",
    "shorten",
]


class TunesmithError(Exception):
    """Base of every error raised on purpose; the CLI prints its message without a traceback."""

    exit_code = 1


class ParameterError(TunesmithError, ValueError):
    """A parameter outside its permitted set.

    The message has one form: ``The 'budget' parameter of MIGSelector must be an int in [1, n] or a float in
    (0, 1]. Got 0 instead.``

    Args:
        name: the parameter.
        owner: the class or function it belongs to, or an instance of that class.
        expected: the permitted set, phrased to follow "must be".
        got: the value that was passed.
    """

    exit_code = 2

    def __init__(self, name: str, owner: Any, expected: str, got: Any) -> None:
        if not isinstance(owner, str):
            owner = owner.__name__ if hasattr(owner, "__name__") else type(owner).__name__
        super().__init__(
            f"The '{name}' parameter of {owner} must be {expected}. Got {shorten(repr(got))} instead."
        )
        self.parameter = name

    @classmethod
    def worded(cls, message: str) -> ParameterError:
        """An error whose message, in the form above, another library has already composed."""
        error = cls.__new__(cls)
        ValueError.__init__(error, message)
        error.parameter = message.split("'")[1] if message.count("'") > 1 else ""
        return error


class DataError(TunesmithError, ValueError):
    """Data that cannot be used; names the source, the row and what was expected."""

    def __init__(
        self, message: str, *, source: str | None = None, row: int | None = None, content: Any = None
    ) -> None:
        where = "" if source is None else f"{source}"
        if row is not None:
            where += f", row {row}" if where else f"row {row}"
        text = f"{where}: {message}" if where else message
        if content is not None:
            text += f" The row reads: {shorten(content if isinstance(content, str) else repr(content))}"
        super().__init__(text)
        self.source = source
        self.row = row


class ConfigError(TunesmithError, ValueError):
    """A recipe that cannot be run; exit code 2."""

    exit_code = 2

    def __init__(
        self, message: str, *, source: str | None = None, line: int | None = None, column: int | None = None
    ) -> None:
        where = source or ""
        if line is not None:
            where += f"{':' if where else 'line '}{line}"
            if column is not None:
                where += f":{column}"
        super().__init__(f"{where}: {message}" if where else message)
        self.line, self.column = line, column


class MissingModelError(TunesmithError, OSError):
    """A model id that is neither bundled, nor a folder, nor reachable on the Hub."""

    exit_code = 2


class RunDirectoryError(TunesmithError, RuntimeError):
    """A run directory that is in use, belongs to another recipe, or whose data changed."""


class DiskFullError(TunesmithError, OSError):
    """The disk filled up; whatever was finished before is intact."""


class TrainingError(TunesmithError, RuntimeError):
    """Training cannot go on (loss not finite, nothing to train on)."""


class UnknownNameError(TunesmithError, LookupError):
    """A name that is not registered; lists the nearest and all valid names."""

    exit_code = 2

    def __init__(self, kind: str, name: str, valid: Iterable[str]) -> None:
        valid = sorted(valid)
        super().__init__(
            f"There is no {kind} named '{name}'.{nearest(name, valid)} Valid names: {', '.join(valid) or 'none'}."
        )


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for the closest valid name, or an empty string."""
    close = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.6)
    return f" Did you mean '{close[0]}'?" if close else ""


def shorten(text: str, limit: int = 160) -> str:
    """Cut ``text`` to ``limit`` characters, saying how many were left out."""
    if len(text) <= limit:
        return " ".join(text.split())
    return f"{' '.join(text[:limit].split())}… ({len(text) - limit:,} more characters)"
