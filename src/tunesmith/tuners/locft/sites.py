"""The weights that an edit tunes, by layer and module (section 3 of arXiv 2509.22072).

Names are matched whole: the authors' code matches parts of names, so that layer 2 also trains layers 20 to 29.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tunesmith.core.errors import ParameterError, nearest
from tunesmith.tuners._base import refuse_quantized
from tunesmith.tuners.anatomy import Block, Part, anatomy
from tunesmith.tuners.locft.config import LocFTConfig

__all__ = ["Site", "default_layer", "find_sites", "proportional_layer"]


@dataclass(frozen=True)
class Site:
    """A parameter that is tuned.

    Attributes:
        name: in the model.
        rows: first and last row (exclusive) that are tuned, where only part of a fused matrix is; None for all of it.
    """

    name: str
    rows: tuple[int, int] | None = None


def default_layer(n_layers: int) -> int:
    """Return the layer at 70 % of the depth: 22 of 32, 21 of 30."""
    return int(n_layers * 0.7 + 1e-9)


def proportional_layer(layer: int, n_layers: int, n_target: int) -> int:
    """Carry a layer over to a model of another depth: round(L' (l + 1) / L) - 1, halves up.

    Args:
        layer: l, in the model where it was found good, from 0.
        n_layers: L, its depth.
        n_target: L', the depth of the other model.

    Raises:
        ParameterError: ``layer`` is not in [0, n_layers - 1], or there is no target layer.
    """
    if not 0 <= layer < n_layers:
        raise ParameterError("layer", proportional_layer, f"an int in [0, {n_layers - 1}]", layer)
    if n_target < 1:
        raise ParameterError("n_target", proportional_layer, "an int of at least 1", n_target)
    return max(0, math.floor(n_target * (layer + 1) / n_layers + 0.5) - 1)


def find_sites(model: Any, config: LocFTConfig) -> tuple[list[Site], int | None]:
    """Return what is tuned, and the number of its layer (None for the whole model).

    Args:
        model: a transformers causal language model without adapters.
        config: layer and module.

    Raises:
        ParameterError: the layer is out of range, the module matches nothing or several matrices, the weights are
            quantised, or the model has adapters.
    """
    if hasattr(model, "peft_config"):
        raise ParameterError(
            "model",
            "edit",
            "without adapters (merge them first): its own weights are edited",
            type(model).__name__,
        )
    parameters = dict(model.named_parameters())
    if config.module == "model":
        sites, layer = [Site(name) for name in parameters], None
    else:
        blocks = anatomy(model).blocks
        layer = default_layer(len(blocks)) if config.layer is None else config.layer
        if layer >= len(blocks):
            raise ParameterError(
                "layer", LocFTConfig, f"an int in [0, {len(blocks) - 1}] for this model", layer
            )
        sites = _in_block(blocks[layer], config.module, parameters)
    for site in sites:
        owner = site.name.rpartition(".")[0]
        refuse_quantized(model.get_submodule(owner), owner, "edit", "its weight is tuned")
    return sites, layer


def _in_block(block: Block, module: str, parameters: dict[str, Any]) -> list[Site]:
    inside = [name for name in parameters if name.startswith(f"{block.name}.")]
    if module == "layer":
        return [Site(name) for name in inside]
    if module in ("mlp_up", "mlp_down"):
        return [_matrix(block, module, parameters)]
    if module in ("attn", "mlp"):
        home = block.attention if module == "attn" else block.ffn
        category = "attention" if module == "attn" else "ffn"
        own = {name for part in block.parts if part.category == category for name in part.parameters}
        found = [name for name in inside if name in own or (home is not None and name.startswith(f"{home}."))]
        if not found and module == "mlp":  # nothing but stacked experts and their router
            found = [
                name for name in block.unmatched if "expert" in name or "router" in name or ".gate." in name
            ]
    else:
        whole = f"{block.name}.{module}"
        found = [name for name in inside if name == whole or name.startswith(f"{whole}.")]
    if not found:
        names = sorted({part.name.removeprefix(f"{block.name}.") for part in block.parts})
        raise ParameterError(
            "module",
            LocFTConfig,
            "layer, attn, mlp, mlp_up, mlp_down, model, or a name inside the layer such as "
            f"{', '.join(names[:9])}.{nearest(module, names)}",
            module,
        )
    return [Site(name) for name in found]


def _matrix(block: Block, module: str, parameters: dict[str, Any]) -> Site:
    role = "up" if module == "mlp_up" else "down"
    parts: list[Part] = block.role(role)  # type: ignore[arg-type]
    shared = [part for part in parts if "shared" in part.name]
    if len(shared) == 1:  # the expert that sees all tokens
        return Site(shared[0].parameters[0])
    fused = block.role("gate_up")
    if not parts and len(fused) == 1:
        name = fused[0].parameters[0]
        height = parameters[name].shape[0]
        return Site(name, (height // 2, height))  # transformers keeps the gate in the first half
    if len(parts) != 1:
        experts = [name for name in block.unmatched if "expert" in name] + [part.name for part in parts]
        raise ParameterError(
            "module",
            LocFTConfig,
            f"the name of one matrix here: {block.name} has {len(parts)} '{role}' matrices, and a routed expert sees "
            f"only part of the edits (experts: {', '.join(experts[:4]) or 'none'})",
            module,
        )
    return Site(parts[0].parameters[0])
