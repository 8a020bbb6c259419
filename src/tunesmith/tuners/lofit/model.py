"""Putting LoFiT layers into a model; the adapter's file: [K, d_h] numbers and the [K, 2] heads they belong to."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from peft.tuners.tuners_utils import BaseTuner
from torch import nn

from tunesmith.core.errors import ParameterError
from tunesmith.core.seeds import child_seed
from tunesmith.tuners.lofit.config import LofitConfig
from tunesmith.tuners.lofit.folding import find_route
from tunesmith.tuners.lofit.layer import LofitLayer
from tunesmith.tuners.lofit.sites import Site, by_block, layout_of, plan

__all__ = ["LofitModel"]


class LofitModel(BaseTuner):
    """PEFT's model class of the tuner; made by ``get_peft_model(model, LofitConfig(...))``."""

    prefix: str = "lofit_"
    tuner_layer_cls = LofitLayer
    target_module_mapping: ClassVar[dict[str, list[str]]] = {}

    def _prepare_adapter_config(self, peft_config: LofitConfig, model_config: dict[str, Any]) -> LofitConfig:
        """Find the projections before anything is replaced, and check that the adapter is one of this model."""
        layout = layout_of(self.model)
        if peft_config.heads is not None and peft_config.layout not in (None, layout):
            raise ParameterError(
                "model",
                LofitConfig,
                f"like the one the adapter is for, with {_in_words(peft_config.layout)}",
                _in_words(layout),
            )
        self._plan: dict[str, Site] = {site.name: site for site in plan(self.model, peft_config)}
        peft_config.layout = layout
        return peft_config

    def _check_target_module_exists(self, peft_config: LofitConfig, key: str) -> bool:
        return key in self._plan

    def _create_and_replace(
        self,
        peft_config: LofitConfig,
        adapter_name: str,
        target: Any,
        target_name: str,
        parent: Any,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        site = self._plan[current_key]
        layer = target if isinstance(target, LofitLayer) else LofitLayer(target, site)
        generator = torch.Generator().manual_seed(child_seed(peft_config.seed, "lofit", site.layer))
        # All heads are drawn, so that a head's initial value does not depend on which others were chosen.
        rows = peft_config.init_std * torch.randn(site.n_heads, site.head_dim, generator=generator)
        layer.update_layer(
            adapter_name,
            list(site.heads),
            rows[list(site.heads)],
            peft_config.stage,
            self.active_adapters,
            peft_config.inference_mode,
        )
        if layer is not target:
            self._replace_module(parent, target_name, layer, target)

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> Any:
        """Fold into a model that survives ``save_pretrained`` and ``from_pretrained``, or refuse before any change."""
        route = None
        if merge:
            merged = [m for m in self.model.modules() if isinstance(m, LofitLayer) and m.merged]
            folded = [name for layer in merged for name in layer.merged_adapters]
            self.unmerge_adapter()
            adapter_names = list(dict.fromkeys([*folded, *(adapter_names or self.active_adapters)]))
            route = find_route(self.model, adapter_names)
            route.before()
        model = super()._unload_and_optionally_merge(merge, progressbar, safe_merge, adapter_names)
        if route is not None:
            route.after()
        return model

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: LofitConfig,
        adapter_name: str,
        state_dict: dict[str, torch.Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, torch.Tensor]:
        """Gather the rows of all layers, in the order of ``config.heads``, into one tensor; beside it the heads."""
        rows: dict[tuple[int, int], torch.Tensor] = {}
        for layer, key, heads in _keys(model, config, adapter_name):
            rows.update({(layer, head): row for head, row in zip(heads, state_dict[key], strict=True)})
        order = list(rows) if config.heads is None else [(layer, head) for layer, head in config.heads]
        widest = max(row.numel() for row in rows.values())
        name = f"base_model.model.{_tensor(config)}.{adapter_name}"
        padded = [nn.functional.pad(rows[pair], (0, widest - rows[pair].numel())) for pair in order]
        return {
            name: torch.stack(padded),
            f"base_model.model.lofit_heads.{adapter_name}": torch.tensor(order),
        }

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: LofitConfig, adapter_name: str, state_dict: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Hand each layer its rows.

        Raises:
            ParameterError: the file holds other heads than the config, or heads of another width.
        """
        rest = dict(state_dict)
        found: dict[str, torch.Tensor] = {}
        for key in state_dict:
            if key.rsplit(".", 1)[-1] in (_tensor(config), "lofit_heads"):
                found[key.rsplit(".", 1)[-1]] = rest.pop(key)
        if set(found) != {_tensor(config), "lofit_heads"}:
            raise ParameterError(
                "adapter",
                LofitConfig,
                f"a file with {_tensor(config)} [K, d_h] and lofit_heads [K, 2]",
                sorted(found),
            )
        values, pairs = found[_tensor(config)], [tuple(pair) for pair in found["lofit_heads"].tolist()]
        layers = _keys(model, config, adapter_name)
        expected = {(layer, head) for layer, _, heads in layers for head in heads}
        table = by_block(config.layout)
        width = max(table[layer][1] for layer, _ in expected)
        if set(pairs) != expected or tuple(values.shape) != (len(pairs), width):
            raise ParameterError(
                "adapter",
                LofitConfig,
                f"one of this model and config, with {len(expected)} heads of width {width}",
                f"{len(set(pairs) & expected)} of these heads and values of shape {list(values.shape)}",
            )
        row = {pair: i for i, pair in enumerate(pairs)}
        for layer, key, heads in layers:
            rest[key] = values[[row[layer, head] for head in heads], : table[layer][1]].clone()
        return rest


def _tensor(config: LofitConfig) -> str:
    return "lofit_v" if config.stage == "bias" else "lofit_a"


def _keys(model: nn.Module, config: LofitConfig, adapter_name: str) -> list[tuple[int, str, list[int]]]:
    """Return (block number, name of the adapter's tensor in the state dictionary, its heads) per layer."""
    return [
        (
            module.index,
            f"{name.removeprefix('_fsdp_wrapped_module.')}.{_tensor(config)}.{adapter_name}",
            heads,
        )
        for name, module in model.named_modules()
        if isinstance(module, LofitLayer) and (heads := module.lofit_heads.get(adapter_name)) is not None
    ]


def _in_words(layout: list[list[int]] | None) -> str:
    return " and ".join(
        f"{blocks} blocks of {heads} heads of width {width}" for blocks, heads, width in layout or []
    )
