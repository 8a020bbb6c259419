"""The settings of MoSA."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

from tunesmith.core.errors import ParameterError
from tunesmith.tuners._base import TunerConfig

__all__ = ["MosaConfig"]

NONLINEARITY = {"adaptformer": "gelu", "pfeiffer": "relu", "houlsby": "silu"}
"""Of the bottleneck of each style."""


@dataclass
class MosaConfig(TunerConfig):
    """Mixture of sparse adapters: an adapter is split into parts, trained part by part at random, and merged.

    Zhang, Zou, An, Liu, Zhang: *MoSA: Mixture of Sparse Adapters for Visual Efficient Tuning*, arXiv 2312.02923.
    Each weight of a split projection belongs to one of E parts. A training pass uses one part per projection, drawn
    anew each pass, with initial values at the places of the others; evaluation uses the mean of the parts. The number
    of trained weights is the plain adapter's (each part has its own bias), and so is the cost at inference. The method
    adds a loss between two passes, `tunesmith.trainers.ConsistencyMixin`; without it this is random sparse training.

    ``flavour="lora"`` sits beside linear layers (query and value projections by default), merges into them and
    converts to stock LoRA of the same rank. ``flavour="adapter"`` is a bottleneck with a nonlinearity: style
    ``adaptformer`` stands beside the MLP module and reads its (already normalised) input; ``pfeiffer`` follows the
    feed-forward part and ``houlsby`` attention's output too, both before the residual addition. Draws depend on
    ``seed`` and the number of the pass alone, so they are equal on all processes; the number is saved with the adapter,
    so a resumed run draws what a straight one would. Under DDP set
    ``ddp_find_unused_parameters=True`` or ``step_undrawn=True``, since an undrawn part has no gradient.

    Attributes:
        flavour: ``"lora"`` or ``"adapter"``.
        style: of the adapter flavour: ``"adaptformer"``, ``"pfeiffer"`` or ``"houlsby"``.
        r: rank, or width of the bottleneck.
        num_parts: E; 1 is the plain adapter.
        share: the projection that stays dense: ``"down"`` (LoRA's A), ``"up"`` (B) or ``"none"``.
        structure: parts are drawn over the whole tensor, ``"all"``, or inside every ``"row"`` or ``"column"``.
        scale: factor of the branch; by default 1 for LoRA, 0.1 for ``adaptformer``, 1 for the others.
        dropout: before LoRA's A; on the bottleneck of ``adaptformer``. In [0, 1).
        layer_norm: a trained LayerNorm before the adapter; by default all but ``houlsby`` have one.
        split_bias: split the up (down) bias like its weight, instead of one per part.
        merge_scale: ``"mean"``, which training expects, or ``"sum"``.
        step_undrawn: undrawn parts get a gradient of zero instead of none, so that momentum moves them.
        seed: of the initial values, the split and the draws.

    Raises:
        ParameterError: a setting outside its set.
    """

    tuner_name: ClassVar[str] = "mosa"

    flavour: str = field(default="lora", metadata={"help": "lora or adapter."})
    style: str = field(default="adaptformer", metadata={"help": "adaptformer, pfeiffer or houlsby."})
    r: int = field(default=16, metadata={"help": "Rank, or width of the bottleneck."})
    num_parts: int = field(default=4, metadata={"help": "E, parts of each split projection."})
    share: str = field(default="down", metadata={"help": "Dense projection: down, up or none."})
    structure: str = field(default="all", metadata={"help": "all, row or column."})
    scale: float | None = field(default=None, metadata={"help": "Factor of the branch."})
    dropout: float = field(default=0.0, metadata={"help": "Of LoRA's input, or of the bottleneck."})
    layer_norm: bool | None = field(default=None, metadata={"help": "A LayerNorm before the adapter."})
    split_bias: bool = field(default=False, metadata={"help": "Split biases too."})
    merge_scale: str = field(default="mean", metadata={"help": "mean or sum of the parts."})
    step_undrawn: bool = field(default=False, metadata={"help": "Undrawn parts get zero gradients."})
    seed: int = field(default=0, metadata={"help": "Of initial values, split and draws."})

    def __post_init__(self) -> None:
        """Check each setting."""
        super().__post_init__()
        _one_of("flavour", self.flavour, ("lora", "adapter"))
        _one_of("style", self.style, tuple(NONLINEARITY))
        _one_of("share", self.share, ("down", "up", "none"))
        _one_of("structure", self.structure, ("all", "row", "column"))
        _one_of("merge_scale", self.merge_scale, ("mean", "sum"))
        _count("r", self.r, 1, None)
        _count("num_parts", self.num_parts, 1, 127)
        if self.scale is not None and not 0 < self.scale < math.inf:
            raise ParameterError("scale", MosaConfig, "a float above 0", self.scale)
        if not 0 <= self.dropout < 1:
            raise ParameterError("dropout", MosaConfig, "a float in [0, 1)", self.dropout)

    @property
    def factor(self) -> float:
        """The branch's factor: ``scale`` or its default."""
        if self.scale is not None:
            return self.scale
        return 0.1 if self.flavour == "adapter" and self.style == "adaptformer" else 1.0

    @property
    def nonlinearity(self) -> str:
        """Name of the bottleneck's nonlinearity."""
        return "identity" if self.flavour == "lora" else NONLINEARITY[self.style]

    @property
    def normalised(self) -> bool:
        """Whether the branch begins with a LayerNorm."""
        if self.flavour == "lora":
            return False
        return self.style != "houlsby" if self.layer_norm is None else self.layer_norm


def _one_of(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ParameterError(name, MosaConfig, " or ".join(repr(option) for option in allowed), value)


def _count(name: str, value: Any, least: int, most: int | None) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least or (most and value > most):
        wanted = f"an int of at least {least}" if most is None else f"an int in [{least}, {most}]"
        raise ParameterError(name, MosaConfig, wanted, value)
