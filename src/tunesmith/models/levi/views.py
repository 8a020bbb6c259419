"""Small models from scratch, the second view of LEVI: raw input in, h (B, m) out."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from tunesmith.models.levi.core import pool

__all__ = ["READS", "ImageView", "TextView", "VectorView", "make_view", "view_parameters"]

DEFAULT_LAYERS = {"text": 2, "image": 3, "vector": 2}
SIZES = (256, 128, 64, 32)
SHARE = 0.05
"""A view is at most this share of the base, if the smallest size allows it."""


class TextView(nn.Module):
    """A transformer encoder of width m, averaged over tokens without padding.

    Positions are sinusoids, so texts of any length pass. Time O(B T m (T + m)) per block.

    Args:
        vocabulary: token ids.
        m: width, a multiple of 4 for the heads.
        layers: blocks.
    """

    def __init__(self, vocabulary: int, m: int, layers: int) -> None:
        super().__init__()
        self.table = nn.Embedding(vocabulary, m)
        nn.init.normal_(self.table.weight, std=0.1)
        self.blocks = nn.ModuleList(_Block(m) for _ in range(layers))
        self.norm = nn.LayerNorm(m)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Token ids (B, T) and mask (B, T) -> h (B, m)."""
        x = self.table(input_ids)
        x = x + 0.1 * _sinusoids(x.shape[1], x.shape[2], x)
        seen = None
        if attention_mask is not None:
            kept = attention_mask.bool()
            seen = (kept | ~kept.any(1, keepdim=True))[:, None, None]
        for block in self.blocks:
            x = block(x, seen)
        return pool(self.norm(x), "mean", attention_mask)


class _Block(nn.Module):
    def __init__(self, m: int) -> None:
        super().__init__()
        self.heads = math.gcd(m, 4)
        self.norm1, self.norm2 = nn.LayerNorm(m), nn.LayerNorm(m)
        self.qkv, self.out = nn.Linear(m, 3 * m), nn.Linear(m, m)
        self.up, self.down = nn.Linear(m, 4 * m), nn.Linear(4 * m, m)

    def forward(self, x: torch.Tensor, seen: torch.Tensor | None) -> torch.Tensor:
        B, T, m = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(B, T, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        a = scaled_dot_product_attention(q, k, v, attn_mask=seen)
        x = x + self.out(a.transpose(1, 2).reshape(B, T, m))
        x = x + self.down(gelu(self.up(self.norm2(x))))
        return x


def _sinusoids(length: int, m: int, like: torch.Tensor) -> torch.Tensor:
    place = torch.arange(length, device=like.device)[:, None]
    rates = torch.exp(torch.arange(0, m, 2, device=like.device) * (-math.log(10_000.0) / m))
    angles = place * rates
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)[:, :m].to(like.dtype)


class ImageView(nn.Module):
    """Convolutions of stride 2, each with a GroupNorm and GELU, averaged over space.

    Args:
        channels: of the images.
        m: channels at the end; halved towards the front, at least 8.
        layers: convolutions.
    """

    def __init__(self, channels: int, m: int, layers: int) -> None:
        super().__init__()
        widths = _widths(channels, m, layers)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise(widths)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(1, b) for b in widths[1:])

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Images (B, channels, height, width) -> h (B, m)."""
        x = pixel_values.to(next(self.parameters()).dtype)
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = gelu(norm(convolution(x)))
        return pool(x)


class VectorView(nn.Module):
    """An MLP with GELU after each of its layers.

    Args:
        inputs: numbers per row.
        m: width.
        layers: linear layers.
    """

    def __init__(self, inputs: int, m: int, layers: int) -> None:
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(m if i else inputs, m) for i in range(layers))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Rows (B, inputs) -> h (B, m)."""
        x = inputs.to(next(self.parameters()).dtype)
        for linear in self.linears:
            x = gelu(linear(x))
        return x


READS = {"text": "input_ids", "image": "pixel_values", "vector": "inputs"}
CLASSES: dict[str, Any] = {"text": TextView, "image": ImageView, "vector": VectorView}


def view_parameters(kind: str, inputs: int, m: int, layers: int) -> int:
    """Return how many numbers such a view trains, without building it."""
    if kind == "text":
        return inputs * m + layers * (12 * m * m + 13 * m) + 2 * m
    if kind == "vector":
        return (inputs + 1) * m + (layers - 1) * (m + 1) * m
    widths = _widths(inputs, m, layers)
    return sum(9 * a * b + 3 * b for a, b in pairwise(widths))


def _widths(channels: int, m: int, layers: int) -> list[int]:
    """Return the channels before and after each convolution."""
    return [channels, *(max(min(8, m), m >> (layers - 1 - i)) for i in range(layers))]


def make_view(
    kind: str, inputs: int, m: int | None, layers: int | None, base: int
) -> tuple[nn.Module, int, int]:
    """Return the view, m and its layers; ``base`` is the number of the base's parameters, for m by default."""
    layers = layers or DEFAULT_LAYERS[kind]
    if m is None:
        fitting = (s for s in SIZES if view_parameters(kind, inputs, s, layers) <= SHARE * base)
        m = next(fitting, SIZES[-1])
    return CLASSES[kind](inputs, m, layers), m, layers
