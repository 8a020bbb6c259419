"""Scores of all heads of the demo model after stage 1 on the claim's coded words, the chosen tenth outlined.

python benchmarks/gallery/lofit.py
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

matplotlib.use("Agg")
import matplotlib.pyplot as plt

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "claims"))
import _lofit_words as words

from tunesmith.tuners import select_heads


def draw(path: Path) -> None:
    """Write the picture as PNG."""
    rows, _ = words.data(0)
    warnings.simplefilter("ignore")
    found = select_heads(
        words.demo()[0],
        words.batches(rows, words.BATCH),
        words.KEPT,
        loss=words.loss,
        epochs=words.EPOCHS,
        l1=words.L1,
        learning_rate=words.SELECT_RATE,
    )
    figure, ax = plt.subplots(figsize=(8.4, 3.3), dpi=100)
    shown = ax.imshow(found.scores.T, cmap="cividis", aspect="auto")
    for layer, head in found.heads:
        box = plt.Rectangle((layer - 0.46, head - 0.46), 0.92, 0.92, fill=False, lw=1.8, ec="#D55E00")
        ax.add_patch(box)
    ax.set(xticks=np.arange(0, 30, 2), yticks=range(9))
    ax.set_xlabel("layer; outlined: the tenth of the heads that is kept", fontsize=9)
    ax.set_ylabel("query head", fontsize=9)
    ax.tick_params(labelsize=8)
    bar = figure.colorbar(shown, ax=ax, pad=0.02)
    bar.set_label("score: how far the head's scales moved", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)
    Image.open(path).convert("RGB").quantize(128).save(path, optimize=True)


if __name__ == "__main__":
    draw(Path(__file__).resolve().parents[2] / "docs" / "gallery" / "lofit.png")
