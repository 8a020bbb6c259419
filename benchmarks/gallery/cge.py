"""Planted topics that the first texts show, against how many texts were generated, from the claim's file.

python benchmarks/gallery/cge.py
"""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

matplotlib.use("Agg")
import matplotlib.pyplot as plt

DOCS = Path(__file__).resolve().parents[2] / "docs"
TEXTS = 50
LINES = {
    "sampling": ("#7f7f7f", "-"),
    "sampling, alpha 0.1": ("#7f7f7f", ":"),
    "static, alpha 0.1": ("#0072B2", "--"),
    "iterative, alpha 0.1": ("#0072B2", "-"),
    "static, alpha 0.02": ("#D55E00", "--"),
    "iterative, alpha 0.02": ("#D55E00", "-"),
}


def draw(path: Path) -> None:
    """Write the picture as PNG."""
    rows = json.loads((DOCS / "claims" / "cge-lm.json").read_text(encoding="utf-8"))["topics"]
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(8.6, 3.5), dpi=100, gridspec_kw={"width_ratios": [1.5, 1]}
    )
    at = np.arange(TEXTS + 1)
    topics = list(dict.fromkeys(row["topic"] for row in rows))
    for arm, (color, style) in LINES.items():
        own = [row for row in rows if row["arm"] == arm]
        first = [
            [int(n) if n != "none" else TEXTS + 1 for n in row["first text, per run"].split(", ")]
            for row in own
        ]
        shown = (np.array(first)[..., None] <= at).sum(0).mean(0)
        left.plot(at, shown, color=color, ls=style, lw=1.8, label=arm)
    left.set(xlim=(0, TEXTS), ylim=(0, len(topics) + 0.05), yticks=range(len(topics) + 1))
    left.set_xlabel("texts generated", fontsize=9)
    left.set_ylabel(f"of {len(topics)} planted topics, shown", fontsize=9)
    left.legend(frameon=False, fontsize=8, loc="best")
    arms = list(LINES)
    key = next(name for name in rows[0] if name.startswith("texts of"))
    counts = np.array(
        [[next(r[key] for r in rows if r["arm"] == a and r["topic"] == t) for t in topics] for a in arms]
    )
    right.imshow(np.sqrt(counts), cmap="cividis", aspect="auto")
    for (y, x), value in np.ndenumerate(counts):
        light = np.sqrt(value) < 0.6 * np.sqrt(counts.max())
        right.text(
            x, y, f"{value:.1f}", ha="center", va="center", fontsize=8, color="white" if light else "black"
        )
    share = {row["topic"]: row["share of the rows"] for row in rows}
    right.set_xticks(range(len(topics)), [f"{t}\n{share[t]:.0%}" for t in topics], fontsize=8)
    right.set_yticks(range(len(arms)), arms, fontsize=8)
    right.set_xlabel(f"texts of {TEXTS} that show each", fontsize=9)
    for ax in (left, right):
        ax.tick_params(labelsize=8)
    left.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)
    Image.open(path).convert("RGB").quantize(128).save(path, optimize=True)


if __name__ == "__main__":
    draw(DOCS / "gallery" / "cge.png")
