"""Check the method blocks of a recipe against the registered methods, before anything heavy is loaded."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

from tunesmith import methods
from tunesmith.core.errors import TunesmithError, UnknownNameError, nearest
from tunesmith.recipe.loading import LoadedRecipe, Problem, expand
from tunesmith.recipe.schema import MethodSpec, Recipe

__all__ = ["check", "valid_parameters"]

# What the runner passes itself, so that a recipe does not set it.
_GIVEN = frozenset("self model tokenizer train output_dir tuner validation log resume seed config_overrides".split())


def check(loaded: LoadedRecipe) -> list[Problem]:
    """Return what is wrong with the methods and parameters that a recipe names; an empty list if nothing is.

    Every arm of ``compare`` is checked. Imports the modules of the named methods, and PEFT or TRL when the recipe
    sets a parameter of theirs.
    """
    problems: dict[str, Problem] = {}
    arms = expand(loaded.recipe)
    for arm in arms:
        prefix = f"arm '{arm.name}': " if len(arms) > 1 else ""
        for path, family, spec in _blocks(arm.recipe):
            for key, message in _faults(family, spec):
                problem = loaded.problem(prefix + message, (*path, *([key] if key else [])))
                problems.setdefault(message, problem)
    return list(problems.values())


def _blocks(recipe: Recipe) -> list[tuple[tuple[str | int, ...], str, MethodSpec]]:
    blocks: list[tuple[tuple[str | int, ...], str, MethodSpec]] = []
    for family in ("curate", "evaluate", "audit"):
        blocks += [((family, i), family, spec) for i, spec in enumerate(getattr(recipe, family))]
    for family in ("select", "train"):
        spec = getattr(recipe, family)
        if spec is not None:
            blocks.append(((family,), family, spec))
    if recipe.train is not None:
        blocks.append((("tuner",), "tuner", recipe.tuner))
    return blocks


def _faults(family: str, spec: MethodSpec) -> list[tuple[str | None, str]]:
    """Return (key, message) for the method's name and each of its parameters."""
    try:
        if family == "tuner" and spec.type in ("full", "lora") and not spec.parameters:
            return []  # the two most used need no import of PEFT (15 s)
        valid = valid_parameters(family, spec.type)
    except UnknownNameError as error:
        return [("type", str(error))]
    except TunesmithError as error:
        return [(None, str(error))]
    own = set(type(spec).model_fields)
    return [
        (
            key,
            f"unknown key '{key}' in {family} of type '{spec.type}'.{nearest(key, {*valid, *own})} "
            f"Valid keys: {', '.join(sorted({*valid, *own}))}.",
        )
        for key in spec.parameters
        if key not in valid
    ]


def valid_parameters(family: str, name: str) -> set[str]:
    """Return the parameters that a recipe may set for a method.

    Raises:
        UnknownNameError: there is no such method.
    """
    if family == "tuner":
        return valid_tuner(name)
    if family == "curate" and not methods.names("curate.*"):
        raise UnknownNameError("method", f"curate.{name}", [])
    target = methods.get(f"{family}.{name}")
    signature = inspect.signature(target.__init__ if inspect.isclass(target) else target)
    valid = set(signature.parameters) - _GIVEN
    if any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()) and family == "train":
        from trl import SFTConfig

        valid |= {field.name for field in dataclasses.fields(SFTConfig) if field.init}
    return valid


def valid_tuner(name: str) -> set[str]:
    """Return the fields of a PEFT method's config; none for full tuning.

    Raises:
        UnknownNameError: PEFT has no such method.
    """
    if name == "full":
        return set()
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    configs = {kind.value.lower(): config for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    if name not in configs:
        raise UnknownNameError("tuner", name, [*configs, "full"])
    return {field.name for field in dataclasses.fields(configs[name]) if field.init}
