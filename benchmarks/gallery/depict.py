"""Codes of handwritten digits after the pretraining alone and after the joint training, as a map (t-SNE).

python benchmarks/gallery/depict.py
"""

from __future__ import annotations

import warnings
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.manifold import TSNE

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from tunesmith.cluster import DEPICT

# Okabe and Ito's colours, and two greys
COLOURS = [
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#B8A800",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
    "#555555",
    "#AAAAAA",
]


def draw(path: Path) -> None:
    """Write the picture as PNG."""
    X, y = load_digits(return_X_y=True)
    X = (X / 8 - 1).astype(np.float32)
    shown = np.random.default_rng(0).permutation(len(X))[:450]
    figure, axes = plt.subplots(1, 2, figsize=(8.4, 4.1), dpi=100)
    phases = {
        "after the pretraining, coloured by k-means": {"warmup_epochs": 0, "max_iter": 0},
        "after the joint training, coloured by cluster": {},
    }
    for ax, (name, options) in zip(axes, phases.items(), strict=True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = DEPICT(10, patience=None, random_state=0, **options).fit(X)
        labels = model.labels_ if model.n_iter_ else model.initial_labels_
        place = TSNE(2, random_state=0, init="pca").fit_transform(model.transform(X[shown]))
        for (a, b), digit, label in zip(place, y[shown], labels[shown], strict=True):
            ax.text(a, b, str(digit), color=COLOURS[label], fontsize=7, ha="center", va="center")
        ax.set(xlim=(place[:, 0].min(), place[:, 0].max()), ylim=(place[:, 1].min(), place[:, 1].max()))
        ax.set(xticks=[], yticks=[])
        ax.set_xlabel(name, fontsize=9)
        for side in ax.spines.values():
            side.set_visible(False)
    figure.tight_layout()
    figure.savefig(path, facecolor="white", bbox_inches="tight")
    plt.close(figure)
    Image.open(path).convert("RGB").quantize(48).save(path, optimize=True)


if __name__ == "__main__":
    draw(Path(__file__).resolve().parents[2] / "docs" / "gallery" / "depict.png")
