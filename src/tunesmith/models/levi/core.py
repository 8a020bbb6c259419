"""LEVI's mathematics on tensors: pooling, adapting layers, the ensemble of their outputs and its loss.

Symbols: H (B, T, d) hidden states of a layer, z (B, d) pooled, h (B, m) the view, n layers, o (n, B, C) their outputs,
r the width of an adapting layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, log_softmax, logsigmoid

from tunesmith.core.errors import ParameterError

__all__ = [
    "AGGREGATES",
    "LOSSES",
    "POOLINGS",
    "AdaptingLayer",
    "Heads",
    "aggregate",
    "ensemble_loss",
    "even_layers",
    "pool",
]

POOLINGS = ("mean", "cls", "last")
AGGREGATES = ("logits", "probs")
LOSSES = ("per_head", "joint")
MULTI = "multi_label_classification"


def even_layers(depth: int, n: int = 4) -> list[int]:
    """Return min(n, depth) layers, evenly spaced over 1 to ``depth``, the last one among them."""
    n = min(n, depth)
    return [-(-depth * i // n) for i in range(1, n + 1)]


def pool(H: torch.Tensor, how: str = "mean", mask: torch.Tensor | None = None) -> torch.Tensor:
    """Return one vector per example, z (B, d), in at least float32.

    Args:
        H: (B, T, d); or (B, channels, height, width), averaged over space; or (B, d), returned as it is.
        how: ``"mean"``, ``"cls"`` (first token) or ``"last"`` (last token).
        mask: (B, T), 0 at padding, on either side; without one every token counts.

    Raises:
        ParameterError: ``how`` does not fit H, or the mask is of another length than H.
    """
    dtype = torch.promote_types(H.dtype, torch.float32)
    if H.ndim == 2:
        return H.to(dtype)
    if H.ndim == 4 and how == "mean":
        return H.mean((2, 3), dtype=dtype)
    if H.ndim != 3:
        shape = f"{how!r} for features of shape {tuple(H.shape)}"
        raise ParameterError.worded(
            "The 'pooling' parameter of LEVI must be 'mean' for maps (B, channels, height, width), and features must "
            f"be (B, d), (B, T, d) or such maps. Got {shape} instead."
        )
    if mask is None:
        return H.mean(1, dtype=dtype) if how == "mean" else H[:, 0 if how == "cls" else -1].to(dtype)
    if mask.shape != H.shape[:2]:
        raise ParameterError.worded(
            f"The 'attention_mask' of LEVI must have one entry per hidden state, {tuple(H.shape[:2])}. Got "
            f"{tuple(mask.shape)} instead."
        )
    kept = mask.bool()
    if how == "mean":
        total = H.masked_fill(~kept[..., None], 0).sum(1, dtype=dtype)
        return total / kept.sum(1, keepdim=True).clamp(min=1)
    T = H.shape[1]
    place = mask.long().argmax(1) if how == "cls" else T - 1 - kept.flip(1).long().argmax(1)
    return H[torch.arange(len(H), device=H.device), place].to(dtype)


class AdaptingLayer(nn.Module):
    """``o = A([LN(z); h])`` with ``A = Linear(d + m, r), GELU, Linear(r, C)``; one linear layer where r is 0.

    The last layer starts at zero, so every head starts at the uniform prediction.

    Args:
        d: width of z.
        m: width of h.
        r: width inside, 0 for none.
        C: outputs.
        norm: normalise z; without it the larger of the two views drowns the other.
    """

    def __init__(self, d: int, m: int, r: int, C: int, norm: bool = True) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d) if norm else nn.Identity()
        self.down = nn.Linear(d + m, r) if r else nn.Identity()
        self.up = nn.Linear(r or d + m, C)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, z: torch.Tensor, h: torch.Tensor, ablate: str | None = None) -> torch.Tensor:
        """Return o (B, C); ``ablate`` puts zeros for the ``"base"`` (after its LayerNorm) or the ``"view"``."""
        z = self.norm(z.to(self.up.weight.dtype))
        z = torch.zeros_like(z) if ablate == "base" else z
        h = torch.zeros_like(h) if ablate == "view" else h
        x = self.down(torch.cat([z, h.to(z.dtype)], dim=-1))
        if isinstance(self.down, nn.Linear):
            x = nn.functional.gelu(x)
        o: torch.Tensor = self.up(x)
        return o


class Heads(nn.Module):
    """The adapting layers of all used layers; one module, which PEFT can train and save whole."""

    def __init__(self, layers: Iterable[AdaptingLayer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, zs: Sequence[torch.Tensor], h: torch.Tensor, ablate: str | None = None) -> torch.Tensor:
        """Return o (n, B, C)."""
        return torch.stack([A(z, h, ablate) for A, z in zip(self.layers, zs, strict=True)])


def aggregate(
    o: torch.Tensor, how: str = "logits", problem: str = "single_label_classification"
) -> torch.Tensor:
    """Return the prediction (B, C) of n heads ``o`` (n, B, C).

    ``"logits"``: their mean. ``"probs"``: logits whose probabilities are the heads' mean probabilities (softmax, or
    one sigmoid per class with several labels).
    """
    if how == "logits":
        return o.mean(0)
    o = o.float()
    n = math.log(len(o))
    if problem == MULTI:
        return (logsigmoid(o).logsumexp(0) - n) - (logsigmoid(-o).logsumexp(0) - n)
    return log_softmax(o, -1).logsumexp(0) - n


def ensemble_loss(
    o: torch.Tensor,
    labels: torch.Tensor,
    *,
    loss: str = "per_head",
    how: str = "logits",
    problem: str = "single_label_classification",
    num_items: torch.Tensor | float | None = None,
) -> torch.Tensor:
    """Return the loss of n heads: the mean of their losses, or the loss of their aggregate.

    Args:
        o: (n, B, C).
        labels: classes (B,), of which -100 does not count; numbers (B,) or (B, C) for regression; 0 or 1 (B, C) where
            there are several labels.
        loss: ``"per_head"``: ``(1/n) sum_i l(o_i, y)``. ``"joint"``: ``l(aggregate(o), y)``.
        how: how heads are aggregated.
        problem: ``"single_label_classification"`` (cross-entropy, nats), ``"regression"`` (squared error) or
            ``"multi_label_classification"`` (binary cross-entropy).
        num_items: labels of the whole accumulated batch, by which the sum is divided; those of this one by default.
    """
    if loss == "joint":
        o = aggregate(o, how, problem)[None]
    n, B, C = o.shape
    o = o.float()
    if problem == "single_label_classification":
        total = cross_entropy(o.reshape(n * B, C), labels.reshape(-1).repeat(n), reduction="sum")
        count: torch.Tensor | float = (labels != -100).sum()
    else:
        y = labels.reshape(B, C).to(o.dtype).expand_as(o)
        several = problem == MULTI
        total = binary_cross_entropy_with_logits(o, y, reduction="sum") if several else (o - y).square().sum()
        count = B * C
    divisor = torch.as_tensor(count if num_items is None else num_items, device=o.device)
    return total / n / divisor.clamp(min=1)
