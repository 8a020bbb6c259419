"""Read a recipe strictly: every error names file, line and column, and the nearest valid name."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from tunesmith.core.errors import ConfigError, nearest, shorten
from tunesmith.recipe.schema import Recipe

__all__ = ["Arm", "LoadedRecipe", "Problem", "expand", "load", "lock", "set_path"]

Path_ = tuple[str | int, ...]
Positions = dict[Path_, tuple[int, int]]


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
    """

    recipe: Recipe
    source: str | None = None
    positions: Positions = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)

    def problem(self, message: str, path: Path_) -> Problem:
        """Return a problem at ``path``, or at the nearest parent whose place is known."""
        line, column = _position(self.positions, path)
        return Problem(message, self.source, line, column)


@dataclass(frozen=True)
class Arm:
    """One combination of the compared values: its name is also its folder."""

    name: str
    recipe: Recipe


def load(recipe: Recipe | str | os.PathLike[str], overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Read and validate a recipe.

    Args:
        recipe: path of a YAML file, YAML text (anything with a line break), or a `Recipe`.
        overrides: ``"select.budget=10%"``, ``"evaluate.0.max_new_tokens=32"``; values are read as YAML.

    Raises:
        ConfigError: everything that is wrong, one line each with file, line and column.
    """
    if isinstance(recipe, Recipe):
        values, source, positions = recipe.model_dump(exclude_unset=True), None, {}
    else:
        text, source = _text(recipe)
        values, positions = _parse(text, source)
    for override in overrides:
        path, value = _override(override)
        set_path(values, path, value, f"override '{override}'")
        positions = {p: at for p, at in positions.items() if p[: len(path)] != path}
    return LoadedRecipe(_validate(values, source, positions), source, positions, values)


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
    from ruamel.yaml.error import MarkedYAMLError

    try:
        tree = YAML(typ="rt").load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        message = str(error.problem or error).split("\n")[0]
        raise ConfigError(
            message,
            source=source,
            line=None if mark is None else mark.line + 1,
            column=None if mark is None else mark.column + 1,
        ) from error
    if not isinstance(tree, dict):
        raise ConfigError("A recipe is a mapping of stages (data:, select:, train:, …).", source=source, line=1)
    positions: Positions = {}
    return _plain(tree, (), positions), positions


def _plain(node: Any, path: Path_, positions: Positions) -> Any:
    """Return ruamel's tree as plain values, noting where each key stands."""
    if isinstance(node, dict):
        for key in node:
            line, column = node.lc.key(key)
            positions[(*path, str(key))] = (line + 1, column + 1)
        return {str(key): _plain(value, (*path, str(key)), positions) for key, value in node.items()}
    if isinstance(node, list):
        for i in range(len(node)):
            line, column = node.lc.item(i)
            positions[(*path, i)] = (line + 1, column + 1)
        return [_plain(value, (*path, i), positions) for i, value in enumerate(node)]
    for kind in (bool, int, float, str):  # ruamel's scalars remember their notation; the values are enough
        if isinstance(node, kind):
            return kind(node)
    return node


def _override(text: str) -> tuple[Path_, Any]:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"An override reads key.sub=value; got '{shorten(text)}'.")
    try:
        parsed = YAML(typ="safe").load(io.StringIO(value))
    except YAMLError:
        parsed = value
    return tuple(int(part) if part.isdigit() else part for part in key.strip().split(".")), parsed


def set_path(values: dict[str, Any], path: Path_, value: Any, what: str) -> None:
    """Set a dotted key in nested plain values, making the mappings on the way.

    Raises:
        ConfigError: the path leads through something that has no keys, or past the end of a list.
    """
    node: Any = values
    for i, key in enumerate(path):
        last = i == len(path) - 1
        if isinstance(node, list) and isinstance(key, int) and key < len(node):
            if last:
                node[key] = value
            else:
                node = node[key]
        elif isinstance(node, dict) and isinstance(key, str):
            if last:
                node[key] = value
            else:
                if node.get(key) is None:
                    node[key] = {}
                node = node[key]
        else:
            where = ".".join(map(str, path[:i]))
            size = f" of {len(node)} items" if isinstance(node, list) else ""
            raise ConfigError(f"{what}: '{where}' is a {type(node).__name__}{size} and has no '{key}'.")


def _validate(values: dict[str, Any], source: str | None, positions: Positions) -> Recipe:
    try:
        return Recipe.model_validate(deepcopy(values))
    except ValidationError as error:
        lines = []
        for item in error.errors():
            line, column = _position(positions, item["loc"])
            problem = Problem(_phrase(item), source, line, column)
            lines.append(((line or 0, column or 0), str(problem)))
        raise ConfigError("\n".join(text for _, text in sorted(lines))) from None


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
        return f"unknown key '{path[-1]}' in {where}.{nearest(str(path[-1]), valid)} Valid keys: {', '.join(valid)}."
    if kind == "missing":
        return f"the key '{path[-1]}' is missing in {where}."
    if kind == "value_error":
        return str(item["ctx"]["error"])
    expected = re.sub(r"^(Input should be|Value should have) ?", "", item["msg"])
    return f"The '{name}' key must be {expected}. Got {got} instead."


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
        raise ConfigError(f"compare.overrides names no arm '{unknown}'.{nearest(unknown, names)} Arms: {', '.join(names)}.")
    for name, combination in zip(names, product(*axes.values()), strict=True):
        mine = deepcopy(values)
        settings = dict(zip(axes, combination, strict=True)) | (compare.get("overrides") or {}).get(name, {})
        for key, value in settings.items():
            set_path(mine, _dotted(key), value, f"compare.{key}")
        arms.append(Arm(name, _validate(mine, f"arm '{name}'", {})))
    if len(set(names)) < len(names):
        raise ConfigError(f"compare has two arms of one name: {', '.join(names)}.")
    return arms


def _dotted(key: str) -> Path_:
    return tuple(int(part) if part.isdigit() else part for part in key.split("."))


def _safe(name: str) -> str:
    """Return a name that is a plain folder name on every system."""
    return re.sub(r"[^A-Za-z0-9._+=-]+", "-", name).strip(".-") or "arm"


def lock(loaded: LoadedRecipe, hashes: dict[str, str]) -> str:
    """Return the recipe as it was run: every default written out, versions of the libraries, input hashes."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    from ruamel.yaml import YAML

    versions = {"python": platform.python_version()}
    for name in ("tunesmith", "torch", "transformers", "peft", "trl", "datasets", "sentence-transformers", "scikit-learn", "numpy"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    stream = io.StringIO()
    yaml = YAML(typ="safe")
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.dump({"recipe": loaded.recipe.model_dump(mode="json"), "versions": versions, "hashes": hashes}, stream)
    return stream.getvalue()
