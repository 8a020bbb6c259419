"""Which half: the draw of HFT (Hui et al., ACL 2025, section 4, arXiv 2404.18466) as a function of a list of matrices.

In each layer two of the four attention matrices, one of the two norms, and of the three feed-forward matrices two in
one half of the layers and one in the other, so that over the model exactly half of each category is trained. Inferred,
where the paper is silent: shares other than one half, odd numbers of layers (the larger half gets two of three),
two-matrix feed-forward parts (one of two), and a bias goes with its matrix.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tunesmith.core.errors import ParameterError
from tunesmith.tuners._base import refuse_quantized
from tunesmith.tuners.anatomy import Block, anatomy

__all__ = ["BALANCES", "LEVELS", "Matrix", "matrices_of", "select_half"]

LEVELS = ("category", "layer", "model")
BALANCES = ("matrices", "params")
FUSED = ("qkv", "gate_up")
_EXPERTS = re.compile(r"\.(\w*experts?)\.")
_ROUTER = re.compile(r"\.(gate|router|\w*router\w*|shared_expert_gate)\.")


@dataclass(frozen=True)
class Matrix:
    """What is trained or frozen as one: a weight, and its bias if it has one.

    Attributes:
        layer: number of its layer, from 0.
        category: ``attention``, ``ffn``, ``norm`` or ``router``.
        size: numbers in it.
        parameters: names in the model, the weight first.
        fused: whether it holds several of the paper's matrices in one tensor.
    """

    layer: int
    category: str
    size: int
    parameters: tuple[str, ...]
    fused: bool = False


def select_half(
    matrices: Sequence[Matrix],
    rng: np.random.Generator,
    *,
    ratio: float = 0.5,
    level: str = "category",
    balance: str = "matrices",
) -> set[str]:
    """Draw the matrices that a round trains.

    Level ``category``: in each layer and category of n matrices, floor(n ratio) or one more are drawn, and the layers
    that draw one more are drawn too, such that over all layers round(ratio n L) are trained (halves up). ``layer``:
    round(ratio L) whole layers. ``model``: round(ratio M) of all M matrices, wherever they are.

    Args:
        matrices: all that may be frozen, in any order that is always the same.
        rng: source of the draw.
        ratio: share of the matrices to train, in [0, 1].
        level: ``"category"`` (the method), ``"layer"`` or ``"model"`` (the paper's comparisons).
        balance: ``"matrices"`` counts matrices. ``"params"`` draws within groups of equal size, so that the share holds
            for numbers too: under grouped-query attention one of {Q, O} and one of {K, V} (inferred).

    Returns:
        Names of the trained parameters among those of ``matrices``. Time O(M log M).

    Raises:
        ParameterError: a parameter is outside its set.
    """
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 <= ratio <= 1:
        raise ParameterError("ratio", select_half, "a float in [0, 1]", ratio)
    if level not in LEVELS:
        raise ParameterError("level", select_half, f"one of {', '.join(LEVELS)}", level)
    if balance not in BALANCES:
        raise ParameterError("balance", select_half, f"one of {', '.join(BALANCES)}", balance)
    layers: dict[int, list[Matrix]] = {}
    for matrix in matrices:
        layers.setdefault(matrix.layer, []).append(matrix)
    # Strata: within each of them the share is kept. A row is what is drawn from together, a unit what is drawn.
    strata: dict[Any, dict[Any, list[list[Matrix]]]] = {}
    by_size = balance == "params"
    if level == "layer":
        for own in layers.values():
            size = sum(matrix.size for matrix in own) if by_size else 0
            strata.setdefault(size, {}).setdefault(0, []).append(own)
    else:
        for matrix in matrices:
            size = matrix.size if by_size else 0
            stratum, row = ((matrix.category, size), matrix.layer) if level == "category" else (size, 0)
            strata.setdefault(stratum, {}).setdefault(row, []).append([matrix])
    chosen = [unit for rows in strata.values() for unit in _draw(list(rows.values()), rng, float(ratio))]
    return {name for unit in chosen for matrix in unit for name in matrix.parameters}


def _draw(rows: list[list[Any]], rng: np.random.Generator, ratio: float) -> list[Any]:
    """Draw floor(n ratio) or one more of each row's n units: round(ratio total) of all."""
    shares = [round(len(row) * ratio, 9) for row in rows]  # 9 digits: 10 x 0.3 is three, not a hair below
    counts = [math.floor(share) for share in shares]
    more = math.floor(round(sum(map(len, rows)) * ratio, 9) + 0.5) - sum(counts)
    partial = [i for i, share in enumerate(shares) if share > math.floor(share)]
    for i in rng.permutation(partial)[:more]:
        counts[int(i)] += 1
    return [
        row[int(j)]
        for row, count in zip(rows, counts, strict=True)
        for j in rng.permutation(len(row))[:count]
    ]


def matrices_of(model: Any) -> tuple[list[Matrix], list[str]]:
    """Return the matrices of a model's layers, and the names of the parameters outside of them.

    Stacked experts are a feed-forward matrix each stack, a router is a category of its own, and vectors that belong to
    no matrix (layer scales, attention sinks) are drawn with the norms (inferred).

    Args:
        model: a transformers model without adapters.

    Returns:
        The matrices in the model's order, and embeddings, final norm and head (tied ones once).

    Raises:
        ParameterError: the model has no transformer layers, matrices whose category cannot be told, quantised weights,
            or adapters.
    """
    if hasattr(model, "peft_config"):
        raise ParameterError(
            "model",
            "HalfFineTuning",
            "without adapters: half of its own weights are trained",
            type(model).__name__,
        )
    found = anatomy(model)
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    dims = {name: p.dim() for name, p in model.named_parameters()}
    matrices: list[Matrix] = []
    unknown: list[str] = []
    for block in found.blocks:
        for part in block.parts:
            refuse_quantized(
                part.module, part.name, "HalfFineTuning", "frozen and trained halves are its own weights"
            )
            size = sum(sizes[name] for name in part.parameters)
            matrices.append(Matrix(block.index, part.category, size, part.parameters, part.role in FUSED))
        rest, strange = _unmatched(block, sizes, dims)
        matrices += rest
        unknown += strange
    if unknown:
        more = f" and {len(unknown) - 8} more" if len(unknown) > 8 else ""
        raise ParameterError(
            "model",
            "HalfFineTuning",
            "a transformer whose layers hold attention and feed-forward matrices and norms only; the category of these "
            f"tensors is not known: {', '.join(unknown[:8])}{more}",
            type(model).__name__,
        )
    return matrices, found.outside


def _unmatched(block: Block, sizes: dict[str, int], dims: dict[str, int]) -> tuple[list[Matrix], list[str]]:
    """Sort what belongs to no part of a block: experts, routers, vectors; return those, and what is unknown."""
    groups: dict[str, list[str]] = {}
    for name in block.unmatched:  # a bias goes with its weight: experts.down_proj and experts.down_proj_bias
        groups.setdefault(re.sub(r"[._]bias$", "", re.sub(r"\.weight$", "", name)), []).append(name)
    matrices, unknown = [], []
    for names in groups.values():
        ordered = tuple(sorted(names, key=lambda name: name.endswith("bias")))
        first = ordered[0]
        size = sum(sizes[name] for name in ordered)
        if _EXPERTS.search(first):
            matrices.append(Matrix(block.index, "ffn", size, ordered, fused=True))
        elif _ROUTER.search(first):
            matrices.append(Matrix(block.index, "router", size, ordered))
        elif all(dims[name] <= 1 for name in ordered):
            matrices.append(Matrix(block.index, "norm", size, ordered))
        else:
            unknown.append(first)
    return matrices, unknown
