"""Where the branches of a MoSA adapter sit."""

from __future__ import annotations

from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer

from tunesmith.core.errors import ParameterError
from tunesmith.tuners._base import is_linear, linear_shape
from tunesmith.tuners._targets import matches, refuse_unmatched
from tunesmith.tuners.anatomy import Block, anatomy
from tunesmith.tuners.mosa.config import MosaConfig
from tunesmith.tuners.mosa.layer import MosaLayer

__all__ = ["plan"]


def plan(model: Any, config: MosaConfig) -> dict[str, tuple[int, int]]:
    """Return module name -> ``(d_in, d_out)`` of its branch; fills in the config's target modules.

    Raises:
        ParameterError: a target that matches nothing, a block number out of range, or a style that the model's blocks
            have no place for.
    """
    candidates, default = _candidates(model, config)
    targets = config.target_modules
    if targets == "all-linear":
        chosen = list(_in_blocks(model, config))
    elif targets is None:
        chosen = default
    else:
        refuse_unmatched(targets, candidates, MosaConfig, "modules that take a branch")
        chosen = [name for name in candidates if matches(targets, name)]
    if config.layers_to_transform is not None:
        inside = {block.index for block in _blocks(model, config)}
        shape = anatomy(model)
        chosen = [name for name in chosen if (b := shape.block_of(name)) is not None and b.index in inside]
    chosen = [name for name in chosen if not matches(config.exclude_modules, name)]
    if not chosen:
        raise ParameterError(
            "target_modules",
            MosaConfig,
            "such that a module is left after the exclusions",
            config.target_modules,
        )
    if targets is None or targets == "all-linear":
        short = {name.rsplit(".", 1)[-1] for name in chosen}
        found: Any = short if [n for n in candidates if matches(short, n)] == chosen else set(chosen)
        config.target_modules = found
    return {name: candidates[name] for name in candidates if name in set(chosen)}


def _candidates(model: Any, config: MosaConfig) -> tuple[dict[str, tuple[int, int]], list[str]]:
    """Return what may carry a branch, and what does by default."""
    if config.flavour == "lora":
        every = {name: linear_shape(_bare(m)) for name, m in _outer(model) if is_linear(_bare(m))}
        if config.target_modules not in (None, "all-linear"):
            return every, []
        blocks = _blocks(model, config)
        default = [p.name for b in blocks for role in ("q", "v") for p in b.role(role)]  # type: ignore[arg-type]
        default = default or [p.name for b in blocks for p in b.role("qkv")]
        return every, [name for name in every if name in set(default)]
    found: dict[str, tuple[int, int]] = {}
    carriers = [m for m in model.modules() if isinstance(m, MosaLayer) and m.mode == "parallel"]
    for block in _blocks(model, config):
        if config.style == "adaptformer":  # of an adapter before this one: names inside have changed
            before = [m for m in carriers if m.name.startswith(f"{block.name}.")]
            if before:
                found[before[0].name] = before[0].widths
                continue
        downs = block.role("down")
        if not downs:
            raise _no_place(block, config, "a feed-forward part that ends with a linear layer")
        width = linear_shape(_bare(downs[0].module))[1]
        if config.style == "adaptformer":
            if block.ffn is None:
                raise _no_place(block, config, "an MLP module of its own; 'pfeiffer' and 'houlsby' need none")
            found[block.ffn.removesuffix(".base_layer")] = (width, width)
            continue
        roles = ("down",) if config.style == "pfeiffer" else ("o", "down")
        for part in block.parts:
            if part.role in roles:
                found[part.name] = (width, width)
    return found, list(found)


def _no_place(block: Block, config: MosaConfig, wanted: str) -> ParameterError:
    return ParameterError(
        "style",
        MosaConfig,
        f"one that the model's blocks have a place for; {block.name} lacks {wanted}",
        config.style,
    )


def _blocks(model: Any, config: MosaConfig) -> list[Block]:
    blocks = anatomy(model).blocks
    wanted = config.layers_to_transform
    if wanted is None:
        return blocks
    numbers = {wanted} if isinstance(wanted, int) else set(wanted)
    if not numbers or not numbers <= set(range(len(blocks))):
        raise ParameterError(
            "layers_to_transform",
            MosaConfig,
            f"block numbers in [0, {len(blocks) - 1}], at least one",
            wanted,
        )
    return [block for block in blocks if block.index in numbers]


def _in_blocks(model: Any, config: MosaConfig) -> list[str]:
    return [p.name for b in _blocks(model, config) for p in b.parts if p.category != "norm"]


def _bare(module: Any) -> Any:
    return module.get_base_layer() if isinstance(module, BaseTunerLayer) else module


def _outer(model: Any) -> list[tuple[str, Any]]:
    """Return modules that do not lie inside of an adapter's wrapper."""
    wrappers = [f"{name}." for name, m in model.named_modules() if isinstance(m, BaseTunerLayer)]
    return [(n, m) for n, m in model.named_modules() if n and not n.startswith(tuple(wrappers))]
