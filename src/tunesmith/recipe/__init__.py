"""One file that describes a run, and the run itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunesmith.core.lazy import lazy_exports

if TYPE_CHECKING:
    from tunesmith.recipe.checking import check as check
    from tunesmith.recipe.estimating import Estimate as Estimate
    from tunesmith.recipe.estimating import estimate as estimate
    from tunesmith.recipe.initial import init_recipe as init_recipe
    from tunesmith.recipe.loading import Arm as Arm
    from tunesmith.recipe.loading import LoadedRecipe as LoadedRecipe
    from tunesmith.recipe.loading import Problem as Problem
    from tunesmith.recipe.loading import expand as expand
    from tunesmith.recipe.loading import load as load
    from tunesmith.recipe.loading import lock as lock
    from tunesmith.recipe.runner import RunResult as RunResult
    from tunesmith.recipe.runner import run as run
    from tunesmith.recipe.schema import Recipe as Recipe
    from tunesmith.recipe.schemas import json_schema as json_schema

__all__ = [
    "Arm",
    "Estimate",
    "LoadedRecipe",
    "Problem",
    "Recipe",
    "RunResult",
    "check",
    "estimate",
    "expand",
    "init_recipe",
    "json_schema",
    "load",
    "lock",
    "run",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "Arm": "loading",
        "Estimate": "estimating",
        "LoadedRecipe": "loading",
        "Problem": "loading",
        "Recipe": "schema",
        "RunResult": "runner",
        "check": "checking",
        "estimate": "estimating",
        "expand": "loading",
        "init_recipe": "initial",
        "json_schema": "schemas",
        "load": "loading",
        "lock": "loading",
        "run": "runner",
    },
)
