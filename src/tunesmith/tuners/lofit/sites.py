"""Where a LoFiT adapter sits: the output projections of a model and the heads chosen in each."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from tunesmith.core.errors import ParameterError
from tunesmith.tuners._targets import matches
from tunesmith.tuners.anatomy import Part, anatomy
from tunesmith.tuners.config import check_target_modules
from tunesmith.tuners.lofit.config import LofitConfig

__all__ = ["Site", "by_block", "layout_of", "plan", "sites"]


@dataclass(frozen=True)
class Site:
    """One output projection.

    Attributes:
        layer: block number over all stacks.
        name: of the projection in the model.
        n_heads: query heads, not key-value heads.
        head_dim: input width of the projection divided by ``n_heads``.
        heads: those chosen, in the order of the config.
    """

    layer: int
    name: str
    n_heads: int
    head_dim: int
    heads: tuple[int, ...]


def layout_of(model: Any) -> list[list[int]]:
    """Return runs of equal blocks, ``[blocks, heads of each, head width]``; zeros for attention of another form."""
    kinds = [[block.n_heads, block.head_dim] for block in anatomy(model).blocks]
    return [[len(list(run)), *kind] for kind, run in groupby(kinds)]


def by_block(layout: list[list[int]] | None) -> list[tuple[int, int]]:
    """Return ``(heads, head width)`` of each block from `layout_of`'s runs."""
    return [(heads, width) for blocks, heads, width in layout or [] for _ in range(blocks)]


def sites(model: Any, config: LofitConfig) -> list[Site]:
    """Return the projections that ``config`` leaves open, each with all its heads.

    Raises:
        ParameterError: no blocks were found in the model, a layer out of range, target modules that match nothing or
            something else than output projections, or a block with several that were not told apart.
    """
    check_target_modules(model, config)
    blocks = anatomy(model).blocks
    layers = config.layers_to_transform
    wanted = None if layers is None else {layers} if isinstance(layers, int) else set(layers)
    if wanted is not None and not wanted <= set(range(len(blocks))):
        raise ParameterError(
            "layers_to_transform",
            config,
            f"block numbers in [0, {len(blocks) - 1}]",
            config.layers_to_transform,
        )
    found = []
    for block in blocks:
        if block.n_heads == 0 or (wanted is not None and block.index not in wanted):
            continue
        parts = [part for part in block.role("o") if _is_open(part, config)]
        if len(parts) > 1:
            raise ParameterError(
                "target_modules",
                config,
                f"names that tell the {len(parts)} output projections of {block.name} apart",
                [part.name for part in parts],
            )
        found += [
            Site(block.index, part.name, block.n_heads, block.head_dim, tuple(range(block.n_heads)))
            for part in parts
        ]
    if not found:
        names = sorted({part.name.removeprefix(f"{b.name}.") for b in blocks for part in b.role("o")})
        raise ParameterError(
            "target_modules",
            config,
            f"names of attention output projections, here {', '.join(names) or 'none'}",
            config.target_modules,
        )
    return found


def plan(model: Any, config: LofitConfig) -> list[Site]:
    """Return the projections in which ``config`` chooses heads, with these heads.

    Raises:
        ParameterError: as `sites`, or a head that the model does not have, or has in a layer that was left out.
    """
    opened = sites(model, config)
    if config.heads is None:
        if config.k is not None:
            raise ParameterError(
                "heads",
                config,
                f"chosen before: with_heads(model, config, data) does so for k={config.k}",
                None,
            )
        return opened
    by_layer = {site.layer: site for site in opened}
    chosen: dict[int, list[int]] = {}
    for layer, head in config.heads:
        site = by_layer.get(layer)
        if site is None or head >= site.n_heads:
            most = max(site.n_heads for site in opened)
            raise ParameterError(
                "heads",
                config,
                f"(layer, head) pairs of this model: layers {_ranges(sorted(by_layer))}, heads in [0, {most - 1}]",
                [layer, head],
            )
        chosen.setdefault(layer, []).append(head)
    return [
        Site(site.layer, site.name, site.n_heads, site.head_dim, tuple(chosen[site.layer]))
        for site in opened
        if site.layer in chosen
    ]


def _is_open(part: Part, config: LofitConfig) -> bool:
    return (config.target_modules is None or _named(part.name, config.target_modules)) and not (
        config.exclude_modules and _named(part.name, config.exclude_modules)
    )


def _named(name: str, targets: Any) -> bool:
    """Match as PEFT does: a string is an expression for the whole name, a list holds names or their ends."""
    return targets == "all-linear" or matches(targets, name)


def _ranges(numbers: list[int]) -> str:
    """Write ``[0, 1, 2, 5]`` as ``0-2, 5``."""
    cuts = np.flatnonzero(np.diff(numbers) != 1) + 1
    runs = np.split(np.array(numbers), cuts)
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
