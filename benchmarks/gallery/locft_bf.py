"""Edits that hold at the end, by their place in the stream, and what else is still known: from the claim's numbers.

python benchmarks/gallery/locft_bf.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from tunesmith.core.files import read_json

ROOT = Path(__file__).resolve().parents[2]
ARMS = {
    "depth first": "#D55E00",
    "breadth first, batch 1": "#56B4E9",
    "LocFT-BF, batch 20": "#0072B2",
    "all weights, batch 20": "#999999",
}
GROUPS = {
    "first third": "edits of the\nfirst third",
    "middle third": "middle third",
    "last third": "last third",
    "generalization": "other wording",
    "locality": "facts not edited",
}


def draw(path: Path) -> None:
    """Write the picture as PNG."""
    found = read_json(ROOT / "docs" / "claims" / "locft-bf.json")
    figure, ax = plt.subplots(figsize=(8.4, 3.4), dpi=100)
    place = np.arange(len(GROUPS))
    for i, (arm, colour) in enumerate(ARMS.items()):
        heights = [found[group][arm]["mean"] for group in GROUPS]
        errors = [found[group][arm]["sd"] for group in GROUPS]
        ax.bar(place + (i - 1.5) * 0.2, heights, 0.19, yerr=errors, color=colour, label=arm, ecolor="#333333")
    ax.set_xticks(place, GROUPS.values(), fontsize=9)
    ax.set_ylabel("share answered right at the end", fontsize=9)
    ax.set_ylim(0, 1.05)
    ax.legend(fontsize=8, frameon=False, ncol=4, loc="upper center", bbox_to_anchor=(0.5, 1.14))
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, facecolor="white", bbox_inches="tight")
    plt.close(figure)
    Image.open(path).convert("RGB").quantize(48).save(path, optimize=True)


if __name__ == "__main__":
    draw(ROOT / "docs" / "gallery" / "locft-bf.png")
