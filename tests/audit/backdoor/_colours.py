"""A tiny model of images that are mostly one of four colours, for the tests of the defence."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.audit.backdoor.encoders import DualEncoder

SIZE = 8
COLOURS = ["red", "green", "blue", "grey"]
TARGET = 2
TEMPLATES = ["a photo of a {}"]
RGB = torch.tensor([[0.9, 0.2, 0.2], [0.2, 0.9, 0.2], [0.2, 0.2, 0.9], [0.5, 0.5, 0.5]])


class Tower(nn.Module):
    """Four stages of a convolution with batch normalisation."""

    def __init__(self, out: int = 6) -> None:
        super().__init__()
        for i, (a, b) in enumerate([(3, 6), (6, 8), (8, 8), (8, 8)], start=1):
            conv = nn.Conv2d(a, b, 3, 2 if i == 2 else 1, 1)
            self.add_module(f"layer{i}", nn.Sequential(conv, nn.BatchNorm2d(b), nn.ReLU()))
        self.head = nn.Linear(8, out)

    def forward(self, x: Tensor) -> Tensor:
        for i in range(1, 5):
            x = getattr(self, f"layer{i}")(x)
        return self.head(x.mean(dim=(2, 3)))


class Colours(nn.Module):
    """Image tower and one vector per colour word."""

    image_size, image_mean, image_std = SIZE, (0.4, 0.4, 0.4), (0.3, 0.3, 0.3)

    def __init__(self) -> None:
        super().__init__()
        self.visual, self.words = Tower(), nn.Embedding(len(COLOURS), 6)

    def encode_image(self, x: Tensor) -> Tensor:
        return self.visual(x)

    def encode_text(self, texts: list[str]) -> Tensor:
        found = [next((i for i, c in enumerate(COLOURS) if c in text), 0) for text in texts]
        return self.words(torch.tensor(found))


def untrained(seed: int = 0) -> DualEncoder:
    """A model with random weights and statistics."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Colours()
        model.train()
        with torch.no_grad():
            for _ in range(3):
                model.encode_image(torch.randn(16, 3, SIZE, SIZE))
    return DualEncoder.of(model)


def pictures(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return n images in [0, 1] and their colours, in turns."""
    draws = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % len(COLOURS)
    noise = 0.15 * torch.randn(n, 3, SIZE, SIZE, generator=draws)
    return (RGB[labels][:, :, None, None] + noise).clamp(0, 1), labels


def mark(pixels: Tensor) -> Tensor:
    """The planted trigger: a checked square in the corner."""
    out = pixels.clone()
    square = (torch.arange(3)[:, None] + torch.arange(3)) % 2
    out[..., -3:, -3:] = square.to(pixels)
    return out


def trained(poisoned: bool, seed: int = 0, target: int = TARGET) -> DualEncoder:
    """A model that names colours; a poisoned one answers the mark with the target."""
    from tunesmith.audit.backdoor.attacks import fine_tune

    model = untrained(seed)
    x, y = pictures(240, seed + 1)
    if poisoned:
        rows = torch.nonzero(y != target)[::4, 0]  # of all other colours in turns
        x[rows], y[rows] = mark(x[rows]), target
    captions: list[Any] = [f"a photo of a {COLOURS[i]}" for i in y.tolist()]
    fine_tune(
        model, x, captions, y, epochs=12, batch_size=40, learning_rate=0.02, warmup=0.1, random_state=seed
    )
    return model


def weights(model: DualEncoder) -> Tensor:
    """The class texts of a model."""
    from tunesmith.audit.backdoor.zero_shot import zero_shot_weights

    return zero_shot_weights(model, COLOURS, TEMPLATES)


def state(model: DualEncoder) -> dict[str, Tensor]:
    """A copy of a model's weights and buffers."""
    return {name: value.clone() for name, value in model.model.state_dict().items()}
