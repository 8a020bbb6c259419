"""Which weights of a model may be chosen, which are trained whole, and which stay as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tunesmith.core.errors import ParameterError
from tunesmith.trainers.lottery.settings import LotteryTicket
from tunesmith.tuners.sparse._tensors import check_names
from tunesmith.tuners.sparse.applying import untie_output

__all__ = ["Parts", "divide"]


@dataclass
class Parts:
    """The weights of a model by what happens to them.

    Attributes:
        maskable: name -> number of entries, in the model's order.
        dense: names of the weights that are trained whole.
        total: N, the number of all parameters, frozen ones too; tied ones once.
        untied: whether the output layer was untied from the embeddings for this.
    """

    maskable: dict[str, int]
    dense: list[str]
    total: int
    untied: bool


def divide(model: nn.Module, settings: LotteryTicket) -> Parts:
    """Freeze what the settings say and sort the trainable weights; changes ``requires_grad`` and ties.

    Raises:
        ParameterError: the base is quantised, a name is not in the model, or K exceeds the maskable entries.
    """
    _refuse_quantized(model)
    untied = settings.freeze_output_embedding and untie_output(model)
    if settings.freeze_output_embedding:
        layer = _output_layer(model)
        for parameter in () if layer is None else layer.parameters():
            parameter.requires_grad_(False)
    if settings.freeze_layer_norm:
        for module in model.modules():
            if "norm" in type(module).__name__.lower():
                for parameter in module.parameters(recurse=False):
                    parameter.requires_grad_(False)
    trainable = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    chosen = _maskable(model, settings, trainable)
    parts = Parts(
        maskable={name: size for name, size in trainable.items() if name in chosen},
        dense=[name for name in trainable if name not in chosen],
        total=sum(p.numel() for p in model.parameters()),
        untied=untied,
    )
    settings.budget(sum(parts.maskable.values()))
    return parts


def _maskable(model: nn.Module, settings: LotteryTicket, trainable: dict[str, int]) -> set[str]:
    everything = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    if settings.maskable is not None:
        return _named(settings.maskable, everything, "maskable", settings) & set(trainable)
    if settings.dense is not None:
        return set(trainable) - _named(settings.dense, everything, "dense", settings)
    prefix = getattr(model, "base_model_prefix", "")
    body = {name for name in trainable if prefix and name.startswith(f"{prefix}.")}
    if not body:
        return set(trainable)
    layer = _output_layer(model)  # pre-trained as the body is, unlike the new head of a task
    weight = None if layer is None else getattr(layer, "weight", None)
    return body | {name for name, p in model.named_parameters() if p is weight and name in trainable}


def _named(patterns: Sequence[str], names: list[str], parameter: str, owner: Any) -> set[str]:
    found: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        matches = {name for name in names if name == pattern or name.startswith(f"{pattern}.")}
        if not matches:
            parents = {name[:i] for name in names for i, c in enumerate(name) if c == "."}
            check_names([pattern], [*names, *sorted(parents)], parameter, owner)
        found |= matches
    return found


def _output_layer(model: nn.Module) -> Any:
    try:
        return model.get_output_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        return None


def _refuse_quantized(model: nn.Module) -> None:
    integers = [name for name, p in model.named_parameters() if not (p.is_floating_point() or p.is_complex())]
    method = getattr(model, "quantization_method", None)
    if integers or (method is not None and getattr(model, "hf_quantizer", None) is not None):
        expected = "in floating point: entries of quantised weights cannot be tuned one by one"
        got = f"{integers[0]}: {_dtype(model, integers[0])}" if integers else f"a model quantised by {method}"
        raise ParameterError("model", "LotteryTicketMixin", expected, got)


def _dtype(model: nn.Module, name: str) -> torch.dtype:
    return model.get_parameter(name).dtype
