"""Two long groups that cross: k-means cuts across them, iLA-SDP finds their shapes and proves its labels.

python benchmarks/gallery/ila_sdp.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import Ellipse
from sklearn.cluster import KMeans

from tunesmith.cluster import LikelihoodAdjustedSDP

COLOURS = np.array(["#0072B2", "#E69F00"])  # Okabe and Ito 2008


def crossed() -> tuple[np.ndarray, np.ndarray]:
    """Two groups of 60 rows, one long along each axis."""
    rng = np.random.default_rng(0)
    flat = rng.standard_normal((60, 2)) * [3.5, 0.5]
    tall = rng.standard_normal((60, 2)) * [0.5, 3.5] + [2.0, 2.0]
    return np.vstack([flat, tall]), np.repeat([0, 1], 60)


def draw(path: Path) -> None:
    """Write the picture as PNG."""
    X, truth = crossed()
    model = LikelihoodAdjustedSDP(2, random_state=0).fit(X)
    plain = KMeans(2, n_init=10, random_state=0).fit_predict(X)
    figure, axes = plt.subplots(1, 3, figsize=(8.4, 2.9), dpi=100)
    for ax, name, labels in zip(axes, ("k-means", "iLA-SDP"), (plain, model.labels_), strict=False):
        right = np.mean(labels == truth)
        ax.scatter(*X.T, c=COLOURS[labels if right >= 0.5 else 1 - labels], s=9, linewidths=0)
        ax.set_xlabel(f"{name}: {max(right, 1 - right):.0%} of the rows right", fontsize=9)
        ax.set(xticks=[], yticks=[], aspect="equal", xlim=(-10, 10), ylim=(-8, 11))
    for k in range(2):
        size, turn = np.linalg.eigh(model.covariances_[k])
        angle = np.degrees(np.arctan2(turn[1, 1], turn[0, 1]))
        width, height = 2 * 2.45 * np.sqrt(size[::-1])  # 95 % of a Gaussian
        colour = COLOURS[k if np.mean(model.labels_ == truth) >= 0.5 else 1 - k]
        axes[1].add_patch(Ellipse(model.means_[k], width, height, angle=angle, fill=False, ec=colour, lw=1.2))
    order = np.argsort(model.labels_, kind="stable")
    axes[2].imshow(model.memberships_.sum(axis=0)[np.ix_(order, order)], cmap="cividis")
    axes[2].set(xticks=[], yticks=[])
    gap = model.dual_gap_ / abs(model.lower_bound_)
    axes[2].set_xlabel(f"memberships Z\nlabels {gap:.1%} below the proven bound", fontsize=9)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, facecolor="white")
    plt.close(figure)
    Image.open(path).convert("RGB").quantize(64).save(path, optimize=True)


if __name__ == "__main__":
    draw(Path(__file__).resolve().parents[2] / "docs" / "gallery" / "ila-sdp.png")
