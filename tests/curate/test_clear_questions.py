"""How CLEAR's replies are read."""

from __future__ import annotations

import math

import pytest

from tunesmith.curate.clear.questions import (
    BETTER_1,
    BETTER_2,
    TIE,
    answer_of,
    as_chat,
    judge_chat,
    reflect_again,
    reflect_chat,
    reflect_on_verdict,
    reflection_value,
    sample_chat,
    verdict_of,
)


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("Two and two make four.\nAnswer: 4", "4"),
        ("Answer: 3\nNo, wait.\nAnswer: 4", "4"),
        ("**Answer:** 4", "4"),
        ("**Answer: 4**", "4"),
        ("So\n### Final answer:\nfour\nof them", "four\nof them"),
        ("ANSWER : 4.", "4."),
        ("The answer: 4", "The answer: 4"),  # not at the beginning of a line
        ("just 4", "just 4"),
        ("Answer:", ""),
        ("", ""),
    ],
)
def test_the_answer_of_a_sample(reply: str, answer: str) -> None:
    assert answer_of(reply) == answer


@pytest.mark.parametrize(
    ("reply", "value"),
    [
        ("It adds up.\n(A)", 1.0),
        ("It does not.\n(B) incorrect", 0.0),
        ("Hm.\nC", 0.5),
        ("Choice: **A**", 1.0),
        ("At first (B), but in the end (A).", 1.0),
        ("a", 1.0),
        ("The proposed answer is incorrect.", 0.0),
        ("I am not sure it is correct", 0.5),
        ("A cat sat on a mat", None),  # a letter within a line is no choice
        ("", None),
        ("(A) correct\n(B) incorrect\n(C) not sure", None),  # the menu repeated
        ("(A) correct (B) incorrect (C) not sure\n\nB", 0.0),
        ("(D)", None),
    ],
)
def test_the_value_of_a_reflection(reply: str, value: float | None) -> None:
    found = reflection_value(reply)
    assert math.isnan(found) if value is None else found == value


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("The first is right. (A)", BETTER_1),
        ("B", BETTER_2),
        ("both\n(C)", TIE),
        ("answer 1 is better", None),
        ("(A) answer 1 is better\n(B) answer 2 is better\n(C) both are equally good\n", None),
        ("", None),
    ],
)
def test_the_verdict_of_a_judge(reply: str, verdict: str | None) -> None:
    assert verdict_of(reply) == verdict


def test_what_is_asked() -> None:
    chat = as_chat("What is 2 + 2?")
    assert chat == [{"role": "user", "content": "What is 2 + 2?"}]
    (asked,) = sample_chat(chat)
    assert asked["content"].startswith("What is 2 + 2?\n\nFirst explain")
    assert "'Answer:'" in asked["content"]
    talk = as_chat([{"role": "system", "content": "Be brief."}, *chat])
    assert sample_chat(talk)[0] == talk[0]
    assert [m["role"] for m in sample_chat(talk[:1])] == ["system", "user"]
    first = reflect_chat(talk, "4")
    assert [m["role"] for m in first] == ["user"]
    for part in (
        "system: Be brief.\nuser: What is 2 + 2?",
        "Proposed answer:\n4",
        "(A) correct",
        "(C) not sure",
    ):
        assert part in first[0]["content"]
    second = reflect_again(first, "(A)")
    assert [m["role"] for m in second] == ["user", "assistant", "user"]
    assert second[:1] == first
    assert second[1]["content"] == "(A)"
    asked_of_judge = judge_chat(chat, "4", "5")
    assert "Answer 1:\n4\n\nAnswer 2:\n5" in asked_of_judge[0]["content"]
    doubt = reflect_on_verdict(asked_of_judge, "(A)", BETTER_1)
    assert doubt[:2] == [*asked_of_judge, {"role": "assistant", "content": "(A)"}]
    assert doubt[2]["content"].startswith("Your verdict: answer 1 is better. Is that verdict correct?")
