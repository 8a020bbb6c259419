"""What a trained module reaches where the frozen layers above it are cut, and how recall rises in training.

python benchmarks/gallery/iaa_retrieval.py
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from PIL import Image

matplotlib.use("Agg")
import matplotlib.pyplot as plt

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "claims"))
from _iaa_texts import words
from iaa_retrieval import arms, random_encoder, train, tuned

DEPTH, STEPS, POINTS = 8, 80, 10
SHOWN = {"adapters": "#555555", "IAA layer": "#E69F00", "IAA chain": "#0072B2"}


def reach(base: Any, arm: str) -> np.ndarray[Any, Any]:
    """Entry (k, l): gradient of H_k by the modules of layer l when every frozen map above l gives zero."""
    from transformers.models.bert.modeling_bert import BertLayer

    settings = {**(arms(8)[arm] or {}), "init_weights": False}
    model = tuned(base, settings, 0)
    blocks = list(model.base_model.model.encoder.layer)
    whole, found = BertLayer.forward, np.zeros((DEPTH, DEPTH))
    batch, _ = words.topics(8, np.random.default_rng(0))
    try:
        for lowest in range(DEPTH):

            def cut(self: Any, hidden: Any, *args: Any, above: int = lowest, **kwargs: Any) -> Any:
                whole_here = blocks.index(self) <= above
                return whole(self, hidden, *args, **kwargs) if whole_here else torch.zeros_like(hidden)

            BertLayer.forward = cut
            ups = [p for n, p in blocks[lowest].named_parameters() if "iaa_up" in n and p.dim() == 2]
            states = model(**batch, output_hidden_states=True).hidden_states[1:]
            v = torch.randn(states[0].shape, generator=torch.Generator().manual_seed(0))
            for k in range(lowest, DEPTH):
                if states[k].requires_grad:
                    slopes = torch.autograd.grad(
                        (states[k] * v).sum(), ups, retain_graph=True, allow_unused=True
                    )
                    found[k, lowest] = sum(float(s.norm()) for s in slopes if s is not None)
    finally:
        BertLayer.forward = whole
    return found


def draw(path: Path) -> None:
    """Write the picture as PNG."""
    torch.set_num_threads(1)
    base = random_encoder(DEPTH, 0)
    figure, axes = plt.subplots(1, 4, figsize=(8.8, 2.7), dpi=100, width_ratios=(1, 1, 1, 1.45))
    for ax, arm in zip(axes, SHOWN, strict=False):
        with np.errstate(divide="ignore"):
            ax.imshow(np.log10(reach(base, arm)), cmap="cividis", vmin=-8, vmax=2)
        ax.set_facecolor("white")
        ax.set(xticks=(0, DEPTH - 1), xticklabels=(1, DEPTH), yticks=(0, DEPTH - 1), yticklabels=(1, DEPTH))
        ax.set_title(arm, fontsize=9, color=SHOWN[arm])
        ax.set_xlabel("module of layer", fontsize=8)
    axes[0].set_ylabel("moves the output of layer", fontsize=8)
    validation = words.topics(200, np.random.default_rng(0))
    for arm, colour in SHOWN.items():
        model = tuned(base, arms(8)[arm], 0)
        curve = train(model, words.topics, 3e-2, STEPS, 32, 0, validation, POINTS)
        steps = np.arange(1, POINTS + 1) * (STEPS // POINTS)
        axes[3].plot(steps, curve, color=colour, label=arm, marker="o", markersize=3)
    axes[3].set_xlabel("step", fontsize=8)
    axes[3].set_ylabel("recall@1", fontsize=8)
    axes[3].legend(fontsize=7, frameon=False)
    for side in ("top", "right"):
        axes[3].spines[side].set_visible(False)
    for ax in axes:
        ax.tick_params(labelsize=7)
    figure.tight_layout()
    figure.savefig(path, facecolor="white", bbox_inches="tight")
    plt.close(figure)
    Image.open(path).convert("RGB").quantize(64).save(path, optimize=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    draw(Path(__file__).resolve().parents[2] / "docs" / "gallery" / "iaa-retrieval.png")
