"""Overrides of a recipe on the command line: ``key.sub=value``."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

from tunesmith.core.errors import ConfigError, shorten
from tunesmith.recipe.schema import CompareSpec

__all__ = ["Override", "Path_", "dotted", "parse_override", "set_path"]

Path_ = tuple[str | int, ...]


@dataclass(frozen=True)
class Override:
    """One parsed override.

    Attributes:
        text: as it was given.
        path: keys from the root; numbers are places in a list.
        value: read as YAML.
    """

    text: str
    path: Path_
    value: Any

    @property
    def what(self) -> str:
        """How errors name it."""
        return f"override '{shorten(self.text, 80)}'"


def parse_override(text: str) -> Override:
    """Parse ``key.sub=value``; a value that is no YAML stands for itself.

    The keys of ``compare`` are themselves dotted, so ``compare.select.type`` means ``select.type`` in it.

    Raises:
        ConfigError: there is no ``=``, or no key before it.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    key, equals, value = text.partition("=")
    path = dotted(key.strip())
    if not equals or "" in path:
        raise ConfigError(f"An override reads key.sub=value. Got '{shorten(text)}' instead.")
    if path[0] == "compare" and len(path) > 2 and path[1] not in CompareSpec.model_fields:
        path = ("compare", ".".join(map(str, path[1:])))
    try:
        parsed = YAML(typ="safe").load(io.StringIO(value))
    except YAMLError:
        parsed = value
    return Override(text, path, parsed)


def dotted(key: str) -> Path_:
    """Return the path that a dotted key stands for; parts that are numbers become places in a list."""
    return tuple(int(part) if part.isdecimal() else part for part in key.split("."))


def set_path(values: dict[str, Any], path: Path_, value: Any, what: str) -> None:
    """Set a path in nested plain values, making the mappings on the way.

    Args:
        values: changed in place.
        path: from `dotted`.
        value: what to put there.
        what: names the cause in errors.

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
            raise ConfigError(f"{what}: '{where}' is {_described(node)} and has no '{key}'.")


def _described(node: Any) -> str:
    if isinstance(node, list):
        return f"a list of {len(node)}"
    return "a mapping" if isinstance(node, dict) else shorten(repr(node), 40)
