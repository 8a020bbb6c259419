"""The method registry: every method, ours or a plug-in's, is an entry point of the group ``tunesmith``.

A distribution registers a method by one line of its metadata::

    [project.entry-points.tunesmith]
    "select.mine" = "my_package.selectors:MySelector"

Names are read from metadata, so listing them imports no method and no heavy library.
"""

from __future__ import annotations

import fnmatch
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from tunesmith.core.errors import TunesmithError, UnknownNameError

GROUP = "tunesmith"

__all__ = ["GROUP", "create", "get", "names", "refresh"]


@lru_cache(maxsize=1)
def _table() -> dict[str, EntryPoint]:
    table: dict[str, EntryPoint] = {}
    for point in entry_points(group=GROUP):
        known = table.setdefault(point.name, point)
        if known.value != point.value:
            raise TunesmithError(
                f"Two installed packages register the method '{point.name}': {known.value} and {point.value}. "
                "Uninstall one of them or ask its author to rename the method."
            )
    return table


def refresh() -> None:
    """Forget the cached table, so that packages installed since are seen."""
    _table.cache_clear()


def names(pattern: str = "*") -> list[str]:
    """Return the sorted names of the registered methods that match ``pattern``.

    Args:
        pattern: shell-style pattern such as ``"select.*"``.
    """
    return sorted(name for name in _table() if fnmatch.fnmatchcase(name, pattern))


def get(name: str) -> Any:
    """Import and return what is registered as ``name`` (a class or a function).

    Raises:
        UnknownNameError: nothing is registered under that name; the message lists the names of its family.
        TunesmithError: the method's package cannot be imported.
    """
    table = _table()
    if name not in table:
        family = name.split(".", 1)[0]
        raise UnknownNameError("method", name, names(f"{family}.*") or names())
    try:
        return table[name].load()
    except (ImportError, AttributeError) as error:
        raise TunesmithError(
            f"The method '{name}' is registered as {table[name].value} but cannot be imported: {error}"
        ) from error


def create(name: str, /, **parameters: Any) -> Any:
    """Return ``get(name)(**parameters)``.

    Raises:
        UnknownNameError: nothing is registered under that name.
    """
    return get(name)(**parameters)
