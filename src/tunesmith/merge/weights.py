"""The weights of a model as named tensors, wherever they are: a module, a dictionary, a file, or shards."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunesmith.core.errors import DataError, ParameterError
from tunesmith.core.files import atomic_dir
from tunesmith.engine.shards import files_of

__all__ = ["Source", "check_equal", "open_source", "state_of", "wide", "write_like"]

# safetensors' names of types -> torch's, for the types that models use.
_TYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip


@dataclass
class Source:
    """Named tensors of one model.

    Attributes:
        names: tensor names in order.
        tensor: name -> tensor; a file is read at that moment.
        kind: name -> (shape, type as text), without reading the tensor.
        tied: name -> the first name of the same storage, for names that are not the first.
    """

    names: list[str]
    tensor: Callable[[str], Any]
    kind: Callable[[str], tuple[tuple[int, ...], str]]
    tied: dict[str, str] = field(default_factory=dict)


@contextlib.contextmanager
def open_source(model: Any, caller: Any) -> Iterator[Source]:
    """Open a module, a state dictionary, a safetensors file, or a folder with one or with shards.

    Args:
        model: what to open.
        caller: whose parameter ``models`` it is, for the error.

    Raises:
        ParameterError: it is none of these.
        DataError: the folder holds no safetensors weights.
    """
    if isinstance(model, (str, os.PathLike)):
        with _open_files(Path(model)) as source:
            yield source
        return
    state = model.state_dict() if hasattr(model, "state_dict") else model
    if not isinstance(state, Mapping) or not all(hasattr(t, "is_floating_point") for t in state.values()):
        expected = "a list of modules, state dictionaries of tensors, or paths to safetensors weights"
        raise ParameterError("models", caller, expected, model)
    tied: dict[str, str] = {}
    seen: dict[Any, str] = {}
    for name, tensor in state.items():
        key = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if tensor.numel() and seen.setdefault(key, name) != name:
            tied[name] = seen[key]
    yield Source(
        list(state), state.__getitem__, lambda n: (tuple(state[n].shape), _short(state[n].dtype)), tied
    )


def _short(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


@contextlib.contextmanager
def _open_files(path: Path) -> Iterator[Source]:
    from safetensors import safe_open

    table = files_of(path)
    with contextlib.ExitStack() as stack:
        handles = {file: stack.enter_context(safe_open(file, "pt")) for file in set(table.values())}

        def kind(name: str) -> tuple[tuple[int, ...], str]:
            part = handles[table[name]].get_slice(name)
            return tuple(part.get_shape()), _TYPES.get(str(part.get_dtype()), str(part.get_dtype()))

        yield Source(list(table), lambda name: handles[table[name]].get_tensor(name), kind)


def check_equal(sources: list[Source]) -> None:
    """Raise `DataError` unless all sources have the same names, shapes, types and integer tensors."""
    import torch

    first = sources[0]
    for i, other in enumerate(sources[1:], 1):
        where = f"model {i}"
        differing = sorted(set(first.names) ^ set(other.names))
        if differing:
            has, lacks = (0, i) if differing[0] in set(first.names) else (i, 0)
            raise DataError(
                f"only models of one architecture can be averaged: model {has} has a tensor "
                f"'{differing[0]}' and "
                f"model {lacks} does not ({len(differing)} such names).",
                source=where,
            )
        for name in first.names:
            (shape0, type0), (shape, type1) = first.kind(name), other.kind(name)
            if shape != shape0:
                raise DataError(f"'{name}' has shape {shape}, but {shape0} in model 0.", source=where)
            if type1 != type0:
                raise DataError(f"'{name}' has type {type1}, but {type0} in model 0.", source=where)
            if "float" not in type0 and not torch.equal(first.tensor(name), other.tensor(name)):
                raise DataError(
                    f"the integer tensor '{name}' differs from that of model 0; whole numbers are not "
                    f"averaged.",
                    source=where,
                )


def wide(tensor: Any) -> Any:
    """Return the tensor in the type in which weights are summed: float64 stays, all else becomes float32."""
    import torch

    return tensor if tensor.dtype == torch.float64 else tensor.float()


def state_of(source: Source, tensor: Callable[[str], Any]) -> dict[str, Any]:
    """Return a state dictionary in which tied names hold one tensor, computed once."""
    state: dict[str, Any] = {}
    for name in source.names:
        first = source.tied.get(name, name)
        state[name] = state[first] if first in state else tensor(name)
    return state


def write_like(
    first: Path, output: Path, tensor: Callable[[str], Any], check: Callable[[Path], None] | None = None
) -> Path:
    """Write ``tensor(name)`` for each name of the model at ``first``, in files laid out as its own.

    Files other than weights (configuration, tokenizer) are copied. At most one shard is held in memory. ``check`` is
    called with the whole folder before it gets its name; what it raises leaves nothing behind.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    table = files_of(first)
    with atomic_dir(output) as folder:
        for file in dict.fromkeys(table.values()):
            with safe_open(file, "pt") as handle:
                metadata = handle.metadata() or {"format": "pt"}
            tensors = {name: tensor(name).contiguous() for name, where in table.items() if where == file}
            save_file(tensors, folder / file.name, metadata=metadata)
        if first.is_dir():
            for file in first.iterdir():
                if file.is_file() and file.suffix not in (".safetensors", ".bin", ".pt", ".pth"):
                    shutil.copyfile(file, folder / file.name)
        if check is not None:
            check(Path(folder))
    return output
