"""Digits with few labels: an encoder pre-trained by SimCLR on the unlabelled pool, and the loop that fine-tunes it.

Each seed has its own split (1000 images in the pool, 797 for the test), its own pre-training and its own labels, which
are drawn from the pool. The encoder is an MLP 64-256-256-64 with a ReLU after each layer. Pre-training: SimCLR
(temperature 0.2, 60 epochs, batches of 200, Adam 1e-3, a projection 64-64-32 that is thrown away), two views of each
image by a shift of up to one pixel, brightness 0.7 to 1.3 and noise of 0.15. Fine-tuning: SGD with Nesterov momentum
0.9, cosine from the given rate to 0, no decay, no augmentation; figures are those of the last epoch.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

CLASSES, D = 10, 64
POOL = 1000

Loss = Callable[[torch.Tensor, torch.Tensor, nn.Module, torch.Generator, torch.Tensor], torch.Tensor]
"""``loss(z, y, head, generator, rows)``: features (B, 64) and labels (B,) of the batch, the head (64 -> 10 logits), a
CPU generator for draws, and the batch's rows in the training set (B,)."""


@dataclass(frozen=True)
class Split:
    """Images in [0, 1], (n, 64) float32, and their digits, (n,) int64; of the pool and of the test."""

    pool: torch.Tensor
    pool_y: torch.Tensor
    test: torch.Tensor
    test_y: torch.Tensor

    def labelled(self, per_class: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return images and labels of the first ``per_class`` of each digit in the pool."""
        rows = torch.cat([(self.pool_y == c).nonzero()[:per_class, 0] for c in range(CLASSES)])
        return self.pool[rows], self.pool_y[rows]


@dataclass(frozen=True)
class Tuned:
    """A fine-tuned encoder and head, and the share of test images that they get right."""

    encoder: nn.Module
    head: nn.Module
    accuracy: float


def split(seed: int) -> Split:
    """Return the images of scikit-learn's digits, divided at random."""
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(seed))
    x = torch.tensor(data.data / 16, dtype=torch.float32)[order]
    y = torch.tensor(data.target, dtype=torch.int64)[order]
    return Split(x[:POOL], y[:POOL], x[POOL:], y[POOL:])


def mlp() -> nn.Sequential:
    """Return the encoder, (B, 64) -> features (B, 64), none below 0."""
    widths = (64, 256, 256, D)
    layers = [(nn.Linear(a, b), nn.ReLU()) for a, b in itertools.pairwise(widths)]
    return nn.Sequential(*(module for pair in layers for module in pair))


def augment(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return one view of each image, (B, 64)."""
    n = len(x)
    padded = functional.pad(x.view(n, 8, 8), (1, 1, 1, 1))
    places = padded.unfold(1, 8, 1).unfold(2, 8, 1)  # (B, 3, 3, 8, 8)
    dy, dx = torch.randint(3, (2, n), generator=generator)
    moved = places[torch.arange(n), dy, dx].reshape(n, 64)
    bright = 0.7 + 0.6 * torch.rand(n, 1, generator=generator)
    return moved * bright + 0.15 * torch.randn(n, 64, generator=generator)


def simclr_loss(v: torch.Tensor, tau: float) -> torch.Tensor:
    """Return the NT-Xent loss of unit rows (2B, k), whose row i has its other view in row i + B."""
    n = len(v)
    logits = (v @ v.T / tau).fill_diagonal_(-math.inf)
    return functional.cross_entropy(logits, torch.arange(n).roll(n // 2))


def pretrain(pool: torch.Tensor, seed: int, epochs: int = 60, batch: int = 200) -> nn.Sequential:
    """Return an encoder that SimCLR has trained on images without labels."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    encoder, projection = mlp(), nn.Sequential(nn.Linear(D, D), nn.ReLU(), nn.Linear(D, 32))
    optimizer = torch.optim.Adam([*encoder.parameters(), *projection.parameters()], lr=1e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(pool), generator=generator).split(batch):
            views = torch.cat([augment(pool[rows], generator) for _ in range(2)])
            loss = simclr_loss(functional.normalize(projection(encoder(views)), dim=1), 0.2)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return encoder


def plain(
    z: torch.Tensor, y: torch.Tensor, head: nn.Module, generator: torch.Generator, rows: torch.Tensor
) -> torch.Tensor:
    """Return the cross-entropy: plain fine-tuning."""
    return functional.cross_entropy(head(z), y)


def fine_tune(
    encoder: nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    data: Split,
    loss: Loss = plain,
    *,
    seed: int,
    lr: float = 0.05,
    epochs: int = 300,
    batch: int = 50,
    head_lr: float | None = None,
    extra: nn.Module | None = None,
) -> Tuned:
    """Fine-tune a copy of the encoder and a new head without bias.

    Heads and orders of the rows are those of the seed, so that arms of one seed differ in the loss alone.

    Args:
        encoder: the pre-trained one; it stays as it is.
        x: labelled images (n, 64).
        y: their labels (n,).
        data: for the test.
        loss: of one batch; `Loss`.
        seed: of head, order and draws.
        lr: at the start.
        epochs: passes over ``x``.
        batch: rows of a step.
        head_lr: rate of the head, if it has its own.
        extra: a module that is trained beside the model and thrown away.
    """
    encoder = copy.deepcopy(encoder)
    torch.manual_seed(seed)
    head = nn.Linear(D, CLASSES, bias=False)
    order, draws = (torch.Generator().manual_seed(seed + 10_000 * k) for k in (1, 2))
    body = [*encoder.parameters(), *(extra.parameters() if extra is not None else ())]
    groups = [{"params": body}, {"params": list(head.parameters()), "lr": head_lr or lr}]
    optimizer = torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True)
    steps = epochs * math.ceil(len(x) / batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=order).split(batch):
            optimizer.zero_grad()
            loss(encoder(x[rows]), y[rows], head, draws, rows).backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        right = (head(encoder(data.test)).argmax(1) == data.test_y).float().mean()
    return Tuned(encoder, head, float(right))


def compactness(features: torch.Tensor, y: torch.Tensor) -> float:
    """Return the mean cosine between unit features (n, k) and the mean direction of their class."""
    v = functional.normalize(features, dim=1)
    centres = torch.stack([v[y == c].mean(0) for c in range(CLASSES)])
    return float((v * functional.normalize(centres, dim=1)[y]).sum(1).mean())
