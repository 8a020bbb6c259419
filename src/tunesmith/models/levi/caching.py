"""The base's features, computed once: each epoch then costs the view and the adapting layers alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import default_data_collator

from tunesmith.core.errors import DataError, ParameterError
from tunesmith.core.files import disk_errors
from tunesmith.models.levi.model import LEVI

__all__ = ["CachedFeatures", "cache_features"]


class CachedFeatures(Dataset[dict[str, Any]]):
    """Rows of a data set, each with its ``layer_features``; any trainer takes it as a training set.

    Args:
        rows: the data set, dictionaries by index.
        features: (rows, sum of feature sizes), in memory or mapped from disk (``numpy.load(path, mmap_mode="r")``).

    Raises:
        DataError: their lengths differ.
    """

    def __init__(self, rows: Any, features: np.ndarray[Any, Any]) -> None:
        if len(rows) != len(features):
            raise DataError(f"there are {len(rows):,} rows, but features of {len(features):,}.")
        self.rows, self.features = rows, features

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, Any]:
        """Return row i with float32 features."""
        return {**self.rows[int(i)], "layer_features": np.array(self.features[int(i)], dtype=np.float32)}


def cache_features(
    model: LEVI,
    rows: Any,
    *,
    collator: Callable[[Sequence[Any]], dict[str, Any]] | None = None,
    batch_size: int = 32,
    path: str | os.PathLike[str] | None = None,
    dtype: str = "float32",
) -> CachedFeatures:
    """Run the frozen base once over all rows.

    Training on the result equals training on the rows, as long as rows are not augmented. Takes n d numbers per row:
    4 layers of 4096 in float16 are 32 KiB, 30.5 GiB for a million rows. Rows with ``input_ids`` are sorted by length
    while they are run, so little is padded.

    Args:
        model: with a frozen base.
        rows: the data set, dictionaries by index.
        collator: makes a batch; transformers' default, which does not pad.
        batch_size: rows per pass.
        path: a ``.npy`` file to write and map instead of holding all in memory; whole or absent.
        dtype: ``"float32"``, or ``"float16"`` for half the space and rounded features.

    Raises:
        ParameterError: the base is not frozen, or another ``dtype``.
    """
    if not model.frozen:
        raise ParameterError("model", cache_features, "a LEVI with a frozen base", "a base that is trained")
    if dtype not in ("float32", "float16"):
        raise ParameterError("dtype", cache_features, "'float32' or 'float16'", dtype)
    collate = collator or default_data_collator
    shape = (len(rows), sum(model.config.feature_sizes))
    order = np.arange(len(rows))
    if len(rows) and "input_ids" in rows[0]:
        order = np.argsort([-len(rows[i]["input_ids"]) for i in range(len(rows))], kind="stable")
    was = model.training
    model.eval()
    partial = None if path is None else Path(f"{path}.{os.getpid()}.partial")
    try:
        with disk_errors(path or "features"), torch.no_grad():
            if partial is None:
                found = np.empty(shape, dtype=dtype)
            else:
                partial.parent.mkdir(parents=True, exist_ok=True)
                found = np.lib.format.open_memmap(partial, "w+", dtype=np.dtype(dtype), shape=shape)
            for begin in range(0, len(rows), batch_size):
                some = order[begin : begin + batch_size]
                batch = collate([rows[int(i)] for i in some])
                given = {k: v.to(model.device) for k, v in batch.items() if isinstance(v, torch.Tensor)}
                given.pop("labels", None)
                found[some] = model.compute_layer_features(**given).cpu().numpy()
            if partial is not None:
                found.flush()  # type: ignore[attr-defined]
                os.replace(partial, str(path))
                found = np.load(str(path), mmap_mode="r")
    finally:
        model.train(was)
        if partial is not None:
            partial.unlink(missing_ok=True)
    return CachedFeatures(rows, found)
