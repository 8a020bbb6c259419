"""Checks of what selectors are fitted on, with messages that name the feature and the first bad row."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.core.errors import DataError

__all__ = ["check_quality", "check_rows", "fresh_seed", "row_count", "row_ids"]


def row_count(value: Any) -> int:
    """Return the number of rows of an array, sparse matrix, dataset or list."""
    return int(value.shape[0]) if hasattr(value, "shape") else len(value)


def check_rows(n: int, owner: Any, **features: Any) -> None:
    """Check that there are rows, and that each given feature has one entry per row.

    Raises:
        DataError: there is no row, or a feature of another length.
    """
    name = type(owner).__name__
    if n == 0:
        raise DataError(f"{name} has nothing to choose from: the pool holds no rows.")
    for feature, value in features.items():
        if value is not None and row_count(value) != n:
            raise DataError(
                f"'{feature}' must have one entry per row, but {name} got {row_count(value):,} entries for "
                f"{n:,} rows."
            )


def check_quality(quality: Any, n: int, owner: Any, *, signed: bool) -> NDArray[np.float64]:
    """Return ``quality`` as float64 ``(n,)``.

    Raises:
        DataError: wrong length, not numbers, not finite, or negative where ``signed`` is false.
    """
    name = type(owner).__name__
    check_rows(n, owner, quality=quality)
    try:
        values = np.asarray(quality, dtype=np.float64)
    except (TypeError, ValueError):
        raise DataError(f"'quality' must be one number per row, but {name} got other values.") from None
    if values.ndim != 1:
        raise DataError(
            f"'quality' must be one number per row, but {name} got an array of shape {values.shape}."
        )
    bad = ~np.isfinite(values)
    if not bad.any() and not signed:
        bad = values < 0
    if bad.any():
        row = int(np.argmax(bad))
        wanted = "a finite number" if signed else "a finite number >= 0"
        raise DataError(
            f"'quality' must be {wanted} for {name}, but is {values[row]} here"
            f" ({int(bad.sum()):,} such rows in all).",
            row=row,
        )
    return values


def row_ids(ids: Any, n: int, owner: Any) -> NDArray[np.int64]:
    """Return the integers to which a row's random numbers belong; positions by default.

    Raises:
        DataError: wrong length, or not distinct integers.
    """
    if ids is None:
        return np.arange(n, dtype=np.int64)
    check_rows(n, owner, ids=ids)
    values = np.asarray(ids)
    if values.dtype.kind not in "iu" or values.ndim != 1 or len(np.unique(values)) != n:
        raise DataError(f"'ids' must be one distinct integer per row for {type(owner).__name__}.")
    return values.astype(np.int64)


def fresh_seed(random_state: int | None) -> int:
    """Return the seed itself, or one from the operating system for ``None``."""
    if random_state is None:
        return int(np.random.SeedSequence().generate_state(1)[0])
    return int(random_state)
