"""Which modules a config names, by PEFT's rule, and the error for names that match nothing."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from tunesmith.core.errors import ParameterError, nearest

__all__ = ["matches", "refuse_unmatched"]


def matches(targets: Any, name: str) -> bool:
    """Say whether ``targets`` names a module, as PEFT does: a string is a regular expression for the whole name, a
    collection holds names or their ends after a dot. Nothing names nothing, and an invalid expression neither.
    """
    if not targets:
        return False
    if isinstance(targets, str):
        try:
            return re.fullmatch(targets, name) is not None
        except re.error:
            return False
    return any(name == target or name.endswith(f".{target}") for target in targets)


def refuse_unmatched(
    targets: Any,
    names: Collection[str],
    owner: Any,
    what: str,
    *,
    parameter: str = "target_modules",
    ends: Collection[str] | None = None,
    label: str = "Found",
) -> None:
    """Raise unless each entry of ``targets`` matches a name. Time O(names x entries).

    Args:
        targets: a string or a collection, see `matches`.
        names: modules that may be named.
        owner: the config whose parameter it is.
        what: they are, to follow "names of".
        parameter: which one.
        ends: last parts of names to list and to look for the nearest in; those of ``names`` by default.
        label: what the list is called.

    Raises:
        ParameterError: names the entries, the nearest name and what is there.
    """
    if isinstance(targets, str):
        missing = [] if any(matches(targets, name) for name in names) else [targets]
    else:
        missing = [entry for entry in sorted(targets) if not any(matches([entry], name) for name in names)]
    if missing:
        listed = sorted({name.rsplit(".", 1)[-1] for name in names} if ends is None else ends)
        raise ParameterError(
            parameter,
            owner,
            f"names of {what}; {', '.join(map(repr, missing))} matches none.{nearest(missing[0], listed)} "
            f"{label}: {', '.join(listed)}",
            targets if isinstance(targets, str) else sorted(targets),
        )
