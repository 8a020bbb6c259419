"""Split tensors, the branch made of them, and the wrapper that puts branches beside or behind a module."""

from __future__ import annotations

import math
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import nn

from tunesmith.core.errors import ParameterError
from tunesmith.core.seeds import child_seed
from tunesmith.tuners._base import refuse_quantized
from tunesmith.tuners.mosa.config import MosaConfig
from tunesmith.tuners.mosa.core import (
    NONLINEARITIES,
    bottleneck,
    mean_of,
    merge_parts,
    owner_map,
    place_part,
    positions_of,
)
from tunesmith.tuners.mosa.draws import Draws

__all__ = ["Branch", "MosaLayer", "SplitTensor"]


class SplitTensor(nn.Module):
    """A tensor that is trained whole, split over E parts, or as one copy per part.

    A split one keeps a flat parameter per part, ``part0`` ... of about n / E numbers each, so weight decay and momentum
    cannot touch what a part does not own, and an undrawn part has no gradient.

    Args:
        W_init: initial value.
        E: parts; 1: trained whole.
        scores: uniform numbers that decide the split; None: each part has a copy.
        config: for ``structure``, ``merge_scale`` and ``step_undrawn``.
    """

    owner: torch.Tensor
    initial: torch.Tensor

    def __init__(self, W_init: torch.Tensor, E: int, scores: torch.Tensor | None, config: MosaConfig) -> None:
        super().__init__()
        self.E, self.merge_scale, self.step_undrawn = E, config.merge_scale, config.step_undrawn
        self.split = E > 1 and scores is not None
        self._positions: tuple[Any, list[torch.Tensor], torch.Tensor] | None = None
        if E == 1:
            self.whole = nn.Parameter(W_init)
            return
        if scores is not None:
            self.register_buffer(
                "owner", owner_map(scores, E, config.structure if scores.dim() == 2 else "all")
            )
            self.register_buffer("initial", W_init)
        for e in range(E):
            mine = W_init.clone() if scores is None else W_init.reshape(-1)[self.owner.reshape(-1) == e]
            self.register_parameter(f"part{e}", nn.Parameter(mine))

    def parts(self) -> list[torch.Tensor]:
        """The trained tensors."""
        if self.E == 1:
            return [self.whole]
        return [getattr(self, f"part{e}") for e in range(self.E)]

    def positions(self) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Flat places of each part's numbers, and all of them one after the other; kept while the split stays."""
        owner = self.owner
        key = (id(owner), owner._version if not owner.is_inference() else 0, owner.device)
        if self._positions is None or self._positions[0] != key:
            with torch.inference_mode(False):  # a tensor made in inference mode cannot serve in training
                each = positions_of(owner.clone(), self.E)
                self._positions = key, each, torch.cat(each)
        return self._positions[1], self._positions[2]

    def drawn(self, e: int) -> torch.Tensor:
        """Return part ``e`` with its whole tensor."""
        if self.E == 1:
            return self.whole
        parts = self.parts()
        value = parts[e]
        if self.split:
            value = place_part(self.initial.to(value.dtype), self.positions()[0][e], value)
        if self.step_undrawn:  # a gradient of zero for the others
            value = value + 0.0 * sum(part.sum() for i, part in enumerate(parts) if i != e)
        return value

    def merged(self) -> torch.Tensor:
        """Return the merge of the parts, as they are now."""
        if self.E == 1:
            return self.whole
        if not self.split:
            return mean_of(self.parts(), self.merge_scale)
        w = torch.cat(self.parts())
        return merge_parts(self.initial.to(w.dtype), self.positions()[1], w, self.E, self.merge_scale)


class Branch(nn.Module):
    """LoRA's product or a bottleneck adapter, d_in -> r -> d_out, of split tensors; its output is zero at first.

    Args:
        config: the adapter's.
        d_in: width read.
        d_out: width written.
        name: of the module it belongs to; with the seed it decides initial values and split.
        site: its number among the adapter's branches, which finds its draw.
    """

    def __init__(self, config: MosaConfig, d_in: int, d_out: int, name: str, site: int) -> None:
        super().__init__()
        self.site, self.factor, self.dropout = site, config.factor, config.dropout
        self.lora, self.phi = config.flavour == "lora", config.nonlinearity
        generator = torch.Generator().manual_seed(child_seed(config.seed, "mosa", name))
        bound = 1 / math.sqrt(d_in)  # Kaiming's with a = sqrt(5)
        down = (2 * torch.rand(config.r, d_in, generator=generator) - 1) * bound
        E = config.num_parts
        sides = {"down": down, "up": torch.zeros(d_out, config.r)}
        for side, W_init in sides.items():
            n = 1 if config.share == side else E
            lines = {"row": W_init.shape[1], "column": W_init.shape[0]}.get(config.structure, W_init.numel())
            if n > lines:
                raise ParameterError(
                    "num_parts", MosaConfig, f"at most {lines}, the entries to split in {name}.{side}", E
                )
            scores = torch.rand(W_init.shape, generator=generator)
            setattr(self, side, SplitTensor(W_init, n, scores, config))
            if self.lora:
                continue
            bias = torch.zeros(W_init.shape[0])
            scores = torch.rand(bias.shape, generator=generator)
            if config.split_bias and n > len(bias):
                raise ParameterError(
                    "num_parts", MosaConfig, f"at most {len(bias)}, the width of a split bias", E
                )
            split = scores if config.split_bias else None
            setattr(self, f"{side}_bias", SplitTensor(bias, n, split, config))
        if config.normalised:
            self.norm = nn.LayerNorm(d_in, eps=1e-6)

    @property
    def dtype(self) -> torch.dtype:
        """Of the trained numbers."""
        return next(self.parameters()).dtype

    def tensors(self, draw: tuple[int, int] | None) -> dict[str, Any]:
        """Return down, up and their biases: those of a draw (A, B), or merged."""
        found: dict[str, Any] = {}
        for name in ("down", "down_bias", "up", "up_bias"):
            tensor = getattr(self, name, None)
            if tensor is None:
                found[name] = None
            else:
                found[name] = tensor.merged() if draw is None else tensor.drawn(draw[name.startswith("up")])
        return found

    def forward(self, x: torch.Tensor, draw: tuple[int, int] | None) -> torch.Tensor:
        """Return the branch's output for x (..., d_in), its factor included."""
        W = self.tensors(draw)
        x = x.to(self.dtype)
        if hasattr(self, "norm"):
            x = self.norm(x)
        drop = nn.functional.dropout
        inner = (lambda a: a) if self.lora else (lambda a: drop(a, self.dropout, self.training))
        if self.lora and self.dropout:
            x = drop(x, self.dropout, self.training)
        y = bottleneck(
            x, (W["down"], W["down_bias"]), (W["up"], W["up_bias"]), NONLINEARITIES[self.phi], inner
        )
        return y if self.factor == 1.0 else self.factor * y


class MosaLayer(nn.Module, BaseTunerLayer):
    """A module with the branches of adapters.

    Args:
        base_layer: a linear layer, or an MLP for ``"parallel"``.
        name: in the model.
        mode: ``"lora"`` and ``"parallel"``: y + branch(x); ``"sequential"``: y + branch(y).
        draws: the model's.
    """

    adapter_layer_names = ("mosa_branch",)
    base_layer: Any
    get_base_layer: Any  # this and the next are PEFT's, which the type checker does not see
    active_adapters: Any
    set_adapter: Any

    def __init__(self, base_layer: nn.Module, name: str, mode: str, draws: Draws) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.mosa_branch = nn.ModuleDict()
        self.name, self.mode, self.draws = name, mode, draws
        self.widths = (0, 0)
        self._disable_adapters = False
        self.merged_adapters: list[str] = []

    def update_layer(self, adapter: str, branch: Branch, active: Any, frozen: bool) -> None:
        """Add an adapter's branch."""
        like = next(self.base_layer.parameters(), None)
        if like is not None and not like.is_meta and not next(branch.parameters()).is_meta:
            branch.to(like.device)
        self.mosa_branch[adapter] = branch
        self.set_adapter(active, inference_mode=frozen)

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run the module with the branches of the active adapters added."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        y = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters or self.merged:
            return y
        result = y
        for name in self.active_adapters:
            if name not in self.mosa_branch:
                continue
            branch: Any = self.mosa_branch[name]
            draw = self.draws.of(name, branch.site) if self.training else None
            result = result + branch(y if self.mode == "sequential" else x, draw).to(y.dtype)
        return result

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Whether the change is one of weights, and of LoRA's rank."""
        return self.mode == "lora"

    def get_delta_weight(self, adapter_name: str) -> torch.Tensor:
        """Return the merged change, of the shape of the layer's weight."""
        branch: Any = self.mosa_branch[adapter_name]
        W = branch.tensors(None)
        delta: torch.Tensor = branch.factor * (W["up"] @ W["down"])
        return delta.T if type(self.get_base_layer()).__name__ == "Conv1D" else delta

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the adapters' merged changes to the layer's weight.

        Raises:
            ParameterError: the layer is quantised, or with ``safe_merge`` a merged value is not finite.
        """
        base = self.get_base_layer()
        for name in check_adapters_to_merge(self, adapter_names):
            if name not in self.mosa_branch:
                continue
            refuse_quantized(base, self.name, "merge", "the mean of the parts is added to the weight")
            new = (base.weight.float() + self.get_delta_weight(name).float()).to(base.weight.dtype)
            if safe_merge and not bool(torch.isfinite(new).all()):
                raise ParameterError(
                    "adapter_names", "merge", f"adapters with finite values ({self.name})", name
                )
            base.weight.data = new
            self.merged_adapters.append(name)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Take merged adapters off the weight again."""
        weight = self.get_base_layer().weight
        while self.merged_adapters:
            delta = self.get_delta_weight(self.merged_adapters.pop())
            weight.data = (weight.float() - delta.float()).to(weight.dtype)
