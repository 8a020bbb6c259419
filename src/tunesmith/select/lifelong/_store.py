"""Files of a `LifelongPool`: ``pool.json`` for its state, ``arrays.safetensors`` for what the last fit
saw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from tunesmith.core.errors import DataError
from tunesmith.core.files import atomic_dir, read_json, write_json

if TYPE_CHECKING:
    from tunesmith.select.lifelong.pool import LifelongPool

__all__ = ["gather", "load", "save"]

P = TypeVar("P", bound="LifelongPool")

_FORMAT = 1
_LISTS = ("ids_", "sources_", "dropped_", "_places", "_lengths", "round_", "_own", "_seed")
_ARRAYS = ("labels_", "cluster_centers_", "zero_gradients_", "_unit", "_vectors")


def save(pool: LifelongPool, folder: Path) -> Path:
    """Write the pool, with its last fit, so that a loaded one selects and prunes as this one would."""
    from safetensors.numpy import save_file

    fitted = hasattr(pool, "n_rows_")
    state = {
        "format": _FORMAT,
        "parameters": pool.get_params(),
        "state": {name: getattr(pool, name) for name in _LISTS},
        "scorers": list(pool._table) if fitted else None,
    }
    with atomic_dir(folder) as part:
        write_json(part / "pool.json", state)
        if fitted:
            arrays = {name: np.ascontiguousarray(getattr(pool, name)) for name in _ARRAYS}
            arrays |= {f"score:{name}": values for name, values in pool._table.items()}
            save_file(arrays, part / "arrays.safetensors")
    return folder


def load(cls: type[P], folder: Path) -> P:
    """Read a pool that `save` wrote."""
    from safetensors.numpy import load_file

    try:
        saved = read_json(folder / "pool.json")
    except (OSError, ValueError) as error:
        raise DataError(f"no LifelongPool in this folder ({error}).", source=str(folder)) from error
    if not isinstance(saved, dict) or saved.get("format") != _FORMAT:
        raise DataError(
            "written by another version of LifelongPool; this one reads format 1.", source=str(folder)
        )
    parameters: dict[str, Any] = {  # JSON turned tuples into lists
        name: tuple(value) if isinstance(value, list) else value
        for name, value in saved["parameters"].items()
    }
    pool = cls(**parameters)
    pool._start()
    for name in _LISTS:
        setattr(pool, name, saved["state"][name])
    if saved["scorers"] is not None:
        arrays = load_file(folder / "arrays.safetensors")
        for name in _ARRAYS:
            setattr(pool, name, arrays[name])
        pool._table = {name: arrays[f"score:{name}"] for name in saved["scorers"]}
        pool.n_rows_ = len(pool.ids_)
    return pool


def gather(
    data: Mapping[str, Any],
    lengths: Mapping[str, int],
    ids: Sequence[str],
    sources: Sequence[str],
    places: Sequence[int],
    where: NDArray[np.int64],
) -> Any:
    """Return the rows at ``where`` as one dataset in that order."""
    from datasets import concatenate_datasets

    names = list(dict.fromkeys(sources[i] for i in where))
    lacking = [name for name in names if name not in data]
    if lacking or not names:
        raise DataError(
            f"the data of {', '.join(map(repr, lacking)) or 'this empty pool'} is not here; add the "
            "dataset itself instead of its length, or attach it after loading."
        )
    start, offset = {}, 0
    for name in names:
        start[name], offset = offset, offset + lengths[name]
    whole = concatenate_datasets([data[name] for name in names])
    rows = whole.select([start[sources[i]] + places[i] for i in where])
    return rows.add_column("_id", [ids[i] for i in where])
