"""LoFiT's formulas (Yin, Ye, Durrett, NeurIPS 2024, arXiv 2406.01563, section 3): pure functions on tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

__all__ = [
    "fold_offsets",
    "fold_scales",
    "head_scores",
    "noise_level",
    "rank_heads",
    "scale_and_shift",
    "sparsity",
]


def scale_and_shift(z: torch.Tensor, A: torch.Tensor | None, v: torch.Tensor | None) -> torch.Tensor:
    """Return ``(1 + A) * z + v`` elementwise: both stages' forward, before the output projection.

    Args:
        z: head outputs, joined, ``[..., H * d_h]``.
        A: scales of all heads, ``[H * d_h]``; None is 0.
        v: offsets of all heads, ``[H * d_h]``; None is 0.
    """
    if A is not None:
        z = z * (1 + A).to(z.dtype)
    return z if v is None else z + v.to(z.dtype)


def sparsity(scales: Any, l1: float) -> torch.Tensor:
    """Return ``l1 * sum |A|`` over the entries of some tensors: a sum, not a mean (stage 1's penalty)."""
    return l1 * torch.stack([A.abs().sum() for A in scales]).sum()


def head_scores(A: torch.Tensor) -> torch.Tensor:
    """Return ``S = ||A||_2`` per head in float64: ``[..., d_h]`` -> ``[...]``."""
    return torch.linalg.vector_norm(A.detach().double(), dim=-1)


def rank_heads(scores: np.ndarray[Any, Any]) -> list[tuple[int, int]]:
    """Return all ``(layer, head)`` pairs, most important first; of equal scores the lower pair comes first.

    Args:
        scores: ``[L, H]``; not-a-number marks heads that do not exist or were left out.
    """
    flat = scores.ravel()
    order = np.argsort(-flat, kind="stable")  # not-a-number is put last
    order = order[: int(np.isfinite(flat).sum())]
    layers, heads = np.unravel_index(order, scores.shape)
    return [(int(layer), int(head)) for layer, head in zip(layers, heads, strict=True)]


def noise_level(init_std: float, head_dim: int) -> float:
    """Return ``2 * sigma_A * sqrt(d_h)``: a best score no higher than that tells nothing but the initialisation."""
    return 2 * init_std * float(np.sqrt(head_dim))


def fold_offsets(weight: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Return the bias ``W_O v`` in float32, which equals adding ``v`` to the projection's input.

    Args:
        weight: output projection, ``[d, H * d_h]``.
        v: offsets, ``[H * d_h]``.
    """
    return weight.float() @ v.float()


def fold_scales(weight: torch.Tensor, A: torch.Tensor) -> torch.Tensor:
    """Return ``W_O diag(1 + A)`` in float32, which equals scaling the projection's input.

    Args:
        weight: output projection, ``[d, H * d_h]``.
        A: scales, ``[H * d_h]``.
    """
    return weight.float() * (1 + A.float())
