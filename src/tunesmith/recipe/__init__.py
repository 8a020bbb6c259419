"""One file that describes a run, and the run itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunesmith.core.lazy import lazy_exports

if TYPE_CHECKING:
    from tunesmith.recipe.checking import check as check
    from tunesmith.recipe.loading import LoadedRecipe as LoadedRecipe
    from tunesmith.recipe.loading import Problem as Problem
    from tunesmith.recipe.loading import expand as expand
    from tunesmith.recipe.loading import load as load
    from tunesmith.recipe.runner import RunResult as RunResult
    from tunesmith.recipe.runner import run as run
    from tunesmith.recipe.schema import Recipe as Recipe

__all__ = ["LoadedRecipe", "Problem", "Recipe", "RunResult", "check", "expand", "load", "run"]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "LoadedRecipe": "loading",
        "Problem": "loading",
        "Recipe": "schema",
        "RunResult": "runner",
        "check": "checking",
        "expand": "loading",
        "load": "loading",
        "run": "runner",
    },
)
