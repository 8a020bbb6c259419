"""One look for all figures: colours by arm, type, and SVG that follows the page's light or dark theme.

Figures are drawn with stand-in colours that become CSS variables (``var(--ink)``, ``var(--arm-2)``) in the
SVG, so that one figure serves both themes and print. Text stays text: it can be searched and read aloud.
"""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec

__all__ = [
    "INK",
    "MUTED",
    "PAPER",
    "POOL",
    "arm_colours",
    "arm_label",
    "css_variable",
    "new_figure",
    "styled",
    "to_svg",
]

P = ParamSpec("P")

INK, MUTED, LINE, PAPER, POOL = "#010101", "#020202", "#030303", "#040404", "#050505"
BASE_COLOUR, BASELINE_COLOUR = "#060606", "#070707"
_ARMS = ["#080808", "#090909", "#0a0a0a", "#0b0b0b", "#0c0c0c", "#0d0d0d"]

VARIABLES = {
    INK: "ink",
    MUTED: "muted",
    LINE: "line",
    PAPER: "paper",
    POOL: "pool",
    BASE_COLOUR: "base",
    BASELINE_COLOUR: "baseline",
    **{colour: f"arm-{i + 1}" for i, colour in enumerate(_ARMS)},
}

_NAMES = {"mig": "MIG", "kmeans": "k-means", "kmq": "kMQ", "base": "base model", "random": "random"}

_RC = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",  # for measuring; the page's own font is narrower, so nothing overlaps
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "grid.color": LINE,
    "grid.linewidth": 0.5,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "axes.unicode_minus": True,
    "path.simplify": False,  # it would drop the zero-length strokes that stand for dots
}


def arm_label(arm: str) -> str:
    """Return the name of an arm as a reader writes it."""
    return _NAMES.get(arm, arm)


def arm_colours(arms: Sequence[str], baseline: str | None) -> dict[str, str]:
    """Return one colour per arm, the same in every figure: grey for base, amber for the baseline arm."""
    rest = [arm for arm in arms if arm != baseline]
    colours = {arm: _ARMS[i % len(_ARMS)] for i, arm in enumerate(rest)}
    if baseline is not None:
        colours[baseline] = BASELINE_COLOUR
    return {**colours, "base": BASE_COLOUR}


def css_variable(colour: str) -> str:
    """Return the CSS expression of a stand-in colour."""
    return f"var(--{VARIABLES[colour]})"


def new_figure(width: float, height: float, **grid: Any) -> tuple[Any, Any]:
    """Return a figure of the house style in inches, and its axes.

    The figure is made without pyplot, so no backend and no state of the caller's matplotlib is touched.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(**grid)


def styled(draw: Callable[P, str]) -> Callable[P, str]:
    """Draw in the house style, whatever the caller's matplotlib settings are, and leave those alone."""

    @functools.wraps(draw)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> str:
        from matplotlib import rc_context

        with rc_context(_RC):
            return draw(*args, **kwargs)

    return wrapper


def to_svg(figure: Any, name: str, description: str) -> str:
    """Return the figure as an inline SVG element.

    Args:
        figure: a matplotlib figure.
        name: unique in the page; it keeps the ids of two figures apart.
        description: what the figure shows, for readers who do not see it.
    """
    from html import escape

    from matplotlib import rc_context

    stream = io.StringIO()
    with rc_context({"svg.hashsalt": name}):
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))
    svg = re.sub(r' id="([^"]+)"', lambda m: m.group(0) if m.group(1) in used else "", svg)
    for id_ in used:
        svg = svg.replace(f'"{id_}"', f'"{name}-{id_}"').replace(f"#{id_}", f"#{name}-{id_}")
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var(--{variable})")
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    svg = re.sub(r'<svg [^>]*?(viewBox="[^"]+")[^>]*>', r"<svg \1>", svg, count=1)
    opening = f'<svg role="img" aria-label="{escape(description, quote=True)}" '
    return svg.replace("<svg ", opening, 1).strip()
