"""IAA as a PEFT tuner: which blocks get asides, which layers get hosts, and what PEFT asks of a tuner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTuner, _ExcludedModule

from tunesmith.core.errors import ParameterError
from tunesmith.tuners._base import is_linear, linear_shape
from tunesmith.tuners._targets import matches, refuse_unmatched
from tunesmith.tuners.anatomy import anatomy
from tunesmith.tuners.iaa.block import attach, attach_host, attach_taps, detach
from tunesmith.tuners.iaa.config import IAAConfig
from tunesmith.tuners.iaa.layer import Aside, IAALayer, Stream

__all__ = ["IAAModel"]

RESIDUAL = ("o", "down")
"""Roles of the matrices whose output is added to the residual stream."""


@dataclass
class Site:
    """A block and what it gets.

    Attributes:
        module: the block.
        stack: all blocks of its list.
        index: its number in the list.
        width: d.
        linears: name -> (layer, role) of what can carry a host; the role is None where structure did not tell.
        hosts: names of those that do.
        taps: attention, first and second norm, or None.
    """

    module: Any
    stack: list[Any]
    index: int
    width: int
    linears: dict[str, tuple[Any, str | None]]
    hosts: list[str]
    taps: tuple[Any, Any, Any] | None


class IAAModel(BaseTuner):
    """Puts IAA into a model; made by ``peft.get_peft_model(model, IAAConfig(...))``. See `IAAConfig`."""

    prefix = "iaa_"
    tuner_layer_cls = IAALayer
    target_module_mapping: dict[str, list[str]] = {}

    def inject_adapter(self, model: Any, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """As in PEFT; the config alone says where, also where PEFT passes the names of saved tensors."""
        kwargs.pop("state_dict", None)
        super().inject_adapter(model, adapter_name, *args, **kwargs)

    def _prepare_adapter_config(self, peft_config: Any, model_config: dict[str, Any]) -> Any:
        return peft_config

    def _prepare_model(self, peft_config: Any, model: Any) -> None:
        if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
            raise ParameterError(
                "model",
                IAAConfig,
                "an encoder or a decoder; models of both are not supported",
                type(model).__name__,
            )
        self._sites = _sites(model, peft_config)

    def _check_target_module_exists(self, peft_config: Any, key: str) -> Any:  # type: ignore[override]
        if key not in self._sites and matches(peft_config.exclude_modules, key):
            return _ExcludedModule()  # else PEFT warns that nothing was excluded
        return key in self._sites

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: Any,
        target_name: str,
        parent: Any,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        site = self._sites[current_key]
        like = next(p for p in site.module.parameters() if p.is_floating_point())
        others = [getattr(block, "iaa", None) for block in site.stack]
        stream = next((aside.stream for aside in others if isinstance(aside, Aside)), None) or Stream()
        aside = attach(site.module, current_key, stream, site.index)
        aside.update_layer(adapter_name, peft_config, site.width, like)
        if site.taps is not None:
            attach_taps(aside, *site.taps)
        for name in site.hosts:
            linear, role = site.linears[name]
            enters = role in RESIDUAL or (role is None and peft_config.host == "adapter")
            attach_host(linear, aside).update_layer(
                adapter_name, peft_config, linear_shape(linear), enters, like
            )

    def _check_merge_allowed(self) -> None:
        raise ParameterError(
            "adapter",
            "merge",
            "one that is a change of weights; IAA's asides stand beside layers that are not linear, so no weight can "
            "take them in: keep the adapter with the model, or use LoRA where a merged model is needed",
            "IAA",
        )

    def _unload_and_optionally_merge(self, merge: bool = True, *args: Any, **kwargs: Any) -> Any:
        if merge:
            self._check_merge_allowed()
        for module in list(self.model.modules()):
            if isinstance(getattr(module, "iaa", None), Aside):
                detach(module)
        if hasattr(self.model, "peft_config"):
            del self.model.peft_config
        return self.model


def _sites(model: Any, config: Any) -> dict[str, Site]:
    """Return block name -> site for the blocks that the config chooses, in the model's order."""
    sites = _found_by_pattern(model, config) if config.layers_pattern else _found_by_structure(model, config)
    chosen = _chosen_blocks(sites, config)
    chosen = {name: site for name, site in chosen.items() if not matches(config.exclude_modules, name)}
    if not chosen:
        raise ParameterError(
            "exclude_modules", IAAConfig, "such that blocks are left", config.exclude_modules
        )
    if config.host != "none":
        _choose_hosts(chosen, config)
    return chosen


def _found_by_structure(model: Any, config: Any) -> dict[str, Site]:
    sites = {}
    for blocks in anatomy(model).stacks.values():
        for i, block in enumerate(blocks):
            parts = [
                part for part in block.parts if ".iaa." not in part.name
            ]  # of an adapter before this one
            linears: dict[str, tuple[Any, str | None]] = {
                p.name: (p.module, p.role) for p in parts if p.category != "norm"
            }
            residual = [module for module, role in linears.values() if role in RESIDUAL]
            if not residual:
                raise ParameterError(
                    "model",
                    IAAConfig,
                    f"one whose blocks end attention or feed-forward part with a linear layer; {block.name} does not",
                    type(model).__name__,
                )
            width = linear_shape(residual[0])[1]
            taps = None
            if config.variant == "sublayer":
                norms = [p.module for p in parts if p.role == "norm" and p.module.weight.shape[0] == width]
                if block.attention is None or len(norms) != 2:
                    raise ParameterError(
                        "variant",
                        IAAConfig,
                        f"'layer' or 'chain' for this model: 'sublayer' needs blocks with attention and two norms; "
                        f"{block.name} has {len(norms)} norms",
                        "sublayer",
                    )
                taps = (model.get_submodule(block.attention), *norms)
            sites[block.name] = Site(block.module, [b.module for b in blocks], i, width, linears, [], taps)
    return sites


def _found_by_pattern(model: Any, config: Any) -> dict[str, Site]:
    """Take every item of the lists with the given name for a block, and its last linear layer for the one that ends it.

    For models whose parts have unusual names.
    """
    patterns = [config.layers_pattern] if isinstance(config.layers_pattern, str) else config.layers_pattern
    sites = {}
    lists = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.ModuleList)}
    for name, stack in lists.items():
        if not any(name == pattern or name.endswith(f".{pattern}") for pattern in patterns):
            continue
        for i, block in enumerate(stack):
            if isinstance(getattr(block, "iaa", None), Aside):
                inner = [(n, m) for n, m in block.named_modules() if ".iaa" not in f".{n}"]
            else:
                inner = list(block.named_modules())
            found = {f"{name}.{i}.{n}": m for n, m in inner if n and is_linear(m)}
            if found:
                last = list(found)[-1]
                linears = {n: (m, "down" if n == last else None) for n, m in found.items()}
                width = linear_shape(found[last])[1]
                sites[f"{name}.{i}"] = Site(block, list(stack), i, width, linears, [], None)
    if not sites or config.variant == "sublayer":
        raise ParameterError(
            "layers_pattern",
            IAAConfig,
            "the name of a list of blocks with linear layers (and left out with variant='sublayer'); lists here: "
            f"{', '.join(lists) or 'none'}",
            config.layers_pattern,
        )
    return sites


def _chosen_blocks(sites: dict[str, Site], config: Any) -> dict[str, Site]:
    wanted = config.layers_to_transform
    if wanted is None:
        return sites
    numbers = {wanted} if isinstance(wanted, int) else set(wanted)
    longest = max(len(site.stack) for site in sites.values())
    if not numbers or any(not 0 <= number < longest for number in numbers):
        raise ParameterError(
            "layers_to_transform", IAAConfig, f"block numbers in [0, {longest}), at least one", wanted
        )
    return {name: site for name, site in sites.items() if site.index in numbers}


def _choose_hosts(sites: dict[str, Site], config: Any) -> None:
    """Fill in the hosts of each site: the config's target modules, or the default of its kind of host."""
    targets = config.target_modules
    every = {name: role for site in sites.values() for name, (_, role) in site.linears.items()}
    if targets is None:
        roles = RESIDUAL if config.host == "lora" or config.variant == "sublayer" else ("down",)
        chosen = {name for name, role in every.items() if role in roles}
    elif targets == "all-linear":
        chosen = set(every)
    else:
        refuse_unmatched(targets, every, IAAConfig, "linear layers in the blocks")
        chosen = {name for name in every if matches(targets, name)}
    chosen = {name for name in chosen if not matches(config.exclude_modules, name)}
    wrong = sorted(
        name for name in chosen if config.host == "adapter" and every[name] not in (*RESIDUAL, None)
    )
    if wrong:
        raise ParameterError(
            "target_modules",
            IAAConfig,
            "outputs of attention or of the feed-forward part where host is 'adapter' ('lora' may sit anywhere)",
            wrong[0],
        )
    for name, site in sites.items():
        site.hosts = [linear for linear in site.linears if linear in chosen]
        if not site.hosts:
            raise ParameterError(
                "target_modules",
                IAAConfig,
                f"such that each chosen block has a host ({name} has none), or host 'none'",
                targets if isinstance(targets, str | None) else sorted(targets),
            )
    if targets == "all-linear":  # else PEFT would write the names of layers outside of blocks into the config
        config.target_modules = chosen
