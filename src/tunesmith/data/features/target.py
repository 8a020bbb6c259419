"""Embeddings of the rows that a selection aims at: a sample of the task the model is tuned for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tunesmith.data.pool import Pool

__all__ = ["target_embedding"]


def target_embedding(pool: Pool) -> NDArray[np.float32]:
    """Return the embeddings of ``pool.target``, by the encoder of the pool and kept like those of a pool.

    Args:
        pool: has ``target``, m rows.

    Returns:
        float32 ``(m, d)``, rows of length 1.
    """
    from tunesmith.data.pool import Pool

    rows = Pool(pool.target, encoder=pool.encoder, batch_size=pool.batch_size, cache=pool.cache, log=pool.log)
    embedding: NDArray[np.float32] = rows.feature("embedding")
    return embedding
