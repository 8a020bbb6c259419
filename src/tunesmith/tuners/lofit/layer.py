"""The wrapper around one output projection."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import nn

from tunesmith.core.errors import ParameterError
from tunesmith.tuners._base import is_quantized, refuse_quantized
from tunesmith.tuners.lofit.heads import fold_offsets, fold_scales, scale_and_shift
from tunesmith.tuners.lofit.sites import Site

__all__ = ["LofitLayer"]


class LofitLayer(nn.Module, BaseTunerLayer):
    """An output projection whose input heads are scaled (stage 1) or shifted (stage 2).

    Offsets are applied behind the projection, as the bias ``W_O v`` they amount to: no second copy of the input is
    made, and a small ``v`` is not rounded away against a large ``z`` in bfloat16. Where the weight cannot be read in
    place (quantised, offloaded, or sharded until the projection runs) ``v`` is added to the input.

    Args:
        base_layer: the projection, ``H * d_h`` wide on its input side.
        site: which one it is, and its heads.
    """

    adapter_layer_names = ("lofit_v", "lofit_a")
    other_param_names = ("lofit_heads",)

    base_layer: Any
    get_base_layer: Any  # this and the next are PEFT's, which the type checker does not see
    active_adapters: Any
    set_adapter: Any
    _move_adapter_to_device_of_base_layer: Any

    def __init__(self, base_layer: nn.Module, site: Site) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.lofit_v = nn.ParameterDict()
        self.lofit_a = nn.ParameterDict()
        self.lofit_heads: dict[str, list[int]] = {}  # adapter -> heads of its rows
        self.name, self.index = site.name, site.layer
        self.n_heads, self.head_dim = site.n_heads, site.head_dim
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self._before_merge: dict[str, Any] = {}
        self._indices: dict[tuple[int, ...], torch.Tensor] = {}

    def update_layer(
        self, adapter_name: str, heads: list[int], rows: torch.Tensor, stage: str, active: Any, frozen: bool
    ) -> None:
        """Add an adapter: ``rows`` ``[K, d_h]`` are the initial offsets (stage "bias") or scales of ``heads``."""
        kept = self.lofit_v if stage == "bias" else self.lofit_a
        kept[adapter_name] = nn.Parameter(rows)
        self.lofit_heads[adapter_name] = heads
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(active, inference_mode=frozen)

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Project ``x`` ``[..., H * d_h]`` with the active adapters applied; several add up."""
        if self.disable_adapters:
            if self.merged:
                self.unmerge()
            return self._project(x, *args, **kwargs)
        if self.merged:
            return self._project(x, *args, **kwargs)
        A, v = self.flat_scales(self.active_adapters), self.flat_offsets(self.active_adapters)
        if v is None or not self._weight_is_here():
            return self._project(scale_and_shift(x, A, v), *args, **kwargs)
        y = self._project(scale_and_shift(x, A, None), *args, **kwargs)
        weight = self._weight()
        return y + (weight @ v.to(weight.dtype)).to(y.dtype)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Fold adapters into the projection: offsets into its bias, scales into its weight. Exact but for rounding.

        A projection without bias gets one. Offsets alone leave the weight untouched.

        Args:
            safe_merge: check for values that are not finite first.
            adapter_names: the active ones by default.

        Raises:
            ParameterError: the projection is quantised, or a merged value is not finite.
        """
        names = [n for n in check_adapters_to_merge(self, adapter_names) if n in self.lofit_heads]
        if not names:
            return
        base = self.get_base_layer()
        refuse_quantized(base, self.name, "merge", "a bias is computed from the projection's weight")
        if not self.merged:
            self._before_merge = {"bias": None if base.bias is None else base.bias.data.clone()}
        if "weight" not in self._before_merge and any(name in self.lofit_a for name in names):
            self._before_merge["weight"] = base.weight.data.clone()
        together = [*self.merged_adapters, *names]
        folded = self._folded(together)
        if safe_merge and not all(bool(torch.isfinite(value).all()) for value in folded.values()):
            raise ParameterError(
                "adapter_names", "merge", f"adapters with finite values ({self.name})", names
            )
        for key, value in folded.items():
            value = value.to(base.weight.dtype)
            if getattr(base, key) is None:
                base.bias = nn.Parameter(value, requires_grad=False)
            else:
                getattr(base, key).data = value
        self.merged_adapters = together

    def unmerge(self) -> None:
        """Put the projection's own weight and bias back, bit by bit."""
        if not self.merged:
            return
        base, before = self.get_base_layer(), self._before_merge
        if "weight" in before:
            base.weight.data = before["weight"]
        if before["bias"] is None:
            base.bias = None
        else:
            base.bias.data = before["bias"]
        self.merged_adapters, self._before_merge = [], {}

    def flat_offsets(self, names: list[str]) -> torch.Tensor | None:
        """Return the sum of some adapters' offsets, ``[H * d_h]``; None if they have none here."""
        return self._flat(self.lofit_v, names)

    def flat_scales(self, names: list[str]) -> torch.Tensor | None:
        """Return the sum of some adapters' scales, ``[H * d_h]``; None if they have none here."""
        return self._flat(self.lofit_a, names)

    def _flat(self, kept: nn.ParameterDict, names: list[str]) -> torch.Tensor | None:
        """Return the sum of some adapters' rows, each at its head's place: ``[H * d_h]``."""
        total = None
        for name in names:
            if name not in kept:
                continue
            rows, heads = kept[name], self.lofit_heads[name]
            if heads != list(range(self.n_heads)):
                rows = rows.new_zeros(self.n_heads, self.head_dim).index_copy(
                    0, self._index(heads, rows), rows
                )
            flat = rows.reshape(-1)
            total = flat if total is None else total + flat
        return total

    def _index(self, heads: list[int], rows: torch.Tensor) -> torch.Tensor:
        """Return ``heads`` as a tensor beside ``rows``; kept, since making it anew would wait for the device."""
        key = tuple(heads)
        index = self._indices.get(key)
        if index is None or index.device != rows.device:
            with torch.inference_mode(False):  # a tensor made in inference mode cannot serve in training
                index = self._indices[key] = torch.tensor(heads, device=rows.device)
        return index

    def _project(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        result: torch.Tensor = self.base_layer(x, *args, **kwargs)
        return result

    def _weight(self) -> torch.Tensor:
        """Return the weight as ``[d, H * d_h]``; GPT-2's layer keeps it transposed."""
        base = self.get_base_layer()
        weight: torch.Tensor = base.weight
        return weight.T if type(base).__name__ == "Conv1D" else weight

    def _weight_is_here(self) -> bool:
        base = self.get_base_layer()
        if is_quantized(base):
            return False
        weight = base.weight
        return (
            not weight.is_meta
            and weight.dim() == 2
            and self._weight().shape[1] == self.n_heads * self.head_dim
        )

    def _folded(self, names: list[str]) -> dict[str, torch.Tensor]:
        """Return what replaces the original bias and weight, in float32, with adapters folded in."""
        base = self.get_base_layer()
        transposed = type(base).__name__ == "Conv1D"
        weight = self._before_merge.get("weight")
        weight = base.weight.data if weight is None else weight
        weight = weight.T if transposed else weight
        A, v = self.flat_scales(names), self.flat_offsets(names)
        folded: dict[str, torch.Tensor] = {}
        if v is not None:
            bias, original = fold_offsets(weight, v.detach()), self._before_merge["bias"]
            folded["bias"] = bias if original is None else bias + original.float()
        if A is not None:
            new = fold_scales(weight, A.detach())
            folded["weight"] = new.T.contiguous() if transposed else new
        return folded
