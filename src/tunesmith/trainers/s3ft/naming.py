"""Judges by name, as a recipe writes them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.core.errors import ParameterError, UnknownNameError, nearest
from tunesmith.trainers.s3ft.code import PythonTests
from tunesmith.trainers.s3ft.judges import AnyOf, Judge, NormalisedMatch, NumberMatch, TaskJudge
from tunesmith.trainers.s3ft.model_judge import LLMJudge

__all__ = ["JUDGES", "open_judge"]

JUDGES: dict[str, Any] = {
    "number": NumberMatch,
    "match": NormalisedMatch,
    "task": TaskJudge,
    "tests": PythonTests,
    "llm": LLMJudge,
}


def open_judge(spec: Any, owner: Any = "open_judge", parameter: str = "judge") -> Judge:
    """Return the judge that a recipe or a parameter names.

    Args:
        spec: a callable (returned as it is); a name of `JUDGES`; a mapping with ``type`` and the judge's arguments,
            such as ``{"type": "llm", "llm": {"url": ..., "model": ...}}``; or a list of these, see `AnyOf`.
        owner: whose parameter it is, for messages.
        parameter: its name, for messages.

    Raises:
        UnknownNameError: there is no judge of that name.
        ParameterError: ``spec`` is none of these, or an argument is unknown, missing or not permitted.
    """
    if isinstance(spec, str):
        spec = {"type": spec}
    if isinstance(spec, Mapping) and isinstance(spec.get("type"), str):
        name = spec["type"]
        if name not in JUDGES:
            raise UnknownNameError("judge", name, JUDGES)
        kind = JUDGES[name]
        given = {key: value for key, value in spec.items() if key != "type"}
        signature = inspect.signature(kind).parameters
        for key in given:
            if key not in signature:
                hint = nearest(str(key), signature)
                expected = (
                    f"made of arguments of {kind.__name__} ({', '.join(signature)}){hint and ';' + hint[:-1]}"
                )
                raise ParameterError(parameter, owner, expected, str(key))
        for key, value in signature.items():
            if value.default is value.empty and key not in given:
                raise ParameterError(parameter, owner, f"given with '{key}' for the judge '{name}'", spec)
        return kind(**given)  # type: ignore[no-any-return]
    if callable(spec):
        return spec  # type: ignore[no-any-return]
    if isinstance(spec, Sequence) and len(spec):
        return AnyOf([open_judge(one, owner, parameter) for one in spec])
    expected = f"a callable, one of {', '.join(JUDGES)}, a mapping with 'type', or a list of these"
    raise ParameterError(parameter, owner, expected, spec)
