"""How far each arm of the claim moves the model, and what it learns: read from docs/claims/s3ft.json.

python benchmarks/gallery/s3ft.py
"""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib
from PIL import Image

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parents[2]
COLOURS = {"model": "#0072B2", "paraphrase": "#56B4E9", "gold": "#E69F00"}


def draw(path: Path) -> None:
    """Write the picture as PNG."""
    claim = json.loads((ROOT / "docs" / "claims" / "s3ft.json").read_text(encoding="utf-8"))
    learned, kept = claim["arms"], claim["arms, accuracy on other tasks"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.4), dpi=100, width_ratios=(1, 2.4))
    begin = 0.0
    for source, share in claim["targets of S3FT"].items():
        left.bar(0, share, bottom=begin, color=COLOURS[source], width=0.5)
        if share > 0.03:
            left.text(0.32, begin + share / 2, f"{source}\n{share:.0%}", va="center", fontsize=9)
        begin += share
    left.set(xlim=(-0.4, 1.1), xticks=[], ylim=(0, 1), yticks=[], xlabel="targets of S3FT")
    left.spines[["top", "right", "bottom", "left"]].set_visible(False)
    markers = dict(zip(learned, "osD^vP", strict=False))
    for arm, row in learned.items():
        colour = "#555555" if arm == "base" else "#E69F00" if arm == "SFT" else "#0072B2"
        right.errorbar(
            kept[arm]["mean"],
            row["mean"],
            xerr=kept[arm]["sd"],
            yerr=row["sd"],
            fmt=markers[arm],
            color=colour,
            label=arm,
            markersize=7,
            elinewidth=0.8,
            markerfacecolor="white" if arm not in ("S3FT", "SFT", "base") else colour,
        )
    right.set(xlabel="accuracy on other tasks", ylabel="task accuracy")
    right.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    right.spines[["top", "right"]].set_visible(False)
    figure.tight_layout(w_pad=1.0)
    figure.savefig(path)
    plt.close(figure)
    Image.open(path).convert("RGB").quantize(64).save(path, optimize=True)


if __name__ == "__main__":
    draw(ROOT / "docs" / "gallery" / "s3ft.png")
