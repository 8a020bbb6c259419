"""Early signals of nine runs of the claim's sweep, and how they ended: what the rule of the recipe guide goes by.

python benchmarks/gallery/sft_recipe_guide.py        (after benchmarks/claims/sft_recipe_guide.py)
"""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib
from PIL import Image

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import NullFormatter

DOCS = Path(__file__).resolve().parents[2] / "docs"
MARKS = {"16": "o", "128": "s", "512": "^"}


def draw(path: Path) -> None:
    """Write the picture as PNG."""
    claim = json.loads((DOCS / "claims" / "sft-recipe-guide.json").read_text(encoding="utf-8"))
    final = claim["sweep (rate, batch), accuracy"]
    norm = claim["sweep, gradient norm in the window"]
    loss = claim["sweep, loss in the window"]
    figure, ax = plt.subplots(figsize=(8.0, 4.2), dpi=100)
    scale = plt.Normalize(0, max(row["mean"] for row in final.values()))
    for run, row in final.items():
        rate, batch = run.split(", ")
        x, y = norm[run]["mean"], loss[run]["mean"]
        ax.scatter(
            x, y, s=150, c=[row["mean"]], cmap="cividis", norm=scale, marker=MARKS[batch], edgecolors="black"
        )
        ax.annotate(
            f"{float(rate):g}", (x, y), xytext=(0, 9), textcoords="offset points", ha="center", fontsize=8
        )
    for batch, mark in MARKS.items():
        ax.scatter([], [], c="white", marker=mark, edgecolors="black", s=90, label=f"batch {batch}")
    ax.set_xscale("log")
    ax.set_xticks([1, 2, 3, 5], ["1", "2", "3", "5"])
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.margins(y=0.1)
    ax.set_xlabel("gradient norm in the first quarter (left: taken as better)")
    ax.set_ylabel("loss there (up: taken as better)")
    ax.legend(frameon=False, fontsize=9)
    figure.colorbar(plt.cm.ScalarMappable(scale, "cividis"), ax=ax, label="accuracy at the end")
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)
    Image.open(path).convert("RGB").quantize(64).save(path, optimize=True)


if __name__ == "__main__":
    draw(DOCS / "gallery" / "sft-recipe-guide.png")
