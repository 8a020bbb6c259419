"""DEPICT's objective as functions of tensors, in the paper's symbols (Dizaji et al. 2017, Secs. 3.1-3.3).

p_ik is the clean soft-max, q_ik the auxiliary target, f_k = (1/N) sum_i q_ik, u_k the prior frequency of a cluster.
They serve any loop: a ``Trainer`` subclass computes q from all p in an epoch callback and adds the two losses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tunesmith.core.errors import ParameterError

__all__ = ["SMALLEST_MASS", "cluster_loss", "reconstruction_loss", "relative_entropy", "target_distribution"]

SMALLEST_MASS = 1e-8  # column sums are held above this before a division


@torch.no_grad()
def target_distribution(
    P: Tensor, rule: Literal["dec", "paper"] = "dec", prior: Tensor | None = None
) -> Tensor:
    """Return the auxiliary target Q of cluster probabilities P; no gradient flows through it.

    ``"paper"``: q proportional to p (u / sum_i p)^(1/2), the paper's closed form. It does not sharpen: with equal
    column sums Q = P. ``"dec"``: q proportional to p^2 u / sum_i p, which the authors' code computes (the target of
    DEC, Xie et al. 2016); it squares and so sharpens. Both move mass to small clusters. The form for a u that is
    not uniform follows from the paper's derivation (paper rule) or is taken over (dec rule).

    Args:
        P: (N, K), rows sum to 1.
        rule: see above.
        prior: (K,) frequencies u, default uniform.

    Returns:
        (N, K), rows sum to 1. Time and memory O(N K).

    Raises:
        ParameterError: an unknown rule.
    """
    mass = P.sum(dim=0).clamp_min(SMALLEST_MASS)  # (K,)
    if rule == "dec":
        weight = P.square() * ((1.0 if prior is None else prior) / mass)
    elif rule == "paper":
        weight = P * ((1.0 if prior is None else prior) / mass).sqrt()
    else:
        raise ParameterError("rule", "target_distribution", "'dec' or 'paper'", rule)
    return weight / weight.sum(dim=1, keepdim=True)


def relative_entropy(Q: Tensor, P: Tensor, prior: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return KL(Q || P), averaged over rows, and KL(f || u): the two terms of the objective (Sec. 3.2).

    The second is 0 if and only if the clusters have the prior's frequencies; for uniform u a collapsed Q costs log K.

    Args:
        Q: (N, K) targets.
        P: (N, K) probabilities, positive where Q is.
        prior: (K,) frequencies u, default uniform.
    """
    f = Q.mean(dim=0)
    u = torch.full_like(f, 1 / len(f)) if prior is None else prior
    return (torch.xlogy(Q, Q) - torch.xlogy(Q, P)).sum(dim=1).mean(), (
        torch.xlogy(f, f) - torch.xlogy(f, u)
    ).sum()


def cluster_loss(logits: Tensor, Q: Tensor) -> Tensor:
    """Return the cross-entropy -(1/B) sum_i sum_k q_ik log p~_ik of the noisy pathway (parameter update, Sec. 3.3).

    Its gradient in the logits is (p - q) / B.

    Args:
        logits: (B, K) of the noisy pathway, before the soft-max.
        Q: (B, K) targets, or (B,) hard labels.
    """
    return F.cross_entropy(logits, Q)


def reconstruction_loss(
    clean: Sequence[Tensor], decoded: Sequence[Tensor], inner_weight: float = 1.0
) -> Tensor:
    """Return (1/B) sum_i sum_l (1/|z_i^l|) ||z_i^l - zhat_i^l||^2 over the levels that are decoded (Sec. 3.3).

    Args:
        clean: activations z^0 (the input), z^1, ... of the clean pathway; more than ``decoded`` are passed over.
        decoded: zhat^0, zhat^1, ... from the noisy code.
        inner_weight: factor of all levels but the input: 1 in the paper, 0.1 in the authors' code.
    """
    loss = F.mse_loss(decoded[0], clean[0])
    if inner_weight:
        for z, z_hat in zip(clean[1:], decoded[1:], strict=False):
            loss = loss + inner_weight * F.mse_loss(z_hat, z)
    return loss
