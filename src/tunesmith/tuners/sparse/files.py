"""Files of sparse deltas: ours, one safetensors file; and a reader of those of the paper's authors."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from tunesmith.core.errors import DataError
from tunesmith.core.files import atomic_open

if TYPE_CHECKING:
    from tunesmith.tuners.sparse.delta import SparseDelta

__all__ = ["FILE", "OFFICIAL_FILE", "read", "read_official", "write"]

FILE = "sparse_delta.safetensors"
FORMAT, VERSION = "tunesmith.sparse_delta", "1"
OFFICIAL_FILE = "pytorch_diff.bin"


def write(delta: SparseDelta, folder: Path) -> Path:
    """Write ``folder/sparse_delta.safetensors``, whole or not at all; return its path.

    Tensors: ``index/NAME`` (int64, row-major flat, ascending), ``value/NAME``, ``abs/NAME``. The metadata holds the
    shapes, the base's hashes and the information about the training as JSON.
    """
    from safetensors.torch import save

    tensors = {f"abs/{name}": t for name, t in delta.abs.items()}
    for name, (index, values) in delta.diffs.items():
        tensors |= {f"index/{name}": index, f"value/{name}": values}
    about = {"shapes": delta.shapes, "base": delta.base, "info": delta.info}
    metadata = {"format": FORMAT, "version": VERSION, "about": json.dumps(about, sort_keys=True)}
    with atomic_open(folder / FILE, "wb") as stream:
        stream.write(save({name: t.cpu().contiguous() for name, t in tensors.items()}, metadata))
    return folder / FILE


def read(path: Path) -> dict[str, Any]:
    """Read what `write` wrote; return the arguments of `SparseDelta`.

    Raises:
        DataError: there is no such file, or it is of another kind.
    """
    from safetensors import SafetensorError, safe_open

    file = path / FILE if path.is_dir() else path
    if not file.exists():
        raise DataError(f"no sparse delta here: the file {FILE} is missing.", source=str(path))
    try:
        with safe_open(file, "pt") as handle:
            metadata = handle.metadata() or {}
            if metadata.get("format") != FORMAT or metadata.get("version") != VERSION:
                raise DataError("not a sparse delta of a version that is read here.", source=str(file))
            about = json.loads(metadata["about"])
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118  (no mapping)
    except SafetensorError as error:
        raise DataError(f"not a safetensors file ({error}).", source=str(file)) from error
    shapes = {name: tuple(shape) for name, shape in about["shapes"].items()}
    return {
        "diffs": {name: (tensors[f"index/{name}"], tensors[f"value/{name}"]) for name in shapes},
        "shapes": shapes,
        "abs": {name.removeprefix("abs/"): t for name, t in tensors.items() if name.startswith("abs/")},
        "base": about["base"],
        "info": about["info"],
    }


def read_official(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a ``pytorch_diff.bin`` of cambridgeltl/composable-sft; return the arguments of `SparseDelta`.

    Their flat positions run with the *first* dimension fastest and are stored as differences; entries may also be
    torch's sparse tensors (older files). Nothing but tensors and arrays is unpickled. The file names no base, so none
    is checked.

    Raises:
        DataError: the file is missing, holds other objects, or is no such delta.
    """
    from pickle import UnpicklingError

    file = Path(path) / OFFICIAL_FILE if Path(path).is_dir() else Path(path)
    if not file.exists():
        raise DataError(
            f"no delta of the authors here: the file {OFFICIAL_FILE} is missing.", source=str(path)
        )
    make = np._core.multiarray._reconstruct  # type: ignore[attr-defined]
    arrays: list[Any] = [
        np.ndarray,
        np.dtype,
        type(np.dtype("int32")),
        type(np.dtype("int64")),
        torch.Size,
        bytes,
    ]
    arrays += [make, (make, "numpy.core.multiarray._reconstruct")]  # its name in files written with numpy 1
    try:
        with torch.serialization.safe_globals(arrays):
            found = torch.load(file, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError) as error:
        raise DataError(
            "not a delta of tensors and arrays alone; it is not read.", source=str(file)
        ) from error
    body = found.get("diffs", found.get("body")) if isinstance(found, dict) else None
    if body is None:
        raise DataError("not a delta of the authors: neither 'diffs' nor 'body' in it.", source=str(file))
    diffs, shapes = {}, {}
    for name, item in body.items():
        index, values, shape = _coordinates(item) if isinstance(item, Tensor) else _steps(item)
        order = index.argsort()
        diffs[name], shapes[name] = (index[order], values[order].to(torch.float32)), shape
    heads = found.get("abs", found.get("head")) or {}
    return {
        "diffs": diffs,
        "shapes": shapes,
        "abs": {name: t.detach() for name, t in heads.items()},
        "base": {},
        "info": {"source": "composable-sft"},
    }


def _steps(item: dict[str, Any]) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """Decode flat positions with the first dimension fastest, given as differences, into row-major ones."""
    shape = tuple(int(n) for n in item["size"])
    flat = np.cumsum(np.asarray(item["index_steps"], dtype=np.int64), dtype=np.int64)
    coordinates = np.unravel_index(flat, shape, order="F")
    index = np.ravel_multi_index(coordinates, shape) if len(flat) else flat
    return torch.from_numpy(np.asarray(index, dtype=np.int64)), torch.as_tensor(item["values"]), shape


def _coordinates(item: Tensor) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    item = item.coalesce() if item.is_sparse else item.to_sparse().coalesce()
    shape = tuple(item.shape)
    index = torch.zeros(item.indices().shape[1], dtype=torch.int64)
    for size, along in zip(shape, item.indices(), strict=True):
        index = index * size + along
    return index, item.values(), shape
