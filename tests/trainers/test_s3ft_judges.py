"""Judges by rule, by tests, by a model, and by name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from chat_server import reply, say
from tunesmith.core.errors import DataError, ParameterError, TunesmithError, UnknownNameError
from tunesmith.engine import ChatEndpoint, Failure
from tunesmith.trainers.s3ft import (
    AnyOf,
    LLMJudge,
    NormalisedMatch,
    NumberMatch,
    PythonTests,
    TaskJudge,
    open_judge,
)
from tunesmith.trainers.s3ft.code import code_of
from tunesmith.trainers.s3ft.judges import final_number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The answer is 5", 5),
        ("So 3 + 4 = 7.", 7),
        ("The answer is 72. There are 7 days in a week.", 72),
        ("Half of it\n#### 1,234,567", 1234567),
        (r"thus \boxed{-3.5}", -3.5),
        ("It costs $1,050.50.", 1050.5),
        ("-$20", -20),
        ("10-7", 7),
        ("between 5-10", 10),
        ("- 5 apples", 5),
        ("\N{MINUS SIGN}4", -4),
        ("20%", 20),
        ("3kg", 3),
        ("3/4 of a cup", 0.75),
        ("1/0", None),
        ("2e3", 2000),
        (".5", 0.5),
        ("===v12===", None),
        ("===12===", 12),
        ("vector2", None),
        ("no number", None),
        ("1, 2, 3", 3),
        ("1,23", 23),
        ("The answer is seven, not 8", 8),
        ("答案是5", 5),
    ],
)
def test_the_number_that_a_text_ends_on(text: str, number: float | None) -> None:
    assert final_number(text) == number


def test_numbers_match_within_a_tolerance() -> None:
    judge = NumberMatch()
    assert judge("q", "about 0.33335", "1/3", {})
    assert not judge("q", "0.3335", "1/3", {})
    assert not judge("q", "1000050", "1000000", {}), "the tolerance is absolute"
    assert not judge("q", "none", "5", {})
    assert NumberMatch(column="answer")("q", "it is 6", "a long text about 7", {"answer": 6})
    with pytest.raises(
        DataError, match=r"the gold answer has no number to compare with. The row reads: seven"
    ):
        judge("q", "7", "seven", {})
    with pytest.raises(DataError, match=r"the judge needs the column 'answer'; the row has prompt."):
        NumberMatch(column="answer")("q", "6", "6", {"prompt": "q"})
    with pytest.raises(
        ParameterError, match="'tolerance' parameter of NumberMatch must be a finite number of at"
    ):
        NumberMatch(-1)


@pytest.mark.parametrize(
    ("candidate", "gold", "equal"),
    [
        ("The  Eiffel Tower.", "eiffel tower", True),
        ("an apple", "apple", True),
        ("3.5", "35", False),
        ("-5", "5", False),
        ("$5", "5", True),
        ("it is Paris", "Paris", False),
        ("+", "+", True),
        ("-", "+", False),
    ],
)
def test_normalised_match(candidate: str, gold: str, equal: bool) -> None:
    assert NormalisedMatch()("q", candidate, gold, {}) is equal


def test_normalised_match_inside() -> None:
    judge = NormalisedMatch(contains=True)
    assert judge("q", "It is Paris, of course", "Paris", {})
    assert not judge("q", "Parisian", "Paris", {}), "whole words"
    assert not NormalisedMatch(articles=False)("q", "the cat", "cat", {})


def test_tasks_have_scorers() -> None:
    task = {"kind": "function_call", "truth": {"f": {"a": [1], "b": [2]}}}
    assert TaskJudge()("q", "f(a=1, b=2)", "", {"task": task})
    assert not TaskJudge()("q", "f(a=1, b=3)", "", {"task": task})
    assert TaskJudge(0.7)("q", "f(a=1, b=3)", "", {"task": task})
    with pytest.raises(ParameterError, match="'threshold' parameter of TaskJudge must be a number in"):
        TaskJudge(0)
    with pytest.raises(DataError, match="the judge needs the column 'task'"):
        TaskJudge()("q", "x", "y", {"task": None})


def test_reasoning_gym_scorers() -> None:
    gym = pytest.importorskip("reasoning_gym")
    entry = gym.create_dataset("chain_sum", seed=1, size=1)[0]
    row = {"task": {"kind": "reasoning_gym", "dataset": "chain_sum", "entry": entry}}
    assert TaskJudge()(entry["question"], entry["answer"], entry["answer"], row)
    assert not TaskJudge()(entry["question"], "nothing", entry["answer"], row)


def test_the_cheap_judge_first() -> None:
    asked = []

    def dear(prompts: Any, candidates: Any, golds: Any, rows: Any) -> list[bool]:
        asked.extend(candidates)
        return [c == "sept" for c in candidates]

    dear.batched = True  # type: ignore[attr-defined]
    judge = AnyOf([NumberMatch(), dear])
    assert judge(["q"] * 3, ["7", "sept", "8"], ["7"] * 3, [{}] * 3) == [True, True, False]
    assert asked == ["sept", "8"]
    assert AnyOf([NumberMatch()]).fingerprint != AnyOf([NumberMatch(0)]).fingerprint
    with pytest.raises(
        ParameterError, match="'judges' parameter of AnyOf must be a list of at least one callable"
    ):
        AnyOf([])
    short = lambda *lists: []  # noqa: E731
    short.batched = True  # type: ignore[attr-defined]
    with pytest.raises(DataError, match=r"the judge returned 0 verdicts on 1 candidates."):
        AnyOf([short])(["q"], ["7"], ["7"], [{}])


def test_where_the_code_is() -> None:
    marks = ("[[BEGIN]]", "[[DONE]]")
    assert code_of("x [[BEGIN]]\na\n[[DONE]] y", marks) == "\na\n"
    assert code_of("[[BEGIN]]```python\na\n```[[DONE]]", marks) == "a\n"
    assert code_of("```\nold\n```\nbetter:\n```python\nnew\n```", marks) == "new\n"
    assert code_of("[[BEGIN]] a", marks) == " a"
    assert code_of("a = 1", marks) == "a = 1"


def test_code_is_judged_by_its_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s")
    monkeypatch.setenv("SECRET_KEY", "s")
    good = "[[BEGIN]]\ndef f(x):\n    return 2 * x\n[[DONE]]"
    ending = "\ndef f(x):\n    return 2 * x"
    bad = {
        "wrong": "def f(x): return x",
        "no syntax": "def f(x) return 2 * x",
        "ends early": "import sys; sys.exit(0)",
        "ends at once": "import os; os._exit(0)",
        "writes": f"open({str(tmp_path / 'new')!r}, 'w')" + ending,
        "writes below": f"import os; os.open({str(tmp_path / 'new')!r}, os.O_CREAT | os.O_WRONLY)" + ending,
        "reads": f"open({str(secret)!r}).read()" + ending,
        "starts programs": "import subprocess; subprocess.run(['true'])" + ending,
        "forks": "import os; os.fork()" + ending,
        "network": "import socket; socket.create_connection(('127.0.0.1', 9))" + ending,
        "keys": "import os; os.environ['SECRET_KEY']" + ending,
        "memory": "x = bytearray(10**9)" + ending,
        "deletes": f"import os; os.remove({str(secret)!r})" + ending,
    }
    fine = {
        "good": good,
        "prints": "print('x' * 100000)" + ending,
        "imports": "import math, re, collections, dataclasses, random\nP = collections.namedtuple('P', 'x')"
        + ending,
        "main block": ending + "\nif __name__ == '__main__':\n    input('how many? ')",
    }
    texts = [*bad.values(), *fine.values()]
    row = {"tests": ["assert f(2) == 4", "assert f(0) == 0"]}
    verdicts = PythonTests(workers=4)(["q"] * len(texts), texts, [""] * len(texts), [row] * len(texts))
    assert dict(zip([*bad, *fine], verdicts, strict=True)) == {
        **dict.fromkeys(bad, False),
        **dict.fromkeys(fine, True),
    }
    assert sorted(os.listdir(tmp_path)) == ["secret"]


def test_code_that_does_not_end_and_setup() -> None:
    row = {"tests": "assert f() == base", "setup": "base = 3"}
    judge = PythonTests(timeout=0.4)
    texts = ["def f():\n    while True: pass", "import time\ndef f(): time.sleep(60)"]
    assert judge(["q"] * 2, texts, [""] * 2, [row] * 2) == [False, False]
    assert PythonTests()(["q"], ["def f(): return base"], [""], [row]) == [True]


def test_tests_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"the judge needs the column 'tests'; the row has prompt."):
        PythonTests()(["q"], ["x"], [""], [{"prompt": "q"}])
    with pytest.raises(DataError, match=r"the column 'tests' has no tests."):
        PythonTests()(["q"], ["x"], [""], [{"tests": []}])
    for options, message in [
        ({"timeout": 0}, "'timeout' parameter of PythonTests must be a number of seconds above 0"),
        ({"memory_mb": 1}, "'memory_mb' parameter of PythonTests must be an int >= 64"),
        ({"workers": 0}, "'workers' parameter of PythonTests must be an int >= 1 or None"),
        ({"marks": ("a",)}, "'marks' parameter of PythonTests must be two texts"),
    ]:
        with pytest.raises(ParameterError, match=message):
            PythonTests(**options)  # type: ignore[arg-type]
    monkeypatch.setattr("tunesmith.trainers.s3ft.code.os.name", "nt")
    with pytest.raises(TunesmithError, match="PythonTests needs the limits of a POSIX system"):
        PythonTests()


def test_a_model_judges() -> None:
    asked = []

    def llm(chats: Any, *, temperature: float, max_new_tokens: int, seeds: Any) -> list[Any]:
        asked.extend(chat[0]["content"] for chat in chats)
        return [["YES", "No, yes would be wrong", "perhaps", " yes."][i % 4] for i in range(len(chats))]

    judge = LLMJudge(llm)
    prompts = ["{gold}?", [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}], "q", "q"]
    assert judge(prompts, ["a", "b", "c", "d"], ["g"] * 4, [{}] * 4) == [True, False, False, True]
    assert "Question:\n{gold}?\n\nReference answer:\ng\n\nAnswer to be judged:\na\n" in asked[0]
    assert "Question:\nsystem: s\nuser: u\n" in asked[1]
    with pytest.raises(DataError, match=r"the judging model gave no reply: down."):
        LLMJudge(lambda chats, **options: [Failure("down")])(["q"], ["a"], ["g"], [{}])
    with pytest.raises(
        ParameterError, match=r"'question' parameter of LLMJudge must be a text with {question}, {gold}"
    ):
        LLMJudge(llm, "is it?")
    with pytest.raises(ParameterError, match="'max_new_tokens' parameter of LLMJudge must be an int >= 1"):
        LLMJudge(llm, max_new_tokens=0)


def test_a_model_behind_an_endpoint_judges_and_generates(chat_server: Any) -> None:
    from datasets import Dataset

    from tunesmith.trainers import selective_self_targets

    def answer(handler: Any, body: dict[str, Any], n: int) -> None:
        text = body["messages"][-1]["content"]
        judged = "Answer to be judged" in text
        cut = not judged and "long" in text
        say(
            handler,
            reply(
                "NO" if judged and "9" in text else "YES" if judged else "It is 5",
                "length" if cut else "stop",
            ),
        )

    chat_server.answer = answer
    rows = Dataset.from_dict({"prompt": ["2 + 3?", "4 + 5?", "long?"], "completion": ["5", "9", "5"]})
    endpoint = ChatEndpoint(chat_server.url, "m")
    judge = {"type": "llm", "llm": {"url": chat_server.url, "model": "m"}}
    built = selective_self_targets(rows, endpoint, judge, paraphrase=False)
    assert built["source"][:] == ["model", "gold", "gold"]
    assert built["s3ft_prediction_verdict"][:] == ["right", "wrong", "cut short"]


def test_judges_by_name() -> None:
    assert isinstance(open_judge("number"), NumberMatch)
    assert open_judge({"type": "number", "tolerance": 0.5})("q", "5.4", "5", {}) is True  # type: ignore[arg-type]
    assert isinstance(open_judge(["match", {"type": "task"}]), AnyOf)
    own = lambda *given: True  # noqa: E731
    assert open_judge(own) is own
    with pytest.raises(UnknownNameError, match=r"There is no judge named 'numbre'. Did you mean 'number'\?"):
        open_judge("numbre")
    with pytest.raises(
        ParameterError, match=r"made of arguments of NumberMatch .*; Did you mean 'tolerance'"
    ):
        open_judge({"type": "number", "tolerence": 1})
    with pytest.raises(ParameterError, match="must be given with 'llm' for the judge 'llm'"):
        open_judge("llm")
    with pytest.raises(ParameterError, match="a callable, one of number, match, task, tests, llm, a mapping"):
        open_judge([])
