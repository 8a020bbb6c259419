"""How good each row is, as a number >= 0: given, or 1 - IFD, or the same for all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tunesmith.core.errors import DataError
from tunesmith.data.features import unavailable

if TYPE_CHECKING:
    from tunesmith.data.pool import Pool

__all__ = ["quality"]


def quality(pool: Pool) -> NDArray[np.float64]:
    """Return the quality of each row, by the pool's setting ``quality``.

    ``auto`` takes the column ``quality`` if the rows have one; else ``1 - IFD`` under the scorer, clipped to
    [0, 1]; else 1 for every row, with a warning. The reason for ``1 - IFD``: an answer that its question does
    not make likelier (IFD near or above 1) is often one that does not belong to it, whereas IFD's own authors
    look for *hard* rows and prefer a high value. Rows whose answer does not fit in ``max_length`` get 0.

    Args:
        pool: n rows.

    Returns:
        float64 ``(n,)``, finite and >= 0.

    Raises:
        DataError: a given quality is missing, not a number, not finite, or negative; names the row.
    """
    mode = pool.quality
    if mode == "auto":
        mode = "column" if "quality" in pool.has else "constant" if unavailable("ifd", pool) else "ifd"
        if mode == "constant":
            pool.log.warn(
                "No quality is known: the rows have no column 'quality' and no scorer is set, so every row "
                "counts the same. Set a scorer for 1 - IFD, or add the column."
            )
    if mode == "column":
        return _column(pool)
    if mode == "constant":
        return np.ones(len(pool))
    ifd = np.asarray(pool.feature("ifd"), dtype=np.float64)
    return np.clip(1 - np.nan_to_num(ifd, nan=1.0), 0, 1)


def _column(pool: Pool) -> NDArray[np.float64]:
    values = pool.dataset["quality"][:]
    result = np.empty(len(values))
    for i, value in enumerate(values):
        try:
            result[i] = float(value)
        except (TypeError, ValueError):
            result[i] = np.nan
    bad = np.flatnonzero(~np.isfinite(result) | (result < 0))
    if len(bad):
        source, row = pool.where(int(bad[0]))
        raise DataError(
            f"'quality' must be a finite number >= 0. Got {values[bad[0]]!r} instead"
            + (f" (and in {len(bad) - 1:,} more rows)." if len(bad) > 1 else "."),
            source=source,
            row=row,
        )
    return result
