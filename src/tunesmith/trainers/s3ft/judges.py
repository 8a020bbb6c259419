"""Judges by rule: is a candidate as good as the gold answer?

A judge is a callable ``(prompt, candidate, gold, row) -> bool``. One with a true attribute ``batched`` takes four lists
and returns a list. A text ``fingerprint`` that changes with its verdicts lets kept verdicts be used again; without one
its name stands for it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from tunesmith.core.errors import DataError, ParameterError
from tunesmith.core.files import hash_json
from tunesmith.metrics.tasks import score_task
from tunesmith.trainers.s3ft.generators import name_of
from tunesmith.trainers.s3ft.prompts import Prompt

__all__ = ["AnyOf", "Judge", "NormalisedMatch", "NumberMatch", "TaskJudge", "final_number", "is_batched"]

Row = Mapping[str, Any]

_NUMBER = re.compile(
    r"(?<![A-Za-z0-9_.)])(?P<sign>-?)(?:[$€£]\s?)?(?P<value>(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)"
    r"(?P<power>[eE][+-]?\d+)?(?:\s?/\s?(?P<below>\d+))?(?!\d)"
)
_CLOSING = re.compile(r"(?:the\s+(?:final\s+)?answer\s+is|####|\\boxed\s*\{)", re.IGNORECASE)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


class Judge(Protocol):
    """What a judge has to offer; ``batched`` and ``fingerprint`` may be absent."""

    def __call__(self, prompt: Any, candidate: Any, gold: Any, row: Any, /) -> Any:
        """Return whether the candidate is as good as the gold answer; the lists of many where it is batched."""
        ...


def is_batched(judge: Any) -> bool:
    """Whether a judge takes lists."""
    return getattr(judge, "batched", False) is True


def final_number(text: str) -> float | None:
    """Return the number that a text ends on, ``None`` if it has none.

    Looked at first is what follows the last "The answer is", ``####`` or ``\\boxed{``, and there the first number; else
    the last number of the text. Read are signs, currency signs in front, commas between thousands, decimals, powers of
    ten and fractions ``a/b``. A minus after a word or number is an operator or hyphen.

    Args:
        text: an answer.
    """
    text = text.replace("\N{MINUS SIGN}", "-").replace("\\$", "$")
    closings = list(_CLOSING.finditer(text))
    if closings:
        found = _NUMBER.search(text, closings[-1].end())
        if found:
            return _value(found)
    numbers = list(_NUMBER.finditer(text))
    return _value(numbers[-1]) if numbers else None


def _value(found: re.Match[str]) -> float | None:
    value = float(found["value"].replace(",", "") + (found["power"] or ""))
    if found["below"] is not None:
        below = float(found["below"])
        if below == 0:
            return None
        value /= below
    return -value if found["sign"] else value


class NumberMatch:
    """Right where candidate and gold answer end on the same number (see `final_number`).

    Args:
        tolerance: greatest difference, at least 0; the dossier's 1e-4, which is absolute.
        column: take the number of this column instead of the gold answer's.

    Raises:
        ParameterError: ``tolerance`` is below 0 or not finite.
    """

    def __init__(self, tolerance: float = 1e-4, column: str | None = None) -> None:
        if isinstance(tolerance, bool) or not 0 <= tolerance < math.inf:
            raise ParameterError("tolerance", self, "a finite number of at least 0", tolerance)
        self.tolerance, self.column = float(tolerance), column
        self.fingerprint = hash_json(["number", self.tolerance, column])

    def __call__(self, prompt: Prompt, candidate: str, gold: str, row: Row) -> bool:
        """Return the verdict.

        Raises:
            DataError: there is no number to compare with.
        """
        expected = str(column_of(row, self.column)) if self.column is not None else gold
        wanted = final_number(expected)
        if wanted is None:
            raise DataError("the gold answer has no number to compare with.", content=expected)
        found = final_number(candidate)
        return found is not None and abs(found - wanted) <= self.tolerance


class NormalisedMatch:
    """Right where both texts are equal but for case, punctuation, articles and white space (as in SQuAD).

    Signs, points and commas in front of a digit count.

    Args:
        articles: whether "a", "an" and "the" are left out.
        contains: enough if the candidate has the gold answer's words in a row somewhere.
    """

    def __init__(self, articles: bool = True, contains: bool = False) -> None:
        self.articles, self.contains = articles, contains
        self.fingerprint = hash_json(["match", articles, contains])

    def __call__(self, prompt: Prompt, candidate: str, gold: str, row: Row) -> bool:
        """Return the verdict."""
        wanted, found = self._plain(gold), self._plain(candidate)
        if not wanted:  # the gold answer is nothing but punctuation or articles
            return gold.split() == candidate.split()
        return f" {wanted} " in f" {found} " if self.contains else wanted == found

    def _plain(self, text: str) -> str:
        text = _PUNCTUATION.sub("", text.replace("\N{MINUS SIGN}", "-").casefold())
        return " ".join((_ARTICLES.sub(" ", text) if self.articles else text).split())


# What stands before a digit may be part of a number: 3.5 is not 35, and -5 not 5.
_PUNCTUATION = re.compile(r"(?![-+.,:/](?=\d))[^\w\s]")


class TaskJudge:
    """Right where the scorer of the row's task gives at least ``threshold`` (see `metrics.score_task`).

    Such a task may be an entry of reasoning-gym, a function call, or an exact text. An answer that makes a scorer fail
    scores 0.

    Args:
        threshold: in (0, 1].
        column: where the task is.

    Raises:
        ParameterError: ``threshold`` is outside its set.
    """

    def __init__(self, threshold: float = 1.0, column: str = "task") -> None:
        if isinstance(threshold, bool) or not 0 < threshold <= 1:
            raise ParameterError("threshold", self, "a number in (0, 1]", threshold)
        self.threshold, self.column = float(threshold), column
        self.fingerprint = hash_json(["task", self.threshold, column])

    def __call__(self, prompt: Prompt, candidate: str, gold: str, row: Row) -> bool:
        """Return the verdict.

        Raises:
            DataError: the row has no task or a malformed one.
        """
        return score_task(candidate, column_of(row, self.column)) >= self.threshold


class AnyOf:
    """Right where one of some judges says so; a later one is asked only where all before it said no.

    Put the cheap one first. Takes lists.

    Args:
        judges: at least one.

    Raises:
        ParameterError: there is none.
    """

    batched = True

    def __init__(self, judges: Sequence[Callable[..., Any]]) -> None:
        if isinstance(judges, str) or not judges or not all(callable(judge) for judge in judges):
            raise ParameterError("judges", self, "a list of at least one callable", judges)
        self.judges = list(judges)

    @property
    def fingerprint(self) -> str:
        """Of all judges, in order."""
        return hash_json(["any of", *(name_of(judge) for judge in self.judges)])

    def __call__(
        self, prompts: Sequence[Any], candidates: Sequence[str], golds: Sequence[str], rows: Sequence[Row]
    ) -> list[Any]:
        """Return b verdicts; what is no bool is passed on for the caller to refuse."""
        verdicts: list[Any] = [False] * len(candidates)
        for judge in self.judges:
            left = [i for i, verdict in enumerate(verdicts) if verdict is False]
            if not left:
                break
            if is_batched(judge):
                args = ([values[i] for i in left] for values in (prompts, candidates, golds, rows))
                found = list(judge(*args))
            else:
                found = [judge(prompts[i], candidates[i], golds[i], rows[i]) for i in left]
            if len(found) != len(left):
                raise DataError(f"the judge returned {len(found)} verdicts on {len(left)} candidates.")
            for i, verdict in zip(left, found, strict=True):
                verdicts[i] = verdict
        return verdicts


def column_of(row: Row, column: str) -> Any:
    """Return what a row has in a column.

    Raises:
        DataError: nothing.
    """
    if row.get(column) is None:
        raise DataError(f"the judge needs the column '{column}'; the row has {', '.join(row) or 'none'}.")
    return row[column]
