"""A plain classifier of vectors and rows for it."""

from __future__ import annotations

import torch
from datasets import Dataset
from torch import nn


class Net(nn.Module):
    """A plain classifier of vectors, with batch normalisation."""

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8) if norm else nn.Identity(), nn.ReLU())
        self.drop = nn.Dropout(0.0)
        self.fc = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.drop(self.encoder(x)))


def vectors(n: int = 24) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 5, generator=generator)
    return Dataset.from_dict({"x": x.tolist(), "labels": (x[:, :3].argmax(1)).tolist()})


def net(norm: bool = False) -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net(norm)
