"""Stubs for the tests of S3FT. No test file: tests import it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from datasets import Dataset


class Model:
    """Answers a prompt by ``own``, a paraphrase prompt (it has the gold answer in it) by ``reworded``; counts."""

    def __init__(
        self, own: dict[str, Any], reworded: dict[str, Any] | None = None, marker: str = "MARK"
    ) -> None:
        self.own, self.reworded, self.marker = own, reworded or {}, marker
        self.asked: list[str] = []
        self.sizes: list[int] = []

    def __call__(self, prompts: Sequence[str]) -> list[Any]:
        self.asked += prompts
        self.sizes.append(len(prompts))
        return [self.reworded[p.split(self.marker)[0]] if self.marker in p else self.own[p] for p in prompts]

    @property
    def paraphrased(self) -> list[str]:
        return [p for p in self.asked if self.marker in p]


TEMPLATE = "{prompt}MARK{gold}"


class Judge:
    """Says what ``rule(candidate, gold)`` says; keeps what it was asked."""

    def __init__(self, rule: Callable[[str, str], Any]) -> None:
        self.rule, self.asked = rule, []  # type: ignore[var-annotated]

    def __call__(self, prompt: Any, candidate: str, gold: str, row: dict[str, Any]) -> Any:
        self.asked.append((prompt, candidate, gold, row))
        return self.rule(candidate, gold)


def three() -> tuple[Dataset, Model]:
    """The hand-worked example: golds 5, 7, 9."""
    rows = Dataset.from_dict(
        {"id": ["a", "b", "c"], "prompt": ["2 + 3?", "3 + 4?", "4 + 5?"], "completion": ["5", "7", "9"]}
    )
    say = "The answer is {}".format
    own = {"2 + 3?": say(5), "3 + 4?": say(8), "4 + 5?": say(2)}
    return rows, Model(own, {"2 + 3?": "It is 5", "3 + 4?": say(7), "4 + 5?": say(1)})
