from __future__ import annotations

from typing import Any

import pytest

from tunesmith.core.errors import UnknownNameError
from tunesmith.data import formats
from tunesmith.data.formats import BadRow, detect, vote

U, A = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}
QA = {"messages": [U, A]}

# name of the format, a row of it, the canonical columns it becomes
ROWS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("messages", {"messages": [U, A]}, QA),
    (
        "messages",
        {"conversation": '[{"role": "user", "content": "Q"}, {"role": "model", "content": "A"}]'},
        QA,
    ),
    ("messages", {"messages": [U, {**A, "content": [{"type": "text", "text": "A"}]}]}, QA),
    ("sharegpt", {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]}, QA),
    (
        "sharegpt",
        {"system": "S", "conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]},
        {"messages": [{"role": "system", "content": "S"}, U, A]},
    ),
    ("alpaca", {"instruction": "Q", "input": "", "output": "A"}, QA),
    ("alpaca", {"instruction": "Q", "context": None, "response": "A"}, QA),
    (
        "alpaca",
        {"instruction": "Do", "input": "this", "output": "A", "system": "S", "history": [["Q", "A"]]},
        {
            "messages": [
                {"role": "system", "content": "S"},
                U,
                A,
                {"role": "user", "content": "Do\n\nthis"},
                A,
            ]
        },
    ),
    ("prompt_completion", {"prompt": "Q", "completion": "A"}, QA),
    ("prompt_completion", {"question": "Q", "answer": "A"}, QA),
    ("prompt_completion", {"prompt": "Q", "response": "A"}, QA),
    ("prompt_completion", {"input": "Q", "output": "A"}, QA),
    ("prompt_completion", {"prompt": [U], "completion": [A]}, QA),
    (
        "preference",
        {"prompt": "Q", "chosen": "A", "rejected": "B"},
        {**QA, "rejected": [{**A, "content": "B"}]},
    ),
    (
        "preference",
        {"prompt": [U], "chosen": [A], "rejected": [{**A, "content": "B"}]},
        {**QA, "rejected": [{**A, "content": "B"}]},
    ),
    (
        "preference",
        {"chosen": [U, A], "rejected": [U, {**A, "content": "B"}]},
        {**QA, "rejected": [{**A, "content": "B"}]},
    ),
    ("preference", {"prompt": "Q", "chosen": [U, A], "rejected": [U, A]}, {**QA, "rejected": [A]}),
    (
        "preference",
        {"chosen": "\n\nHuman: Q\n\nAssistant: A", "rejected": "\n\nHuman: Q\n\nAssistant: B"},
        {**QA, "rejected": [{**A, "content": "B"}]},
    ),
    (
        "pairs",
        {"anchor": "a", "positive": "b", "negative": "c"},
        {"anchor": "a", "positive": "b", "negative": "c"},
    ),
    (
        "pairs",
        {"sentence1": "a", "sentence2": "b", "score": 4},
        {"anchor": "a", "positive": "b", "score": 4.0},
    ),
    ("pairs", {"query": "a", "document": "b"}, {"anchor": "a", "positive": "b"}),
    (
        "pairs",
        {"premise": "a", "hypothesis": "b", "label": 1},
        {"anchor": "a", "positive": "b", "score": 1.0},
    ),
    ("text", {"text": "t"}, {"text": "t"}),
]


@pytest.mark.parametrize(("name", "row", "want"), ROWS)
def test_each_format_is_told_and_converted(name: str, row: dict[str, Any], want: dict[str, Any]) -> None:
    found = detect({**row, "id": 7, "extra": None})
    assert found is not None
    assert found.name == name
    converted = found.convert({**row, "id": 7})
    assert converted.fields == want
    assert set(converted.used) <= set(row)


def test_a_format_can_be_asked_for() -> None:
    row = {"question": "a", "answer": "b", "positive": "c"}
    assert detect(row).name == "prompt_completion"  # type: ignore[union-attr]
    found, converted = formats.convert(row, formats.get("pairs"), strict=True)
    assert (found.name, converted.fields) == ("pairs", {"anchor": "a", "positive": "c"})
    with pytest.raises(
        UnknownNameError, match=r"There is no data format named 'alpacca'\. Did you mean 'alpaca'\?"
    ):
        formats.get("alpacca")


def test_vote() -> None:
    rows = [row for _, row, _ in ROWS] + [{"a": 1}, {}]
    assert vote(rows).total() == len(ROWS)
    assert vote(rows)["prompt_completion"] == 5


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("messages", {"messages": []}, "the conversation is empty"),
    ("messages", {"messages": "hello"}, "the conversation must be a list of messages (it is a str)"),
    ("messages", {"messages": ["hello"]}, "a message must be an object with role and content (it is a str)"),
    ("messages", {"messages": [{"content": "x"}]}, "a message has no role"),
    (
        "messages",
        {"messages": [{"role": "wizard", "content": "x"}]},
        "a message has an unknown role ('wizard')",
    ),
    ("messages", {"messages": [{"role": "user"}]}, "a message has no content"),
    (
        "messages",
        {"messages": [{"role": "user", "content": 3}]},
        "a message's content must be text (it is a int)",
    ),
    (
        "messages",
        {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
        "a message has a part that is not text (of type image)",
    ),
    ("messages", {"messages": [U]}, "no assistant turn"),
    ("messages", {"messages": [U, {**A, "content": " \n"}]}, "the answer is empty"),
    (
        "alpaca",
        {"instruction": "Q"},
        "missing key 'output' or 'completion' or 'response' … (the row has instruction)",
    ),
    ("alpaca", {"instruction": "", "output": "A"}, "the prompt is empty"),
    ("alpaca", {"instruction": ["Q"], "output": "A"}, "'instruction' must be text (it is a list)"),
    (
        "alpaca",
        {"instruction": "Q", "output": "A", "history": ["x"]},
        "'history' must be a list of [question, answer]",
    ),
    ("prompt_completion", {"prompt": "Q", "completion": None}, "the answer is empty"),
    (
        "prompt_completion",
        {"prompt": "Q", "completion": {"a": 1}},
        "'completion' must be text (it is a dict)",
    ),
    (
        "preference",
        {"chosen": "A", "rejected": "B"},
        "chosen and rejected hold answers only, and there is no prompt",
    ),
    (
        "preference",
        {"chosen": [U, A], "rejected": [{**U, "content": "other"}, A]},
        "chosen and rejected do not start with the same prompt",
    ),
    ("preference", {"prompt": "Q", "chosen": "A", "rejected": ""}, "the rejected answer is empty"),
    ("pairs", {"anchor": "a"}, "two texts are missing (such as anchor and positive)"),
    ("pairs", {"anchor": "a", "positive": ""}, "one of the two texts is empty"),
    ("text", {"text": "  "}, "the text is empty"),
]


@pytest.mark.parametrize(("name", "row", "reason"), BAD)
def test_reasons_of_bad_rows(name: str, row: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRow) as error:
        formats.FORMATS[name].convert(row)
    assert str(error.value) == reason
    assert error.value.reason in reason


def test_rows_of_another_family_are_not_mixed_in() -> None:
    with pytest.raises(BadRow, match="the row is raw text among rows of the format messages"):
        formats.convert({"text": "x"}, formats.get("messages"))
    with pytest.raises(BadRow, match=r"the row is of no known format \(its keys are a, b\)"):
        formats.convert({"a": 1, "b": 2}, formats.get("messages"))


def test_what_is_changed_is_said() -> None:
    calls = {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}
    got = formats.FORMATS["messages"].convert({"messages": [{**U, "name": "Al"}, calls, U]})
    assert got.fields["messages"] == [U, {"role": "assistant", "content": '[{"name": "f"}]'}]
    assert got.notes == {
        "the key 'name' of messages was left out",
        "tool calls of messages without content were written into it as JSON",
        "turns after the last answer were left out",
    }
    got = formats.FORMATS["prompt_completion"].convert({"question": "1 + 1", "answer": 2})
    assert got.fields["messages"][1]["content"] == "2"
    assert got.notes == {"numbers in 'answer' were read as text"}
