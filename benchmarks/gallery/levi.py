"""Accuracy of LEVI, its parts and full fine-tuning while a cue stops agreeing with the label (figures of the claim).

python benchmarks/gallery/levi.py
"""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib
from PIL import Image

matplotlib.use("Agg")
import matplotlib.pyplot as plt

DOCS = Path(__file__).resolve().parents[2] / "docs"
# arm -> colour (of Okabe and Ito), style of the line
ARMS = {
    "LEVI": ("#0072B2", "-"),
    "all weights": ("#000000", "--"),
    "average of these two": ("#E69F00", "-"),
    "small model": ("#009E73", "-"),
    "linear probe": ("#CC79A7", "-"),
    "view zeroed": ("#56B4E9", ":"),
}
NAMES = {
    "average of these two": "average of small model and probe",
    "view zeroed": "LEVI, small model zeroed",
}


def draw(path: Path) -> None:
    """Write the picture as PNG."""
    claim = json.loads((DOCS / "claims" / "levi.json").read_text(encoding="utf-8"))
    tests = ("ID", "OOD", "flipped")
    tables = [claim["arms" if t == "OOD" else f"arms, synthetic, {t}"] for t in tests]
    figure, ax = plt.subplots(figsize=(8, 3.8), dpi=100)
    for arm, (colour, style) in ARMS.items():
        means = [100 * table[arm]["mean"] for table in tables]
        spread = [100 * table[arm]["sd"] for table in tables]
        ax.errorbar(
            range(3),
            means,
            spread,
            color=colour,
            linestyle=style,
            marker="o",
            ms=4,
            capsize=3,
            label=NAMES.get(arm, arm),
        )
    ax.set_xticks(range(3), ["80 %: as in training", "50 %: no cue", "20 %: cue turned round"])
    ax.set_xlabel("share of test rows whose cue agrees with the label")
    ax.set_ylabel("accuracy, %")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)
    Image.open(path).convert("RGB").quantize(64).save(path, optimize=True)


if __name__ == "__main__":
    draw(DOCS / "gallery" / "levi.png")
