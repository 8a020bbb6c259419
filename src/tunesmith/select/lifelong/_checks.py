"""Checks of a `LifelongPool`'s parameters and of the scores it is given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tunesmith.core.errors import DataError, ParameterError

if TYPE_CHECKING:
    from tunesmith.select.lifelong.pool import LifelongPool

__all__ = ["check_parameters", "scorer_table"]

_CHOICES = {
    "quota": ("uniform", "spread", "density"),
    "sampling": ("ccs", "top", "bottom", "random"),
    "cluster_by": ("embedding", "gradient"),
}


def check_parameters(pool: LifelongPool) -> None:
    """Raise `ParameterError` for a parameter outside its range."""
    for name, low in (("n_clusters", 1), ("bins", 2), ("min_rows", 0), ("strata", 1)):
        value = getattr(pool, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise ParameterError(name, pool, f"an int >= {low}", value)
    if not 0 <= pool.trim < 0.5:
        raise ParameterError("trim", pool, "a float in [0, 0.5)", pool.trim)
    for name, valid in _CHOICES.items():
        if getattr(pool, name) not in valid:
            raise ParameterError(name, pool, "one of " + ", ".join(map(repr, valid)), getattr(pool, name))


def scorer_table(pool: LifelongPool, given: Mapping[str, ArrayLike]) -> dict[str, NDArray[np.float64]]:
    """Return the scores that take part, as float64 in order of precedence, on log scale where asked.

    Raises:
        ParameterError: no score is given, or one that ``scorers`` names is not.
        DataError: a score that has no logarithm.
    """
    names = list(given) if pool.scorers is None else list(pool.scorers)
    unknown = [name for name in names if name not in given]
    if unknown or not names:
        expected = "scores that fit is given: " + (", ".join(given) or "it was given none")
        raise ParameterError("scorers", pool, expected, unknown or names)
    table = {name: np.asarray(given[name], dtype=np.float64) for name in names}
    for name in set(table) & set(pool.log_scale):
        if (table[name] <= 0).any():
            raise DataError(
                f"'{name}' must be > 0 to take its logarithm.", row=int(np.argmax(table[name] <= 0))
            )
        table[name] = np.log(table[name])
    return table
