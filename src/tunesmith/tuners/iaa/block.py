"""Wiring: how asides and hosts take part when a block of any transformers model runs.

A block keeps its place, name and weights. Its class becomes a subclass whose ``forward`` adds the increments, so they
lie inside the region that gradient checkpointing runs twice, and the captured hidden states contain them. Hooks on the
block, which lie outside that region, carry the chain's state from block to block: into the region as an argument and
out of it as a result, so that reentrant checkpointing differentiates it too. Hosts and taps are hooks on the layers
inside. All hooks are functions of the module that they are called with: copies, pickles and replicas on other devices
find their own parameters.
"""

from __future__ import annotations

import functools
import inspect
import types
from typing import Any

import torch

from tunesmith.core.errors import ParameterError
from tunesmith.tuners.iaa.config import IAAConfig
from tunesmith.tuners.iaa.core import chain_step
from tunesmith.tuners.iaa.layer import Aside, Host, IAALayer, Notes, PerThread, Stream

__all__ = ["attach", "attach_host", "attach_taps", "detach"]


def attach(block: Any, name: str, stream: Stream, index: int) -> Aside:
    """Give ``block`` its aside, or return the one it has."""
    if isinstance(getattr(block, "iaa", None), Aside):
        return block.iaa  # type: ignore[no-any-return]
    kind: Any = type(block)
    _check_instance_forward(block, name)
    first = list(inspect.signature(kind.forward).parameters)[1]
    aside = Aside(PerThread(Notes), stream, index, first)
    aside.train(block.training)
    block.iaa = aside
    block.__class__ = _connected(kind)
    if "_old_forward" in vars(block):  # accelerate's hooks keep the forward of the class they found
        block._old_forward = types.MethodType(type(block).forward, block)
    if not _checkpoints_around_hooks(kind):
        aside.handles = [
            block.register_forward_pre_hook(_before_block, prepend=True, with_kwargs=True),
            block.register_forward_hook(_after_block, prepend=True, with_kwargs=True),
        ]
    return aside


def attach_host(linear: Any, aside: Aside) -> Host:
    """Give a linear layer of the aside's block its host, or return the one it has."""
    if isinstance(getattr(linear, "iaa", None), Host):
        return linear.iaa  # type: ignore[no-any-return]
    host = Host(aside.notes)
    host.train(linear.training)
    linear.iaa = host
    aside.handles.append(linear.register_forward_hook(_after_host))
    return host


def attach_taps(aside: Aside, attention: Any, first_norm: Any, second_norm: Any) -> None:
    """Watch the attention and the two norms of a block: where B_att is added and U is found (variant ``sublayer``)."""
    hooks = {"attention": (attention, _after_attention), "first": (first_norm, _after_first_norm)}
    hooks["second"] = (second_norm, _after_second_norm)
    for module, hook in hooks.values():
        if getattr(module, "_iaa_notes", None) is None:
            module._iaa_notes = aside.notes
            aside.handles.append(module.register_forward_hook(hook))


def detach(block: Any) -> None:
    """Make ``block`` what it was before `attach`."""
    for handle in block.iaa.handles:
        handle.remove()
    for module in list(block.modules()):
        if isinstance(module.__dict__.get("_modules", {}).get("iaa"), IAALayer):
            del module.iaa
        vars(module).pop("_iaa_notes", None)
    block.__class__ = block.iaa_kind
    if "_old_forward" in vars(block):
        block._old_forward = types.MethodType(type(block).forward, block)


def _check_instance_forward(block: Any, name: str) -> None:
    forward = vars(block).get("forward")
    if forward is not None and "_old_forward" not in vars(block):
        raise ParameterError(
            "model",
            IAAConfig,
            f"one whose blocks run the forward of their class; {name} has its own",
            forward,
        )


@functools.cache
def _connected(kind: Any) -> Any:
    """Return the subclass of a block's class that runs its aside; same name, as wrapping policies go by it."""

    @functools.wraps(kind.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return _run(self.iaa, functools.partial(kind.forward, self), args, kwargs)

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        changed = _before_block(self, args, kwargs)
        args, kwargs = changed if changed is not None else (args, kwargs)
        output = kind.__call__(self, *args, **kwargs)
        changed = _after_block(self, args, kwargs, output)
        return output if changed is None else changed

    def reduce(self: Any, protocol: Any) -> Any:
        return _rebuild, (kind,), vars(self).copy()

    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    members = {"forward": forward, "iaa_kind": kind, "__reduce_ex__": reduce}
    if _checkpoints_around_hooks(kind):
        members["__call__"] = call
    return type(kind.__name__, (kind,), {**names, **members})


def _checkpoints_around_hooks(kind: Any) -> bool:
    """Up to transformers 5.22 a block's ``__call__`` checkpoints its hooks too; there ours must not be hooks."""
    return kind.__call__ is not torch.nn.Module.__call__


def _rebuild(kind: Any) -> Any:
    connected = _connected(kind)
    return connected.__new__(connected)


def _run(aside: Aside, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A block's forward with its asides; with chains, their states follow H in the arguments and end the result."""
    names = aside.active()
    if not names:
        return forward(*args, **kwargs)
    chains = aside.having("chain")
    H, states, rest = args[0], args[1 : 1 + len(chains)], args[1 + len(chains) :]
    notes = aside.notes()
    notes.open(aside, H)
    try:
        output = forward(H, *rest, **kwargs)
        U, increments = notes.U, notes.increments
    finally:
        notes.close()
    hidden = output if isinstance(output, torch.Tensor) else output[0]
    result = hidden
    for name in aside.having("layer"):
        result = result + aside.B(H, name).to(hidden.dtype)
    for name in aside.having("sublayer"):
        if U is None:
            raise _no_middle("its second norm was not called after attention")
        result = result + aside.B(U, name).to(hidden.dtype)
    after = []
    for name, c in zip(chains, states, strict=True):
        delta, c = chain_step(functools.partial(aside.B, adapter=name), c, increments.get(name))
        result = result + delta.to(hidden.dtype)
        after.append(c)
    notes.single = isinstance(output, torch.Tensor)
    if notes.single:
        return (result, *after) if chains else result
    body = (result, *output[1:], *after)
    return body if isinstance(output, tuple) else list(body)


def _before_block(block: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    aside = block.iaa
    if not aside.active():
        return None
    if not args:
        kwargs = dict(kwargs)
        args = (kwargs.pop(aside.first),)
    H, rest = args[0], args[1:]
    checkpointed = getattr(block, "gradient_checkpointing", False) and block.training
    if checkpointed and torch.is_grad_enabled() and not H.requires_grad:
        # Reentrant checkpointing differentiates only a region with an input that asks for it, and under frozen
        # embeddings the first block has none.
        H = H.detach().requires_grad_()
    states = []
    if chains := aside.having("chain"):
        now = aside.stream.now()
        if aside.index <= now.last:  # a new pass; the one before may have ended in an error
            now.clear()
        now.last = aside.index
        for name in chains:
            c = now.c.get(name)
            states.append(H.to(aside.iaa_down[name].weight.dtype) if c is None else c)
    return (H, *states, *rest), kwargs


def _after_block(block: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    aside = block.iaa
    chains = aside.having("chain")
    result = None
    if chains:
        body, states = output[: -len(chains)], output[-len(chains) :]
        aside.stream.now().c.update(zip(chains, states, strict=True))
        result = body[0] if aside.notes().single else body
    if aside.index == max(aside.stream.blocks):
        aside.stream.now().clear()
    return result


def _after_host(linear: Any, args: tuple[Any, ...], output: Any) -> Any:
    return linear.iaa.host(args[0], output)


def _beside_attention(notes: Notes, hidden: Any) -> Any:
    aside = notes.aside
    assert aside is not None
    for name in aside.having("sublayer"):
        hidden = hidden + aside.B(notes.H, name, "iaa_att_").to(hidden.dtype)
    return hidden


def _watching(module: Any) -> Notes | None:
    notes: Notes = module._iaa_notes()
    return notes if notes.aside is not None and notes.aside.having("sublayer") else None


def _after_attention(module: Any, args: tuple[Any, ...], output: Any) -> Any:
    notes = _watching(module)
    if notes is None:
        return None
    notes.attended = output if isinstance(output, torch.Tensor) else output[0]
    if not notes.first_norm:  # the first norm comes after attention: added there
        return None
    hidden = _beside_attention(notes, notes.attended)
    return hidden if isinstance(output, torch.Tensor) else type(output)((hidden, *output[1:]))


def _after_first_norm(module: Any, args: tuple[Any, ...], output: Any) -> Any:
    notes = _watching(module)
    if notes is None:
        return None
    if args[0] is notes.H:
        notes.first_norm = True
        return None
    if args[0] is notes.attended:
        raise _no_middle("its first norm stands between attention and the residual sum")
    notes.U = _beside_attention(notes, output)
    return notes.U


def _after_second_norm(module: Any, args: tuple[Any, ...], output: Any) -> None:
    notes = _watching(module)
    if notes is None or not notes.first_norm:
        return
    if args[0] is notes.H:
        raise _no_middle("attention and feed-forward part read the same input")
    notes.U = args[0]


def _no_middle(reason: str) -> ParameterError:
    return ParameterError(
        "variant",
        IAAConfig,
        "'layer' or 'chain' for this model, whose blocks have no place between attention and feed-forward part: "
        f"{reason}",
        "sublayer",
    )
