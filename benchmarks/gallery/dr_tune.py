"""Three classes in two dimensions: the bank of pre-trained features, apart from the trained one, and calibrated.

python benchmarks/gallery/dr_tune.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.colors import ListedColormap

from tunesmith.trainers.dr_tune import calibrate

COLOURS = ("#0072B2", "#E69F00", "#009E73")
N, REACH = 24, 3.6


def draw(path: Path) -> None:
    """Write the picture as PNG."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(3).repeat_interleave(N)
    centres = torch.tensor([[2.0, 0.3], [-0.6, 1.9], [-1.0, -1.9]])
    noise = torch.randn(3 * N, 2, generator=generator)
    D = centres[labels] + 0.42 * noise
    turn = torch.tensor([[0.17, -0.985], [0.985, 0.17]])
    moved = torch.tensor([[0.8, -0.7], [-0.7, 0.2], [0.3, 0.9]])
    P = (
        centres[labels] + moved[labels] + 0.42 * noise + 0.2 * torch.randn(3 * N, 2, generator=generator)
    ) @ turn
    phi = centres
    steps = {
        "bank of the pre-trained encoder": P,
        "rotated": calibrate(P, D, labels, phi, translate=False, normalize_rows=False),
        "rotated, classes moved": calibrate(P, D, labels, phi, normalize_rows=False),
    }
    grid = torch.tensor(
        np.stack(np.meshgrid(*[np.linspace(-REACH, REACH, 200)] * 2), -1), dtype=torch.float32
    )
    regions = (grid @ phi.T).argmax(-1).numpy()
    figure, axes = plt.subplots(1, 3, figsize=(8.6, 3.3), dpi=100, sharey=True)
    for ax, (name, bank) in zip(axes, steps.items(), strict=True):
        ax.imshow(
            regions,
            extent=(-REACH, REACH, -REACH, REACH),
            origin="lower",
            cmap=ListedColormap(COLOURS),
            alpha=0.13,
        )
        for c, colour in enumerate(COLOURS):
            own = labels == c
            ax.scatter(*D[own].T, s=16, facecolors="none", edgecolors=colour, linewidths=0.8)
            ax.scatter(*bank[own].T, s=16, color=colour, marker="^")
        right = int(((bank @ phi.T).argmax(1) == labels).sum())
        ax.set_xlabel(f"{name}\nthe head is right on {right} of {3 * N}", fontsize=9)
        ax.set(xlim=(-REACH, REACH), ylim=(-REACH, REACH), xticks=[], yticks=[], aspect="equal")
    axes[0].scatter([], [], s=16, facecolors="none", edgecolors="#555555", label="trained encoder")
    axes[0].scatter([], [], s=16, color="#555555", marker="^", label="pre-trained encoder")
    figure.tight_layout(w_pad=0.6)
    figure.legend(fontsize=9, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=2, frameon=False)
    figure.savefig(path, facecolor="white", bbox_inches="tight")
    plt.close(figure)
    Image.open(path).convert("RGB").quantize(64).save(path, optimize=True)


if __name__ == "__main__":
    draw(Path(__file__).resolve().parents[2] / "docs" / "gallery" / "dr-tune.png")
