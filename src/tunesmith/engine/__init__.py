"""Runners for per-example work and the models they run: chunked maps that continue where they were killed,
likelihoods of answers, and finding and loading of models."""

from typing import TYPE_CHECKING

from tunesmith.core.lazy import lazy_exports

if TYPE_CHECKING:
    from tunesmith.engine.lm import completion_nll
    from tunesmith.engine.local import map_rows

__all__ = ["completion_nll", "map_rows"]

__getattr__, __dir__ = lazy_exports(__name__, {"completion_nll": "lm", "map_rows": "local"})
