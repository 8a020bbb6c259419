"""Handwritten digits 5 to 9, unlabelled, beside the known digits 0 to 4: t-SNE maps of the columns and of PBN's codes.

Colours are the groups found, black crosses the rows in a wrong one.

python benchmarks/gallery/tabular_ncd.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image
from scipy.optimize import linear_sum_assignment
from sklearn.datasets import load_digits
from sklearn.manifold import TSNE
from sklearn.metrics.cluster import contingency_matrix
from sklearn.preprocessing import StandardScaler

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from tunesmith.cluster import PBN, NCDKMeans

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
    figure, axes = plt.subplots(1, 2, figsize=(8.4, 4.0), dpi=100)
    novel = true[y < 0]
    for ax, (name, (Z, found)) in zip(axes, panels.items(), strict=True):
        flat = TSNE(init="pca", random_state=0).fit_transform(Z[y < 0])
        table = contingency_matrix(novel, found)
        classes, groups = linear_sum_assignment(table, maximize=True)
        right = np.isin(5 * (novel - 5) + found, 5 * classes + groups)
        for k in range(5):
            ax.scatter(*flat[right & (found == k)].T, s=7, color=COLOURS[k], marker=MARKS[k], linewidths=0)
        ax.scatter(*flat[~right].T, s=12, color="black", marker="x", linewidths=0.7)
        ax.set_xlabel(f"{name}: {right.mean():.0%} of the novel rows right", fontsize=9)
        ax.set(xticks=[], yticks=[])
    figure.tight_layout()
    figure.savefig(path, facecolor="white")
    plt.close(figure)
    Image.open(path).convert("RGB").quantize(64).save(path, optimize=True)


if __name__ == "__main__":
    draw(Path(__file__).resolve().parents[2] / "docs" / "gallery" / "tabular-ncd.png")
