"""Sparse deltas on a live model: added in place, kept in order on the model, and taken off bit-exactly.

The model carries the list of what was applied with the values that stood there before, so the state of a model is a
function of its base and of that list: taking off a delta in the middle puts back everything above it, and adds the
rest again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tunesmith.core.errors import ParameterError
from tunesmith.tuners.sparse._tensors import check_names, hash_tensor, put, take, wide

if TYPE_CHECKING:
    from tunesmith.tuners.sparse.delta import SparseDelta

__all__ = ["applied_to", "apply", "base_hashes", "retie_output", "revert", "untie_output"]

ATTRIBUTE = "_tunesmith_sparse_deltas"


@dataclass
class Applied:
    """One application: the delta, whether its heads were used, and what stood there before."""

    delta: SparseDelta
    with_abs: bool
    before: dict[str, Tensor] = field(default_factory=dict)
    heads: dict[str, Tensor] = field(default_factory=dict)
    untied: bool = False


def stack(model: nn.Module) -> list[Applied]:
    """Return the live list of what is applied to a model, first one first."""
    if ATTRIBUTE not in model.__dict__:
        model.__dict__[ATTRIBUTE] = []
    found: list[Applied] = model.__dict__[ATTRIBUTE]
    return found


def applied_to(model: nn.Module) -> list[SparseDelta]:
    """Return the deltas that are applied to a model, first one first."""
    return [entry.delta for entry in stack(model)]


def parameters_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return name -> parameter, with every name of a tied one."""
    return dict(model.named_parameters(remove_duplicate=False))


def base_hashes(model: nn.Module, names: list[str]) -> dict[str, str]:
    """Return name -> hash of the weights that the model had before any delta was applied to it. O(N) time."""
    table, hashes = parameters_of(model), {}
    for name in names:
        tensor = table[name].detach()
        touched = [entry for entry in stack(model) if name in entry.before or name in entry.heads]
        if touched:
            tensor = tensor.clone()
            for entry in reversed(touched):
                if name in entry.heads:
                    tensor.copy_(entry.heads[name])
                if name in entry.before:
                    put(tensor, entry.delta.diffs[name][0], entry.before[name])
        hashes[name] = hash_tensor(tensor)
    return hashes


def check(model: nn.Module, delta: SparseDelta, with_abs: bool | None, check_base: bool) -> bool:
    """Check that a delta fits a model; return whether its heads are used."""
    owner = "SparseDelta.apply"
    if not isinstance(model, nn.Module):
        raise ParameterError("model", owner, "a torch module", model)
    if with_abs and not delta.abs:
        raise ParameterError("with_abs", owner, "False for a delta without dense tensors (heads)", with_abs)
    heads = bool(delta.abs) if with_abs is None else with_abs
    table = parameters_of(model)
    wanted = [name for name, (index, _) in delta.diffs.items() if len(index)]
    check_names(wanted + (list(delta.abs) if heads else []), table, "model", owner)
    for name in wanted + (list(delta.abs) if heads else []):
        shape = delta.shapes[name] if name in delta.diffs else tuple(delta.abs[name].shape)
        if tuple(table[name].shape) != shape:
            expected = f"a model whose '{name}' has the shape {shape}; embeddings may have been resized"
            raise ParameterError("model", owner, expected, tuple(table[name].shape))
        if not table[name].is_floating_point():
            expected = "in floating point: a delta cannot be added to quantised weights"
            raise ParameterError("model", owner, expected, f"{name}: {table[name].dtype}")
    if check_base and delta.base:
        shared = [name for name in delta.base if name in table]
        found = base_hashes(model, shared)
        wrong = [name for name in shared if found[name] != delta.base[name]]
        if wrong:
            raise ParameterError(
                "model",
                owner,
                "the base that the delta was learned on, or one with other deltas applied to it; check_base=False adds "
                "it all the same",
                f"a model in which {len(wrong)} of {len(shared)} tensors differ, the first '{wrong[0]}'",
            )
    return heads


@torch.no_grad()
def apply(model: nn.Module, delta: SparseDelta, with_abs: bool | None, check_base: bool) -> None:
    """Add a delta to a model in place, after all checks."""
    heads = check(model, delta, with_abs, check_base)
    _add(model, Applied(delta, heads))


def _add(model: nn.Module, entry: Applied) -> None:
    table, delta = parameters_of(model), entry.delta
    entry.untied = bool(delta.info.get("untied_output")) and untie_output(model)
    entry.before, entry.heads = {}, {}
    for name, (index, values) in delta.diffs.items():
        if len(index):
            tensor = table[name]
            entry.before[name] = take(tensor, index)
            kind = torch.promote_types(wide(tensor.dtype), values.dtype)
            put(tensor, index, entry.before[name].to(kind) + values.to(tensor.device, kind))
    if entry.with_abs:
        for name, value in delta.abs.items():
            entry.heads[name] = table[name].detach().clone()
            table[name].copy_(value)
    stack(model).append(entry)


def _remove(model: nn.Module, entry: Applied) -> None:
    table = parameters_of(model)
    for name, values in entry.heads.items():
        table[name].copy_(values)
    for name, values in entry.before.items():
        put(table[name], entry.delta.diffs[name][0], values)
    if entry.untied:
        retie_output(model)


@torch.no_grad()
def revert(model: nn.Module, delta: SparseDelta) -> None:
    """Take a delta off a model: everything on top of it is put back too, and added again."""
    entries = stack(model)
    place = next((i for i in reversed(range(len(entries))) if entries[i].delta is delta), None)
    if place is None:
        raise ParameterError(
            "model",
            "SparseDelta.revert",
            "one that this delta has been applied to",
            f"a model with {len(entries)} other deltas applied",
        )
    above = entries[place + 1 :]
    for entry in reversed(entries[place:]):
        _remove(model, entry)
    del entries[place:]
    for entry in above:
        _add(model, entry)


def untie_output(model: nn.Module) -> bool:
    """Give the output layer its own copy of the embeddings if it shares them; return whether it did."""
    inner, outer = _embeddings(model)
    if inner is None or outer is None or outer.weight is not inner.weight:
        return False
    outer.weight = nn.Parameter(inner.weight.detach().clone(), requires_grad=False)
    _record(model, tied=False)
    return True


def retie_output(model: nn.Module) -> None:
    """Undo `untie_output`."""
    inner, outer = _embeddings(model)
    outer.weight = inner.weight
    _record(model, tied=True)


def _embeddings(model: nn.Module) -> tuple[Any, Any]:
    try:
        return model.get_input_embeddings(), model.get_output_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        return None, None


def _record(model: nn.Module, tied: bool) -> None:
    """Make the config say what holds, or a reload would tie the weights again."""
    config: Any = getattr(model, "config", None)
    if config is not None:
        config.get_text_config().tie_word_embeddings = tied
        config.tie_word_embeddings = tied
