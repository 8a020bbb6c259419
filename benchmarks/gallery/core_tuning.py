"""Hard pairs of one row, and those of a whole batch in the colours of their soft labels.

python benchmarks/gallery/core_tuning.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
import torch
from PIL import Image

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import to_rgb

from tunesmith.trainers import hard_pair_mixup

COLOURS = np.array([to_rgb(c) for c in ("#0072B2", "#E69F00", "#009E73")])


def draw(path: Path) -> None:
    """Write the picture as PNG."""
    g = torch.Generator().manual_seed(1)
    y = torch.arange(3).repeat_interleave(12)
    angle = torch.tensor([0.25, 1.05, 1.75])[y] + 0.24 * torch.randn(36, generator=g)
    length = 1.0 + 0.12 * torch.randn(36, generator=g)
    z = torch.stack([length * angle.cos(), length * angle.sin()], 1)
    found = hard_pair_mixup(z, y, 3, generator=g)
    rows = found.features.numpy()
    shade = found.labels.numpy() @ COLOURS
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.6, 3.3), dpi=100)
    left.scatter(*rows[:36].T, c=shade[:36], s=22, alpha=0.55)
    i = int((found.lambda_pos - 0.5).abs()[:12].argmin())  # one whose z⁺ is half way
    hp, hn, n = int(found.hp[i]), int(found.hn[i]), int(found.n[i])
    for a, b in ((hp, hn), (i, n)):
        left.plot(*rows[[a, b]].T, color="#555555", lw=1, zorder=1)
    marked = {
        "z": i,
        "hardest positive": hp,
        "hardest negative": hn,
        "random negative": n,
        "z⁺": 72 + i,
        "z⁻": 36 + i,
    }
    away = {"z": (-14, -4)}
    for name, at in marked.items():
        mixed = name in ("z⁺", "z⁻")
        left.scatter(
            *rows[at], color=[shade[at]], s=110, marker="*" if mixed else "o", edgecolor="black", zorder=3
        )
        left.annotate(name, rows[at], xytext=away.get(name, (8, 6)), textcoords="offset points", fontsize=9)
    right.scatter(*rows[:36].T, c=shade[:36], s=14, alpha=0.35)
    right.scatter(*rows[36:72].T, c=shade[36:72], s=38, marker="v", label="z⁻, negatives")
    right.scatter(*rows[72:].T, c=shade[72:], s=42, marker="P", label="z⁺, positives")
    legend = right.legend(fontsize=9, loc="lower left", frameon=False)
    for handle in legend.legend_handles:
        handle.set_color("#555555")
    for ax, label in ((left, "hard pairs of one row z"), (right, "all of the batch, coloured by soft label")):
        ax.set(xticks=[], yticks=[], xlim=(-1.05, 1.75), ylim=(-0.4, 1.5))
        ax.set_aspect("equal")
        ax.set_xlabel(label, fontsize=10)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)
    Image.open(path).convert("RGB").quantize(128).save(path, optimize=True)


if __name__ == "__main__":
    draw(Path(__file__).resolve().parents[2] / "docs" / "gallery" / "core-tuning.png")
