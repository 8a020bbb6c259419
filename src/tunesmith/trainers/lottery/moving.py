"""The weights that move in a phase, as small trainable vectors beside a frozen model.

A frozen tensor W holds what the model computes with. For the entries that are tuned there is one trainable vector v in
float32; W carries their values, rounded to its own type. In a training step the model sees W through `Through`, whose
backward keeps the gradient at those entries alone. So gradients, moments and weight decay exist for v only, the dense
gradient of a tensor lives for a moment of the backward pass, and an entry that was not chosen is never written to.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.tuners.sparse._tensors import put, take, wide

__all__ = ["Moving", "l1_gradient"]


class Through(torch.autograd.Function):
    """W in the forward pass; in the backward pass the gradient at some entries, for the vector of their values."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, values: Tensor, index: Tensor | None) -> Tensor:
        """Return ``weight`` (no copy); ``values`` ``[k]`` are those at flat positions ``index``, None for all."""
        ctx.index, ctx.kind, ctx.shape = index, values.dtype, values.shape
        return weight.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Pick entries, never multiply by a mask: 0 times infinity would poison them."""
        flat = grads[0].reshape(-1)
        if ctx.index is not None:
            flat = flat.index_select(0, ctx.index)
        return None, flat.to(ctx.kind).reshape(ctx.shape), None


class Moving(nn.Module):
    """Trainable values of some entries of a model, kept beside it and out of its state dictionary.

    Attributes:
        names: names of the tensors, in order.
        index: name -> flat positions on the tensor's device, or None where the whole tensor moves.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.names: list[str] = []
        self.index: dict[str, Tensor | None] = {}
        places: dict[int, list[tuple[nn.Module, str]]] = {}
        for module in model.modules():
            for local, parameter in module.named_parameters(recurse=False):
                places.setdefault(id(parameter), []).append((module, local))
        # In tuples, where torch does not register them as parts of this module.
        self._places = (places,)
        self._targets = (dict(model.named_parameters()),)

    def add(self, name: str, values: Tensor, index: Tensor | None) -> None:
        """Let entries of a frozen tensor move: ``values`` in float32 or float64, ``index`` None for all of them."""
        target = self._targets[0][name]
        self.index[name] = None if index is None else index.to(target.device)
        value = nn.Parameter(values.to(target.device, wide(target.dtype)))
        self.register_parameter(f"v{len(self.names)}", value)
        self.names.append(name)

    def values(self, name: str) -> nn.Parameter:
        """Return the trainable values of a tensor."""
        return self.get_parameter(f"v{self.names.index(name)}")

    def parameter_names(self) -> dict[str, str]:
        """Return own parameter name -> name of the tensor it belongs to."""
        return {f"v{i}": name for i, name in enumerate(self.names)}

    @contextlib.contextmanager
    def seen(self) -> Iterator[None]:
        """Let the model compute through the moving values inside the block, wherever a tensor is used."""
        swapped = []
        try:
            for i, name in enumerate(self.names):
                target = self._targets[0][name]
                through = Through.apply(  # type: ignore[no-untyped-call]
                    target, self.get_parameter(f"v{i}"), self.index[name]
                )
                for module, local in self._places[0][id(target)]:
                    swapped.append((module, local, target))
                    module._parameters[local] = through
            yield
        finally:
            for module, local, target in swapped:
                module._parameters[local] = target

    @torch.no_grad()
    def write(self) -> None:
        """Write the values into the model, rounded to its type; only chosen entries are touched. O(K)."""
        for i, name in enumerate(self.names):
            target, values, index = self._targets[0][name], self.get_parameter(f"v{i}"), self.index[name]
            if index is None:
                target.copy_(values)
            else:
                put(target, index, values)

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Set the values from name -> tensor, and write them into the model."""
        for name in self.names:
            self.values(name).copy_(tensors[name])
        self.write()

    def tensors(self) -> dict[str, Tensor]:
        """Return name -> values."""
        return {name: self.values(name).detach() for name in self.names}

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Leave the values out of the model's files: its own tensors carry them."""

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Miss nothing in the model's files."""


def exact(parameter: Tensor, index: Tensor | None = None) -> Tensor:
    """Return a copy of a tensor, or of its entries at ``index``, in float32 (float64 for float64)."""
    found = parameter.detach().clone() if index is None else take(parameter, index)
    return found.to(wide(parameter.dtype))


@torch.no_grad()
def l1_gradient(theta: Tensor, theta0: Tensor, weight: float) -> Tensor:
    """Return the gradient of J = (lambda / N) sum |theta - theta0|: ``weight`` = lambda / N times the sign.

    theta0 is a constant: in the released code it is a differentiable copy of theta, so the gradient cancels.
    """
    return torch.sign(theta - theta0.to(theta.device, theta.dtype)).mul_(weight)
