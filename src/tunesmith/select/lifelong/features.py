"""Gradient features (Adapt-infinity, step 1): random sign projections of gradients, at unit length."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tunesmith.core.errors import DataError, ParameterError

__all__ = ["project_gradients", "unit_rows"]

_BLOCK = 4096  # gradient entries projected at once: 4,096 x 8,192 float32 signs are 134 MB


def project_gradients(gradients: ArrayLike, width: int = 8192, *, seed: int = 0) -> NDArray[np.float32]:
    """Multiply gradients by a random matrix of signs scaled by ``1 / sqrt(width)``.

    Inner products of unit vectors keep their expectation, with a standard deviation of at most ``sqrt(2 /
    width)`` (0.0156 at 8,192). The matrix is made block by block from the seed and never stored, so gradients
    of later rounds meet the same one.

    Args:
        gradients: ``(n, D)`` flattened per-example gradients of one layer; may be a memory map.
        width: p, columns of the result; 1,024 to 8,192 in use.
        seed: of the signs.

    Returns:
        float32 ``(n, width)``. Time O(n D width), memory one block of 4,096 x width signs.

    Raises:
        ParameterError: ``width`` below 2.
    """
    if width < 2:
        raise ParameterError("width", project_gradients, "an int >= 2", width)
    g = np.asarray(gradients)
    out = np.zeros((g.shape[0], width), dtype=np.float32)
    for block, begin in enumerate(range(0, g.shape[1], _BLOCK)):
        part = g[:, begin : begin + _BLOCK].astype(np.float32)
        rng = np.random.default_rng([seed, block])
        signs = rng.integers(0, 2, size=(_BLOCK, width), dtype=np.int8)[: part.shape[1]]
        out += part @ (2 * signs.astype(np.float32) - 1)
    return out / np.float32(np.sqrt(width))


def unit_rows(vectors: ArrayLike) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Scale rows to unit length; rows of zeros stay zero and are flagged.

    Args:
        vectors: ``(n, d)``, finite.

    Returns:
        float32 ``(n, d)`` and bool ``(n,)``, true where the row is zero.

    Raises:
        DataError: it is not a matrix.
    """
    x = np.asarray(vectors)
    if x.ndim != 2 or x.dtype.kind not in "fiub":
        raise DataError(f"features must be a matrix of numbers (rows, columns); got shape {x.shape}.")
    largest = np.abs(x).max(axis=1, initial=0.0)  # first, so that squares of huge or tiny entries stay finite
    zero = largest == 0
    unit = (x / np.where(zero, 1, largest)[:, None]).astype(np.float32)
    length = np.where(zero, 1, np.linalg.norm(unit, axis=1)).astype(np.float32)
    return unit / length[:, None], zero
