"""What our PEFT tuners have in common: the config's usual fields, and questions about the layers they sit on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from peft import PeftConfig, PeftType

from tunesmith.core.errors import ParameterError
from tunesmith.tuners.registration import type_of

__all__ = ["TunerConfig", "is_linear", "is_quantized", "linear_shape", "refuse_quantized"]


@dataclass
class TunerConfig(PeftConfig):
    """Fields that PEFT's configs share, with PEFT's meaning of each.

    Attributes:
        target_modules: module names or their ends (a list), a regular expression (a string), or None for the tuner's
            own choice by the model's structure.
        exclude_modules: names, ends or an expression that are left alone.
        layers_to_transform: block numbers, counted from 0; all by default.
        layers_pattern: name of the list of blocks, where it cannot be found by structure.
        modules_to_save: modules trained as a whole and saved with the adapter, such as a new head.
    """

    tuner_name: ClassVar[str] = ""

    target_modules: list[str] | str | None = field(
        default=None,
        metadata={"help": "Modules by name, end of name or regular expression; None: by structure."},
    )
    exclude_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Modules that are left alone."}
    )
    layers_to_transform: list[int] | int | None = field(
        default=None, metadata={"help": "Block numbers, counted from 0; all by default."}
    )
    layers_pattern: list[str] | str | None = field(
        default=None, metadata={"help": "Name of the list of blocks where structure does not tell."}
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Modules trained as a whole and saved with the adapter."}
    )

    def __post_init__(self) -> None:
        """Set the type, and turn lists of names into sets, as PEFT's own configs do."""
        super().__post_init__()
        # The member and not its text: transformers' own adapter loading asks it for ``value``.
        self.peft_type = PeftType(type_of(self.tuner_name))
        for name in ("target_modules", "exclude_modules"):
            if isinstance(getattr(self, name), list):
                setattr(self, name, set(getattr(self, name)))


def is_linear(module: Any) -> bool:
    """Say whether ``module`` is a linear layer: torch's, GPT-2's ``Conv1D``, or a quantiser's."""
    kind = type(module).__name__
    return isinstance(module, torch.nn.Linear) or "Linear" in kind or kind == "Conv1D"


def linear_shape(module: Any) -> tuple[int, int]:
    """Return ``(in, out)`` widths of a linear layer; ``Conv1D`` keeps its weight transposed."""
    if hasattr(module, "in_features"):
        return int(module.in_features), int(module.out_features)
    wide, out = module.weight.shape
    return int(wide), int(out)


def is_quantized(module: Any) -> bool:
    """Say whether the layer's weight is kept in another form than floating-point numbers of its own shape."""
    weight = getattr(module, "weight", None)
    if weight is None:  # GPTQ, AWQ, HQQ keep packed tensors under other names
        return is_linear(module)
    return not weight.is_floating_point() or type(weight).__name__ in ("Params4bit", "Int8Params")


def refuse_quantized(module: Any, name: str, caller: Any, why: str) -> None:
    """Raise `ParameterError` if the layer is quantised.

    Args:
        module: the layer.
        name: its name in the model.
        caller: whose parameter ``model`` is refused.
        why: the reason, as the end of a sentence: ``"its parts are merged into the weight"``.
    """
    if is_quantized(module):
        raise ParameterError(
            "model",
            caller,
            f"in floating point, because {why}: load the base in 16 or 32 bits",
            f"{name}: {type(module).__name__}",
        )
