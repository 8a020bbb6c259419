"""Six groups under two parents, among ten columns of nuisance: the nodes found without and with the penalty.

python benchmarks/gallery/acol.py
"""

from __future__ import annotations

import warnings
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image
from sklearn.preprocessing import StandardScaler

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from tunesmith.cluster import ACOLClusterer
from tunesmith.metrics.clustering import purity

COLOURS = ["#0072B2", "#E69F00", "#56B4E9", "#D55E00", "#009E73", "#CC79A7"]  # Okabe and Ito


def data() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the place in the plane, all twelve columns, the group."""
    rng = np.random.default_rng(0)
    group = rng.integers(0, 6, 1500)
    angle = group * np.pi / 3
    plane = 4 * np.c_[np.cos(angle), np.sin(angle)] + 0.7 * rng.standard_normal((1500, 2))
    nuisance = rng.choice([-1, 1], (1500, 10)) + 0.3 * rng.standard_normal((1500, 10))
    return plane, StandardScaler().fit_transform(np.c_[plane, nuisance]).astype(np.float32), group


def draw(path: Path) -> None:
    """Write the picture as PNG."""
    plane, X, group = data()
    parent = group % 2
    figure, axes = plt.subplots(1, 2, figsize=(8.4, 4.2), dpi=100)
    for ax, weight in zip(axes, (0.0, 0.1), strict=True):
        model = ACOLClusterer(3, hidden_layer_sizes=(64, 64), c_alpha=weight, c_beta=weight, random_state=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.set_params(max_iter=60, n_iter_no_change=None).fit(X, parent)
        for p, marker in enumerate("ox"):
            rows = np.flatnonzero(parent == p)[:350]
            colours = [COLOURS[label] for label in model.labels_[rows]]
            ax.scatter(*plane[rows].T, c=colours, marker=marker, s=18, linewidths=1)
        ax.set(xticks=[], yticks=[], aspect="equal")
        ax.set_xlabel(
            f"weights {weight:g}: {model.n_active_nodes_} of 6 nodes in use, purity "
            f"{purity(group, model.labels_):.2f}\n(o and x are the two parents, colours the nodes)",
            fontsize=9,
        )
    figure.tight_layout()
    figure.savefig(path, facecolor="white", bbox_inches="tight")
    plt.close(figure)
    Image.open(path).convert("RGB").quantize(48).save(path, optimize=True)


if __name__ == "__main__":
    draw(Path(__file__).resolve().parents[2] / "docs" / "gallery" / "acol.png")
