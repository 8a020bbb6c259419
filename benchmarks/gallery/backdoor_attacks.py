"""A digit under the six triggers of the digits bench, and what each of them changes.

python benchmarks/gallery/backdoor_attacks.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
import torch
from PIL import Image

matplotlib.use("Agg")
import matplotlib.pyplot as plt

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "claims"))
import _clip_bench as bench

SEED = 2


def draw(path: Path) -> None:
    """Write the picture as PNG."""
    torch.set_num_threads(1)
    data, target = bench.split(SEED), bench.target_of(SEED)
    image = data.test[data.test_y != target][:1]
    figure, axes = plt.subplots(2, 7, figsize=(8.4, 2.8), dpi=100)
    axes[0, 0].imshow(image[0].permute(1, 2, 0), vmin=0, vmax=1)
    axes[0, 0].set_title("clean", fontsize=9)
    axes[0, 0].set_ylabel("image", fontsize=9)
    axes[1, 0].set_ylabel("change", fontsize=9)
    axes[1, 0].imshow(torch.full((16, 16, 3), 0.5), vmin=0, vmax=1)
    for ax, name in zip(axes.T[1:], bench.ATTACKS, strict=True):
        kind, settings = bench.ATTACKS[name]
        learned = name == "BadCLIP"  # its patch comes from a model, the others' triggers do not
        attack = bench.poisoned("resnet", name, SEED)[1] if learned else kind(random_state=SEED, **settings)
        triggered = attack.apply(image)
        ax[0].imshow(triggered[0].permute(1, 2, 0).numpy())
        ax[1].imshow((0.5 + (triggered - image)[0] / 2).clamp(0, 1).permute(1, 2, 0).numpy())
        ax[0].set_title(name, fontsize=9)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
    figure.tight_layout(pad=0.6)
    figure.savefig(path)
    plt.close(figure)
    Image.open(path).convert("RGB").quantize(128).save(path, optimize=True)


if __name__ == "__main__":
    draw(Path(__file__).resolve().parents[2] / "docs" / "gallery" / "backdoor-attacks.png")
