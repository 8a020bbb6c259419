"""The pass over text rows: languages, broken answers, counts."""

from __future__ import annotations

import pytest
from datasets import Dataset

from tunesmith.core.events import EventLog
from tunesmith.look.texts import answer_problem, language_of, read_texts, row_problem

LONG = "This is a sentence that ends well. " * 8


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Write a function that returns the sum of two numbers.", "en"),
        ("Wie wird das Wetter morgen in Berlin, und was soll ich anziehen?", "de"),
        ("Quel temps fait-il à Paris aujourd'hui ?", "fr"),
        ("今天天气怎么样?我们去公园吧。", "zh"),
        ("[1, 2, 3]", "?"),
        ("ok", "?"),
        ("", "?"),
    ],
)
def test_language(text: str, code: str) -> None:
    assert language_of(text) == code


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ("42", None),
        ("apples, pears", None),
        ('{"a": [1, 2]}', None),
        ("[not json at all]", None),
        ('{"name": "sum", "arguments": {"a": 1', "cut off: open JSON"),
        ("Here:\n```python\nprint(1)", "cut off: open code block"),
        ("Here:\n```python\nprint(1)\n```", None),
        (LONG, None),
        (LONG + "And then it just", "perhaps cut off: no end of sentence"),
        (LONG + "\n- one\n- two", None),
        ("too short to say and", None),
    ],
)
def test_cut_answers(answer: str, problem: str | None) -> None:
    assert answer_problem(answer) == problem


def chat(*turns: tuple[str, str]) -> dict[str, object]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"text": "  "}, "empty"),
        ({"text": "x"}, None),
        (chat(("user", "Hello?")), "no answer"),
        (chat(("user", "Hello?"), ("assistant", " ")), "empty answer"),
        (chat(("user", " "), ("assistant", "Hi.")), "empty question"),
        (chat(("user", "a"), ("assistant", "b"), ("user", "c")), "ends with a question"),
        (chat(("user", "Say this"), ("assistant", "say  THIS")), "the answer repeats the question"),
        (chat(("user", "a"), ("assistant", "b")), None),
        ({"anchor": "q", "positive": "a"}, None),
    ],
)
def test_broken_rows(row: dict[str, object], problem: str | None) -> None:
    assert row_problem(row) == problem


def test_the_pass_counts_every_row_once() -> None:
    rows = Dataset.from_list(
        [
            chat(("user", "Say hello to jane@corp.com, would you please?"), ("assistant", "Hello")),
            chat(("system", "s"), ("user", "u"), ("assistant", "```")),
        ]
    )
    heard: list[dict[str, object]] = []
    facts = read_texts(rows, EventLog(listeners=[heard.append]))
    assert facts.characters.tolist() == [
        len("Say hello to jane@corp.com, would you please?\nHello"),
        len("s\nu\n```"),
    ]
    assert facts.answer_characters.tolist() == [5, 3]
    assert facts.turns.tolist() == [2, 3]
    assert facts.languages == ["en", "?"]
    assert facts.problems == {1: "cut off: open code block"}
    assert facts.secrets == {0: [("e-mail address", "ja…om")]}
    assert facts.problem_counts() == {"cut off: open code block": 1}
    assert [event["done"] for event in heard if event["kind"] == "progress"] == [2]
