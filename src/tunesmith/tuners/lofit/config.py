"""The config of a LoFiT adapter."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, ClassVar

from tunesmith.core.errors import ParameterError
from tunesmith.tuners._base import TunerConfig

__all__ = ["LofitConfig", "as_pairs"]


@dataclass
class LofitConfig(TunerConfig):
    """LoFiT (Yin, Ye, Durrett, NeurIPS 2024, arXiv 2406.01563): constant offsets of a few attention heads' outputs.

    ``z <- (1 + A) * z + v`` for the output ``z`` of each chosen head, at every position, before the output projection.
    Stage ``"bias"`` trains ``v`` and holds ``A`` at 0; stage ``"select"``, which `select_heads` runs, trains ``A`` and
    holds ``v`` at 0. Layers count the blocks of ``tunesmith.tuners.anatomy`` from 0; heads are query heads.

    ``target_modules``, ``exclude_modules`` and ``layers_to_transform`` restrict the layers; by default all output
    projections that the model's structure shows are open to choice.

    Attributes:
        heads: ``(layer, head)`` pairs, as `select_heads` returns them; None: every head.
        k: where ``heads`` is None, choose so many by stage 1 first (an int, or a share of all): done by a caller that
            has the data, through `with_heads`.
        l1: weight of the penalty in that stage 1.
        stage: ``"bias"`` or ``"select"``.
        init_std: standard deviation of the initial values; 0 starts from the base model exactly.
        seed: of the initial values, which depend on the layer besides and on no global state.
        layout: runs of equal blocks ``[blocks, heads of each, head width]`` of the model the adapter belongs to; filled
            in when it is added to a model, and checked when it is loaded.

    Raises:
        ParameterError: a value outside its set.
    """

    tuner_name: ClassVar[str] = "lofit"

    heads: list[list[int]] | None = field(
        default=None,
        metadata={"help": "(layer, head) pairs, as select_heads returns them; None: every head."},
    )
    k: int | float | None = field(
        default=None, metadata={"help": "Heads to choose by stage 1 before training, a number or a share."}
    )
    l1: float = field(default=1e-3, metadata={"help": "Weight of the penalty of that stage 1."})
    stage: str = field(
        default="bias",
        metadata={"help": "'bias': offsets of heads are trained; 'select': scales, to choose heads."},
    )
    init_std: float = field(
        default=1e-3, metadata={"help": "Standard deviation of the initial values; 0: the base model."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of the initial values."})
    layout: list[list[int]] | None = field(
        default=None, metadata={"help": "Runs [blocks, heads, head width] of the model; filled in by itself."}
    )

    def __post_init__(self) -> None:
        """Check the values and turn heads into lists, as JSON keeps them."""
        super().__post_init__()
        if self.stage not in ("bias", "select"):
            raise ParameterError("stage", self, "'bias' or 'select'", self.stage)
        if not isinstance(self.init_std, Real) or not 0 <= self.init_std < math.inf:
            raise ParameterError("init_std", self, "a finite number of at least 0", self.init_std)
        if self.heads is not None:
            self.heads = as_pairs(self.heads, self)


def as_pairs(heads: Any, owner: Any) -> list[list[int]]:
    """Return heads as ``[[layer, head], ...]``; takes lists, arrays and tensors of shape [K, 2].

    Raises:
        ParameterError: no head, something else than pairs of counts, or a pair given twice.
    """
    wanted = "a list of at least one (layer, head) pair, each given once and counted from 0"
    rows = heads.tolist() if hasattr(heads, "tolist") else heads
    try:
        pairs = [list(row) for row in rows]
    except TypeError:
        raise ParameterError("heads", owner, wanted, heads) from None
    if not pairs:
        raise ParameterError("heads", owner, wanted, heads)
    for pair in pairs:
        if len(pair) != 2 or not all(isinstance(n, Integral) and int(n) >= 0 for n in pair):
            raise ParameterError("heads", owner, wanted, pair)
    if len({tuple(pair) for pair in pairs}) < len(pairs):
        raise ParameterError("heads", owner, wanted, next(p for p in pairs if pairs.count(p) > 1))
    return [[int(layer), int(head)] for layer, head in pairs]
