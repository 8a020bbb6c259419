"""The step distribution of contrastive generation (arXiv 2410.14765)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import log_softmax

from tunesmith.core.errors import ParameterError

__all__ = ["check_contrast", "contrasted", "floored", "plausible", "row_contrast", "step_scores"]


def check_contrast(alpha: Any, gamma: Any, owner: Any) -> None:
    """Raise ParameterError unless alpha is in [0, 1] and gamma at least 0."""
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not 0 <= alpha <= 1:
        raise ParameterError("alpha", owner, "a float in [0, 1]", alpha)
    if isinstance(gamma, bool) or not isinstance(gamma, (int, float)) or not 0 <= gamma < math.inf:
        raise ParameterError("gamma", owner, "a float of at least 0", gamma)


def plausible(log_p: torch.Tensor, alpha: float) -> torch.Tensor:
    """Return the set ``V = {v : p(v) >= alpha max_w p(w)}`` as bool (..., V); the likeliest token is always in it.

    A token exactly at the bound stays.

    Args:
        log_p: log-probabilities (..., V).
        alpha: 0 keeps all, 1 the likeliest alone.
    """
    if alpha == 0:
        return torch.ones_like(log_p, dtype=torch.bool)
    return log_p >= log_p.amax(-1, keepdim=True) + math.log(alpha)


def step_scores(
    logits_ft: torch.Tensor,
    logits_pt: torch.Tensor,
    *,
    alpha: float = 0.1,
    gamma: float = 1.0,
    banned: Sequence[int] = (),
) -> torch.Tensor:
    """Return ``log p_ft(v) - gamma log p_pt(v)`` on the plausible set of p_ft, minus infinity outside.

    Both terms are whole log-softmax values in float32. Sampling from the softmax of these scores draws a token with
    probability proportional to ``p_ft / p_pt^gamma``.

    Args:
        logits_ft: of the tuned model, (..., V); log-probabilities do as well.
        logits_pt: of the model before tuning, (..., V).
        alpha: of `plausible`.
        gamma: weight of the contrast; 0 leaves filtered sampling from the tuned model.
        banned: ids that are never drawn; the others' scores stay what they are.

    Returns:
        float32 (..., V). Time and memory O(V) per row.
    """
    log_ft = log_softmax(logits_ft.float(), dim=-1)
    log_pt = None if gamma == 0 else log_softmax(logits_pt.float(), dim=-1)
    return contrasted(log_ft, log_pt, alpha=alpha, gamma=gamma, banned=banned)


def contrasted(
    log_ft: torch.Tensor,
    log_pt: torch.Tensor | None,
    *,
    alpha: float,
    gamma: float,
    banned: Sequence[int] = (),
) -> torch.Tensor:
    """Return `step_scores` of log-probabilities in float32; ``log_pt`` may be None where gamma is 0."""
    scores = log_ft if log_pt is None else log_ft - gamma * log_pt
    if banned:
        log_ft = log_ft.index_fill(-1, torch.tensor(banned, device=log_ft.device), -math.inf)
    return scores.masked_fill(~plausible(log_ft, alpha) | log_ft.isneginf(), -math.inf)


def floored(log_p: torch.Tensor, *, top_p: float | None = None, top_k: int | None = None) -> torch.Tensor:
    """Raise the base model's least likely tokens to the smallest log-probability that is kept.

    An option of the authors' code that their runs leave off. As there, the smallest kept value is that of all rows of
    the batch, so that rows touch each other.

    Args:
        log_p: log-probabilities (N, V) of the base.
        top_p: beta: tokens that hold a mass of up to 1 - beta together, the least likely ones, are raised.
        top_k: kappa: tokens below the kappa-th largest are raised.
    """
    low = torch.zeros_like(log_p, dtype=torch.bool)
    if top_p is not None:
        values, order = log_p.sort(dim=-1)
        low.scatter_(-1, order, values.exp().cumsum(-1) <= 1 - top_p)
    if top_k is not None:
        low |= log_p < log_p.topk(min(top_k, log_p.shape[-1]), dim=-1).values[..., -1:]
    return log_p.masked_fill(low, float(log_p[~low].min()))


def row_contrast(
    logits_ft: torch.Tensor,
    logits_pt: torch.Tensor,
    ids: torch.Tensor,
    counted: torch.Tensor,
    *,
    gamma: float = 1.0,
    renormalise: bool = False,
) -> torch.Tensor:
    """Return the mean over counted tokens of ``log p_ft - gamma log p_pt`` for each row.

    Args:
        logits_ft: of the tuned model, (B, T, V).
        logits_pt: of the model before tuning, (B, T, V).
        ids: tokens (B, T).
        counted: bool (B, T - 1), which tokens after the first count.
        gamma: weight of the contrast.
        renormalise: take the log-probability of each token under the contrast as a distribution over the vocabulary
            instead, as the authors' extraction of rows may.

    Returns:
        float32 (B,); the higher, the newer.
    """
    contrast = step_scores(logits_ft[:, :-1], logits_pt[:, :-1], alpha=0, gamma=gamma)
    if renormalise:
        contrast = log_softmax(contrast, dim=-1)
    found = contrast.gather(-1, ids[:, 1:, None])[..., 0]
    return (found * counted).sum(-1) / counted.sum(-1).clamp(min=1)
