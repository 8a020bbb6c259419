"""Unit vectors of rows for the comparison by embedding: a column, a sentence encoder, or small pictures."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.core.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["as_image", "column_vectors", "thumbnail_vectors"]

_SIDE = 16  # pixels of a thumbnail's side: 256 numbers an image


def column_vectors(dataset: Dataset, column: str, chunk: int = 10_000) -> NDArray[np.float32]:
    """Return the vectors of a column, scaled to length 1.

    Raises:
        DataError: they differ in length or hold something that is not a finite number; names the row.
    """
    parts = []
    values = dataset.select_columns([column]).with_format("arrow")
    width = None
    for start, table in zip(range(0, len(dataset), chunk), values.iter(batch_size=chunk), strict=True):
        rows = table.column(column).to_pylist()
        width = len(rows[0]) if width is None and rows[0] is not None else width
        for i, row in enumerate(rows):
            if row is None or len(row) != width or not np.isfinite(np.asarray(row, dtype=np.float64)).all():
                raise DataError(
                    f"the column '{column}' must hold one vector of finite numbers a row, all of one length.",
                    row=start + i,
                    content=repr(row),
                )
        parts.append(_unit(np.asarray(rows, dtype=np.float32)))
    return np.concatenate(parts)


def thumbnail_vectors(dataset: Dataset, column: str) -> NDArray[np.float32]:
    """Return for each image its 16 × 16 greyscale thumbnail, less its mean, scaled to length 1.

    "80 million tiny images" (Torralba, Fergus and Freeman 2008): enough to find the same picture in another size,
    file format or quality; not a crop, a mirrored or a recoloured one. An image of one flat colour gets a vector
    that stands for its shade, so that it equals others of nearly its shade only.

    Raises:
        DataError: an image cannot be read; names the row.
    """
    out = np.empty((len(dataset), _SIDE * _SIDE + 2), dtype=np.float32)
    for i in range(len(dataset)):
        small = as_image(dataset[i][column], i).convert("L").resize((_SIDE, _SIDE))
        pixels = np.asarray(small, dtype=np.float32).ravel()
        shape, shade = pixels - pixels.mean(), float(pixels.mean()) / 255 * np.pi / 2
        if np.abs(shape).max() < 2:  # noise of compression
            shape = np.zeros_like(shape)
            flat = (np.cos(shade), np.sin(shade))
        else:
            flat = (0.0, 0.0)
        out[i] = [*shape, *flat]
    return _unit(out)


def as_image(value: Any, row: int | None = None) -> Any:
    """Return a PIL image from an image, its bytes, a path, or the dictionary that ``datasets`` keeps.

    Raises:
        DataError: it cannot be read.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        if isinstance(value, Image.Image):
            value.load()
            return value
        if isinstance(value, dict):
            value = value["bytes"] if value.get("bytes") is not None else value["path"]
        if isinstance(value, bytes | bytearray):
            image = Image.open(io.BytesIO(value))
        elif isinstance(value, str | Path):
            image = Image.open(value)
        else:
            raise DataError("the image is missing.", row=row, content=repr(value))
        image.load()
        return image
    except (OSError, UnidentifiedImageError, KeyError, SyntaxError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"the image cannot be read: {error}", row=row) from error


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(norms > 0, norms, 1)).astype(np.float32, copy=False)
