"""The trainable modules: asides, which hang on a block, and hosts, which hang on a linear layer inside it.

Both are children named ``iaa`` of the module that they extend, so no weight of the base model changes its name.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from tunesmith.tuners.iaa.config import IAAConfig
from tunesmith.tuners.iaa.core import NONLINEARITIES, bottleneck

__all__ = ["Aside", "Host", "IAALayer", "Notes", "PerThread", "Stream"]


class PerThread:
    """One object per thread, as several may run one model, and replicas on other devices do.

    torch.compile cannot follow what belongs to a thread; code that it runs shares one object. A copied or unpickled
    model begins with new ones.

    Args:
        kind: the objects' class.
    """

    def __init__(self, kind: Callable[[], Any]) -> None:
        self.kind, self.compiled, self.local = kind, kind(), threading.local()

    def __reduce__(self) -> Any:
        return type(self), (self.kind,)

    def __call__(self) -> Any:
        """The object of this thread."""
        if torch.compiler.is_compiling():
            return self.compiled
        if not hasattr(self.local, "object"):
            self.local.object = self.kind()
        return self.local.object


class Pass:
    """The running states c of a forward pass through a stack, one per adapter, and the last block it has come to."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """A pass is over; its tensors are let go."""
        self.c: dict[str, Any] = {}
        self.last = -1


class Stream:
    """What the asides of a stack share: the numbers of the blocks that have one, and the passes under way."""

    def __init__(self) -> None:
        self.blocks: set[int] = set()
        self.now = PerThread(Pass)


class Notes:
    """What the parts of a block tell one another while it runs: its input, its middle, what hosts add."""

    aside: Aside | None
    single = True

    def __init__(self) -> None:
        self.close()

    def open(self, aside: Aside, H: Any) -> None:
        """A block begins with the input H (B, T, d)."""
        self.note(aside, H)

    def close(self) -> None:
        """The block is through, or failed."""
        self.note(None, None)

    def note(self, aside: Aside | None, H: Any) -> None:
        """Begin anew."""
        self.aside, self.H = aside, H
        self.U: Any = None
        self.attended: Any = None
        self.first_norm = False
        self.increments: dict[str, Any] = {}

    def add(self, adapter: str, increment: Any) -> None:
        """A host adds ``increment`` to the residual stream."""
        if self.aside is not None:
            before = self.increments.get(adapter)
            self.increments[adapter] = increment if before is None else before + increment


class IAALayer(nn.Module, BaseTunerLayer):
    """Bottlenecks of several adapters, ``iaa_down[adapter]`` and ``iaa_up[adapter]``, on one module."""

    adapter_layer_names: tuple[str, ...] = ("iaa_down", "iaa_up", "iaa_norm")

    def __init__(self, notes: PerThread) -> None:
        super().__init__()
        for name in self.adapter_layer_names:
            setattr(self, name, nn.ModuleDict())
        self.merged_adapters: list[str] = []
        self.settings: dict[str, dict[str, Any]] = {}
        self.notes = notes

    @property
    def weight(self) -> Any:
        """None here: PEFT's layers show the weight of the layer they wrap, and these wrap none."""
        raise AttributeError("weight")

    @property
    def bias(self) -> Any:
        """None here, see `weight`."""
        raise AttributeError("bias")

    def active(self) -> list[str]:
        """Names of the adapters that take part in a forward pass here."""
        if self._disable_adapters:
            return []
        names: Any = self.active_adapters
        return [name for name in names if name in self.settings]

    def delete_adapter(self, adapter_name: str) -> None:
        """Forget an adapter."""
        self.settings.pop(adapter_name, None)
        super().delete_adapter(adapter_name)

    def build(
        self, adapter: str, config: IAAConfig, d_in: int, d_out: int, r: int, like: Any, **kind: Any
    ) -> None:
        """Create a bottleneck d_in -> r -> d_out with zero output; device and type of the tensor ``like``.

        ``kind``: ``prefix`` of the containers' names (``"iaa_"``), ``bias``, ``layer_norm``.
        """
        prefix, bias = kind.get("prefix", "iaa_"), kind.get("bias", True)
        down, up = nn.Linear(d_in, r, bias=bias), nn.Linear(r, d_out, bias=bias)
        with torch.no_grad():
            if bias:
                down.weight.normal_(0.0, config.init_scale)
                down.bias.zero_()
                up.bias.zero_()
            else:
                nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5))  # as PEFT's LoRA
            if config.init_weights:
                up.weight.zero_()
            else:
                up.weight.normal_(0.0, config.init_scale)
        made: dict[str, Any] = {"down": down, "up": up}
        if kind.get("layer_norm"):
            made["norm"] = nn.LayerNorm(d_in)
        for name, module in made.items():
            if not module.weight.is_meta:  # PEFT builds there what it loads afterwards
                module.to(device=like.device, dtype=like.dtype)
            getattr(self, prefix + name)[adapter] = module

    def increment(self, x: Any, adapter: str, prefix: str = "iaa_", s: float = 1.0) -> Any:
        """Return the bottleneck's output for x (..., d_in), in the type of the adapter's weights."""
        down, up = getattr(self, prefix + "down")[adapter], getattr(self, prefix + "up")[adapter]
        settings = self.settings[adapter]
        x = x.to(down.weight.dtype)
        norms: Any = getattr(self, prefix + "norm")
        if adapter in norms:
            x = norms[adapter](x)
        if settings["dropout"] and self.training:
            x = nn.functional.dropout(x, settings["dropout"], True)
        phi = NONLINEARITIES[settings["nonlinearity"]]
        return bottleneck(x, down.weight, down.bias, up.weight, up.bias, phi, s)


class Aside(IAALayer):
    """The trainable modules beside one block; a child of the block.

    Args:
        notes: those of the block, shared with its hosts.
        stream: shared by the asides of a stack.
        index: number of the block in its stack.
        first: name of the block's first argument, its hidden states.
    """

    adapter_layer_names = (*IAALayer.adapter_layer_names, "iaa_att_down", "iaa_att_up", "iaa_att_norm")

    def __init__(self, notes: PerThread, stream: Stream, index: int, first: str) -> None:
        super().__init__(notes)
        self.stream, self.index, self.first = stream, index, first
        stream.blocks.add(index)
        self.handles: list[Any] = []

    def update_layer(self, adapter: str, config: IAAConfig, d: int, like: Any) -> None:
        """Add an adapter's asides for hidden width d: one, two for ``sublayer``, none for ``none``."""
        self.settings[adapter] = {
            "variant": config.variant,
            "nonlinearity": config.nonlinearity,
            "dropout": config.dropout,
            "scale": config.scale,
        }
        prefixes = {"none": (), "sublayer": ("iaa_", "iaa_att_")}.get(config.variant, ("iaa_",))
        for prefix in prefixes:
            self.build(
                adapter, config, d, d, config.r_aside, like, prefix=prefix, layer_norm=config.layer_norm
            )

    def having(self, *variants: str) -> list[str]:
        """Names of the active adapters of those variants."""
        return [name for name in self.active() if self.settings[name]["variant"] in variants]

    def B(self, x: Any, adapter: str, prefix: str = "iaa_") -> Any:
        """The aside's increment for x (..., d)."""
        return self.increment(x, adapter, prefix, self.settings[adapter]["scale"])


class Host(IAALayer):
    """A bottleneck adapter on the output of a linear layer, or LoRA beside it; a child of the linear layer."""

    adapter_layer_names = ("iaa_down", "iaa_up", "iaa_norm")

    def update_layer(
        self, adapter: str, config: IAAConfig, shape: tuple[int, int], enters: bool, like: Any
    ) -> None:
        """Add an adapter's host to a layer of ``shape`` (in, out); ``enters``: it adds to the residual stream."""
        lora = config.host == "lora"
        alpha = config.r_host if config.lora_alpha is None else config.lora_alpha
        self.settings[adapter] = {
            "lora": lora,
            "nonlinearity": "identity" if lora else config.nonlinearity,
            "dropout": config.dropout,
            "scale": alpha / config.r_host if lora else 1.0,
            "enters": enters,
        }
        d_in, d_out = shape
        self.build(adapter, config, d_in if lora else d_out, d_out, config.r_host, like, bias=not lora)

    def host(self, x: Any, output: Any) -> Any:
        """Return the layer's output (..., d_out) with the increments of the active adapters, for its input x."""
        result = output
        for name in self.active():
            settings = self.settings[name]
            a = self.increment(x if settings["lora"] else output, name, s=settings["scale"])
            if settings["enters"]:
                self.notes().add(name, a)
            result = result + a.to(output.dtype)
        return result
