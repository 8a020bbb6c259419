"""Three long groups with one labelled row each: nearest labelled row, K-means from the labels, and with the Laplacian.

python benchmarks/gallery/transductive_clustering.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.collections import LineCollection

from tunesmith.cluster import TransductiveClustering
from tunesmith.cluster.transductive.prototypes import squared_distances
from tunesmith.numerics.neighbors import knn_graph

COLOURS = np.array(["#0072B2", "#E69F00", "#009E73"])  # Okabe and Ito 2008


def stripes() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Three long groups of 70 rows side by side; one row of each is labelled, far from the middle."""
    rng = np.random.default_rng(3)
    truth = np.repeat(np.arange(3), 70)
    X = np.column_stack([rng.uniform(-1.3, 1.3, 210), 1.5 * (1 - truth) + 0.36 * rng.standard_normal(210)])
    X[:, 1] += 0.25 * X[:, 0]
    y = np.full(210, -1)
    for k, place in enumerate((-1.2, 1.2, -1.1)):
        rows = np.flatnonzero(truth == k)
        y[rows[np.abs(X[rows, 0] - place).argmin()]] = k
    return X, y, truth


def draw(path: Path) -> None:
    """Write the picture as PNG."""
    X, y, truth = stripes()
    seeds = np.array([np.flatnonzero(y == k)[0] for k in range(3)])
    options = {"normalize": "un", "shift": False}
    results = {
        "nearest labelled row": squared_distances(X, X[seeds]).argmin(axis=1),
        "K-means from the labels (lam=0)": TransductiveClustering(lam=0, **options).fit(X, y).labels_,
        "with the Laplacian (lam=2)": TransductiveClustering(
            lam=2.0, n_neighbors=7, psd_shift=True, **options
        )
        .fit(X, y)
        .labels_,
    }
    W, _ = knn_graph(X, 6)
    pairs = np.column_stack(W.nonzero())
    figure, axes = plt.subplots(1, 3, figsize=(8.4, 3.0), dpi=100)
    for ax, (name, labels) in zip(axes, results.items(), strict=True):
        if "Laplacian" in name:
            ax.add_collection(LineCollection(list(X[pairs]), colors="#bbbbbb", linewidths=0.4, zorder=0))
        ax.scatter(*X.T, c=COLOURS[labels], s=9, linewidths=0)
        ax.scatter(*X[seeds].T, c=COLOURS, s=130, marker="*", edgecolors="black", linewidths=0.9)
        right = np.mean(labels == truth)
        ax.set_xlabel(f"{name}\n{right:.0%} right", fontsize=9)
        ax.set(xticks=[], yticks=[])
        for side in ax.spines.values():
            side.set_visible(False)
    figure.tight_layout()
    figure.savefig(path, facecolor="white", bbox_inches="tight")
    plt.close(figure)
    Image.open(path).convert("RGB").quantize(64).save(path, optimize=True)


if __name__ == "__main__":
    draw(Path(__file__).resolve().parents[2] / "docs" / "gallery" / "transductive-clustering.png")
