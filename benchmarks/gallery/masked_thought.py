"""One row as the model sees it at five steps of a training, and the rate at which its tokens are hidden.

python benchmarks/gallery/masked_thought.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import torch
from PIL import Image

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from tunesmith.trainers import MaskedThoughtCollator
from tunesmith.trainers.masked_thought import mask_rate

PROMPT = "Ann has 4 boxes of 6 pens and loses 5 . How many ? ="
CHAIN = "4 times 6 is 24 , less 5 is 19 . #### 19"
TOTAL, STEPS = 300, (0, 60, 120, 201, 299)
HIDDEN, QUESTION, PLAIN = "#d55e00", "#cfe3f2", "#f1f1f1"


def draw(path: Path) -> None:
    """Write the picture as PNG."""
    words = [*PROMPT.split(), *CHAIN.split()]
    n = len(PROMPT.split())
    ids = torch.arange(1, len(words) + 1)[None]
    labels = ids.clone()
    labels[:, :n] = -100
    collator = MaskedThoughtCollator(lambda _: {"input_ids": ids, "labels": labels}, mask_token=0, seed=1)
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(8.4, 4.1), dpi=100, gridspec_kw={"height_ratios": [1, 2.2]}
    )
    top.plot(range(TOTAL + 1), [mask_rate(s, TOTAL) for s in range(TOTAL + 1)], color="#0072b2")
    top.set(xlim=(0, TOTAL), ylim=(0, 0.45), xlabel="optimiser step", ylabel="share hidden")
    for step in STEPS:
        top.plot([step], [mask_rate(step, TOTAL)], "o", color=HIDDEN, clip_on=False)
    top.spines[["top", "right"]].set_visible(False)
    for line, step in enumerate(STEPS):
        collator.rate, collator.step = mask_rate(step, TOTAL), step
        seen = collator([])["input_ids"][0]
        x = 0.0
        bottom.text(-2, -line, f"step {step}", ha="right", va="center", fontsize=8)
        for i, word in enumerate(words):
            width = 1.25 * len(word) + 1.4
            hidden = int(seen[i]) == 0
            box: dict[str, Any] = {"facecolor": QUESTION if i < n else PLAIN}
            bottom.add_patch(plt.Rectangle((x, -line - 0.36), width - 0.4, 0.72, **{**box, **_color(hidden)}))
            if not hidden:
                bottom.text(x + width / 2 - 0.2, -line, word, ha="center", va="center", fontsize=7.5)
            x += width
    bottom.set(xlim=(-14, x), ylim=(-len(STEPS) + 0.4, 0.6))
    bottom.axis("off")
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)
    Image.open(path).convert("RGB").quantize(64).save(path, optimize=True)


def _color(hidden: bool) -> dict[str, Any]:
    return {"facecolor": HIDDEN} if hidden else {}


if __name__ == "__main__":
    draw(Path(__file__).resolve().parents[2] / "docs" / "gallery" / "masked-thought.png")
