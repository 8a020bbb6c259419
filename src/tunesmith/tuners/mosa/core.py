"""MoSA's equations on tensors (arXiv 2312.02923): the split, one part in use, the merge, one bottleneck.

Symbols: ``n`` weights of a projection; ``E`` parts; ``W_init`` what all parts start from; ``w`` (n,) the trained
numbers, of which part e owns those at ``positions[e]``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional

__all__ = [
    "NONLINEARITIES",
    "bottleneck",
    "merge_parts",
    "owner_map",
    "part_sizes",
    "place_part",
    "positions_of",
]

NONLINEARITIES: dict[str, Callable[[Any], Any]] = {
    "gelu": functional.gelu,
    "identity": lambda x: x,
    "relu": functional.relu,
    "silu": functional.silu,
}


def part_sizes(n: int, E: int) -> list[int]:
    """Return how many of ``n`` entries each of ``E`` parts owns: they differ by at most 1; n=10, E=4: 2, 3, 2, 3."""
    return [(e + 1) * n // E - e * n // E for e in range(E)]


def owner_map(scores: torch.Tensor, E: int, structure: str = "all") -> torch.Tensor:
    """Return which part owns each entry (step 2): ranks of ``scores``, cut at floor(e n / E).

    Boundaries are integers and the sort is stable, so parts are disjoint and cover everything also where scores tie.

    Args:
        scores: independent uniform numbers, of the weight's shape.
        E: parts, at most 127.
        structure: ``"all"``: over the whole tensor; ``"row"``, ``"column"``: the rule inside every row or column.

    Returns:
        int8, of the same shape. Time O(n log n).
    """
    if structure == "all":
        return owner_map(scores.reshape(1, -1), E, "row").reshape(scores.shape)
    dim = 1 if structure == "row" else 0
    order = torch.argsort(scores, dim=dim, stable=True)
    sizes = torch.tensor(part_sizes(scores.shape[dim], E), device=scores.device)
    of_rank = torch.repeat_interleave(torch.arange(E, dtype=torch.int8, device=scores.device), sizes)
    of_rank = of_rank if structure == "row" else of_rank[:, None]
    return torch.empty_like(order, dtype=torch.int8).scatter_(
        dim, order, of_rank.expand_as(order).contiguous()
    )


def positions_of(owner: torch.Tensor, E: int) -> list[torch.Tensor]:
    """Return the flat positions of each part's entries, ascending, int64."""
    return [(owner.reshape(-1) == e).nonzero()[:, 0] for e in range(E)]


def place_part(W_init: torch.Tensor, positions: torch.Tensor, w_e: torch.Tensor) -> torch.Tensor:
    """Return W_e, a part with its whole tensor (step 4): ``w_e`` at its own places, W_init elsewhere.

    Gradients reach ``w_e`` alone.
    """
    return W_init.reshape(-1).index_copy(0, positions, w_e).view(W_init.shape)


def merge_parts(
    W_init: torch.Tensor, positions: torch.Tensor, w: torch.Tensor, E: int, scale: str = "mean"
) -> torch.Tensor:
    """Return the merged projection (step 7) without building the parts.

    An entry is trained in one part and initial in the other E - 1, so their mean is ``(w + (E - 1) W_init) / E``.
    ``"sum"`` adds the parts' changes up: the entry is ``w``.

    Args:
        W_init: of the weight's shape.
        positions: (n,) flat positions of ``w``: those of all parts, one after the other.
        w: (n,) trained numbers in that order.
        E: parts.
        scale: ``"mean"``, the expectation over the random draw, or ``"sum"``.
    """
    if scale == "mean":
        w = (w + (E - 1) * W_init.reshape(-1)[positions]) / E
    return place_part(W_init, positions, w)


def bottleneck(
    x: Any,
    down: tuple[Any, Any],
    up: tuple[Any, Any],
    phi: Callable[[Any], Any],
    inner: Callable[[Any], Any] = lambda a: a,
) -> Any:
    """Return ``W_u drop(phi(W_d x + b_d)) + c`` (step 1), (..., d_out) for x (..., d_in).

    Args:
        x: (..., d_in).
        down: W_d (r, d_in) and b_d (r,) or None.
        up: W_u (d_out, r) and c (d_out,) or None.
        phi: nonlinearity.
        inner: dropout on the bottleneck.
    """
    return functional.linear(inner(phi(functional.linear(x, *down))), *up)


def mean_of(parts: Sequence[torch.Tensor], scale: str) -> torch.Tensor:
    """Merge tensors that every part trains as a whole (biases): their mean, or their sum."""
    total = torch.stack(list(parts)).sum(0)
    return total / len(parts) if scale == "mean" else total
