"""One up projection after training with random parts: what each part learned at the places it owns, and their mean.

python benchmarks/gallery/mosa.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
import torch
from PIL import Image

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from tunesmith.tuners import MosaConfig
from tunesmith.tuners.mosa.layer import Branch


def draw(path: Path) -> None:
    """Write the picture as PNG."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, 24, generator=generator)
    ramp = torch.linspace(-1, 1, 24)
    target = x @ (torch.sin(3 * ramp)[:, None] * torch.cos(4 * ramp)[None])
    branch = Branch(MosaConfig(r=16, num_parts=4), 24, 24, "picture", 0)
    optimizer = torch.optim.AdamW(branch.parameters(), lr=2e-2, weight_decay=0.0)
    for _ in range(400):
        e = int(torch.randint(4, (1,), generator=generator))
        optimizer.zero_grad()
        (branch(x, (0, e)) - target).square().mean().backward()
        optimizer.step()
    with torch.no_grad():
        shown = [*(branch.up.drawn(e) for e in range(4)), branch.up.merged()]
    most = max(float(w.abs().max()) for w in shown)
    figure, axes = plt.subplots(1, 5, figsize=(8.4, 3.2), dpi=100)
    for i, (ax, W) in enumerate(zip(axes, shown, strict=True)):
        scale = most if i < 4 else float(W.abs().max())
        ax.imshow(W, cmap="PuOr", vmin=-scale, vmax=scale)
        ax.set(xticks=[], yticks=[])
        ax.set_xlabel(f"part {i + 1}" if i < 4 else "mean of the parts\n(own colour scale)", fontsize=9)
    figure.tight_layout(w_pad=0.6)
    figure.savefig(path)
    plt.close(figure)
    Image.open(path).convert("RGB").quantize(64).save(path, optimize=True)


if __name__ == "__main__":
    draw(Path(__file__).resolve().parents[2] / "docs" / "gallery" / "mosa.png")
