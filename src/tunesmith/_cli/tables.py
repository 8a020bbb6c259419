"""Plain tables and numbers for the terminal."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence
from typing import Any

__all__ = ["number_text", "summary_table", "table", "time_text", "width"]


def width() -> int:
    """Return the columns of the terminal, 100 where there is none."""
    return shutil.get_terminal_size((100, 24)).columns


def table(head: Sequence[str], rows: Sequence[Sequence[Any]], wrap: int | None = None) -> str:
    """Lay out rows under a head in aligned columns, numbers to the right.

    Args:
        head: names of the columns.
        rows: cells; floats are shortened, None is a dash.
        wrap: column that takes the width left over, wrapped; by default nothing is wrapped.

    Returns:
        Lines without trailing blanks.
    """
    cells = [[number_text(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
    right = [
        bool(rows) and all(isinstance(row[i], (int, float)) or row[i] is None for row in rows)
        for i in range(len(head))
    ]
    if wrap is not None:
        spare = width() - sum(widths) + widths[wrap] - 2 * (len(head) - 1)
        widths[wrap] = min(widths[wrap], max(spare, len(head[wrap]), 30))
    lines = [_line(head, widths, right), _line(["-" * w for w in widths], widths, right)]
    for row in cells:
        parts = [[cell] for cell in row]
        if wrap is not None:
            parts[wrap] = textwrap.wrap(row[wrap], widths[wrap], break_on_hyphens=False) or [""]
        for i in range(max(map(len, parts))):
            lines.append(_line([p[i] if i < len(p) else "" for p in parts], widths, right))
    return "\n".join(lines)


def summary_table(rows: Sequence[dict[str, Any]]) -> str:
    """Lay out dictionaries with the columns in the order in which they first appear."""
    head = list(dict.fromkeys(key for row in rows for key in row))
    return table([key.replace("_", " ") for key in head], [[row.get(key) for key in head] for row in rows])


def number_text(value: Any) -> str:
    """Return a cell's text: grouped integers, four significant digits, a dash for None."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
    return str(value)


def time_text(seconds: float | None) -> str:
    """Return a time to read: ``"8 s"``, ``"3 min 20 s"``, ``"2 h 5 min"``; ``"?"`` for None."""
    if seconds is None:
        return "?"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _line(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    parts = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(cells, widths, right, strict=True)]
    return "  ".join(parts).rstrip()
