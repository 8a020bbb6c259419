"""The picture of a drift audit: how far each window is from clean ones, in thresholds."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from tunesmith.audit.drift.results import WindowResult

__all__ = ["draw_windows", "plot_windows"]

COLOURS = ("#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito
ALARM = "#D55E00"
MARKS = ("o", "s", "^", "D", "v")
LOWEST = -1.0


def draw_windows(windows: Sequence[WindowResult]) -> bytes:
    """Return a PNG: the statistics that go farthest over the windows, the threshold at 1, alarms marked."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.6, 3.2), dpi=110, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    plot_windows(figure.subplots(), windows)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def plot_windows(ax: Any, windows: Sequence[WindowResult]) -> None:
    """Draw the same into axes of Matplotlib."""
    ratios = np.array([[d.ratio for d in window.drift] for window in windows])  # (windows, statistics)
    order = np.argsort(-ratios.max(axis=0), kind="stable")[: len(COLOURS)]
    x = np.arange(1, len(windows) + 1)
    small = len(windows) > 60
    for place, colour, mark in zip(order, COLOURS, MARKS, strict=False):
        d = windows[0].drift[place]
        shown = np.maximum(ratios[:, place], LOWEST)
        ax.plot(
            x,
            shown,
            color=colour,
            marker="" if small else mark,
            ms=4,
            lw=1.2,
            label=f"{d.feature}: {d.statistic}",
        )
    ax.axhline(1, color="black", lw=1, ls="--")
    alarms = np.array([window.alarm for window in windows])
    top = np.maximum(ratios.max(axis=1), LOWEST)
    if alarms.any():
        ax.scatter(
            x[alarms],
            top[alarms],
            s=110,
            facecolors="none",
            edgecolors=ALARM,
            linewidths=1.6,
            zorder=3,
            label="alarm",
        )
    ax.set_xlabel("window", fontsize=9)
    ax.set_ylabel("distance from clean,\nin thresholds (dashed: 1)", fontsize=9)
    ax.tick_params(labelsize=8)
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.grid(axis="y", color="#DDDDDD", lw=0.6)
    ax.set_axisbelow(True)
    ax.legend(fontsize=8, frameon=False, loc="upper left")
