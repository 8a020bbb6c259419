"""Graph-based activity regularisation and the pooled soft-max, as functions of node activities Z (b, n).

Kilinc, Uysal, "Auto-clustering Output Layer", 2017 (arXiv 1702.08648); GAR itself: arXiv 1705.07219. n = n_parents * k
nodes; node j belongs to parent j mod n_parents, so Z seen as (b, k, n_parents) has one parent per last index. With
B = max(0, Z), N = B' B, v a row of node totals and V = v' v,

    affinity  alpha = sum_{i != j} N_ij / ((n - 1) sum_i N_ii)
    balance   beta  = sum_{i != j} V_ij / ((n - 1) sum_i V_ii)

N and V are never formed: sum_ij N_ij is the sum of squared row sums of B and trace N its squared norm, and likewise
for V, so both cost O(b n). All of it is computed in float32 at least, whatever Z is.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from tunesmith.core.errors import ParameterError

__all__ = [
    "BALANCE_TYPES",
    "affinity",
    "balance",
    "check_nodes",
    "coactivity",
    "gar_loss",
    "parent_logits",
    "parent_probabilities",
    "pooling_matrix",
    "range_penalty",
]

BALANCE_TYPES = range(9)


def check_nodes(Z: Tensor, n_parents: int, owner: str) -> Tensor:
    """Return Z (b, n) as (b, k, n_parents), in float32 at least.

    Raises:
        ParameterError: n is no multiple of ``n_parents``.
    """
    if n_parents < 1 or Z.shape[-1] % n_parents:
        raise ParameterError(
            "n_parents", owner, f"a divisor of the number of nodes, {Z.shape[-1]}", n_parents
        )
    return (Z if Z.dtype == torch.float64 else Z.float()).reshape(*Z.shape[:-1], -1, n_parents)


def _ratio(off_diagonal: Tensor, diagonal: Tensor, others: int) -> Tensor:
    """Return off_diagonal / (others * diagonal), 0 with zero gradient where nothing is active."""
    return off_diagonal / (others * diagonal).clamp_min(torch.finfo(diagonal.dtype).tiny)


def _grouped(Z: Tensor, n_parents: int, balance_type: int, owner: str) -> tuple[Tensor, int]:
    """Return B as (b, m, g) and m: within each of the g groups all pairs of the m nodes count.

    Types 1, 2: one group of all n nodes; 3, 4, 7, 8: a group per parent, of its k nodes; 5, 6: one group of k nodes,
    each summed over the parents.
    """
    if balance_type not in BALANCE_TYPES[1:]:
        raise ParameterError("balance_type", owner, "an int in [1, 8]", balance_type)
    B = check_nodes(Z, n_parents, owner).relu()
    if balance_type in (1, 2):
        B = B.flatten(1).unsqueeze(2)
    elif balance_type in (5, 6):
        B = B.sum(dim=2, keepdim=True)
    if B.shape[1] < 2:
        raise ParameterError(
            "k", owner, f"at least 2 nodes to compare for balance_type={balance_type}", B.shape[1]
        )
    return B, B.shape[1]


def affinity(Z: Tensor, n_parents: int = 1, balance_type: int = 1) -> Tensor:
    """Return alpha in [0, 1]: 0 if no example excites two nodes, 1 if all nodes do the same.

    It does not change when Z is scaled by a positive number or when rows or nodes are permuted (nodes of a parent,
    for types 3 to 8).

    Args:
        Z: (b, n) activities of the nodes, before soft-max and dropout.
        n_parents: needed for types 3 to 8.
        balance_type: 1, 2: all pairs of nodes; 3, 4: pairs of one parent; 5, 6: nodes summed over parents; 7, 8: per
            parent, averaged.

    Returns:
        A scalar. Time and memory O(b n).

    Raises:
        ParameterError: unknown type, n no multiple of ``n_parents``, fewer than two nodes to compare.
    """
    B, m = _grouped(Z, n_parents, balance_type, "affinity")
    trace = B.square().sum(dim=(0, 1))  # (g,)
    off = B.sum(dim=1).square().sum(dim=0) - trace
    if balance_type >= 7:
        return _ratio(off, trace, m - 1).mean()
    return _ratio(off.sum(), trace.sum(), m - 1)


def balance(Z: Tensor, n_parents: int = 1, balance_type: int = 1) -> Tensor:
    """Return beta in [0, 1]: 1 if all nodes carry the same total activity, 0 if one carries everything.

    Args:
        Z: (b, n).
        n_parents: needed for types 3 to 8.
        balance_type: groups as for `affinity`; the total v of a node is its squared activity (odd types) or its
            activity (even; in type 8 the sum over its column of N).

    Returns:
        A scalar. Time and memory O(b n).

    Raises:
        ParameterError: as `affinity`.
    """
    B, m = _grouped(Z, n_parents, balance_type, "balance")
    if balance_type % 2:
        v = B.square().sum(dim=0)  # (m, g)
    elif balance_type == 8:
        v = (B * B.sum(dim=1, keepdim=True)).sum(dim=0)
    else:
        v = B.sum(dim=0)
    v = v / v.amax().detach().clamp_min(
        torch.finfo(v.dtype).tiny
    )  # beta is scale-free: no overflow of squares
    trace = v.square().sum(dim=0)  # (g,)
    off = v.sum(dim=0).square() - trace
    if balance_type >= 7:
        return _ratio(off, trace, m - 1).mean()
    return _ratio(off.sum(), trace.sum(), m - 1)


def coactivity(Z: Tensor, n_parents: int = 1, balance_type: int = 1) -> Tensor:
    """Return sum_{i != j} N_ij over the pairs that ``balance_type`` counts: affinity without its denominator (v1)."""
    B, _ = _grouped(Z, n_parents, balance_type, "coactivity")
    return B.sum(dim=1).square().sum() - B.square().sum()


def range_penalty(Z: Tensor) -> Tensor:
    """Return sum_j (max_i B_ij - min_i B_ij), which the authors use for very many parents (balance type 0)."""
    B = (Z if Z.dtype == torch.float64 else Z.float()).relu()
    return (B.amax(dim=0) - B.amin(dim=0)).sum()


def gar_loss(
    Z: Tensor,
    n_parents: int = 1,
    *,
    c_alpha: float = 1.0,
    c_beta: float = 1.0,
    c_f: float = 1e-6,
    c_3: float = 0.0,
    balance_type: int = 1,
    variant: Literal["paper", "official"] = "paper",
) -> Tensor:
    """Return c_alpha alpha + c_beta (1 - beta) + c_3 coactivity + c_F ||Z||_F^2, to be added to the cross-entropy.

    Low affinity makes each example excite one node; high balance keeps all nodes in use; the quadratic term bounds
    the activities, which the other two, being scale-free, do not. It is a sum over the batch, so its strength grows
    with the batch. alpha and beta have no gradient in a negative Z. A batch should hold several times n rows.

    Args:
        Z: (b, n) logits of all nodes, any floating type.
        n_parents: parents, see `affinity`.
        c_alpha: weight of affinity (the range penalty for type 0).
        c_beta: weight of balance.
        c_f: weight of the quadratic term.
        c_3: weight of the coactivity, for the end of a training: affinity passes little gradient once it is small.
        balance_type: 1 to 8, see `affinity`, or 0 for `range_penalty` in their stead.
        variant: ``"official"`` takes the balance for the coactivity in types 1, 2, 5 to 8, as the authors' code does.

    Returns:
        A scalar. Time and memory O(b n).

    Raises:
        ParameterError: as `affinity`, or an unknown variant.
    """
    if variant not in ("paper", "official"):
        raise ParameterError("variant", "gar_loss", "'paper' or 'official'", variant)
    wide = Z if Z.dtype == torch.float64 else Z.float()
    loss = c_f * wide.square().sum()
    if balance_type == 0:
        return loss + c_alpha * range_penalty(wide)
    beta = balance(wide, n_parents, balance_type)
    loss = loss + c_alpha * affinity(wide, n_parents, balance_type) + c_beta * (1 - beta)
    if c_3:
        copies = variant == "official" and balance_type not in (3, 4)
        loss = loss + c_3 * (beta if copies else coactivity(wide, n_parents, balance_type))
    return loss


def parent_logits(Z: Tensor, n_parents: int) -> Tensor:
    """Return logits (..., n_parents) whose soft-max are the parents' pooled probabilities Y.

    logsumexp over the duplicates of each parent, so any cross-entropy on them is -log Y in its stable form.

    Args:
        Z: (..., n).
        n_parents: divides n.
    """
    return torch.logsumexp(check_nodes(Z, n_parents, "parent_logits"), dim=-2)


def parent_probabilities(Z: Tensor, n_parents: int, pooling: Literal["sum", "max"] = "sum") -> Tensor:
    """Return Y (..., n_parents): soft-max over all nodes, pooled over the duplicates of a parent.

    ``"max"`` is the authors' other pooling; its rows do not sum to 1.
    """
    nodes = check_nodes(Z, n_parents, "parent_probabilities")
    P = torch.softmax(nodes.flatten(-2), dim=-1).reshape(nodes.shape)
    return P.sum(dim=-2) if pooling == "sum" else P.amax(dim=-2)


def pooling_matrix(
    n_parents: int, k: int, layout: Literal["stacked", "contiguous"] = "stacked", null_node: bool = False
) -> Tensor:
    """Return the constant W_pool (n, n_parents) of Y = P W_pool, for looking at: nothing here multiplies by it.

    ``"stacked"`` is k identities one below the other, the layout of this package; ``"contiguous"`` puts the
    duplicates of a parent side by side. ``null_node`` appends the column without weights that the authors' code needs
    for a single parent (here its cross-entropy is 0 as it stands).
    """
    identity = torch.eye(n_parents)
    W = identity.repeat(k, 1) if layout == "stacked" else identity.repeat_interleave(k, dim=0)
    return torch.cat([W, W.new_zeros(len(W), 1)], dim=1) if null_node else W
