"""The figures of the page, in the style of the run reports."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.recipe.report.figures import draw_dots
from tunesmith.recipe.report.style import INK, MUTED, PAPER, POOL, arm_colours, new_figure, styled, to_svg

__all__ = ["cluster_map", "lengths"]

MAX_DOTS = 4_000  # more are not seen at this size
LABELLED = 12


@styled
def cluster_map(
    xy: NDArray[np.float32],
    cluster: NDArray[np.int64],
    names: dict[int, str],
    outliers: NDArray[np.int64],
    seed: int = 0,
) -> str:
    """Draw the rows in the colours of their clusters, with the names at the clusters' middles.

    Six colours take turns; neighbours that share one are told apart by the names. Rows that stand apart are ringed.
    """
    figure, axes = new_figure(7.2, 5.4)
    shown = np.arange(len(xy))
    if len(xy) > MAX_DOTS:
        shown = np.sort(np.random.default_rng(seed).choice(len(xy), MAX_DOTS, replace=False))
    colours = list(arm_colours([str(i) for i in range(6)], None).values())[:6]
    groups = [int(g) for g in np.unique(cluster) if g >= 0]
    for group in groups:
        draw_dots(axes, xy[shown[cluster[shown] == group]], colours[group % 6], 3.4)
    draw_dots(axes, xy[shown[cluster[shown] < 0]], POOL, 3.0)
    ringed = outliers[:200]
    axes.scatter(*xy[ringed].T, s=26, facecolors="none", edgecolors=INK, linewidths=0.9)
    for group in groups[:LABELLED]:
        middle = np.median(xy[cluster == group], axis=0)
        axes.text(
            *middle, _short(names.get(group, str(group + 1))), ha="center", va="center", fontsize=7.5, color=INK,
            bbox={"facecolor": PAPER, "edgecolor": "none", "alpha": 0.78, "pad": 1.2},
        )  # fmt: skip
    axes.set(xlim=(-1.06, 1.06), ylim=(-1.06, 1.06), xticks=[], yticks=[])
    axes.spines[:].set_visible(True)
    return to_svg(figure, "clusters", f"Map of {len(xy):,} rows in {len(groups)} clusters")


def _short(text: str, limit: int = 34) -> str:
    text = text.replace("$", "\\$")
    return text if len(text) <= limit else text[: limit - 1] + "…"


@styled
def lengths(values: NDArray[Any], what: str) -> str:
    """Draw a histogram of positive whole numbers on a logarithmic axis."""
    figure, axes = new_figure(7.2, 2.2)
    values = np.maximum(values, 1)
    low, high = float(values.min()), float(values.max())
    edges = np.geomspace(low, max(high, low * 1.01) * 1.001, 41)
    counts, _ = np.histogram(values, edges)
    axes.stairs(counts, edges, fill=True, color=POOL, edgecolor=MUTED)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set(xlabel=f"{what} per row", ylabel="rows")
    axes.axvline(float(np.median(values)), color=MUTED, linewidth=1.2)
    return to_svg(figure, "lengths", f"Histogram of {what} per row; the line is the median")
