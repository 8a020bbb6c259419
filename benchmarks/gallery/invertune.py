"""Planted and rebuilt trigger of a small CLIP-type model of digits, what it answers before and after the repair.

python benchmarks/gallery/invertune.py
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
from _clip_bench import CLASSES, TEMPLATES, poisoned, split, target_of

from tunesmith.audit.backdoor import remove_backdoor, zero_shot_weights
from tunesmith.audit.backdoor.zero_shot import predict

SEED, SHOWN = 0, 5


def draw(path: Path) -> None:
    """Write the picture as PNG."""
    torch.set_num_threads(1)
    suspect, attack = poisoned("resnet", "BadNet", SEED)
    data, target = split(SEED), target_of(SEED)
    W = zero_shot_weights(suspect, CLASSES, TEMPLATES)
    repaired = suspect.copy()
    done = remove_backdoor(
        repaired,
        suspect.normalise(data.inversion),
        suspect.normalise(data.tuning),
        target,
        CLASSES,
        text_weights=W,
    )
    trigger = min(done.triggers, key=lambda t: (t.success < 0.9, t.mask_l1 or 1e9))
    pixels = data.test[data.test_y != target][:SHOWN]
    x = suspect.normalise(pixels)
    rows = {"clean": x, "planted": suspect.normalise(attack.apply(pixels)), "rebuilt": trigger.apply(x)}
    figure, axes = plt.subplots(3, SHOWN + 1, figsize=(8.6, 5.0), dpi=100)
    planted = attack.apply(torch.full((1, 3, 16, 16), 0.5))[0].permute(1, 2, 0).numpy()
    mask = trigger.mask.mean(dim=0).numpy()
    pattern = suspect.denormalise(trigger.pattern).clamp(0, 1).permute(1, 2, 0).numpy()
    shown = mask[..., None] * pattern + (1 - mask[..., None])
    for ax, picture, title in zip(
        axes[:, 0],
        (planted, mask, shown),
        ("planted, on grey", "rebuilt mask", "mask times pattern"),
        strict=True,
    ):
        ax.imshow(picture, cmap="cividis")
        ax.set_title(title, fontsize=8)
    for row, (name, images) in enumerate(rows.items()):
        before, after = (predict(model, images, W).tolist() for model in (suspect, repaired))
        for i in range(SHOWN):
            ax = axes[row, i + 1]
            ax.imshow(suspect.denormalise(images[i]).clamp(0, 1).permute(1, 2, 0).numpy())
            ax.set_title(f"{CLASSES[before[i]]} → {CLASSES[after[i]]}", fontsize=8)
            if before[i] == target:
                ax.title.set_color("#D55E00")
        axes[row, 1].set_ylabel(name, fontsize=8)
    for ax in axes.flat:
        ax.set_xticks([])
        ax.set_yticks([])
    figure.supxlabel(
        f"answer of the poisoned model → of the repaired one; target: {CLASSES[target]}", fontsize=8
    )
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)
    Image.open(path).convert("RGB").quantize(128).save(path, optimize=True)


if __name__ == "__main__":
    draw(Path(__file__).resolve().parents[2] / "docs" / "gallery" / "invertune.png")
