"""Function calls that real users asked for, with their true answers, from the wheel ``bfcl-eval``.

Source: the Berkeley Function Calling Leaderboard v4 (Apache-2.0), its parts ``live_simple`` (258 requests by
users of a public service) and ``simple_python`` (400 requests); each offers one function.

A row asks in two lines, the request and the function as a Python signature::

    Can you retrieve the details for the user with the ID 7890, who has black as their special request?
    Function: get_user_info(user_id: int, special: str = "none")

and the answer is one call, written as follows:

* the function's name as given, dots included, then the arguments by keyword in the order of the signature;
* values are Python literals; strings in double quotes with JSON's escapes, which Python reads
  as well;
* one space after each comma between arguments, none around ``=``; no text before or after;
* an argument is left out when the ground truth accepts its absence (``""`` among the accepted values) and the
  function does not require it; otherwise the first accepted value is written.

For scoring, the task is ``{"kind": "function_call", "truth": {name: {argument: [accepted values]}}}``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunesmith.data.demo.items import Item, package_folder

__all__ = ["MAX_CHARS", "PARTS", "read_calls", "render_call", "render_signature"]

PARTS = ("live_simple", "simple_python")
MAX_CHARS = 300
"""Longest question with signature, in characters (about 80 tokens): the demo's time grows with tokens."""

_TYPES = {
    "integer": "int",
    "string": "str",
    "boolean": "bool",
    "array": "list",
    "tuple": "list",
    "dict": "dict",
    "any": "any",
}
_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def render_call(name: str, arguments: dict[str, Any]) -> str:
    """Return a call as the demo writes it, ``name(key=value, ...)``, in the order of ``arguments``."""
    return f"{name}({', '.join(f'{key}={_literal(value)}' for key, value in arguments.items())})"


def render_signature(function: dict[str, Any]) -> str:
    """Return a function's JSON description as one line like Python's, without its prose."""
    parameters = function["parameters"]
    required = set(parameters.get("required", []))
    written = [_parameter(key, spec, key in required) for key, spec in parameters["properties"].items()]
    return f"{function['name']}({', '.join(written)})"


def read_calls() -> list[Item]:
    """Return the usable requests in the order of the wheel's files.

    Left out are requests with a system message, those over `MAX_CHARS`, and calls with nested objects, with
    an argument without any accepted value, or with names that Python cannot write.

    Raises:
        TunesmithError: the wheel is not installed.
    """
    folder = package_folder("bfcl_eval", "bfcl-eval") / "data"
    items = []
    for part in PARTS:
        truths = {
            entry["id"]: entry["ground_truth"]
            for entry in _lines(folder / "possible_answer" / f"BFCL_v4_{part}.json")
        }
        for entry in _lines(folder / f"BFCL_v4_{part}.json"):
            item = _item(entry, truths[entry["id"]], part)
            if item is not None:
                items.append(item)
    return items


def _item(entry: dict[str, Any], truths: list[dict[str, Any]], part: str) -> Item | None:
    turns, function = entry["question"][0], entry["function"][0]
    (name, accepted), *others = truths[0].items()
    if len(turns) != 1 or len(truths) != 1 or others or not _NAME.fullmatch(name):
        return None
    if not all(accepted.values()) or any(_nested(value) for values in accepted.values() for value in values):
        return None
    question = f"{' '.join(turns[0]['content'].split())}\nFunction: {render_signature(function)}"
    if len(question) > MAX_CHARS:
        return None
    required = set(function["parameters"].get("required", []))
    arguments = {}
    for key in sorted(accepted, key=list(function["parameters"]["properties"]).index):
        values = [value for value in accepted[key] if value != ""]
        if key in required or len(values) == len(accepted[key]):
            arguments[key] = values[0] if values else ""
    return Item(
        question=question,
        answer=render_call(name, arguments),
        task={"kind": "function_call", "truth": truths[0]},
        source=f"bfcl:{part}",
        family="function_call",
        group=name,
    )


def _parameter(name: str, spec: dict[str, Any], required: bool) -> str:
    kind = _TYPES.get(spec["type"], spec["type"])
    if "enum" in spec and len(spec["enum"]) <= 4:
        kind = "|".join(map(_literal, spec["enum"]))
    if required:
        return f"{name}: {kind}"
    default = spec.get("default")
    return f"{name}: {kind} = {_literal(default) if isinstance(default, (str, int, float, bool)) else 'None'}"


def _literal(value: Any) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_literal, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_literal(k)}: {_literal(v)}' for k, v in value.items())}}}"
    return repr(value)


def _nested(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and any(map(_nested, value)))


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with open(path, encoding="utf-8") as stream:
        for line in stream:
            if line.strip():
                yield json.loads(line)
