"""Four planes in ten dimensions: links between rows at the linear start and after the last stage, ordered by plane.

python benchmarks/gallery/deep_subspace_clustering.py
"""

from __future__ import annotations

import warnings
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from tunesmith.cluster import DeepSubspaceClustering
from tunesmith.cluster.deep_subspace import affinity_from_coefficients, ridge_coefficients


def planes() -> tuple[np.ndarray, np.ndarray]:
    """Four noisy planes of 30 rows each, of length 1."""
    rng = np.random.default_rng(1)
    X = np.concatenate([rng.standard_normal((30, 2)) @ rng.standard_normal((2, 10)) for _ in range(4)])
    X += 0.3 * rng.standard_normal(X.shape)
    return X / np.linalg.norm(X, axis=1, keepdims=True), np.repeat(np.arange(4), 30)


def draw(path: Path) -> None:
    """Write the picture as PNG."""
    X, y = planes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = DeepSubspaceClustering(
            4, subspace_dim=6, quality_epochs=200, learning_rate=2e-3, random_state=0, device="cpu"
        ).fit(X)
    panels = {
        "products of the rows": np.abs(X @ X.T),
        "linear start (ridge)": affinity_from_coefficients(ridge_coefficients(X, 1.0), 6).toarray(),
        "after the three stages": model.affinity_matrix_.toarray(),
    }
    figure, axes = plt.subplots(1, 3, figsize=(8.4, 3.2), dpi=100)
    apart = y[:, None] != y
    for ax, (name, A) in zip(axes, panels.items(), strict=True):
        A = A - np.diag(np.diag(A))
        ax.imshow(A, cmap="cividis", vmax=np.quantile(A[A > 0], 0.97), interpolation="nearest")
        ax.set_xlabel(f"{name}\n{A[apart].sum() / A.sum():.0%} of the weight between planes", fontsize=9)
        ax.set(xticks=[], yticks=[])
    figure.tight_layout()
    figure.savefig(path, facecolor="white", bbox_inches="tight")
    plt.close(figure)
    Image.open(path).convert("RGB").quantize(64).save(path, optimize=True)


if __name__ == "__main__":
    draw(Path(__file__).resolve().parents[2] / "docs" / "gallery" / "deep-subspace-clustering.png")
