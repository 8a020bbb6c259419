"""Autoencoders that expose every layer: the clean and noisy encoders and the decoder of DEPICT (Sec. 3.3)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tunesmith.cluster._torch import mlp
from tunesmith.core.errors import ParameterError

__all__ = ["Centre", "LayeredAutoencoder", "check_network", "conv_autoencoder", "mlp_autoencoder"]

leaky = partial(nn.LeakyReLU, 0.01)


class Centre(nn.Module):
    """Take the mean row off, a constant: another form of the first layer's bias.

    Background pixels of -1 are a large constant input. Every step of Adam then shifts all units of the first layer
    alike, and at the usual rates the tanh code saturates within a few steps and never comes back.
    """

    mean: Tensor

    def __init__(self, mean: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)

    def forward(self, x: Tensor) -> Tensor:
        """Return x - mean."""
        return x - self.mean


class LayeredAutoencoder(nn.Module):
    """Encoder blocks g(W_e^l .) and decoder blocks, as many; noise is dropout on the input and between blocks.

    Blocks contain their activation. The blocks themselves hold no noise and no batch statistics, so both pathways
    are functions of the row alone and share all weights.

    Args:
        encoder: L blocks; the last one gives the code (B, d_z).
        decoder: L blocks, from the code back to the input: block j gives the level L - 1 - j.
        dropout: rates of the levels 0..L-1 (input first); one number p means p on all of them but the level before
            the code, which has none, as in the authors' code.
    """

    def __init__(
        self,
        encoder: Iterable[nn.Module],
        decoder: Iterable[nn.Module],
        dropout: float | Sequence[float] = 0.1,
    ) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.ModuleList(encoder), nn.ModuleList(decoder)
        L = len(self.encoder)
        if isinstance(dropout, float | int):
            dropout = [float(dropout)] * max(L - 1, 1) + [0.0] * (L > 1)
        if L == 0 or len(self.decoder) != L:
            raise ParameterError(
                "decoder", type(self), f"as many blocks as the encoder, {L}", len(self.decoder)
            )
        if len(dropout) != L or not all(0 <= p < 1 for p in dropout):
            raise ParameterError("dropout", type(self), f"one rate in [0, 1) or {L} of them", dropout)
        self.dropout = tuple(float(p) for p in dropout)

    def activations(self, x: Tensor, noise: bool = False) -> list[Tensor]:
        """Return z^0, ..., z^L, or with ``noise`` z~^0, ..., z~^L; the last is the code, on which is no dropout."""
        z = x
        kept: list[Tensor] = []
        for block, p in zip(self.encoder, self.dropout, strict=True):
            z = F.dropout(z, p) if noise and p else z
            kept.append(z)
            z = block(z)
        return [*kept, z]

    def reconstructions(self, code: Tensor) -> list[Tensor]:
        """Return zhat^0, ..., zhat^(L-1) decoded from a code (B, d_z)."""
        levels: list[Tensor] = []
        for block in self.decoder:
            code = block(code)
            levels.append(code)
        return levels[::-1]


def mlp_autoencoder(
    n_features: int,
    hidden: Sequence[int],
    code: int,
    dropout: float | Sequence[float] = 0.1,
    output: nn.Module | None = None,
) -> LayeredAutoencoder:
    """Return a mirrored perceptron: leaky ReLU inside, tanh code, linear output.

    Args:
        n_features: width of the input.
        hidden: widths of the encoder's hidden layers.
        code: d_z.
        dropout: see `LayeredAutoencoder`.
        output: activation of the last decoder layer.
    """
    sizes = [n_features, *hidden, code]
    return LayeredAutoencoder(
        mlp(sizes, leaky, nn.Tanh()), mlp(sizes[::-1], leaky, output or nn.Identity()), dropout
    )


def conv_autoencoder(
    image_shape: Sequence[int],
    n_filters: Sequence[int],
    code: int,
    *,
    kernel_sizes: Sequence[int] = (4, 5),
    strides: Sequence[int] = (2, 2),
    paddings: Sequence[int] = (0, 2),
    dropout: float | Sequence[float] = 0.1,
    output: nn.Module | None = None,
) -> LayeredAutoencoder:
    """Return the paper's convolutional autoencoder: convolutions, a dense tanh code, and their transposes.

    Args:
        image_shape: (C, H, W).
        n_filters: feature maps of each convolution (paper: 50, 50).
        code: d_z.
        kernel_sizes: of each convolution; with the paddings (4, 5) and (0, 2) for MNIST, (4, 5) and (2, 2) for
            FRGC and CMU-PIE, (5, 4) and (2, 0) for YTF.
        strides: of each convolution.
        paddings: of each convolution.
        dropout: see `LayeredAutoencoder`.
        output: activation of the last decoder layer, by default tanh.

    Raises:
        ParameterError: the sizes of a level do not come back, or the four lists differ in length.
    """
    layers = list(zip(n_filters, kernel_sizes, strides, paddings, strict=False))
    if not len(n_filters) == len(kernel_sizes) == len(strides) == len(paddings) > 0:
        raise ParameterError(
            "kernel_sizes", "DEPICT", "as long as n_filters, strides and paddings, at least 1", kernel_sizes
        )
    shapes = [tuple(image_shape)]
    for maps, k, s, p in layers:
        shapes.append((maps, *((side + 2 * p - k) // s + 1 for side in shapes[-1][1:])))
    for before, after, (_, k, s, p) in zip(shapes[:-1], shapes[1:], layers, strict=True):
        back = tuple((side - 1) * s - 2 * p + k for side in after[1:])
        if back != before[1:] or min(after[1:]) < 1:
            raise ParameterError(
                "kernel_sizes",
                "DEPICT",
                f"such that the decoder gives back the size {before[1:]} of a level; with kernel {k}, stride {s} and "
                f"padding {p} it gives {back}. Pad or resize the images",
                tuple(kernel_sizes),
            )
    encoder: list[nn.Module] = []
    decoder: list[nn.Module] = []
    for c, (maps, k, s, p) in zip((shape[0] for shape in shapes), layers, strict=False):
        encoder.append(nn.Sequential(nn.Conv2d(c, maps, k, s, p), leaky()))
        end = leaky() if decoder else (output or nn.Tanh())
        decoder.append(nn.Sequential(nn.ConvTranspose2d(maps, c, k, s, p), end))
    width = shapes[-1][0] * shapes[-1][1] * shapes[-1][2]
    encoder.append(nn.Sequential(nn.Flatten(), nn.Linear(width, code), nn.Tanh()))
    decoder.append(nn.Sequential(nn.Linear(code, width), leaky(), nn.Unflatten(1, shapes[-1])))
    network = LayeredAutoencoder(encoder, decoder[::-1], dropout)
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
    return network


@torch.no_grad()
def check_network(network: Any, x: Tensor, owner: Any) -> int:
    """Run two rows through a network and return the width of its code.

    Raises:
        ParameterError: no ``activations`` or ``reconstructions``, batch normalisation (it mixes clean and noisy
            statistics, and a prediction would depend on the batch), a code that is no vector, or a level whose
            decoded size is another.
    """

    def refuse(what: str) -> ParameterError:
        return ParameterError("encoder", owner, what, type(network).__name__)

    if not (hasattr(network, "activations") and hasattr(network, "reconstructions")):
        raise refuse(
            "a sequence of blocks together with decoder, or a module with activations and reconstructions"
        )
    if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in network.modules()):
        raise refuse("a network without batch normalisation (GroupNorm and LayerNorm are fine)")
    levels = network.activations(x[:2])
    decoded = network.reconstructions(levels[-1])
    if levels[-1].ndim != 2:
        raise refuse(
            f"a network whose last block gives (rows, width), not the shape {tuple(levels[-1].shape)}"
        )
    for i, (z, z_hat) in enumerate(zip(levels, decoded, strict=False)):
        if z.shape != z_hat.shape:
            raise refuse(
                f"a network whose decoder gives back level {i} as {tuple(z.shape[1:])}, not {tuple(z_hat.shape[1:])}"
            )
    return int(levels[-1].shape[1])
