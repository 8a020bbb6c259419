"""The figures of the report; each function takes plain numbers and returns an inline SVG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.recipe.report.style import (
    INK,
    MUTED,
    PAPER,
    POOL,
    arm_label,
    new_figure,
    styled,
    to_svg,
)

__all__ = ["draw_dots", "forest", "histogram", "losses", "map_panel", "shares"]

MAX_DOTS = 3_000  # about 100 kB of SVG; more dots are not seen at this size
_MARKERS = "osD^vP"
_DASHES: list[Any] = ["-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2))]


@styled
def map_panel(
    xy: NDArray[np.float64], chosen: NDArray[np.int64], colour: str, name: str, label: str, seed: int = 0
) -> str:
    """Draw the pool as grey dots and the chosen rows in the arm's colour; every panel has the same axes."""
    figure, axes = new_figure(2.7, 2.7)
    shown = np.arange(len(xy))
    if len(xy) > MAX_DOTS:
        shown = np.random.default_rng(seed).choice(len(xy), MAX_DOTS, replace=False)
    draw_dots(axes, xy[np.setdiff1d(shown, chosen)], POOL, 2.6)
    top = chosen[:MAX_DOTS]
    draw_dots(axes, xy[top], PAPER, 6.2)
    draw_dots(axes, xy[top], colour, 4.6)
    axes.set(xlim=(-1.06, 1.06), ylim=(-1.06, 1.06), aspect="equal", xticks=[], yticks=[])
    axes.spines[:].set_visible(True)
    return to_svg(figure, name, f"Map of the pool with the {len(chosen):,} rows that {label} chose")


def draw_dots(axes: Any, points: NDArray[Any], colour: str, size: float) -> None:
    """Draw dots as zero-length round strokes of one path: a fifth of the SVG that markers would take."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    if not len(points):
        return
    codes = np.tile([Path.MOVETO, Path.LINETO], len(points))
    path = Path(np.repeat(points, 2, axis=0), codes)
    path.should_simplify = False
    axes.add_patch(PathPatch(path, fill=False, edgecolor=colour, linewidth=size, capstyle="round"))


@styled
def shares(
    labels: Sequence[str],
    pool: Sequence[float],
    arms: dict[str, Sequence[float]],
    colours: dict[str, str],
    name: str,
    description: str,
) -> str:
    """Draw, for each label, its share of the pool (bar) and of each arm's picks (dots)."""
    figure, axes = new_figure(7.2, 0.75 + 0.34 * len(labels))
    y = np.arange(len(labels))
    axes.barh(y, pool, height=0.62, color=POOL, label="pool", zorder=1)
    spread = np.linspace(-0.2, 0.2, len(arms)) if len(arms) > 1 else [0.0]
    for i, (arm, values) in enumerate(arms.items()):
        marker = _MARKERS[i % len(_MARKERS)]
        axes.scatter(
            values, y + spread[i], s=30, marker=marker, color=colours[arm], edgecolors=PAPER, linewidths=0.7,
            label=arm_label(arm), zorder=3,
        )  # fmt: skip
    axes.set_yticks(y, [_one_line(label, 44) for label in labels], color=INK)
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    axes.grid(axis="x", zorder=0)
    axes.set_axisbelow(True)
    _legend(figure, axes)
    return to_svg(figure, name, description)


@styled
def histogram(
    scores: NDArray[np.float64], chosen: NDArray[np.int64], colour: str, name: str, label: str
) -> str:
    """Draw the distribution of an arm's scores over the pool and over its picks, each as shares."""
    figure, axes = new_figure(3.3, 2.1)
    finite = scores[np.isfinite(scores)]
    picked = scores[chosen]
    edges = np.histogram_bin_edges(finite, bins=24)
    for values, face, edge, alpha in (
        (finite, POOL, POOL, 1.0),
        (picked[np.isfinite(picked)], "none", colour, 1.0),
    ):
        counts, _ = np.histogram(values, edges)
        share = counts / max(len(values), 1)
        axes.stairs(share, edges, fill=face != "none", color=edge, linewidth=1.6, alpha=alpha)
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    axes.locator_params(nbins=5)
    axes.set_xlabel("score by which the method ranked")
    axes.set_ylim(bottom=0)
    return to_svg(figure, name, f"Scores given by {label}: the pool (filled) and the chosen rows (outline)")


@styled
def losses(curves: dict[str, list[list[tuple[float, float]]]], colours: dict[str, str], name: str) -> str:
    """Draw training loss by step: a thin line per seed, a strong one for the mean over seeds."""
    figure, axes = new_figure(7.2, 2.7)
    for i, (arm, seeds) in enumerate(curves.items()):
        dash = _DASHES[i % len(_DASHES)]
        for points in seeds if len(seeds) > 1 else []:
            x, y = np.array(points).T
            axes.plot(x, y, color=colours[arm], linewidth=0.7, alpha=0.35)
        x, y = _mean_curve(seeds)
        marker = "o" if len(x) < 3 else None
        axes.plot(
            x, y, color=colours[arm], linewidth=1.8, linestyle=dash, marker=marker, label=arm_label(arm)
        )
    axes.set(xlabel="optimiser step", ylabel="training loss")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    _legend(figure, axes)
    return to_svg(figure, name, "Training loss by optimiser step for " + ", ".join(map(arm_label, curves)))


def _mean_curve(seeds: list[list[tuple[float, float]]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Average the curves over the steps that all of them logged."""
    tables = [dict(points) for points in seeds]
    steps = sorted(set.intersection(*(set(table) for table in tables))) or sorted(tables[0])
    means = [float(np.mean([table[s] for table in tables if s in table])) for s in steps]
    return np.array(steps), np.array(means)


@styled
def forest(rows: list[dict[str, Any]], colours: dict[str, str], name: str, metric: str, better: str) -> str:
    """Draw the differences with their intervals.

    Args:
        rows: ``arm``, ``label``, ``delta``, ``low``, ``high``, ``text`` from top to bottom.
        colours: colour per arm.
        name: id of the figure.
        metric: what is compared.
        better: which way is better, for the axis.
    """
    figure, axes = new_figure(7.2, 0.85 + 0.36 * len(rows))
    y = np.arange(len(rows))
    axes.axvline(0, color=MUTED, linewidth=1)
    for i, row in enumerate(rows):
        axes.plot([row["low"], row["high"]], [i, i], color=colours[row["arm"]], linewidth=2.4)
        axes.scatter([row["delta"]], [i], s=46, color=colours[row["arm"]], edgecolors=PAPER, zorder=3)
    axes.set_yticks(y, [_one_line(row["label"], 40) for row in rows], color=INK)
    right = axes.secondary_yaxis("right")
    right.set_yticks(y, [row["text"] for row in rows], color=INK)
    for axis in (axes, right):
        axis.tick_params(axis="y", length=0)
    right.spines["right"].set_visible(False)
    axes.spines["left"].set_visible(False)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    reach = max(max(abs(row["low"]), abs(row["high"]), abs(row["delta"])) for row in rows) or 1.0
    low = min(0.0, *(row["low"] for row in rows)) - 0.08 * reach
    high = max(0.0, *(row["high"] for row in rows)) + 0.08 * reach
    axes.set_xlim(low, high)
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    axes.set_xlabel(f"difference in {metric} ({better})")
    return to_svg(figure, name, f"Differences in {metric} with 95 % intervals")


def _legend(figure: Any, axes: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper left", ncols=len(labels), frameon=False, fontsize=9,
        handletextpad=0.4, columnspacing=1.4, labelcolor=INK,
    )  # fmt: skip


def _one_line(text: str, limit: int) -> str:
    text = " ".join(text.replace("$", "\\$").split())
    return text if len(text) <= limit else text[: limit - 1] + "…"
