"""Read a recipe strictly: every error names file, line and column, and the nearest valid name."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from tunesmith.core.errors import ConfigError, nearest, shorten
from tunesmith.recipe.early import check_early_stop
from tunesmith.recipe.overrides import Override, Path_, dotted, parse_override, set_path
from tunesmith.recipe.schema import Recipe

__all__ = ["Arm", "LoadedRecipe", "Problem", "expand", "load", "lock"]

Positions = dict[Path_, tuple[int, int]]
NODES = 10_000  # values in a recipe; nested aliases of a few lines can stand for billions


@dataclass(frozen=True)
class Problem:
    """Something wrong in a recipe, with its place where there is one."""

    message: str
    source: str | None = None
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        return str(ConfigError(self.message, source=self.source, line=self.line, column=self.column))


@dataclass(frozen=True)
class LoadedRecipe:
    """A valid recipe and where each of its keys stands.

    Attributes:
        recipe: the validated object.
        source: the file's name, or None for a recipe made in Python.
        positions: key path -> (line, column), counted from 1.
        values: the recipe as written, with the overrides applied.
        overrides: those that were applied, in order.
    """

    recipe: Recipe
    source: str | None = None
    positions: Positions = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    overrides: tuple[Override, ...] = ()

    def problem(self, message: str, path: Path_) -> Problem:
        """Return a problem at ``path``, or at the nearest parent whose place is known."""
        return _problem(message, path, self.source, self.positions, self.overrides)


@dataclass(frozen=True)
class Arm:
    """One combination of the compared values: its name is also its folder."""

    name: str
    recipe: Recipe


def load(
    recipe: Recipe | Mapping[str, Any] | str | os.PathLike[str], overrides: Sequence[str] = ()
) -> LoadedRecipe:
    """Read and validate a recipe.

    Args:
        recipe: path of a YAML file, YAML text (anything with a line break), a mapping as YAML would give it,
            or a `Recipe`.
        overrides: ``"select.budget=10%"``, ``"evaluate.0.max_new_tokens=32"``,
            ``"compare.select.type=[random, mig]"``; values are read as YAML.

    Raises:
        ConfigError: everything that is wrong, one line each with file, line and column.
    """
    source: str | None = None
    positions: Positions = {}
    if isinstance(recipe, Recipe):
        values = recipe.model_dump(exclude_unset=True)
    elif isinstance(recipe, Mapping):
        values = deepcopy(dict(recipe))
    else:
        text, source = _text(recipe)
        values, positions = _parse(text, source)
    applied = tuple(parse_override(text) for text in overrides)
    for override in applied:
        set_path(values, override.path, override.value, override.what)
    valid = _validate(values, source, positions, applied)
    loaded = LoadedRecipe(valid, source, positions, values, applied)
    try:
        check_early_stop(valid, expand(valid))
    except ConfigError as error:
        raise ConfigError(str(loaded.problem(str(error), ("compare",)))) from None
    return loaded


def _text(recipe: str | os.PathLike[str]) -> tuple[str, str | None]:
    if isinstance(recipe, str) and "\n" in recipe:
        return recipe, None
    try:
        return Path(recipe).read_text(encoding="utf-8"), str(recipe)
    except FileNotFoundError:
        folder = Path(recipe).parent
        names = [p.name for p in folder.glob("*.y*ml")] if folder.is_dir() else []
        raise ConfigError(f"There is no recipe {recipe}.{nearest(Path(recipe).name, names)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The recipe {recipe} cannot be read: {error}") from error


def _parse(text: str, source: str | None) -> tuple[dict[str, Any], Positions]:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError
    from ruamel.yaml.reader import ReaderError

    try:
        tree = YAML(typ="rt").load(text)
    except ReaderError as error:
        line, column = (
            text.count("\n", 0, error.position) + 1,
            error.position - text.rfind("\n", 0, error.position),
        )
        character = chr(error.character) if isinstance(error.character, int) else error.character
        message = f"the character {character!r} is not permitted in YAML."
        raise ConfigError(message, source=source, line=line, column=column) from error
    except RecursionError as error:
        raise ConfigError("the recipe is nested too deeply.", source=source) from error
    except YAMLError as error:
        mark, message = None, str(error).split("\n")[0]
        if isinstance(error, MarkedYAMLError):
            mark = error.problem_mark or error.context_mark
            message = str(error.problem or error).split("\n")[0]
        raise ConfigError(
            f"this is not YAML: {message}",
            source=source,
            line=None if mark is None else mark.line + 1,
            column=None if mark is None else mark.column + 1,
        ) from error
    if not isinstance(tree, dict):
        raise ConfigError(
            "A recipe is a mapping of stages (data:, select:, train:, …).", source=source, line=1
        )
    positions: Positions = {}
    return _plain(tree, (), positions), positions


def _plain(node: Any, path: Path_, positions: Positions) -> Any:
    """Return ruamel's tree as plain values, noting where each key stands.

    Raises:
        ConfigError: aliases multiply beyond `NODES`.
    """
    if len(positions) > NODES:
        raise ConfigError(f"there are more than {NODES:,} values; an alias may stand for too many.")
    place = getattr(node, "lc", None)
    if isinstance(node, dict) and place is not None:
        for key in node:
            # a key merged by << stands elsewhere: the mapping's own place is the nearest
            line, column = place.key(key) if key in place.data else (place.line, place.col)
            positions[(*path, str(key))] = (line + 1, column + 1)
        return {str(key): _plain(value, (*path, str(key)), positions) for key, value in node.items()}
    if isinstance(node, list) and place is not None:
        for i in range(len(node)):
            line, column = place.item(i)
            positions[(*path, i)] = (line + 1, column + 1)
        return [_plain(value, (*path, i), positions) for i, value in enumerate(node)]
    for kind in (bool, int, float, str):  # ruamel's scalars remember their notation; the values are enough
        if isinstance(node, kind):
            return kind(node)
    return node


def _validate(
    values: dict[str, Any], source: str | None, positions: Positions, overrides: tuple[Override, ...] = ()
) -> Recipe:
    try:
        return Recipe.model_validate(deepcopy(values))
    except ValidationError as error:
        problems = [
            _problem(_phrase(item), item["loc"], source, positions, overrides)
            for item in error.errors(include_url=False)
        ]
        problems.sort(key=lambda p: (p.line or 0, p.column or 0))
        raise ConfigError("\n".join(map(str, problems))) from None


def _problem(
    message: str, path: Path_, source: str | None, positions: Positions, overrides: tuple[Override, ...]
) -> Problem:
    """Return a problem with the place in the file, or with the override that caused it."""
    for override in reversed(overrides):
        made = path and path not in positions and override.path[: len(path)] == path
        if made or path[: len(override.path)] == override.path:
            return Problem(message, override.what)
    line, column = _position(positions, path)
    return Problem(message, source, line, column)


def _position(positions: Positions, path: Path_) -> tuple[int | None, int | None]:
    for end in range(len(path), 0, -1):
        if path[:end] in positions:
            return positions[path[:end]]
    return None, None


def _phrase(item: Any) -> str:
    """Put one of pydantic's errors in the house's words."""
    path = [part for part in item["loc"] if part not in ("int", "float")]
    where = ".".join(map(str, path[:-1])) or "the recipe"
    kind, got = item["type"], shorten(repr(item["input"]), 80)
    name = ".".join(map(str, path))
    if kind == "extra_forbidden":
        valid = _keys_at(path[:-1])
        hint = nearest(str(path[-1]), valid)
        return f"unknown key '{path[-1]}' in {where}.{hint} Valid keys: {', '.join(valid)}."
    if kind == "missing":
        return f"the key '{path[-1]}' is missing in {where}."
    if kind == "value_error":
        return str(item["ctx"]["error"])
    if kind in ("model_type", "dict_type", "model_attributes_type"):
        expected = "a mapping of keys"
    elif kind == "too_short":
        expected = f"a list of at least {item['ctx']['min_length']}"
    else:
        expected = re.sub(r"^(Input should be|Value should have) ?", "", item["msg"])
    hint = ""
    if kind == "literal_error":
        hint = nearest(str(item["input"]), re.findall(r"'([^']*)'", expected))
    return f"The '{name}' key must be {expected}. Got {got} instead.{hint}"


def _keys_at(path: Sequence[str | int]) -> list[str]:
    """Return the keys of the recipe's model at a path."""
    model: Any = Recipe
    for part in path:
        if isinstance(part, int):
            continue
        model = next(_models(model.model_fields[str(part)].annotation), None)
        if model is None:
            return []
    return sorted(model.model_fields)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in getattr(annotation, "__args__", ()):
        yield from _models(inner)


def expand(recipe: Recipe) -> list[Arm]:
    """Return one arm per combination of the compared values, or a single arm named by the selector.

    Raises:
        ConfigError: a compared value gives an invalid recipe, or ``overrides`` names no arm.
    """
    if recipe.compare is None:
        return [Arm(_safe(recipe.select.type if recipe.select else "all"), recipe)]
    values = recipe.model_dump(exclude_unset=True)
    compare = values.pop("compare")
    axes = recipe.compare.axes
    arms = []
    names = [_safe("+".join(map(str, combination))) for combination in product(*axes.values())]
    for unknown in set(recipe.compare.overrides) - set(names):
        raise ConfigError(
            f"compare.overrides names no arm '{unknown}'.{nearest(unknown, names)} Arms: {', '.join(names)}."
        )
    for name, combination in zip(names, product(*axes.values()), strict=True):
        mine = deepcopy(values)
        settings = dict(zip(axes, combination, strict=True)) | (compare.get("overrides") or {}).get(name, {})
        for key, value in settings.items():
            set_path(mine, dotted(key), value, f"compare.{key}")
        arms.append(Arm(name, _validate(mine, f"arm '{name}'", {})))
    if len(set(names)) < len(names):
        raise ConfigError(f"compare has two arms of one name: {', '.join(names)}.")
    return arms


def _safe(name: str) -> str:
    """Return a name that is a plain folder name on every system."""
    return re.sub(r"[^A-Za-z0-9._+=-]+", "-", name).strip(".-") or "arm"


def lock(loaded: LoadedRecipe, hashes: dict[str, str]) -> str:
    """Return the recipe as it was run: every default written out, versions of the libraries, input hashes."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    from ruamel.yaml import YAML

    versions = {"python": platform.python_version()}
    for name in (
        "tunesmith",
        "torch",
        "transformers",
        "peft",
        "trl",
        "datasets",
        "sentence-transformers",
        "scikit-learn",
        "numpy",
    ):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    stream = io.StringIO()
    yaml = YAML(typ="safe")
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.dump(
        {"recipe": loaded.recipe.model_dump(mode="json"), "versions": versions, "hashes": hashes}, stream
    )
    return stream.getvalue()
