"""What every audit returns: a verdict with its uncertainty, numbers, tables and pictures, as JSON and as one page."""

from __future__ import annotations

import base64
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunesmith.core.errors import ParameterError
from tunesmith.core.files import atomic_dir, read_json
from tunesmith.core.pages import html_environment
from tunesmith.core.wording import clip, number

__all__ = ["LEVELS", "Report", "Table"]

LEVELS = ("clean", "suspicious", "unsure")
"""Nothing found, something found, or not enough to say."""


@dataclass
class Table:
    """One table of a report.

    Attributes:
        title: heading.
        columns: names of the columns.
        rows: cells, texts or numbers.
        note: what to keep in mind when reading it.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    note: str = ""


@dataclass
class Report:
    """The result of an audit.

    Attributes:
        audit: what was done, for example ``"backdoor"``.
        subject: what was looked at: a model's or a file's name.
        level: one of `LEVELS`.
        verdict: one sentence, with its uncertainty.
        numbers: name -> number, or ``(value, low, high)`` for one with an interval.
        tables: in the order of the page.
        pictures: title -> PNG bytes or SVG text, in the order of the page.
        notes: what limits the verdict; shown beneath it.

    Raises:
        ParameterError: ``level`` is none of `LEVELS`.
    """

    audit: str
    subject: str
    level: str
    verdict: str
    numbers: dict[str, Any] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)
    pictures: dict[str, bytes | str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise ParameterError("level", self, f"one of {', '.join(map(repr, LEVELS))}", self.level)

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the pictures as JSON-able values."""
        return {
            "audit": self.audit,
            "subject": self.subject,
            "level": self.level,
            "verdict": self.verdict,
            "numbers": _plain(self.numbers),
            "tables": [_plain(vars(table)) for table in self.tables],
            "pictures": list(self.pictures),
            "notes": list(self.notes),
        }

    def to_html(self) -> str:
        """Return one page that loads nothing from anywhere."""
        environment = html_environment("tunesmith.audit")
        environment.filters |= {"cell": _cell, "figure": _figure}
        return str(environment.get_template("audit.html.j2").render(report=self))

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write ``report.json``, ``report.html`` and the pictures; the folder is replaced as a whole.

        Raises:
            DiskFullError: no room; what was there is left.
        """
        with atomic_dir(folder) as partial:
            for i, (title, picture) in enumerate(self.pictures.items()):
                name = f"{i + 1}-{''.join(c if c.isalnum() else '-' for c in title.lower())[:40]}"
                if isinstance(picture, bytes):
                    (partial / f"{name}.png").write_bytes(picture)
                else:
                    (partial / f"{name}.svg").write_text(picture, encoding="utf-8")
            text = json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)
            (partial / "report.json").write_text(text, encoding="utf-8")
            (partial / "report.html").write_text(self.to_html(), encoding="utf-8")
        return Path(folder)

    @staticmethod
    def read(folder: str | os.PathLike[str]) -> dict[str, Any]:
        """Return what `save` wrote as ``report.json``."""
        return dict(read_json(Path(folder, "report.json")))

    def __str__(self) -> str:
        lines = [f"{self.audit} of {self.subject}: {self.level}", self.verdict]
        lines += [f"  {name}: {_cell(value)}" for name, value in self.numbers.items()]
        return "\n".join(lines + [f"  note: {note}" for note in self.notes])


def _plain(value: Any) -> Any:
    """Return JSON-able values: tuples as lists, numbers of NumPy and torch as numbers, those not finite as None."""
    if isinstance(value, Mapping):
        return {str(name): _plain(v) for name, v in value.items()}
    if isinstance(value, str) or value is None or isinstance(value, bool):
        return value
    if hasattr(value, "tolist"):  # of NumPy and torch: scalars and arrays alike
        return _plain(value.tolist())
    if isinstance(value, Sequence):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, int) else str(value)


def _cell(value: Any) -> str:
    """Return a number, an interval or a text as the page shows it."""
    value = _plain(value)
    if isinstance(value, list) and len(value) == 3:
        return f"{number(value[0])} [{number(value[1])}, {number(value[2])}]"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return number(value) if isinstance(value, (int, float)) or value is None else clip(value, 400)


def _figure(picture: bytes | str) -> Any:
    """Return a picture as HTML: an SVG as it is, a PNG inside the page."""
    from markupsafe import Markup

    if isinstance(picture, str):
        return Markup(picture)
    return Markup(f'<img alt="" src="data:image/png;base64,{base64.b64encode(picture).decode()}">')
