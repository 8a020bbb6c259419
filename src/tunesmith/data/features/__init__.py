"""The features a `Pool` computes: a table from name to function, so that a new feature is one file and one
row.

A feature is ``function(pool, **options)``; it keeps what is dear to compute below ``pool.store(...)``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunesmith.data.pool import Pool

__all__ = ["get", "names", "unavailable"]

# name -> (module of this package, what must be at hand besides the texts)
_TABLE = {
    "embedding": ("embedding", None),
    "length": ("length", None),
    "perplexity": ("likelihood", "scorer"),
    "ifd": ("likelihood", "scorer"),
    "gradient": ("gradient", "scorer"),
    "gradient_norm": ("gradient", "scorer"),
    "tags": ("tags", None),
    "label_embeddings": ("tags", None),
    "quality": ("quality", None),
    "target_embedding": ("target", "target"),
}


def names() -> tuple[str, ...]:
    """Return the names of the computed features."""
    return tuple(_TABLE)


def get(name: str) -> Callable[..., Any]:
    """Return the function that computes the feature ``name``."""
    module = importlib.import_module(f"{__name__}.{_TABLE[name][0]}")
    function: Callable[..., Any] = getattr(module, name)
    return function


def unavailable(name: str, pool: Pool) -> str | None:
    """Return what is missing for the feature ``name`` (a phrase that follows the name), or ``None``."""
    if _TABLE[name][1] == "scorer" and pool.scorer is None:
        return "needs a language model: set scorer to a bundled alias, a model folder or a Hub id."
    if _TABLE[name][1] == "target" and pool.target is None:
        return (
            "needs rows of the task that the selection aims at: set target to a dataset; in a recipe they are "
            "the rows of data.validation."
        )
    if name == "ifd" and "messages" not in pool.has:
        return "needs rows with a prompt and an answer (column 'messages'); these rows have none."
    if name == "quality" and pool.quality == "ifd":
        return unavailable("ifd", pool)
    for setting in ("quality", "tags"):
        if name == setting and getattr(pool, setting) == "column" and setting not in pool.has:
            return f"needs a column '{setting}', or the setting {setting}: auto."
    return None
