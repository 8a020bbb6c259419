"""Three rounds of half fine-tuning in a model of ten layers: what is trained, what keeps its bits.

python benchmarks/gallery/hft.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.colors import ListedColormap

from tunesmith.core.seeds import child_seed
from tunesmith.tuners.hft import Matrix, select_half

PARTS = {"attention": ("Q", "K", "V", "O"), "ffn": ("gate", "up", "down"), "norm": ("norm 1", "norm 2")}
LAYERS, ROUNDS = 10, 3


def draw(path: Path) -> None:
    """Write the picture as PNG."""
    columns = [name for names in PARTS.values() for name in names]
    matrices = [
        Matrix(layer, category, 1, (f"{layer}.{name}",))
        for layer in range(LAYERS)
        for category, names in PARTS.items()
        for name in names
    ]
    figure, axes = plt.subplots(1, ROUNDS, figsize=(8.4, 3.4), dpi=100, sharey=True)
    for number, ax in enumerate(axes):
        chosen = select_half(matrices, np.random.default_rng(child_seed(0, "hft", number)))
        grid = np.array([[f"{layer}.{name}" in chosen for name in columns] for layer in range(LAYERS)])
        ax.pcolormesh(grid, cmap=ListedColormap(["#E8E8E8", "#0072B2"]), edgecolors="white", linewidth=1.5)
        ax.set_xticks(np.arange(len(columns)) + 0.5, columns, rotation=90, fontsize=8)
        ax.set_yticks(np.arange(LAYERS) + 0.5, range(LAYERS), fontsize=8)
        ax.set_xlabel(f"round {number}: {grid.sum()} of {grid.size} trained", fontsize=9)
        ax.tick_params(length=0)
        for edge in (4, 7):
            ax.axvline(edge, color="#555555", linewidth=1)
        for side in ax.spines.values():
            side.set_visible(False)
    axes[0].set_ylabel("layer", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, facecolor="white", bbox_inches="tight")
    plt.close(figure)
    Image.open(path).convert("RGB").quantize(48).save(path, optimize=True)


if __name__ == "__main__":
    draw(Path(__file__).resolve().parents[2] / "docs" / "gallery" / "hft.png")
