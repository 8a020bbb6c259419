"""Where two deltas of one network sit: the entries of a task's and of a domain's LT-SFT delta in one weight matrix.

python benchmarks/gallery/composable_sft.py
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image

matplotlib.use("Agg")
import matplotlib.pyplot as plt

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "claims"))

LAYER = "trunk.0.weight"


def deltas() -> tuple[Any, Any]:
    """Return the task's and the target domain's delta of the claim's wide network, seed 0, K = 10 %."""
    import torch
    from composable_sft import domain, learn, pretrained
    from sklearn.datasets import load_digits

    from tunesmith.core.seeds import seed_everything
    from tunesmith.engine.silence import quiet

    seed_everything(0)
    data, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(data, dtype=torch.float32) / 16, torch.tensor(labels)
    net = pretrained(64, x, torch.arange(800), torch.arange(50))
    options = {"density": 0.1}
    with quiet(python_warnings=True):
        rows = [{"x": domain(x[i : i + 1], True)[0]} for i in range(800, 1300)]
        language = learn(net, "decoder", rows, options, (200, 200), 1e-3, 0)
        language.revert(net)
        rows = [{"x": x[i], "labels": y[i]} for i in range(800)]
        task = learn(net, "classifier", rows, options, (150, 250), 1e-3, 0)
    return task, language


def draw(path: Path) -> None:
    """Write the picture as PNG."""
    task, language = deltas()
    figure, axes = plt.subplots(1, 3, figsize=(8.4, 3.1), dpi=100)
    a, b = (d.dense(LAYER).numpy() for d in (task, language))
    panels = (("task delta", a), ("domain delta", b), ("sum", a + b))
    for ax, (name, values) in zip(axes, panels, strict=True):
        limit = float(np.quantile(np.abs(values[values != 0]), 0.8))  # each panel on its own scale
        shown = np.where(values == 0, np.nan, values)
        ax.imshow(shown, cmap="PuOr", vmin=-limit, vmax=limit, interpolation="nearest")
        ax.set(xticks=[], yticks=[], facecolor="#f2f2f2")
        ax.set_xlabel(f"{name}: {np.count_nonzero(values):,} of {values.size:,} entries", fontsize=9)
    axes[0].set_ylabel("units of the first layer", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, facecolor="white")
    plt.close(figure)
    Image.open(path).convert("RGB").quantize(64).save(path, optimize=True)


if __name__ == "__main__":
    draw(Path(__file__).resolve().parents[2] / "docs" / "gallery" / "composable-sft.png")
