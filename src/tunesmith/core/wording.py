"""Numbers and texts as the report prints them."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["clip", "count", "difference_label", "duration", "estimate", "metric_label", "number", "percent"]


def number(value: Any, digits: int = 3) -> str:
    """Return a number with thousands separated and ``digits`` significant digits, or a dash for none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
        return "–"
    size = abs(value)
    if isinstance(value, int) or size >= 1000:
        decimals = 0
    else:
        decimals = digits if size < 1 else max(0, digits - 1 - int(math.log10(size)))
    return f"{value:,.{decimals}f}".replace("-", "−")


def estimate(value: float, low: float, high: float, *, sign: bool = True) -> str:
    """Return ``+0.21 [0.12, 0.30]``, with as many digits as the width of the interval supports."""
    width = abs(high - low)
    digits = 3 if width == 0 else min(6, max(0 if width >= 100 else 2, 1 - math.floor(math.log10(width))))
    shown = [f"{v:,.{digits}f}".replace("-", "−") for v in (value, low, high)]
    plus = "+" if sign and not shown[0].startswith("−") else ""
    return f"{plus}{shown[0]} [{shown[1]}, {shown[2]}]"


def percent(share: float) -> str:
    """Return a share in percent: one digit behind the point below 10 %."""
    value = 100 * share
    return f"{value:.0f} %" if value >= 10 or value == 0 else f"{value:.1f} %"


def count(n: int, noun: str) -> str:
    """Return ``1 row`` or ``2,000 rows``."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def duration(seconds: Any) -> str:
    """Return a time as ``42 s``, ``3 min 20 s`` or ``2 h 5 min``."""
    if not isinstance(seconds, (int, float)):
        return "–"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def metric_label(name: str) -> str:
    """Return a metric's name as words."""
    return name.replace("_", " ")


def difference_label(metric: str) -> str:
    """Return what a difference of two arms is measured in: its items' scores."""
    return {"perplexity": "nats per held-out token"}.get(metric, metric_label(metric))


def clip(text: Any, limit: int) -> str:
    """Return the text cut to ``limit`` characters, with what was left out said; line ends are kept."""
    text = str(text)
    return (
        text if len(text) <= limit else f"{text[:limit].rstrip()} … ({len(text) - limit:,} more characters)"
    )
