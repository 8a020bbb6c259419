"""The losses of the three stages as functions of tensors.

Sindicic and Kopriva 2025 (arXiv 2504.18179). The distance product, the row convention of C and the square root in the
quality loss follow the authors' code; rows are samples throughout.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

__all__ = ["distance_product_loss", "quality_loss", "reconstruction_loss", "self_expression_loss"]


def reconstruction_loss(X: torch.Tensor, X_hat: torch.Tensor) -> torch.Tensor:
    """Return ``|X - X_hat|_F^2``, a sum over all entries."""
    return (X - X_hat).square().sum()


def distance_product_loss(layers: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return ``(1 / (L + 1)) sum_l sum_ij H^0_ij H^l_ij`` with the squared distances H^l of layer l.

    It keeps apart what lies close in the input and draws together what lies far apart; its infimum is a collapsed
    encoder, so watch the norms of the layers. Here for comparison with the authors' code.

    Args:
        layers: V^0 (the input) to V^L, each ``(N, D_l)``.

    Returns:
        A scalar. Time O(N^2 sum D_l), memory O(N^2).
    """
    first = _squared_distances(layers[0])
    total = first.new_zeros(())
    for layer in layers:
        total = total + (first * _squared_distances(layer)).sum()
    return total / len(layers)


def self_expression_loss(
    C: torch.Tensor, layers: Sequence[torch.Tensor], zero_diagonal: bool = True
) -> torch.Tensor:
    """Return ``sum_l |V^l - C V^l|_F^2``: one C must write every sample by the others in every layer.

    Args:
        C: ``(N, N)``; row i holds the coefficients of sample i.
        layers: V^0 (the input) to V^L, each ``(N, D_l)``.
        zero_diagonal: leave out the diagonal of C, which then gets no gradient. Otherwise C = I solves everything.

    Returns:
        A scalar. Time O(N^2 sum D_l).
    """
    V = torch.cat(list(layers), dim=1)  # the sum over layers is one product
    if zero_diagonal:
        C = C - torch.diag(C.diagonal())
    return (V - C @ V).square().sum()


def quality_loss(C: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return ``tr(Q' (diag(W 1) - W) Q)`` with ``W = (|C| + |C'|)^(1/2)`` and the one-hot Q of ``labels``.

    It is the sum of W over ordered pairs in different clusters: 0 exactly where no coefficient links two clusters.
    Entries that are 0 get no gradient, for the root has an infinite slope there.

    Args:
        C: ``(N, N)`` coefficients.
        labels: ``(N,)`` clusters, constants.

    Returns:
        A scalar. Time and memory O(N^2).
    """
    links = C.abs() + C.abs().T
    apart = labels[:, None] != labels[None, :]
    counted = apart & (links > 0)
    # The inner `where` keeps the root's slope finite, the outer one drops its value.
    root = torch.where(counted, links, torch.ones_like(links)).sqrt()
    return torch.where(counted, root, torch.zeros_like(root)).sum()


def _squared_distances(V: torch.Tensor) -> torch.Tensor:
    squares = V.square().sum(dim=1)
    return (squares[:, None] + squares[None, :] - 2 * V @ V.T).clamp_min(0)
