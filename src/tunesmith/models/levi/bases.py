"""The pre-trained model under LEVI: stripping its head, reading its layers, LoRA in it."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from tunesmith.core.errors import ParameterError

__all__ = [
    "accepted",
    "adapters_of",
    "backbone",
    "depth_of",
    "hidden_states",
    "inject",
    "is_causal",
    "lora_of",
    "widths_of",
]


def backbone(base: Any) -> nn.Module:
    """Return the model without a task head, and without PEFT's wrapper around it.

    Raises:
        ParameterError: an encoder and a decoder at once.
    """
    if hasattr(base, "get_base_model"):
        base = base.get_base_model()
    if not isinstance(base, PreTrainedModel):
        return base
    if getattr(base.config, "is_encoder_decoder", False):
        raise ParameterError(
            "base", "LEVI", "an encoder or a decoder, such as T5EncoderModel", type(base).__name__
        )
    inner: nn.Module = base.base_model
    return inner


def accepted(module: nn.Module) -> frozenset[str] | None:
    """Return the names of the inputs that a module takes; None if it takes any."""
    parameters = inspect.signature(module.forward).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return None
    return frozenset(parameters)


def is_causal(base: nn.Module) -> bool:
    """Say whether the first token sees no other, so that its state says nothing about the text."""
    config = getattr(base, "config", None)
    kind = getattr(config, "model_type", None)
    only = kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return only or bool(getattr(config, "is_decoder", False))


def depth_of(base: nn.Module, blocks: Sequence[str] | None) -> int | None:
    """Return L, None if only a pass through the base can tell."""
    if blocks is not None:
        return len(blocks)
    config = getattr(base, "config", None)
    depths = getattr(config, "depths", None)
    if isinstance(depths, (list, tuple)):  # stages of a convolutional or hierarchical model
        return len(depths)
    depth = getattr(config, "num_hidden_layers", None)
    return depth if isinstance(depth, int) else None


def widths_of(base: nn.Module, blocks: Sequence[str] | None, layers: Sequence[int]) -> list[int] | None:
    """Return the width of each layer where all layers are equally wide, None if only a pass can tell."""
    config = getattr(base, "config", None)
    width = getattr(config, "hidden_size", None)
    varies = any(hasattr(config, name) for name in ("hidden_sizes", "depths", "word_embed_proj_dim"))
    if blocks is not None or varies or not isinstance(width, int):
        return None
    return [width] * len(layers)


def hidden_states(
    base: nn.Module, blocks: Sequence[str] | None, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Sequence[torch.Tensor]:
    """Run the base and return L + 1 tensors: what enters the first block, and what each returns.

    Raises:
        ParameterError: a block is no module of the base, or returns something other than one tensor; or the base
            returns no ``hidden_states``.
    """
    if blocks is not None:
        return _hooked(base, blocks, args, kwargs)
    if isinstance(base, PreTrainedModel):
        kwargs = {**kwargs, "output_hidden_states": True, "return_dict": True}
        if "use_cache" in inspect.signature(base.forward).parameters:
            kwargs["use_cache"] = False
    out = base(*args, **kwargs)
    states = out.get("hidden_states") if isinstance(out, Mapping) else getattr(out, "hidden_states", None)
    if not isinstance(states, (list, tuple)) or not all(isinstance(H, torch.Tensor) for H in states):
        raise ParameterError.worded(
            "The 'base' parameter of LEVI must be a model that returns hidden_states, a tuple of tensors, or 'blocks' "
            f"must name the modules whose outputs are its layers. {type(base).__name__} returned "
            f"{_what(out)} instead."
        )
    return states


def _hooked(
    base: nn.Module, blocks: Sequence[str], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Sequence[torch.Tensor]:
    modules = dict(base.named_modules())
    found: list[Any] = [None] * (len(blocks) + 1)
    handles = []

    def first(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        found[0] = given[0] if given else next(iter(named.values()), None)

    def keep(i: int) -> Any:
        def hook(_: nn.Module, given: Any, out: Any) -> None:
            found[i] = out

        return hook

    for i, name in enumerate(blocks, 1):
        if name not in modules:
            raise ParameterError("blocks", "LEVI", f"names of modules of {type(base).__name__}", name)
        if i == 1:
            handles.append(modules[name].register_forward_pre_hook(first, with_kwargs=True))
        handles.append(modules[name].register_forward_hook(keep(i)))
    try:
        base(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    for name, H in zip(blocks, found[1:], strict=True):
        if not isinstance(H, torch.Tensor):
            raise ParameterError.worded(
                "The 'blocks' parameter of LEVI must be names of modules that return one tensor each. "
                f"'{name}' returned {_what(H)} instead."
            )
    return found


def _what(value: Any) -> str:
    if value is None:
        return "nothing"
    name = type(value).__name__
    article = "an" if name[0] in "aeiouAEIOU" else "a"
    size = f" of {len(value)}" if isinstance(value, (tuple, list, dict)) else ""
    return f"{article} {name}{size}"


def adapters_of(base: nn.Module) -> list[nn.Module]:
    """Return the layers that PEFT has put adapters into."""
    peft = sys.modules.get("peft.tuners.tuners_utils")  # not loaded: nobody has put any
    kind = getattr(peft, "BaseTunerLayer", ())
    return [module for module in base.modules() if isinstance(module, kind)]


def lora_of(base: Any) -> dict[str, Any]:
    """Return the settings of the LoRA in a model, those that differ from the defaults.

    Raises:
        ParameterError: it has no LoRA, or more adapters than one.
    """
    from peft import LoraConfig

    configs = getattr(base, "peft_config", None) or {}
    config = next(iter(configs.values()), None)
    if len(configs) != 1 or not isinstance(config, LoraConfig):
        kinds = [str(getattr(c.peft_type, "value", c.peft_type)) for c in configs.values()]
        raise ParameterError("lora", "LEVI", "True for a base with one LoRA adapter", kinds or "none")
    plain, mine = LoraConfig().to_dict(), config.to_dict()
    left_out = {"task_type", "base_model_name_or_path", "inference_mode", "auto_mapping", "peft_version"}
    return {
        name: sorted(value) if isinstance(value, (set, frozenset)) else value
        for name, value in mine.items()
        if value != plain.get(name) and name not in left_out | {"peft_type", "modules_to_save"}
    }


def inject(base: nn.Module, lora: dict[str, Any]) -> nn.Module:
    """Put LoRA into the base in place, its weights in float32."""
    from peft import LoraConfig, inject_adapter_in_model

    base.requires_grad_(False)
    base = inject_adapter_in_model(LoraConfig(**lora), base)
    for parameter in base.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return base
