"""The claim of MoSA on digits: sparse parts drawn per pass and merged, against plain adapters with as many weights.

    python benchmarks/claims/mosa.py        (about 10 minutes; run again until done)

A residual network (64-128, 3 blocks of width 128) learns digits 0-4 of scikit-learn's set and is frozen. Adapters and a
new head learn 5-9 from 10 or 50 images per class; the test is on the others of 5-9. 10 seeds, 500 steps of 50 images,
AdamW, learning rate 3e-3 (1e-3 for all weights), no choice by test data. Bottleneck adapters beside each block's MLP,
width 16, dropout 0.1, scale 1; LoRA of rank 16 on both linear layers of each block, no dropout. MoSA has 4 parts, the
down projection shared; "consistency" is its second pass, alpha 0, beta 1. Figures: accuracy at the last step.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from _claim import count, difference, save, says, summary
from _parts import stretch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from tunesmith.trainers import consistency_loss
from tunesmith.tuners import MosaConfig
from tunesmith.tuners.mosa.draws import Draws
from tunesmith.tuners.mosa.layer import Branch, MosaLayer

SEEDS = range(10)
STEPS, BATCH, WIDTH = 500, 50, 128
ADAPTER = {"flavour": "adapter", "r": 16, "scale": 1.0, "dropout": 0.1}
LORA = {"flavour": "lora", "r": 16}
# arm -> settings of the adapter (None: no adapter), two passes, learning rate
ARMS: dict[str, tuple[dict[str, Any] | None, bool, float]] = {
    "linear probe": (None, False, 3e-3),
    "all weights": (None, False, 1e-3),
    "plain adapter": ({**ADAPTER, "num_parts": 1}, False, 3e-3),
    "plain adapter with consistency": ({**ADAPTER, "num_parts": 1}, True, 3e-3),
    "sparse without consistency": ({**ADAPTER, "num_parts": 4}, False, 3e-3),
    "MoSA": ({**ADAPTER, "num_parts": 4}, True, 3e-3),
    "LoRA": ({**LORA, "num_parts": 1}, False, 3e-3),
    "LoRA MoSA": ({**LORA, "num_parts": 4}, True, 3e-3),
}


class Block(nn.Module):
    """h + MLP(h)."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        """(B, width) -> (B, width)."""
        return h + self.mlp(h)


class Network(nn.Module):
    """The trunk and a head for 5 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 64) -> logits (B, 5)."""
        h = functional.gelu(self.first(x))
        for block in self.blocks:
            h = block(h)
        return self.head(h)


def fit(
    net: Any, x: torch.Tensor, y: torch.Tensor, two: bool, lr: float, seed: int, draws: Any = None
) -> None:
    """Train what has gradients."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=lr)
    net.train()
    for _ in range(STEPS):
        rows = torch.randperm(len(x), generator=generator)[:BATCH]
        passes = []
        for _ in range(2 if two else 1):
            if draws is not None:
                draws.begin()
            passes.append(net(x[rows]))
        loss = functional.cross_entropy(passes[0], y[rows])
        if two:
            loss = loss + consistency_loss(*passes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def adapt(net: Any, settings: dict[str, Any], seed: int) -> Draws:
    """Put adapters of the library into the network's blocks."""
    config, draws = MosaConfig(**settings, seed=seed), Draws()
    sites = 0
    for i, block in enumerate(net.blocks):
        lora = config.flavour == "lora"
        places = [(block.mlp, "0"), (block.mlp, "2")] if lora else [(block, "mlp")]
        for parent, child in places:
            layer = MosaLayer(getattr(parent, child), f"{i}.{child}", "lora" if lora else "parallel", draws)
            branch = Branch(config, WIDTH, WIDTH, layer.name, sites)
            layer.update_layer("default", branch, ["default"], False)
            setattr(parent, child, layer)
            sites += 1
    draws.configs, draws.sites = {"default": config}, {"default": sites}
    return draws


def run(seed: int) -> dict[str, dict[str, float]]:
    """Arm -> accuracy per size of the training set, and trained numbers."""
    torch.set_num_threads(1)
    data = load_digits()
    x, y = torch.tensor(data.data / 16, dtype=torch.float32), torch.tensor(data.target)
    torch.manual_seed(seed)
    trunk = Network()
    old = y < 5
    fit(trunk, x[old], y[old], False, 1e-3, seed)
    x, y = x[~old], y[~old] - 5
    order = np.random.default_rng(seed).permutation(len(y))
    found: dict[str, dict[str, float]] = {arm: {} for arm in ARMS}
    for size in (10, 50):
        train = np.concatenate([order[(y[order] == c).numpy()][:size] for c in range(5)])
        test = np.setdiff1d(order, train)
        torch.manual_seed(seed)
        head = nn.Linear(WIDTH, 5)
        for arm, (settings, two, lr) in ARMS.items():
            net = copy.deepcopy(trunk)
            net.requires_grad_(arm == "all weights")
            draws = adapt(net, settings, seed) if settings else None
            net.head = copy.deepcopy(head)
            torch.manual_seed(seed)
            fit(net, x[train], y[train], two, lr, seed, draws)
            with torch.no_grad():
                right = (net.eval()(x[test]).argmax(1) == y[test]).float().mean()
            found[arm][f"{size} per class"] = float(right)
            found[arm]["trained"] = sum(p.numel() for p in net.parameters() if p.requires_grad)
    return found


def main() -> None:
    """Run what is missing and write docs/claims/mosa.json."""
    runs = list(stretch("mosa", [str(s) for s in SEEDS], lambda s: run(int(s))).values())

    def by_arm(measure: str) -> dict[str, list[float]]:
        return {arm: [one[arm][measure] for one in runs] for arm in ARMS}

    intervals, tables = [], {}
    for size in ("10 per class", "50 per class"):
        values = tables[size] = by_arm(size)
        for other in ("plain adapter", "plain adapter with consistency", "sparse without consistency"):
            intervals.append({"setting": size, **difference(values, "MoSA", other)})
        intervals.append({"setting": size, **difference(values, "LoRA MoSA", "LoRA")})
    claimed = [row for row in intervals if row["baseline"] in ("plain adapter", "LoRA")]
    clauses = "; ".join(f"{row['setting']}: {says(row)}" for row in intervals)
    save(
        "mosa",
        {
            "title": "MoSA on digits",
            "claim": "Sparse parts drawn at random in training, pulled together by a consistency loss and merged, beat "
            "the plain adapter with as many weights.",
            "verdict": f"Against the plain adapter and LoRA: {count(claimed).lower()}. {clauses}.",
            "holds": all(row["low"] > 0 for row in claimed),
            "setting": " ".join(" ".join((__doc__ or "").split("\n\n")[2:]).split()),
            "seeds": list(SEEDS),
            "arms": summary(tables["10 per class"]),
            "arms, 50 per class": summary(tables["50 per class"]),
            "trained": {arm: int(runs[0][arm]["trained"]) for arm in ARMS},
            "intervals": intervals,
            "command": "python benchmarks/claims/mosa.py",
        },
    )


if __name__ == "__main__":
    main()
