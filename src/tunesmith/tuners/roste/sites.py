"""Which linear layers are quantised, and what is refused."""

from __future__ import annotations

import re
import warnings
from typing import Any

import torch

from tunesmith.core.errors import ParameterError
from tunesmith.numerics.hadamard import RandomHadamard, hadamard_block
from tunesmith.tuners._base import is_linear, is_quantized, linear_shape
from tunesmith.tuners._targets import matches, refuse_unmatched
from tunesmith.tuners.anatomy import anatomy
from tunesmith.tuners.roste.config import RosteConfig

__all__ = ["Rotations", "check_model", "linear_sites"]


class Rotations:
    """The rotations of a model: one sign vector per width, drawn from the seed, shared by sites of that width.

    Args:
        seed: of the signs.
        block_fallback: permit widths that are no power of two.
        signs: width -> signs that were drawn before.
    """

    def __init__(
        self, seed: int, block_fallback: bool = True, signs: dict[int, torch.Tensor] | None = None
    ) -> None:
        self.seed, self.block_fallback = seed, block_fallback
        self.of: dict[int, RandomHadamard] = {w: RandomHadamard(s) for w, s in (signs or {}).items()}

    def __call__(self, width: int) -> RandomHadamard | None:
        """Return the rotation of a width; None for odd widths, which have none.

        Raises:
            ParameterError: the width is no power of two and the fallback is off.
        """
        if not self.block_fallback and hadamard_block(width) != width:
            raise ParameterError(
                "block_fallback",
                RosteConfig,
                f"True for a model with a layer of width {width}, which is no power of two",
                False,
            )
        if width % 2:
            return None
        if width not in self.of:
            self.of[width] = RandomHadamard.drawn(width, self.seed)
        return self.of[width]


def check_model(model: Any, caller: Any) -> None:
    """Raise `ParameterError` for models that cannot be transformed: adapters inside, quantised."""
    if hasattr(model, "peft_config"):
        raise ParameterError(
            "model",
            caller,
            "a model without adapters: merge them first (merge_and_unload)",
            type(model).__name__,
        )
    for name, module in model.named_modules():
        if is_linear(module) and is_quantized(module):
            raise ParameterError(
                "model",
                caller,
                "in floating point, because its weights are trained and rounded anew at each step: load the base in "
                "16 or 32 bits",
                f"{name}: {type(module).__name__}",
            )


def linear_sites(model: Any, config: RosteConfig, caller: Any) -> dict[str, Any]:
    """Return the layers to quantise by name.

    Raises:
        ParameterError: an entry of ``target_modules`` matches no linear layer, or nothing is left; lists the nearest
            names.
    """
    head = getattr(model, "get_output_embeddings", lambda: None)()
    every = {name: module for name, module in model.named_modules() if name and _replaceable(module)}
    if config.target_modules is None:
        chosen = {name for name, module in every.items() if module is not head}
        blocks = _blocks(model)
        if blocks:
            chosen = {n for n in chosen if any(n.startswith(f"{block}.") for block in blocks)}
    else:
        chosen = _matching(every, config.target_modules, "target_modules")
    if config.exclude_modules is not None:
        chosen -= _matching(every, config.exclude_modules, "exclude_modules")
    if not chosen:
        raise ParameterError(
            "model", caller, "a model with linear layers to quantise; none is left", type(model).__name__
        )
    sites = {name: module for name, module in every.items() if name in chosen}
    for name, module in sites.items():
        width = linear_shape(module)[0]
        if config.group_size is not None and width % config.group_size:
            raise ParameterError(
                "group_size",
                RosteConfig,
                f"a divisor of the input width {width} of {name}, or None",
                config.group_size,
            )
    return sites


def _replaceable(module: Any) -> bool:
    """Whether calling the module is ``x W^T + b``; torch's own attention reads the weight of its output layer."""
    kind = type(module)
    plain = isinstance(module, torch.nn.Linear) and kind.forward is torch.nn.Linear.forward
    return (plain and kind.__name__ != "NonDynamicallyQuantizableLinear") or kind.__name__ == "Conv1D"


def _blocks(model: Any) -> list[str]:
    try:
        found = anatomy(model)
    except ParameterError:  # no transformer: every linear layer counts
        return []
    left = [n for block in found.blocks for n in block.unmatched if model.get_parameter(n).ndim > 2]
    if left:
        warnings.warn(
            f"These weights are in no linear layer and stay in floating point: {', '.join(left[:4])}"
            f"{f' and {len(left) - 4} more' if len(left) > 4 else ''}.",
            stacklevel=4,
        )
    return [block.name for block in found.blocks]


def _matching(every: dict[str, Any], patterns: list[str] | str, parameter: str) -> set[str]:
    if isinstance(patterns, str):
        try:
            re.compile(patterns)
        except re.error as error:
            raise ParameterError(
                parameter, RosteConfig, f"a valid regular expression ({error})", patterns
            ) from error
        if any(matches([patterns], name) for name in every):  # a name or its end, which needs no expression
            patterns = [patterns]
    refuse_unmatched(
        patterns, every, RosteConfig, "linear layers in the model", parameter=parameter, label="Linear layers"
    )
    return {name for name in every if matches(patterns, name)}
