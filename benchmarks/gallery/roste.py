"""Where rotations help: quantisation error of each site of the 135M model with a rotation, relative to that without.

python benchmarks/gallery/roste.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROWS = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
    "cache: keys": "self_attn.key",
    "cache: values": "self_attn.value",
}


def ratios() -> np.ndarray:
    """Return ``log2(E_rotated / E)``, ``(sites of a block, blocks)``, W4A4KV4, on 16 stretches of English text."""
    import torch
    from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_wine

    from tunesmith.engine.models import load_model, load_tokenizer
    from tunesmith.tuners import search_rotations

    model = load_model("smollm2-135m-instruct", dtype="float32", device="cpu")
    tokenizer = load_tokenizer("smollm2-135m-instruct")
    text = "\n".join(load().DESCR for load in (load_breast_cancer, load_diabetes, load_digits, load_wine))
    ids = torch.tensor(tokenizer(text)["input_ids"][: 16 * 128]).view(16, 128)
    found = search_rotations(model, [{"input_ids": part} for part in ids.split(4)])
    blocks = range(model.config.num_hidden_layers)
    pairs = [[found[f"model.layers.{i}.{name}"] for i in blocks] for name in ROWS.values()]
    return np.array([[np.log2(c.hadamard / c.identity) for c in row] for row in pairs])


def draw(path: Path) -> None:
    """Write the picture as PNG."""
    values = ratios()
    limit = float(np.abs(values).max())
    figure, ax = plt.subplots(figsize=(8.4, 3.3), dpi=100)
    image = ax.imshow(values, cmap="PuOr", vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
    ax.set_yticks(range(len(ROWS)), list(ROWS), fontsize=9)
    ax.set_xlabel(
        f"block; a dot marks the {int((values < 0).sum())} of {values.size} sites that are rotated",
        fontsize=9,
    )
    at = np.argwhere(values < 0)
    ax.plot(at[:, 1], at[:, 0], ".", color="black", markersize=3)
    bar = figure.colorbar(image, pad=0.02)
    bar.set_label("log2 of error rotated / not", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, facecolor="white")
    plt.close(figure)
    Image.open(path).convert("RGB").save(path, optimize=True)


if __name__ == "__main__":
    draw(Path(__file__).resolve().parents[2] / "docs" / "gallery" / "roste.png")
