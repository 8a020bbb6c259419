"""Read one function call out of a model's answer, without running anything, and compare it with the truth."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

__all__ = ["parse_call", "score_call"]

MAX_CHARS = 20_000  # an answer that runs on is not parsed: the parser's stack and time grow with it
_FENCE = re.compile(r"^```[\w-]*\n?(.*?)\n?```$", re.DOTALL)
_WORDS = {"true": True, "false": False, "null": None}


def parse_call(text: str) -> tuple[str, dict[str, Any]] | None:
    """Return the name and arguments of the one call that ``text`` consists of, or None.

    Read are a Python call with keyword arguments, ``pkg.name(a=1, b="x")``, and JSON, ``{"name": "pkg.name",
    "arguments": {"a": 1}}`` (``parameters`` for ``arguments``, and arguments as a JSON string, are known
    too); either may stand in a list of one or in a code fence. Values are literals, ``true``, ``false`` and
    ``null`` included. Nothing is evaluated: the text is parsed to a syntax tree, of which literals alone are
    taken.

    Args:
        text: the answer; more than 20,000 characters are not read.
    """
    text = text.strip()
    if len(text) > MAX_CHARS:
        return None
    if match := _FENCE.match(text):
        text = match[1].strip()
    return _from_json(text) or _from_python(text)


def score_call(text: str, truth: dict[str, dict[str, list[Any]]]) -> float:
    """Score an answer that should be one call.

    0 when it is no call or calls another function; else 0.5 + 0.5 × right arguments / (given or required
    arguments).

    An argument is right when its value equals one of the accepted ones: numbers as numbers, strings without
        regard
    to case and outer white space, lists item by item, dicts key by key. One with ``""`` among its accepted
    values may be left out, the others are required.

    Args:
        text: the answer.
        truth: ``{function: {argument: [accepted values]}}``, one function.

    Returns:
        A score in {0} ∪ [0.5, 1].
    """
    call = parse_call(text)
    ((wanted, accepted),) = truth.items()
    if call is None or call[0] != wanted:
        return 0.0
    given = call[1]
    required = {name for name, values in accepted.items() if "" not in values}
    names = required | given.keys()
    if not names:
        return 1.0
    right = sum(
        any(_same(value, option) for option in accepted.get(name, [])) for name, value in given.items()
    )
    return 0.5 + 0.5 * right / len(names)


def _from_json(text: str) -> tuple[str, dict[str, Any]] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return None
    return (value["name"], arguments) if isinstance(arguments, dict) else None


def _from_python(text: str) -> tuple[str, dict[str, Any]] | None:
    try:
        node: ast.AST = ast.parse(text, mode="eval").body
        if isinstance(node, ast.List) and len(node.elts) == 1:
            node = node.elts[0]
        if not isinstance(node, ast.Call) or node.args:
            return None
        name = ast.unparse(node.func)
        if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", name):
            return None
        arguments = {}
        for keyword in node.keywords:
            if keyword.arg is None:
                return None
            arguments[keyword.arg] = ast.literal_eval(_Words().visit(keyword.value))
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return None
    return name, arguments


class _Words(ast.NodeTransformer):
    """Read JSON's words for constants, which models write inside Python calls."""

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Constant(_WORDS[node.id]) if node.id in _WORDS else node


def _same(value: Any, accepted: Any) -> bool:
    if isinstance(value, bool) or isinstance(accepted, bool):
        return value is accepted
    if isinstance(value, (int, float)) and isinstance(accepted, (int, float)):
        return value == accepted
    if isinstance(value, str) and isinstance(accepted, str):
        return value.strip().casefold() == accepted.strip().casefold()
    if isinstance(value, (list, tuple)) and isinstance(accepted, (list, tuple)):
        return len(value) == len(accepted) and all(map(_same, value, accepted))
    if isinstance(value, dict) and isinstance(accepted, dict):
        return value.keys() == accepted.keys() and all(_same(value[k], accepted[k]) for k in value)
    return value is None and accepted is None
