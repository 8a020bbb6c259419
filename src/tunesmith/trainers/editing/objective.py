"""The loss of a batch of edits (arXiv 2509.22072, section 2)."""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy

from tunesmith.core.errors import ParameterError

__all__ = ["edit_loss"]


def edit_loss(
    logits: torch.Tensor, labels: torch.Tensor, reduction: str = "sample"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss of a batch and of each edit, in nats.

    l_j = -(1 / |o_j|) sum_t log P(o_{j,t} | p_j, o_{j,<t}), where |o_j| counts the end-of-sequence token too, and
    L_B = (1 / |B|) sum_j l_j; with ``"token"`` L_B is the mean over all target tokens of the batch.

    Args:
        logits: (b, t, V); those at position t predict the token at t + 1.
        labels: (b, t) token ids, -100 on prompt and padding.
        reduction: ``"sample"`` or ``"token"``.

    Returns:
        L_B, and the l_j (b,), float32.

    Raises:
        ParameterError: ``reduction`` is neither.
    """
    if reduction not in ("sample", "token"):
        raise ParameterError("reduction", edit_loss, "'sample' or 'token'", reduction)
    wanted = labels[:, 1:] != -100
    nll = cross_entropy(
        logits[:, :-1].float().transpose(1, 2), labels[:, 1:], reduction="none", ignore_index=-100
    )
    counts = wanted.sum(1)
    each = nll.sum(1) / counts
    return (each.mean() if reduction == "sample" else nll.sum() / counts.sum()), each
