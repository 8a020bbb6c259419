"""How long rows are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tunesmith.core.errors import DataError, ParameterError

if TYPE_CHECKING:
    from tunesmith.data.pool import Pool

__all__ = ["length"]

_UNITS = ("words", "characters", "tokens")


def length(pool: Pool, *, unit: str = "words") -> NDArray[np.int32]:
    """Return the length of each row's whole text.

    Args:
        pool: n rows.
        unit: ``"words"`` (separated by white space), ``"characters"``, or ``"tokens"`` of the scorer's
            tokenizer without a chat template.

    Returns:
        int32 ``(n,)``.

    Raises:
        ParameterError: the unit is none of these.
        DataError: tokens are asked for and no scorer is set.
    """
    if unit not in _UNITS:
        raise ParameterError("unit", "the feature 'length'", "one of " + ", ".join(map(repr, _UNITS)), unit)
    count = len if unit == "characters" else (lambda text: len(text.split()))
    if unit == "tokens":
        if pool.scorer is None:
            raise DataError("a length in tokens needs a tokenizer: set scorer to a model.")
        from tunesmith.engine.models import load_tokenizer

        tokenizer = load_tokenizer(pool.scorer)
        count = lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])  # noqa: E731
    from tunesmith.data.rows import iter_rows, row_text

    return np.fromiter((count(row_text(r)) for r in iter_rows(pool.dataset)), dtype=np.int32, count=len(pool))
