"""The named weights of a model, wherever they are, one at a time: a module, a dictionary, a file, or shards."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.core.errors import ParameterError
from tunesmith.engine.shards import files_of

__all__ = ["PIECE", "Tensors", "hash_tensor", "open_tensors", "pieces", "put", "take", "wide"]

PIECE = 2**22
"""Entries that are looked at together: temporaries stay below 100 MB whatever a tensor's size."""


@dataclass
class Tensors:
    """Named tensors of one model.

    Attributes:
        names: in order; tied parameters of a module once, under their first name.
        get: name -> tensor; a file is read at that moment.
        alias: other names of tied parameters -> the first.
    """

    names: list[str]
    get: Callable[[str], Tensor]
    alias: dict[str, str] = field(default_factory=dict)

    def __contains__(self, name: str) -> bool:
        return name in self.alias or name in self._known

    def __post_init__(self) -> None:
        self._known = set(self.names)


@contextlib.contextmanager
def open_tensors(model: Any, parameter: str, owner: Any) -> Iterator[Tensors]:
    """Open a module (its parameters), a dictionary of tensors, a safetensors file, or a folder of them.

    Args:
        model: what to open.
        parameter: its name, for the error.
        owner: whose parameter it is, for the error.

    Raises:
        ParameterError: it is none of these.
        DataError: the folder holds no safetensors weights, or its index leads outside.
    """
    if isinstance(model, (str, os.PathLike)):
        with _open_files(Path(model)) as tensors:
            yield tensors
    elif isinstance(model, nn.Module):
        table = {name: p.detach() for name, p in model.named_parameters(remove_duplicate=False)}
        names = [name for name, _ in model.named_parameters()]
        first = {id(p): name for name, p in model.named_parameters()}
        alias = {
            name: first[id(p)]
            for name, p in model.named_parameters(remove_duplicate=False)
            if first[id(p)] != name
        }
        yield Tensors(names, table.__getitem__, alias)
    elif isinstance(model, Mapping) and all(isinstance(t, Tensor) for t in model.values()):
        yield Tensors(list(model), lambda name: model[name].detach())
    else:
        expected = "a module, a dictionary of tensors, or a path to safetensors weights"
        raise ParameterError(parameter, owner, expected, model)


@contextlib.contextmanager
def _open_files(path: Path) -> Iterator[Tensors]:
    from safetensors import safe_open

    table = files_of(path)
    with contextlib.ExitStack() as stack:
        handles = {file: stack.enter_context(safe_open(file, "pt")) for file in dict.fromkeys(table.values())}
        yield Tensors(list(table), lambda name: handles[table[name]].get_tensor(name))


def check_names(wanted: Iterable[str], known: Iterable[str], parameter: str, owner: Any) -> None:
    """Raise `ParameterError` for the first of ``wanted`` that is not in ``known``; names the nearest."""
    names = list(known)
    have = set(names)
    for name in wanted:
        if name not in have:
            close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
            got = f"{len(names)} other names" + (f", the nearest '{close[0]}'" if close else "")
            raise ParameterError(parameter, owner, f"a model with the weight '{name}'", got)


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return the type in which weights of ``dtype`` are compared and summed: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def pieces(size: int) -> Iterator[tuple[int, int]]:
    """Yield ``(start, stop)`` of the stretches of at most `PIECE` that cover ``size`` entries."""
    for start in range(0, size, PIECE):
        yield start, min(size, start + PIECE)


def take(tensor: Tensor, index: Tensor) -> Tensor:
    """Return a copy of the entries at row-major flat positions ``index`` (int64 ``[k]``), on the tensor's device."""
    index = index.to(tensor.device)
    tensor = tensor.detach()
    if tensor.is_contiguous():
        return tensor.view(-1).index_select(0, index)
    return tensor[torch.unravel_index(index, tensor.shape)]


def put(tensor: Tensor, index: Tensor, values: Tensor) -> None:
    """Write ``values`` (``[k]``, rounded to the tensor's type) at row-major flat positions, in place."""
    index = index.to(tensor.device)
    values = values.to(tensor.device, tensor.dtype)
    tensor = tensor.detach()
    if tensor.is_contiguous():
        tensor.view(-1).index_copy_(0, index, values)
    else:
        tensor[torch.unravel_index(index, tensor.shape)] = values


def hash_tensor(tensor: Tensor) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of a tensor's shape and values.

    Values are hashed as float32 (float64 for float64), so a bfloat16 model and its float32 copy have one hash. O(n)
    time, one piece of memory.
    """
    digest = hashlib.sha256(str(tuple(tensor.shape)).encode())
    flat = tensor.detach().reshape(-1)
    for start, stop in pieces(flat.numel()):
        piece = flat[start:stop].to("cpu", wide(tensor.dtype)).contiguous()
        digest.update(piece.numpy().data)
    return digest.hexdigest()[:16]
