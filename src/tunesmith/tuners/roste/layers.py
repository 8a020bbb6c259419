"""A linear layer that rotates and rounds its input and its weight (RoSTE, arXiv 2502.09003, equation 5).

``Y = Q_x(X R) Q_w(W R)^T + b`` in the layout of ``nn.Linear``. With ``G = dL/dY`` the gradients are
``dL/dW = G^T Q_x(X R) R^T`` and ``dL/dX = G Q_w(W R) R^T``: straight through the rounding, back through R.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import linear
from torch.optim.optimizer import register_optimizer_step_post_hook

from tunesmith.numerics.hadamard import RandomHadamard
from tunesmith.tuners.roste.quantizer import Quantizer, rotate_fake_quant

__all__ = ["RotatedQuantLinear", "SharedInput"]


class _Steps:
    """Steps of all torch optimisers in this process: some write through ``.data``, which no version counts."""

    count = 0


def _count_step(*_: Any) -> None:
    _Steps.count += 1


register_optimizer_step_post_hook(_count_step)


class SharedInput:
    """Rotated and rounded inputs of layers that read the same tensor: query, key and value; gate and up.

    Lives within one call of the module around the layers, whose hooks empty it, so that gradient checkpointing
    computes the same operations again.
    """

    def __init__(self) -> None:
        self.source: torch.Tensor | None = None
        self.version = 0
        self.values: dict[Any, torch.Tensor] = {}

    def clear(self, *_: Any) -> None:
        """Forget everything; has the form of a module's hook."""
        self.source, self.values = None, {}

    def get(self, x: torch.Tensor, key: Any, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Return what ``compute()`` gives for ``x``, once per key."""
        if x.is_inference():  # has no version to see changes in place by
            return compute()
        if self.source is not x or self.version != x._version:
            self.source, self.version, self.values = x, x._version, {}
        if key not in self.values:
            self.values[key] = compute()
        return self.values[key]

    def watch(self, parent: torch.nn.Module) -> None:
        """Empty at the beginning and the end of each call of ``parent``."""
        parent.register_forward_pre_hook(self.clear)
        parent.register_forward_hook(self.clear, always_call=True)


class RotatedQuantLinear(torch.nn.Linear):
    """A linear layer under fake quantisation; keeps the parameters, and their names, of the layer it replaces.

    The master weight stays unrotated and in floating point: weight decay, clipping and the optimiser see what they
    would see without quantisation. Time beside the product: O(log) passes over input and weight; the weight's are
    taken once per optimiser step with ``cache``.

    Args:
        base: an ``nn.Linear`` or transformers' ``Conv1D``, whose weight is kept transposed.
        weight_quantizer, activation_quantizer: Q_w and Q_x.
        rotation: R on the input side, or None.
        rotate_input: apply R to the input too; False where the input arrives rotated.
        rotation_out: rotation of the outputs, moved into the weight (and bias), or None.
        cache: keep the quantised weight until the weight changes.
        shared: memory of inputs that other layers read too.

    Attributes:
        active: False: rotate, but round nothing.
        merged: the weight is rotated and rounded already (an exported model).
    """

    def __init__(
        self,
        base: Any,
        weight_quantizer: Quantizer,
        activation_quantizer: Quantizer,
        *,
        rotation: RandomHadamard | None = None,
        rotate_input: bool = True,
        rotation_out: RandomHadamard | None = None,
        cache: bool = True,
        shared: SharedInput | None = None,
    ) -> None:
        torch.nn.Module.__init__(self)
        self.transposed = not isinstance(base, torch.nn.Linear)
        shape = tuple(base.weight.shape)
        self.in_features, self.out_features = shape if self.transposed else shape[::-1]
        self.weight, self.bias = base.weight, base.bias
        self.weight_quantizer, self.activation_quantizer = weight_quantizer, activation_quantizer
        self.rotation, self.rotate_input, self.rotation_out = rotation, rotate_input, rotation_out
        self.cache, self.active, self.merged = cache, True, False
        self.shared = SharedInput() if shared is None else shared
        self._kept: tuple[Any, torch.Tensor, torch.Tensor | None] | None = None
        self.training = base.training

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return ``(..., out)`` in the type of the input, or of autocast."""
        kind = input.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else input.dtype
        rotation = self.rotation if self.rotate_input else None
        quantizer = self.activation_quantizer if self.active else Quantizer(None)
        if rotation is None and quantizer.bits is None:
            x = input
        else:
            x = self.shared.get(
                input,
                (rotation, quantizer, dtype, torch.is_grad_enabled()),
                lambda: rotate_fake_quant(input, quantizer, rotation, dtype),
            )
        if self._plain():
            return self._product(x)
        weight, bias = self.effective(dtype)
        result: torch.Tensor = _Product.apply(  # type: ignore[no-untyped-call]
            x, self.weight, self.bias, weight, bias, self
        )
        return result

    def _plain(self) -> bool:
        rounds = self.active and self.weight_quantizer.bits is not None
        return self.merged or not (rounds or self.rotation or self.rotation_out)

    def _product(self, x: torch.Tensor) -> torch.Tensor:
        if not self.transposed:
            return linear(x, self.weight, self.bias)
        # As Conv1D does it, to the bit.
        flat = torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight)
        return flat.view(*x.shape[:-1], self.out_features)

    @torch.no_grad()
    def rotated(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the weight ``(out, in)`` and bias as rotated, in float32 (float64 for float64)."""
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        weight = (self.weight.T if self.transposed else self.weight).to(wide)
        bias = None if self.bias is None else self.bias.to(wide)
        if self.merged:
            return weight, bias
        if self.rotation is not None:
            weight = self.rotation(weight)
        if self.rotation_out is not None:
            weight = self.rotation_out(weight.T).T.contiguous()
            bias = None if bias is None else self.rotation_out(bias)
        return weight, bias

    @torch.no_grad()
    def effective(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return ``Q_w(W R)`` ``(out, in)`` and the bias, in ``dtype``; from the cache if the weight is the same."""
        key: tuple[Any, ...] | None = None
        if self.cache and not self.weight.is_inference():
            # What was made in inference mode cannot be saved for a gradient.
            mode = self.active, torch.is_inference_mode_enabled()
            key = self.weight._version, self.weight.data_ptr(), _Steps.count, dtype, mode
            if self.bias is not None:
                key += self.bias._version, self.bias.data_ptr()
            if self._kept is not None and self._kept[0] == key:
                return self._kept[1:]
        weight, bias = self.rotated()
        if self.active:
            weight = self.weight_quantizer(weight)
        weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
        self._kept = None if key is None else (key, weight, bias)
        return weight, bias

    def forget(self) -> None:
        """Drop the cached weight, after writing to it in a way that neither version nor optimiser shows."""
        self._kept = None

    def train(self, mode: bool = True) -> RotatedQuantLinear:
        """Set the mode; the cached weight is dropped when it changes."""
        if mode != self.training:
            self.forget()
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self.forget()
        return super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles leave the cached weight behind."""
        return {**self.__dict__, "_kept": None}

    def extra_repr(self) -> str:
        """Widths, bits and whether it rotates."""
        bits = self.weight_quantizer.bits, self.activation_quantizer.bits
        return f"{self.in_features}, {self.out_features}, W{bits[0]}A{bits[1]}, rotated={self.rotation is not None}"


class _Product(torch.autograd.Function):
    """``x W_q^T + b`` whose gradient goes to the master weight."""

    @staticmethod
    def forward(
        ctx: Any, x: Any, weight: Any, bias: Any, quantised: Any, shift: Any, layer: Any
    ) -> torch.Tensor:
        ctx.save_for_backward(x, quantised)
        ctx.layer, ctx.types = layer, (weight.dtype, None if bias is None else bias.dtype)
        return linear(x, quantised, shift)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        x, quantised = ctx.saved_tensors
        layer, (weight_type, bias_type) = ctx.layer, ctx.types
        flat = grad.reshape(-1, grad.shape[-1])
        dx = dw = db = None
        if ctx.needs_input_grad[0]:
            dx = grad @ quantised
        if ctx.needs_input_grad[1]:
            dw = flat.T @ x.reshape(-1, x.shape[-1])
            if layer.rotation_out is not None:
                dw = layer.rotation_out.inverse(dw.T).T
            if layer.rotation is not None:
                dw = layer.rotation.inverse(dw)
            dw = (dw.T if layer.transposed else dw).to(weight_type)
        if bias_type is not None and ctx.needs_input_grad[2]:
            db = flat.sum(0)
            db = (db if layer.rotation_out is None else layer.rotation_out.inverse(db)).to(bias_type)
        return dx, dw, db, None, None, None
