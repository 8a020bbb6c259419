"""MoSA as a PEFT tuner: where branches go, the draws of a pass, and what PEFT asks of a tuner."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from peft.tuners.tuners_utils import BaseTuner, _ExcludedModule
from torch import nn

from tunesmith.core.errors import ParameterError
from tunesmith.tuners._targets import matches
from tunesmith.tuners.mosa.config import MosaConfig
from tunesmith.tuners.mosa.draws import Draws
from tunesmith.tuners.mosa.layer import Branch, MosaLayer
from tunesmith.tuners.mosa.sites import plan

__all__ = ["MosaModel", "merged_adapter"]


@dataclass
class _Counter:
    next: int = 0


class MosaModel(BaseTuner):
    """PEFT's model class of the tuner; made by ``get_peft_model(model, MosaConfig(...))``."""

    prefix: str = "mosa_"
    tuner_layer_cls = MosaLayer
    target_module_mapping: ClassVar[dict[str, list[str]]] = {}

    def inject_adapter(self, model: Any, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """As in PEFT; the config alone says where, also where PEFT passes the names of saved tensors."""
        kwargs.pop("state_dict", None)
        draws: Draws = self.__dict__.setdefault("_draws", Draws())
        self._numbers = _Counter()
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        draws.configs[adapter_name] = self.peft_config[adapter_name]
        draws.sites[adapter_name] = self._numbers.next
        _hook(model, draws)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Draw parts for this pass if the model trains, then run it."""
        if self.training:
            self._draws.begin()
        return super().forward(*args, **kwargs)

    def delete_adapter(self, adapter_name: str) -> None:
        """As in PEFT."""
        super().delete_adapter(adapter_name)
        for kept in (self._draws.configs, self._draws.sites, self._draws.counts):
            kept.pop(adapter_name, None)
        self._draws.current = {}

    def _prepare_adapter_config(self, peft_config: MosaConfig, model_config: dict[str, Any]) -> MosaConfig:
        self._plan = plan(self.model, peft_config)
        return peft_config

    def _check_target_module_exists(self, peft_config: Any, key: str) -> Any:  # type: ignore[override]
        if key not in self._plan and matches(peft_config.exclude_modules, key):
            return _ExcludedModule()  # else PEFT warns that nothing was excluded
        return key in self._plan

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
        mode = "lora" if peft_config.flavour == "lora" else "sequential"
        if peft_config.flavour == "adapter" and peft_config.style == "adaptformer":
            mode = "parallel"
        layer = target if isinstance(target, MosaLayer) else MosaLayer(target, current_key, mode, self._draws)
        layer.widths = self._plan[current_key]
        if layer.mode != mode:
            raise ParameterError(
                "flavour", MosaConfig, f"the one that {current_key} carries already ({layer.mode})", mode
            )
        d_in, d_out = self._plan[current_key]
        branch = Branch(peft_config, d_in, d_out, current_key, self._numbers.next)
        self._numbers.next += 1
        layer.update_layer(adapter_name, branch, self.active_adapters, peft_config.inference_mode)
        if layer is not target:
            self._replace_module(parent, target_name, layer, target)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """Branches are made in float32; without autocast they take the type of the module that they belong to."""
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        if autocast_adapter_dtype:
            return
        for layer in self.model.modules():
            if isinstance(layer, MosaLayer) and adapter_name in layer.mosa_branch:
                like = next((p for p in layer.base_layer.parameters() if p.is_floating_point()), None)
                if like is not None:
                    for p in layer.mosa_branch[adapter_name].parameters():
                        p.data = p.data.to(like.dtype)

    def _check_merge_allowed(self) -> None:
        super()._check_merge_allowed()
        styles = {c.style for c in self.peft_config.values() if c.flavour == "adapter"}
        if styles:
            raise ParameterError(
                "adapter",
                "merge",
                "one that is a change of weights; a bottleneck adapter holds a nonlinearity, so no weight can take it "
                "in: merged_adapter() gives the one ordinary adapter that its parts become, or use flavour='lora'",
                ", ".join(sorted(styles)),
            )

    def _unload_and_optionally_merge(self, *args: Any, **kwargs: Any) -> Any:
        model = super()._unload_and_optionally_merge(*args, **kwargs)
        for handle in self._draws.handles:
            handle.remove()
        self._draws.handles = []
        return model

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: MosaConfig,
        adapter_name: str,
        state_dict: dict[str, torch.Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, torch.Tensor]:
        """Save the adapter's tensors, and how many passes were drawn."""
        mine = f".mosa_branch.{adapter_name}."
        found = {key: value for key, value in state_dict.items() if mine in key}
        found[f"base_model.model.mosa_draws.{adapter_name}"] = torch.tensor(
            _draws(model).counts.get(adapter_name, 0)
        )
        return found

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        return key.replace(f".mosa_branch.{adapter_name}.", ".mosa_branch.").replace(
            f".mosa_draws.{adapter_name}", ".mosa_draws"
        )

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: MosaConfig, adapter_name: str, state_dict: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Take the number of passes out of the tensors."""
        rest = dict(state_dict)
        for key in state_dict:
            if ".mosa_draws" in key:
                _draws(model).counts[adapter_name] = int(rest.pop(key))
        found: dict[str, torch.Tensor] = super()._remap_adapter_state_dict_for_load(
            model, config, adapter_name, rest
        )
        return found


def _draws(model: Any) -> Draws:
    return next(module.draws for module in model.modules() if isinstance(module, MosaLayer))


def _hook(model: Any, draws: Draws) -> None:
    """Hook the model, for calls past PEFT's wrapper, and each block that may be checkpointed and holds a branch."""
    for handle in draws.handles:
        handle.remove()
    draws.handles = [model.register_forward_pre_hook(draws.at_model)]
    for name, block in model.named_modules():
        may = hasattr(block, "gradient_checkpointing") and block is not model
        if not may or not any(isinstance(m, MosaLayer) for m in block.modules()):
            continue
        hook = partial(draws.at_block, name)
        draws.handles.append(block.register_forward_pre_hook(hook, with_kwargs=True))
        for child, module in block.named_children():
            hook = partial(draws.at_child, name, child)
            draws.handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))


def merged_adapter(model: Any, adapter_name: str = "default") -> tuple[MosaConfig, dict[str, torch.Tensor]]:
    """Return the one ordinary adapter that the parts become, as a config with ``num_parts=1`` and its tensors.

    Load it with ``get_peft_model(base, config)`` and ``peft.set_peft_model_state_dict``. Idempotent.

    Args:
        model: a PEFT model with a MoSA adapter.
        adapter_name: which.

    Raises:
        ParameterError: the model has no such MoSA adapter.
    """
    config = getattr(model, "peft_config", {}).get(adapter_name)
    if not isinstance(config, MosaConfig):
        raise ParameterError(
            "adapter_name", merged_adapter, "the name of a MoSA adapter of the model", adapter_name
        )
    made = MosaConfig(**{**config.to_dict(), "peft_type": None, "num_parts": 1, "inference_mode": False})
    tensors: dict[str, torch.Tensor] = {"base_model.model.mosa_draws": torch.tensor(0)}
    for name, layer in model.named_modules():
        if not isinstance(layer, MosaLayer) or adapter_name not in layer.mosa_branch:
            continue
        branch: Any = layer.mosa_branch[adapter_name]
        for key, value in branch.tensors(None).items():
            if value is not None:
                tensors[f"{name}.mosa_branch.{key}.whole"] = value.detach().clone()
        if hasattr(branch, "norm"):
            for key, value in branch.norm.named_parameters():
                tensors[f"{name}.mosa_branch.norm.{key}"] = value.detach().clone()
    return made, tensors
