"""Requests of real users, then word problems in a third of the traffic: distance of each window from clean ones.

python benchmarks/gallery/drift.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

matplotlib.use("Agg")
import matplotlib.pyplot as plt

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "claims"))
from _drift_texts import embedded

from tunesmith.audit.drift import DriftDetector
from tunesmith.audit.drift.pictures import plot_windows

WINDOW, NEW = 100, 30


def draw(path: Path) -> None:
    """Write the picture as PNG."""
    data = embedded()
    rng = np.random.default_rng(0)
    users, new = (rng.permutation(len(data[kind][0])) for kind in ("users", "word problems"))
    names = ("embedding", "text length")

    def rows(kind: str, at: np.ndarray) -> list[np.ndarray]:
        return [part[at] for part in data[kind]]

    detector = DriftDetector(WINDOW).fit(dict(zip(names, rows("users", users[:1050]), strict=True)))
    results, start = [], 1050
    for i in range(12):
        late = NEW if i >= 6 else 0
        old = rows("users", users[start : start + WINDOW - late])
        both = [np.concatenate(pair) for pair in zip(old, rows("word problems", new[:late]), strict=True)]
        start, new = start + WINDOW - late, new[late:]
        results += detector.update(dict(zip(names, both, strict=True)))
    figure, ax = plt.subplots(figsize=(8.2, 3.6), dpi=100)
    plot_windows(ax, results)
    ax.axvline(6.5, color="#999999", lw=1)
    ax.annotate("30 % word problems", (6.6, ax.get_ylim()[0]), fontsize=8, color="#555555", va="bottom")
    ax.set_xlabel(f"window of {WINDOW} requests", fontsize=9)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)
    Image.open(path).convert("RGB").quantize(128).save(path, optimize=True)


if __name__ == "__main__":
    draw(Path(__file__).resolve().parents[2] / "docs" / "gallery" / "drift.png")
