"""Folding offsets into a model that reads back from disk as it was written.

A projection gets its bias in memory at once. Whether ``from_pretrained`` gives it one depends on the class: those
whose config says ``attention_bias`` do when it is true; others, such as Mistral and Qwen2, never do, and a merged
checkpoint would silently lose the offsets. Which class does what is found out by making the model once more without
memory (torch's meta device) and looking, not from a list of names.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from tunesmith.core.errors import ParameterError
from tunesmith.tuners._base import refuse_quantized
from tunesmith.tuners.anatomy import Block, anatomy
from tunesmith.tuners.lofit.layer import LofitLayer

__all__ = ["find_route"]

REASON = (
    "one whose class makes an output projection with a bias when the merged model is read back, or offsets that fit "
    "into a bias of the value projection: keep the adapter, or fold it in memory alone with merge_adapter()"
)


class Route:
    """How a model is folded; ``before`` and ``after`` run around PEFT's merge."""

    def before(self) -> None:
        """Change what must be changed while the adapters are still there."""

    def after(self) -> None:
        """Change what must be changed in the merged model."""


def find_route(model: Any, names: list[str]) -> Route:
    """Return how adapters can be folded for good.

    Time: at worst that of making the model on the meta device (seconds for billions of weights). No tensor changes.

    Args:
        model: the model inside the tuner, with its LoFiT layers.
        names: adapters to fold.

    Raises:
        ParameterError: the offsets would be lost when the merged model is read back.
    """
    layers = [m for m in model.modules() if isinstance(m, LofitLayer)]
    for layer in layers:
        refuse_quantized(
            layer.get_base_layer(), layer.name, "merge", "a bias is computed from the projection's weight"
        )
    layers = [m for m in layers if any(name in m.lofit_v for name in names)]
    lacking = {f"{m.name}.bias" for m in layers if m.get_base_layer().bias is None}
    if not lacking:
        return Route()
    config = _with_biases(model)
    if config is not None:
        new = _extra_biases(model, config)
        if lacking <= set(new):
            return _ConfigRoute(model, config, new)
    route = _ValueRoute(model, layers, names)
    if route.fits():
        return route
    raise ParameterError("model", "merge_and_unload", REASON, type(model).__name__)


def _with_biases(model: Any) -> Any:
    """Return a copy of the config that asks for biases in attention, or None where it has no such field."""
    config = getattr(model, "config", None)
    if config is None:
        return None
    config = copy.deepcopy(config)
    parts = [
        part for part in (config, config.get_text_config()) if getattr(part, "attention_bias", None) is False
    ]
    for part in parts:
        part.attention_bias = True
    return config if parts else None


def _extra_biases(model: Any, config: Any) -> dict[str, torch.Size]:
    """Return name -> shape of the parameters that the class makes under ``config`` and this model has not.

    Empty if any of them is not a bias.
    """
    own = {name.replace(".base_layer.", ".") for name, _ in model.named_parameters(remove_duplicate=False)}
    try:
        with torch.device("meta"):
            twin = type(model)(config)
    except (TypeError, ValueError, AttributeError, RuntimeError):  # a class that takes more than its config
        return {}
    new = {
        name: value.shape for name, value in twin.named_parameters(remove_duplicate=False) if name not in own
    }
    return new if all(name.endswith(".bias") for name in new) else {}


class _ConfigRoute(Route):
    """The class makes the bias if the config says so: say so, and give zeros to the projections left alone."""

    def __init__(self, model: Any, config: Any, new: dict[str, torch.Size]) -> None:
        self.model, self.config, self.new = model, config, new

    def after(self) -> None:
        """Add the biases that are missing still, and set ``attention_bias`` in the config in use."""
        for name, shape in self.new.items():
            module = self.model.get_submodule(name.removesuffix(".bias"))
            if module.bias is None:
                weight = module.weight
                zeros = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
                module.bias = nn.Parameter(zeros, requires_grad=False)
        for part, wanted in (
            (self.model.config, self.config),
            (self.model.config.get_text_config(), self.config.get_text_config()),
        ):
            if hasattr(wanted, "attention_bias"):
                part.attention_bias = wanted.attention_bias


class _ValueRoute(Route):
    """Rows of attention sum to 1, so an offset of every query head of a group is a bias of its value head."""

    def __init__(self, model: Any, layers: list[LofitLayer], names: list[str]) -> None:
        self.layers, self.names = layers, names
        blocks = anatomy(model).blocks
        self.blocks: list[Block] = [blocks[layer.index] for layer in layers]

    def fits(self) -> bool:
        """Say whether each projection has a value bias, and each group of query heads one common offset."""
        return all(map(self._fits, self.layers, self.blocks))

    def _fits(self, layer: LofitLayer, block: Block) -> bool:
        values = block.role("v")
        if len(values) != 1 or getattr(values[0].module, "bias", None) is None:
            return False
        if layer.flat_scales(self.names) is not None:
            return False
        if any("sink" in name for name in block.unmatched) or _dropout(block.module) > 0:
            return False
        grouped = self._grouped(layer, block)
        return values[0].module.bias.numel() == grouped[:, 0].numel() and bool(
            (grouped == grouped[:, :1]).all()
        )

    def _grouped(self, layer: LofitLayer, block: Block) -> torch.Tensor:
        """Return the offsets as ``[key-value heads, query heads of each, d_h]``."""
        v = layer.flat_offsets(self.names)
        assert v is not None  # only layers with offsets were given
        return v.detach().reshape(block.n_kv_heads, -1, block.head_dim)

    def before(self) -> None:
        """Move the offsets into the value biases, and take them out of the layers."""
        for layer, block in zip(self.layers, self.blocks, strict=True):
            bias = block.one("v").module.bias
            bias.data = (bias.data.float() + self._grouped(layer, block)[:, 0].reshape(-1).float()).to(
                bias.dtype
            )
            for name in self.names:
                if name in layer.lofit_v:
                    del layer.lofit_v[name], layer.lofit_heads[name]


def _dropout(module: Any) -> float:
    return max((float(getattr(m, "attention_dropout", 0) or 0) for m in module.modules()), default=0.0)
