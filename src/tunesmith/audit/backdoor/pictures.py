"""Pictures of an audit: the rebuilt trigger, how easily each class is reached, which layers it moves."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tunesmith.audit.backdoor.encoders import DualEncoder
from tunesmith.audit.backdoor.targets import TargetReport
from tunesmith.audit.backdoor.triggers import Trigger

__all__ = ["draw_ease", "draw_impact", "draw_trigger"]

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#999999"  # told apart by readers with any colour vision
EXAMPLES = 5
SEARCHES = 4


def draw_trigger(model: DualEncoder, trigger: Trigger, images: Tensor, names: list[tuple[str, str]]) -> bytes:
    """Return a PNG: mask, pattern, and below clean images with the same ones triggered.

    Args:
        model: knows the pixels.
        trigger: what was rebuilt.
        images: (N, 3, H, W), normalised; the first five are shown.
        names: for each what the model names it without and with the trigger.
    """
    shown = min(EXAMPLES, len(images))
    with torch.no_grad():
        clean = _pixels(model, images[:shown])
        marked = _pixels(model, trigger.apply(images[:shown]))
        pattern = _pixels(model, trigger.pattern[None])[0]
    mask = trigger.mask.detach().cpu().mean(dim=0).numpy()
    figure = _figure(1.5 * (shown + 1), 3.4)
    axes = figure.subplots(2, shown + 1)
    axes[0, 0].imshow(mask, cmap="cividis", vmin=0, vmax=max(float(mask.max()), 1e-6))
    axes[0, 0].set_title(f"mask, up to {mask.max():.2f}", fontsize=8)
    axes[1, 0].imshow(pattern)
    axes[1, 0].set_title("pattern", fontsize=8)
    for i in range(shown):
        for row, (picture, name) in enumerate(((clean[i], names[i][0]), (marked[i], names[i][1]))):
            axes[row, i + 1].imshow(picture)
            axes[row, i + 1].set_title(name, fontsize=8, color=ORANGE if row else "black")
    for ax in axes.flat:
        ax.set_xticks([])
        ax.set_yticks([])
    return _png(figure)


def draw_ease(report: TargetReport) -> bytes:
    """Return a PNG: the values of all classes in the four looks that the suspect stands out most in, it in orange."""

    def place(name: str) -> float:
        return float(report.standing[name][report.suspect].nan_to_num(-np.inf))

    names = sorted(report.standing, key=place, reverse=True)[:SEARCHES]
    figure = _figure(2.3 * len(names), 2.9)
    axes = figure.subplots(1, len(names), squeeze=False)[0]
    for ax, name in zip(axes, names, strict=True):
        values = report.ease.get(name, 1 - report.agreement).cpu().numpy()
        classes = np.flatnonzero(np.isfinite(values))
        order = classes[np.argsort(-values[classes], kind="stable")][:12][::-1]
        colours = [ORANGE if c == report.suspect else GREY for c in order]
        ax.barh(range(len(order)), values[order], color=colours)
        ax.set_yticks(range(len(order)), [report.class_names[c] for c in order], fontsize=7)
        ax.axvline(0, color="black", lw=0.8)
        ax.tick_params(axis="x", labelsize=7)
        ax.set_title(f"{name}: {place(name):.1f} spreads", fontsize=8)
        ax.set_xlabel(
            "mean margin, cosine" if name in report.ease else "1 - cosine to its images", fontsize=7
        )
    return _png(figure)


def draw_impact(before: dict[str, float], after: dict[str, float], critical: list[str]) -> bytes:
    """Return a PNG: what the trigger does to each layer, before and after tuning; critical layers are marked.

    Args:
        before: layer -> s_l of the suspect.
        after: the same of the repaired model.
        critical: names of the critical layers.
    """
    names = list(before)
    figure = _figure(max(4.5, 0.8 * len(names)), 2.8)
    ax = figure.subplots()
    places = np.arange(len(names))
    ax.bar(places - 0.2, [before[name] for name in names], 0.38, color=ORANGE, label="before")
    ax.bar(places + 0.2, [after[name] for name in names], 0.38, color=BLUE, label="after")
    ax.set_xticks(places, [_short(name) + (" *" if name in critical else "") for name in names], fontsize=8)
    ax.set_ylabel("relative change of activations", fontsize=8)
    ax.set_xlabel("layer; * critical", fontsize=8)
    ax.tick_params(axis="y", labelsize=8)
    ax.legend(fontsize=8, frameon=False)
    return _png(figure)


def _short(name: str) -> str:
    parts = name.split(".")
    return ".".join(parts[-2:]) if parts[-1].isdigit() else parts[-1]


def _pixels(model: DualEncoder, x: Tensor) -> Any:
    return model.denormalise(x).clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _png(figure: Any) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()
