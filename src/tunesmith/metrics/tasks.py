"""Score an answer by the ``task`` that its row carries: a true function call, a reasoning-gym entry, or a
text."""

from __future__ import annotations

import json
from typing import Any

from tunesmith.core.errors import DataError, shorten
from tunesmith.metrics.calls import score_call

__all__ = ["score_task", "score_with_reason"]

KINDS = ("function_call", "reasoning_gym", "exact")


def score_task(prediction: str, task: dict[str, Any] | str) -> float:
    """Return the score of an answer, in [0, 1].

    Args:
        prediction: the model's answer.
        task: as a dict or its JSON: ``{"kind": "function_call", "truth": {name: {argument: [accepted]}}}``
            (see `calls.score_call`), ``{"kind": "reasoning_gym", "dataset": name, "entry": {...}}`` (the
            scorer of that reasoning-gym dataset; an answer that makes it fail scores 0), or ``{"kind":
            "exact", "answer": text}`` (equal up to white space: 1, else 0).

    Raises:
        DataError: the task is none of these, or reasoning-gym is needed and not installed.
    """
    return score_with_reason(prediction, task)[0]


def score_with_reason(prediction: str, task: dict[str, Any] | str) -> tuple[float, str | None]:
    """Like `score_task`, with the reason when the scorer failed on the answer and it counts as 0."""
    task = _parsed(task)
    if task["kind"] == "function_call":
        return score_call(prediction, task["truth"]), None
    if task["kind"] == "exact":
        return float(prediction.split() == str(task["answer"]).split()), None
    try:
        from reasoning_gym import get_score_answer_fn
    except ImportError as error:
        raise DataError(
            "the task is scored by reasoning-gym, which is not installed. Run `pip install reasoning-gym`."
        ) from error
    try:
        scorer = get_score_answer_fn(task["dataset"])
    except ValueError as error:
        raise DataError(f"reasoning-gym has no dataset '{task['dataset']}'.") from error
    try:
        value = float(scorer(prediction.strip(), task["entry"]))
    except Exception as error:  # a scorer written for clean answers may fail in any way on a model's
        return 0.0, f"{task['dataset']}: {type(error).__name__}"
    return min(max(value, 0.0), 1.0), None


def _parsed(task: dict[str, Any] | str) -> dict[str, Any]:
    value: Any = task
    if isinstance(task, str):
        try:
            value = json.loads(task)
        except ValueError as error:
            raise DataError("the task is not valid JSON.", content=task) from error
    needs = {"function_call": ["truth"], "reasoning_gym": ["dataset", "entry"], "exact": ["answer"]}
    if not isinstance(value, dict) or value.get("kind") not in KINDS:
        raise DataError(
            f"the task must be an object whose 'kind' is one of {', '.join(KINDS)}.",
            content=shorten(repr(value)),
        )
    missing = [key for key in needs[value["kind"]] if key not in value]
    if missing:
        raise DataError(
            f"the task of kind '{value['kind']}' lacks {', '.join(missing)}.", content=repr(value)
        )
    if value["kind"] == "function_call" and not (
        isinstance(value["truth"], dict) and len(value["truth"]) == 1
    ):
        raise DataError("the task's truth must name one function.", content=repr(value))
    return value
