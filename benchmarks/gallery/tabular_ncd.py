"""Handwritten digits 5 to 9, unlabelled, beside the known digits 0 to 4: principal components of the columns and of
PBN's codes, coloured by the clusters found.

python benchmarks/gallery/tabular_ncd.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from tunesmith.cluster import PBN, NCDKMeans
from tunesmith.metrics.clustering import novel_class_accuracy

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9")  # Okabe and Ito: safe for the colour-blind
MARKS = ("o", "s", "^", "D", "v")


def draw(path: Path) -> None:
    """Write the picture as PNG."""
    X, true = load_digits(return_X_y=True)
    X = StandardScaler().fit_transform(X)
    y = np.where(true < 5, true, -1)
    pbn = PBN(5, latent_dim=32, random_state=0, device="cpu").fit(X, y)
    panels = {
        "k-means on the columns": (X, NCDKMeans(5, random_state=0).fit(X[y < 0]).labels_),
        "PBN": (pbn.transform(X), pbn.labels_[y < 0]),
    }
    figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.9), dpi=100)
    for ax, (name, (Z, found)) in zip(axes, panels.items(), strict=True):
        flat = PCA(2, random_state=0).fit(Z[y < 0]).transform(Z)
        ax.scatter(*flat[y >= 0].T, s=5, color="#CCCCCC", label="known digits 0 to 4")
        for k in range(5):
            ax.scatter(*flat[y < 0][found == k].T, s=8, color=COLOURS[k], marker=MARKS[k], linewidths=0)
        labels = np.full(len(y), -1)
        labels[y < 0] = found
        accuracy = novel_class_accuracy(true, labels, known=range(5))
        ax.set_xlabel(f"{name}: {accuracy:.0%} of the novel rows in the right group", fontsize=9)
        ax.set(xticks=[], yticks=[])
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].legend(loc="best", fontsize=8, frameon=False)
    figure.tight_layout()
    figure.savefig(path, facecolor="white")
    plt.close(figure)
    Image.open(path).convert("RGB").quantize(64).save(path, optimize=True)


if __name__ == "__main__":
    draw(Path(__file__).resolve().parents[2] / "docs" / "gallery" / "tabular-ncd.png")
