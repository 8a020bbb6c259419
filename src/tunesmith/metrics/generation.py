"""Metrics of generated answers. Each offers ``compute(predictions=, references=)`` and per-item
``scores``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar

from tunesmith.core.errors import DataError, ParameterError
from tunesmith.metrics.tasks import score_with_reason

__all__ = ["ExactMatch", "TaskScore"]


class ExactMatch:
    """Share of answers that equal the reference, white space aside.

    Args:
        max_new_tokens: longest answer to generate.
        ignore_case: compare without regard to case.
    """

    name: ClassVar[str] = "exact_match"
    needs: ClassVar[str] = "predictions"
    higher_is_better: ClassVar[bool] = True

    def __init__(self, max_new_tokens: int = 64, ignore_case: bool = False) -> None:
        self.max_new_tokens = _positive(max_new_tokens, type(self))
        self.ignore_case = ignore_case

    def compute(self, *, predictions: Sequence[str], references: Sequence[Any]) -> dict[str, Any]:
        """Compare answers with references.

        Args:
            predictions: n answers.
            references: n texts, or canonical rows, whose last assistant turn (or ``text``) is the reference.

        Returns:
            ``{"exact_match": mean, "scores": [n of 0.0 or 1.0]}``.

        Raises:
            ParameterError: the lengths differ.
            DataError: a row has no reference, or there is nothing to compare.
        """
        _same_length(predictions, references, self)
        scores = [
            float(self._plain(answer) == self._plain(_reference(reference, i)))
            for i, (answer, reference) in enumerate(zip(predictions, references, strict=True))
        ]
        return {self.name: sum(scores) / len(scores), "scores": scores}

    def _plain(self, text: str) -> str:
        text = " ".join(text.split())
        return text.casefold() if self.ignore_case else text


class TaskScore:
    """Mean score, in [0, 1], by the task that each row carries (see `tasks.score_task`).

    Args:
        max_new_tokens: longest answer to generate.
    """

    name: ClassVar[str] = "task_score"
    needs: ClassVar[str] = "predictions"
    higher_is_better: ClassVar[bool] = True

    def __init__(self, max_new_tokens: int = 64) -> None:
        self.max_new_tokens = _positive(max_new_tokens, type(self))

    def compute(self, *, predictions: Sequence[str], references: Sequence[Any]) -> dict[str, Any]:
        """Score answers.

        Args:
            predictions: n answers.
            references: n rows with a ``task``, or the tasks themselves (dict with ``kind``, or its JSON).

        Returns:
            ``{"task_score": mean, "scores": [n floats], "failures": {reason: count}}``; an answer on which a
            scorer fails counts 0, and its reason is counted.

        Raises:
            ParameterError: the lengths differ.
            DataError: a row has no task or a malformed one, or there is nothing to score.
        """
        _same_length(predictions, references, self)
        scores, failures = [], Counter[str]()
        for i, (answer, reference) in enumerate(zip(predictions, references, strict=True)):
            task = reference
            if isinstance(reference, dict) and "kind" not in reference:
                task = reference.get("task")
                if not task:
                    raise DataError(
                        "the row has no 'task', so task_score cannot score it; use exact_match.", row=i
                    )
            try:
                score, reason = score_with_reason(answer, task)
            except DataError as error:
                raise DataError(str(error), row=i) from error
            scores.append(score)
            if reason is not None:
                failures[reason] += 1
        return {self.name: sum(scores) / len(scores), "scores": scores, "failures": dict(failures)}


def _positive(value: int, owner: type) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ParameterError("max_new_tokens", owner, "an int of at least 1", value)
    return value


def _same_length(predictions: Sequence[str], references: Sequence[Any], owner: Any) -> None:
    if len(predictions) != len(references):
        expected = f"as long as references, which has {len(references)} items"
        raise ParameterError("predictions", owner, expected, f"{len(predictions)} items")
    if len(predictions) == 0:
        raise DataError(f"there are no answers to compute {owner.name} from.")


def _reference(reference: Any, row: int) -> str:
    if isinstance(reference, str):
        return reference
    messages = reference.get("messages")
    if messages and messages[-1]["role"] == "assistant":
        return str(messages[-1]["content"])
    if isinstance(reference.get("text"), str):
        return str(reference["text"])
    raise DataError(
        "the row has no answer to compare with (neither a last assistant turn nor text).", row=row
    )
