"""Squared norms of gradients from their factors."""

from __future__ import annotations

import torch

from tunesmith.numerics.gradients.capture import Use

__all__ = ["squared_norms"]


def squared_norms(uses: list[Use], shape: torch.Size) -> torch.Tensor:
    """Return the squared norms, float64 ``(B,)``, of the gradients that some uses add up to."""
    first = uses[0].whole if uses[0].whole is not None else uses[0].right
    assert first is not None
    tokens = sum(0 if use.right is None else use.right.shape[1] for use in uses)
    plain = all(use.left is not None and use.left.dtype != torch.int64 for use in uses)
    if any(use.whole is not None for use in uses) or (plain and tokens * sum(shape) > shape[0] * shape[-1]):
        if len(uses) == 1 and uses[0].whole is not None:
            return uses[0].whole.double().flatten(1).square().sum(1)
        sums = (sum(use.gradient(i, shape) for use in uses) for i in range(len(first)))
        return torch.stack([torch.as_tensor(total).double().square().sum() for total in sums])
    total = torch.zeros(len(first), dtype=torch.float64, device=first.device)
    for i, one in enumerate(uses):
        for j, other in enumerate(uses[: i + 1]):
            both = _gram(one.left, other.left) * _gram(one.right, other.right)
            total += (1 if i == j else 2) * both.double().sum((1, 2))
    return total


def _gram(x: torch.Tensor | None, y: torch.Tensor | None) -> torch.Tensor:
    """Return the inner products ``(B, T, T')`` of vectors, or of the one-hot vectors that int64 places stand for."""
    assert x is not None
    assert y is not None
    if x.dtype == y.dtype == torch.int64:
        return (x.unsqueeze(2) == y.unsqueeze(1)).float()
    if y.dtype == torch.int64:
        return x.float().gather(2, y.unsqueeze(1).expand(-1, x.shape[1], -1))
    if x.dtype == torch.int64:
        return _gram(y, x).transpose(1, 2)
    return x.float() @ y.float().transpose(1, 2)
