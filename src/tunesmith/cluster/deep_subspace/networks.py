"""Encoders that show the output of every layer, and the decoders that mirror them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import nn

from tunesmith.cluster._torch import mlp

__all__ = ["ConvAutoencoder", "MLPAutoencoder"]


class MLPAutoencoder(nn.Module):
    """Fully connected layers with tanh; ``forward`` returns the outputs of all layers, ``decode`` the input.

    Args:
        n_features: D.
        hidden: widths of the layers.
    """

    def __init__(self, n_features: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(mlp([n_features, *hidden], nn.Tanh))
        back = [*reversed(hidden), n_features]
        self.decoder = nn.Sequential(*mlp(back, nn.Tanh, last=nn.Identity()))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Return the outputs (N, D_l) of layers 1 to L."""
        outputs = []
        for layer in self.layers:
            x = layer(x)
            outputs.append(x)
        return outputs

    def decode(self, code: torch.Tensor) -> torch.Tensor:
        """Return the input (N, D) from the last layer."""
        return self.decoder(code)


class ConvAutoencoder(nn.Module):
    """Strided convolutions with ReLU and their transposes; rows are flattened images.

    Args:
        image_shape: (channels, height, width).
        channels: of each layer.
        kernel_size: odd.
        stride: of each layer.
    """

    def __init__(
        self, image_shape: tuple[int, int, int], channels: Sequence[int], kernel_size: int, stride: int = 2
    ) -> None:
        super().__init__()
        self.image_shape = image_shape
        widths = [image_shape[0], *channels]
        pad = kernel_size // 2
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, kernel_size, stride, pad), nn.ReLU())
            for a, b in itertools.pairwise(widths)
        )
        self.back = nn.ModuleList(
            nn.ConvTranspose2d(b, a, kernel_size, stride, pad)
            for a, b in reversed(list(itertools.pairwise(widths)))
        )
        self.sizes = [(image_shape[1], image_shape[2])]  # before each layer: a stride forgets odd sizes
        for _ in channels:
            height, width = self.sizes[-1]
            self.sizes.append((-(-height // stride), -(-width // stride)))
        self.code_shape = (widths[-1], *self.sizes[-1])

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Return the flattened outputs (N, D_l) of layers 1 to L."""
        outputs = []
        x = x.reshape(len(x), *self.image_shape)
        for layer in self.layers:
            x = layer(x)
            outputs.append(x.flatten(1))
        return outputs

    def decode(self, code: torch.Tensor) -> torch.Tensor:
        """Return the input (N, D) from the last layer."""
        x = code.reshape(len(code), *self.code_shape)
        for i, layer in enumerate(self.back):
            x = layer(x, output_size=self.sizes[-2 - i])
            if i < len(self.back) - 1:
                x = torch.relu(x)
        return x.flatten(1)
