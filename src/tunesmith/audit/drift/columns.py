"""Features as columns: numbers or vectors, one per row, all finite and of one length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.core.errors import DataError

__all__ = ["Columns", "as_columns"]

Columns = dict[str, NDArray[Any]]


def as_columns(rows: Any, empty: bool = False) -> Columns:
    """Return feature -> float64 (n,) or float32 (n, d), all of one length.

    Args:
        rows: a mapping, a data frame, or one array.
        empty: whether no rows are rows too.

    Raises:
        DataError: no feature, no row, other lengths, or values that are not finite numbers.
    """
    if hasattr(rows, "columns") and hasattr(rows, "to_numpy"):  # a data frame
        rows = {str(name): rows[name].to_numpy() for name in rows.columns}
    if not isinstance(rows, Mapping):
        array = _array("values", rows)
        rows = {"value" if array.ndim == 1 else "embedding": array}
    columns = {str(name): _array(str(name), values) for name, values in rows.items()}
    lengths = {name: len(values) for name, values in columns.items()}
    if not lengths:
        raise DataError("there is no feature to compare.")
    if len(set(lengths.values())) > 1:
        raise DataError(
            f"features differ in their number of rows: {', '.join(f'{k} {n:,}' for k, n in lengths.items())}."
        )
    if not empty and not next(iter(lengths.values())):
        raise DataError("there are no rows.")
    return columns


def _array(name: str, values: Any) -> NDArray[Any]:
    try:
        array = np.asarray(values)
        array = array.astype(np.float32 if array.ndim == 2 else np.float64)
    except (TypeError, ValueError):
        array = np.empty((0, 0, 0))
    if array.ndim not in (1, 2) or (array.ndim == 2 and not array.shape[1]):
        raise DataError(f"the feature '{name}' must hold a number per row, or a vector, all of one length.")
    finite = np.isfinite(array) if array.ndim == 1 else np.isfinite(array).all(axis=1)
    if not finite.all():
        row = int(np.flatnonzero(~finite)[0])
        raise DataError(f"the feature '{name}' has a value that is not finite.", row=row)
    return array
