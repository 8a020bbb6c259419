"""Sparse differences between models, and the exact choice of the K entries that moved most (LT-SFT)."""

from typing import TYPE_CHECKING

from tunesmith.core.lazy import lazy_exports

__all__ = ["SparseDelta", "applied_to", "global_top_k", "random_positions", "top_k_positions"]

if TYPE_CHECKING:
    from tunesmith.tuners.sparse.applying import applied_to
    from tunesmith.tuners.sparse.delta import SparseDelta
    from tunesmith.tuners.sparse.selection import global_top_k, random_positions, top_k_positions
else:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "SparseDelta": "delta",
            "applied_to": "applying",
            "global_top_k": "selection",
            "random_positions": "selection",
            "top_k_positions": "selection",
        },
    )
