"""What each parameter's gradient is made of, example by example, caught while one backward pass runs.

The gradient of a matrix that is applied to vectors is a sum of outer products, ``G_i = sum_t left_it right_it^T``, so
the two factors say everything and the gradient itself need not be formed. They are caught by hooks: the input in the
forward pass, the derivative of the output in the backward pass. Weights are frozen meanwhile, so that no gradient of
theirs is computed, and the graph begins at the first module that owns a wanted parameter: the backward pass is cut off
below it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

__all__ = ["Capture", "Layout", "Sink", "Unsupported", "Use", "frozen"]


class Unsupported(Exception):
    """A module whose parameters this way cannot reach; the caller goes one example at a time."""


@dataclass
class Use:
    """One use of a parameter in a forward pass, for each of B examples.

    Attributes:
        left: ``(B, T, m)`` vectors, or int64 ``(B, T)`` for the one-hot vectors of an embedding.
        right: ``(B, T, n)``.
        whole: instead of both, the gradients themselves, ``(B, *shape)``.
    """

    left: torch.Tensor | None = None
    right: torch.Tensor | None = None
    whole: torch.Tensor | None = None

    def gradient(self, i: int, shape: torch.Size) -> torch.Tensor:
        """Return the gradient of example i in float32, of the parameter's shape."""
        if self.whole is not None:
            return self.whole[i].float()
        assert self.left is not None
        assert self.right is not None
        right = self.right[i].float()
        if self.left.dtype == torch.int64:
            return right.new_zeros(shape).index_add_(0, self.left[i], right)
        return self.left[i].float().T @ right


@dataclass
class Layout:
    """How the rows of a batch lie in the tensors that modules see.

    Attributes:
        rows: B.
        length: T, with padding.
        row: int64 ``(n,)`` the row of each position that is gathered before the output layer.
        slot: int64 ``(n,)`` its place among those of its row.
        slots: most gathered positions of a row.
    """

    rows: int
    length: int
    row: torch.Tensor
    slot: torch.Tensor
    slots: int

    def by_row(self, x: torch.Tensor, tail: int) -> torch.Tensor:
        """Return ``x`` as ``(B, S, *last tail axes)``: positions of a row beside each other, the rest zeros.

        Raises:
            Unsupported: it is unclear which row a position belongs to.
        """
        lead, last = x.shape[: x.ndim - tail], x.shape[x.ndim - tail :]
        if len(lead) >= 2 and lead[0] == self.rows:
            return x.reshape(self.rows, -1, *last)
        flat = x.reshape(-1, *last)
        if len(flat) == self.rows * self.length:
            return flat.view(self.rows, self.length, *last)
        if len(flat) == len(self.row):
            out = flat.new_zeros((self.rows, self.slots, *last))
            out[self.row, self.slot] = flat
            return out
        raise Unsupported(
            f"a module sees a tensor of shape {tuple(x.shape)}, whose rows cannot be told apart"
        )


Sink = Callable[[str, Use, bool], None]  # name, use, whether it is the last that this pass will meet


class Capture:
    """Hooks on the modules that own some parameters; each use that the backward pass meets goes to ``sink``.

    Args:
        model: the model.
        wanted: name -> parameter, each once.

    Attributes:
        layout: of the batch that is running.
        sink: called with the parameter's name and a use; None while nothing is caught.
        calls: how often each parameter was used in the forward pass.
        met: how often the backward pass has met it.
    """

    def __init__(self, model: nn.Module, wanted: dict[str, nn.Parameter]) -> None:
        self.layout: Layout | None = None
        self.sink: Sink | None = None
        self.calls: Counter[str] = Counter()
        self.met: Counter[str] = Counter()
        self._names = {id(p): name for name, p in wanted.items()}
        self._owned: dict[nn.Module, dict[str, str]] = {}  # module that is called -> its name of it -> name
        modules = dict(model.named_modules())
        for path, module in modules.items():
            for attribute, parameter in module._parameters.items():
                if parameter is None or id(parameter) not in self._names:
                    continue
                owner, inner = path, attribute
                # containers are never called: their parameters are used by a module above them
                while isinstance(modules[owner], nn.ParameterDict | nn.ParameterList | nn.ModuleDict):
                    owner, _, last = owner.rpartition(".")
                    inner = f"{last}.{inner}"
                self._owned.setdefault(modules[owner], {})[inner] = self._names[id(parameter)]
        self._handles = [m.register_forward_hook(self._hook, with_kwargs=True) for m in self._owned]

    def begin(self, layout: Layout, sink: Sink) -> None:
        """Expect a forward pass over a batch of that layout."""
        self.layout, self.sink = layout, sink
        self.calls.clear()
        self.met.clear()

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()

    def _hook(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        sink, layout = self.sink, self.layout
        if sink is None or layout is None:
            return None
        if not isinstance(output, torch.Tensor):
            raise Unsupported(f"{type(module).__name__} returns no tensor")
        if not output.requires_grad:
            output.requires_grad_(True)
        self.calls.update(self._owned[module].values())

        def meet(gradient: torch.Tensor) -> None:
            self.sink = None  # a module that is run again here must not be caught again
            try:
                for name, use in self._uses(module, args, kwargs, gradient.detach(), layout):
                    self.met[name] += 1
                    sink(name, use, self.met[name] == self.calls[name])
            finally:
                self.sink = sink

        if isinstance(module, nn.Embedding) and len(output) == 1 < layout.rows:
            # positions that all rows share: written out per row, their derivatives come apart
            output = output.expand(layout.rows, *output.shape[1:])
        output.register_hook(meet)
        return output

    def _uses(
        self,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        gradient: torch.Tensor,
        layout: Layout,
    ) -> Iterator[tuple[str, Use]]:
        names = self._owned[module]
        forward = type(module).forward
        if forward in (nn.Linear.forward, Conv1D.forward):
            delta = layout.by_row(gradient, 1)
            if "weight" in names:
                x = layout.by_row((*args, *kwargs.values())[0].detach(), 1)
                pair = (delta, x) if forward is nn.Linear.forward else (x, delta)
                yield names["weight"], Use(*pair)
            if "bias" in names:
                yield names["bias"], Use(whole=delta.float().sum(1))
        elif forward is nn.Embedding.forward and module.max_norm is None and not module.scale_grad_by_freq:
            ids = layout.by_row((*args, *kwargs.values())[0].expand(gradient.shape[:-1]), 0)
            delta = layout.by_row(gradient, 1)
            if module.padding_idx is not None:  # torch gives this row no gradient
                delta = delta * (ids != module.padding_idx).unsqueeze(-1)
            yield names["weight"], Use(ids, delta)
        elif type(module).__name__.endswith("RMSNorm") and tuple(names) == ("weight",) and gradient.ndim == 3:
            yield names["weight"], Use(whole=_norm_gradients(module, args, kwargs, gradient, layout))
        else:
            for inner, whole in _module_gradients(
                module, tuple(names), args, kwargs, gradient, layout
            ).items():
                yield names[inner], Use(whole=whole)


def _norm_gradients(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], gradient: torch.Tensor, layout: Layout
) -> torch.Tensor:
    """Return the per-example gradients ``(B, d)`` of a weight that multiplies each position.

    Each row gets a copy of the weight by broadcasting; a third of the time of the general way.
    """
    from torch.func import functional_call

    if gradient.shape[0] != layout.rows:
        raise Unsupported(f"{type(module).__name__} does not see one example after another")
    weight: Any = module.weight
    copies = weight.detach().expand(layout.rows, 1, -1).clone().requires_grad_(True)
    inputs = tuple(x.detach() if isinstance(x, torch.Tensor) else x for x in args)
    with torch.enable_grad():
        out = functional_call(module, {"weight": copies}, inputs, kwargs)
        (found,) = torch.autograd.grad(out, copies, gradient)
    return found[:, 0]


def _module_gradients(
    module: nn.Module,
    inner: tuple[str, ...],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    gradient: torch.Tensor,
    layout: Layout,
) -> dict[str, torch.Tensor]:
    """Return the per-example gradients ``(B, *shape)`` of any module's own parameters.

    The module alone is run again under ``torch.func``, vectorised over the examples, and differentiated against
    the derivative of its output.
    """
    from torch.func import functional_call, grad, vmap
    from torch.utils import _pytree as tree

    leaves, spec = tree.tree_flatten((args, kwargs))
    batched = [isinstance(x, torch.Tensor) and x.ndim > 0 and x.shape[0] == layout.rows for x in leaves]
    if gradient.shape[0] != layout.rows or not any(batched):
        raise Unsupported(f"{type(module).__name__} does not see one example after another")
    own = dict(module.named_parameters())
    parameters = {name: own[name].detach() for name in inner}

    def weighted(
        parameters: dict[str, torch.Tensor], delta: torch.Tensor, *some: torch.Tensor
    ) -> torch.Tensor:
        mine = iter(some)
        values = [next(mine).unsqueeze(0) if b else x for b, x in zip(batched, leaves, strict=True)]
        again, more = tree.tree_unflatten(values, spec)
        out = functional_call(module, parameters, again, more)
        return (out.float() * delta.unsqueeze(0).float()).sum()

    rows = [x.detach() for b, x in zip(batched, leaves, strict=True) if b]
    try:
        return vmap(grad(weighted), in_dims=(None, *[0] * (1 + len(rows))))(parameters, gradient, *rows)
    except RuntimeError as error:
        raise Unsupported(f"{type(module).__name__} cannot be vectorised: {error}") from error


@contextmanager
def frozen(model: nn.Module, trainable: dict[str, nn.Parameter]) -> Iterator[None]:
    """Run a block in evaluation mode with gradients for ``trainable`` alone; restore both afterwards."""
    needs = {p: p.requires_grad for p in model.parameters()}
    modes = {m: m.training for m in model.modules()}
    keep = {id(p) for p in trainable.values()}
    try:
        model.eval()
        for parameter in needs:
            parameter.requires_grad_(id(parameter) in keep)
        yield
    finally:
        for parameter, flag in needs.items():
            parameter.requires_grad_(flag)
        for module, mode in modes.items():
            module.training = mode
