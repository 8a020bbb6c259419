"""Bad input of S3FT: each error's words, and that nothing is lost; builds that go on where they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _s3ft import TEMPLATE, Judge, Model, three
from datasets import Dataset

from tunesmith.core.errors import DataError, ParameterError
from tunesmith.core.files import cache_dir
from tunesmith.engine import Failure
from tunesmith.engine.endpoint import EndpointError
from tunesmith.trainers import selective_self_targets

RIGHT = "number"


def build(rows: Dataset, model: Any, judge: Any, **options: Any) -> Dataset:
    return selective_self_targets(rows, model, judge, **{"paraphrase": TEMPLATE, **options})


class Fussy(Judge):
    """Raises at some candidates."""

    def __init__(self, at: str, error: Exception) -> None:
        super().__init__(lambda candidate, gold: candidate.endswith(gold))
        self.at, self.error = at, error

    def __call__(self, prompt: Any, candidate: str, gold: str, row: Any) -> Any:
        if candidate == self.at:
            raise self.error
        return super().__call__(prompt, candidate, gold, row)


@pytest.mark.parametrize("batched", [False, True])
def test_a_judge_that_raises_tells_the_row_and_nothing_is_lost(tmp_path: Path, batched: bool) -> None:
    rows, model = three()
    inner = Fussy("The answer is 8", ValueError("no such thing."))

    class Both:
        fingerprint = "both"

        def __call__(self, *given: Any) -> Any:
            return [inner(*item) for item in zip(*given, strict=True)] if batched else inner(*given)

    judge = Both()
    judge.batched = batched  # type: ignore[attr-defined]
    with pytest.raises(DataError) as error:
        build(rows, model, judge, folder=tmp_path)
    assert str(error.value) == (
        "row 1: the judge raised ValueError: no such thing. The candidate reads: 'The answer is 8'. Nothing is lost: "
        f"give folder='{tmp_path}' to go on from here."
    )
    assert error.value.row == 1
    assert isinstance(error.value.__cause__, ValueError)
    inner.at = ""
    asked, judged = list(model.asked), len(inner.asked)
    built = build(rows, model, judge, folder=tmp_path)
    assert [p for p in model.asked[len(asked) :] if "MARK" not in p] == [], "no prediction is generated twice"
    assert judged == (2 if batched else 1), "in a batch the first two are asked, then the first once more"
    assert sum(a[1] == "The answer is 5" for a in inner.asked[judged:]) == 0, "its verdict was kept"
    rows, model = three()
    assert built[:] == build(rows, model, judge)[:]


def test_without_a_folder_what_was_made_is_kept_and_told() -> None:
    rows, model = three()
    judge = Fussy("The answer is 8", KeyError("x"))
    before = set(cache_dir("s3ft").iterdir())
    with pytest.raises(DataError, match=r"row 1: the judge raised KeyError: 'x'. .* give folder='") as error:
        build(rows, model, judge)
    (folder,) = set(cache_dir("s3ft").iterdir()) - before
    assert f"give folder='{folder}' to go on from here." in str(error.value)
    judge.at = ""
    built = build(rows, model, judge, folder=folder)
    assert built["source"][:] == ["model", "paraphrase", "gold"]
    assert len(model.asked) == 3 + 2
    left = set(cache_dir("s3ft").iterdir())
    build(*three(), judge)
    assert set(cache_dir("s3ft").iterdir()) == left, "what went well leaves nothing behind"


@pytest.mark.parametrize(
    ("verdict", "told"),
    [("yes", "'yes' (str)"), (1, "1 (int)"), (None, "None (NoneType)"), (0.9, "0.9 (float)")],
)
def test_a_verdict_that_is_no_bool(tmp_path: Path, verdict: Any, told: str) -> None:
    rows, model = three()
    with pytest.raises(DataError) as error:
        build(rows, model, Judge(lambda candidate, gold: verdict), folder=tmp_path)
    assert str(error.value) == (
        f"row 0: the judge must return True or False. Got {told} instead. The candidate reads: 'The answer is 5'. "
        f"Nothing is lost: give folder='{tmp_path}' to go on from here."
    )


def test_bools_of_numpy_will_do_and_verdicts_are_counted(tmp_path: Path) -> None:
    rows, model = three()
    assert set(build(rows, model, Judge(lambda candidate, gold: np.True_))["source"]) == {"model"}

    def judge(prompts: Any, candidates: Any, golds: Any, rows: Any) -> list[bool]:
        return [True]

    judge.batched = True  # type: ignore[attr-defined]
    with pytest.raises(DataError) as error:
        build(rows, model, judge, folder=tmp_path)
    assert str(error.value) == (
        f"the judge returned 1 verdicts on 3 candidates. Nothing is lost: give folder='{tmp_path}' to go on from here."
    )


def test_a_generator_with_another_number_of_replies(tmp_path: Path) -> None:
    rows, _ = three()
    with pytest.raises(DataError) as error:
        build(rows, lambda prompts: ["a", "b"], RIGHT, folder=tmp_path)
    assert str(error.value) == (
        "the generator returned 2 replies to 3 prompts; it must return one for each, in their order. Nothing is lost: "
        f"give folder='{tmp_path}' to go on from here."
    )

    def chats(chats: Any, *, temperature: float, max_new_tokens: int, seeds: Any) -> list[str]:
        return []

    with pytest.raises(DataError, match="the language model returned 0 replies to 3 chats"):
        build(rows, chats, RIGHT, folder=tmp_path)
    with pytest.raises(
        DataError, match=r"a generator's reply must be a text, a Failure, or .* Got int instead"
    ):
        build(rows, lambda prompts: [1, 2, 3], RIGHT, folder=tmp_path)


def test_an_endpoint_that_refuses_everything_is_no_rows_fault() -> None:
    rows, model = three()

    def judge(prompt: Any, candidate: str, gold: str, row: Any) -> bool:
        raise EndpointError("refuses requests")

    with pytest.raises(EndpointError, match="refuses requests") as error:
        build(rows, model, judge)
    assert error.value.__notes__[0].startswith("Nothing is lost: give folder=")


def row_of(**columns: Any) -> Dataset:
    return Dataset.from_dict({name: [value] for name, value in columns.items()})


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (
            row_of(question="q", answer="a"),
            {},
            "the rows have no column 'prompt' and no column 'completion'; wanted are 'messages', or 'prompt' and "
            "'completion'. They have question, answer.",
        ),
        (
            row_of(prompt="q", answer="a"),
            {},
            "the rows have no column 'completion'; wanted are 'messages', or 'prompt' and 'completion'. They have "
            "prompt, answer. Name the column of the gold answers with gold=.",
        ),
        (
            row_of(prompt="q", completion=" "),
            {},
            "row 0: the gold answer is empty. The row reads: {'prompt': 'q', 'completion': ' '}",
        ),
        (
            row_of(prompt="", completion="a"),
            {},
            "row 0: the prompt is empty. The row reads: {'prompt': '', 'completion': 'a'}",
        ),
        (
            row_of(messages=[{"role": "user", "content": "q"}]),
            {},
            "row 0: the messages have no answer of the assistant. The row reads: {'messages': [{'role': 'user', "
            "'content': 'q'}]}",
        ),
        (
            Dataset.from_dict({"id": [4, 5, 4], "prompt": ["q"] * 3, "completion": ["a"] * 3}),
            {},
            "rows 0 and 2 have the same id, 4.",
        ),
        (
            row_of(prompt="q", completion="a", s3ft_gold="a"),
            {},
            "the rows have a column 's3ft_gold': they were built before, and their answers are no gold answers. Build "
            "from the rows as they were.",
        ),
        (
            row_of(prompt="q", completion="a", source="web"),
            {},
            "The 'source_column' parameter of selective_self_targets must be a name that is no column of the data. "
            "Got 'source' instead.",
        ),
        (
            row_of(prompt="q", completion="a", y="b"),
            {"gold": "y"},
            "The 'gold' parameter of selective_self_targets must be 'completion' where the rows have that column, "
            "since it will hold the targets. Got 'y' instead.",
        ),
        (
            row_of(messages=[{"role": "assistant", "content": "q"}], y="b"),
            {"gold": "y"},
            "The 'gold' parameter of selective_self_targets must be left out where the rows have 'messages', whose "
            "last answer is the gold answer. Got 'y' instead.",
        ),
    ],
)
def test_rows_that_cannot_be_used(rows: Dataset, options: dict[str, Any], message: str) -> None:
    def never(prompts: Any) -> Any:
        raise AssertionError("nothing is generated for rows that cannot be used")

    with pytest.raises((DataError, ParameterError)) as error:
        selective_self_targets(rows, never, RIGHT, **options)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_samples": 0}, "'n_samples' parameter of selective_self_targets must be an int >= 1. Got 0"),
        ({"n_samples": 2}, "must be 1 where temperature is 0: all samples would be equal. Got 2"),
        ({"max_new_tokens": True}, "'max_new_tokens' parameter of .* must be an int >= 1. Got True"),
        ({"chunk": 0}, "'chunk' parameter of selective_self_targets must be an int >= 1. Got 0"),
        ({"temperature": -1}, "'temperature' parameter of .* must be a finite number >= 0. Got -1"),
        ({"predict": False, "paraphrase": False}, "'predict' .* must be True where paraphrase is False"),
        ({"gold_template": "x"}, "'gold_template' .* must be a text with {gold} in it, or None. Got 'x'"),
        ({"leaks": "as in"}, "'leaks' .* must be a list of texts that are not empty. Got 'as in'"),
        (
            {"paraphrase": "no field"},
            "'paraphrase' .* must be True, False, a text with {gold} .* Got 'no field'",
        ),
        (
            {"judge": 3},
            "'judge' parameter of selective_self_targets must be a callable, one of number, match",
        ),
        ({"generate": 3}, "'generate' parameter of selective_self_targets must be a callable, a model's id"),
    ],
)
def test_arguments(options: dict[str, Any], message: str) -> None:
    rows, model = three()
    given = {"generate": model, "judge": RIGHT, **options}
    with pytest.raises(ParameterError, match=message):
        selective_self_targets(rows, **given)
    assert model.asked == []


def test_a_prompt_without_a_question_cannot_be_paraphrased() -> None:
    rows = row_of(messages=[{"role": "system", "content": "s"}, {"role": "assistant", "content": "5"}])
    with pytest.raises(
        DataError, match="the prompt has no message of the user that a paraphrase could be asked in"
    ):
        selective_self_targets(rows, lambda prompts: [""], RIGHT)


class Killed(BaseException):
    """As if the process went away."""


@pytest.mark.parametrize("after", [1, 2, 3, 4, 5])
def test_an_interrupted_build_equals_a_straight_one(tmp_path: Path, after: int) -> None:
    rows, model = three()
    straight = build(rows, model, RIGHT, chunk=1)
    assert straight[:] == build(*three(), RIGHT, chunk=1)[:], "two builds are identical"

    class Dies(Model):
        def __call__(self, prompts: Any) -> Any:
            if len(self.sizes) == after:
                raise Killed
            return super().__call__(prompts)

    mortal = Dies(model.own, model.reworded)
    if after < 5:
        with pytest.raises(Killed):
            build(rows, mortal, RIGHT, chunk=1, folder=tmp_path)
        with open(tmp_path / "replies.jsonl", "a", encoding="utf-8") as stream:
            stream.write('{"key": "torn')
    else:
        build(rows, mortal, RIGHT, chunk=1, folder=tmp_path)
    again = Dies(model.own, model.reworded)
    again.sizes = [0] * 100
    built = build(rows, again, RIGHT, chunk=2, folder=tmp_path)
    assert built[:] == straight[:]
    assert len(again.asked) == 5 - after, "only what is missing is asked"
    third = Dies(model.own, model.reworded)
    assert build(rows, third, RIGHT, folder=tmp_path)[:] == straight[:]
    assert third.asked == []


def test_what_is_kept_belongs_to_its_question(tmp_path: Path) -> None:
    rows, model = three()
    build(rows, model, RIGHT, folder=tmp_path)
    model.asked.clear()
    build(rows, model, RIGHT, folder=tmp_path, max_new_tokens=7)
    assert len(model.asked) == 5, "another decoding is another question"
    model.asked.clear()
    judge = Judge(lambda candidate, gold: True)
    assert set(build(rows, model, judge, folder=tmp_path)["source"]) == {"model"}, "another judge"
    assert model.asked == []
    failing = Model({**model.own, "2 + 3?": Failure("down")}, {**model.reworded, "2 + 3?": Failure("down")})
    failing.fingerprint = "other"  # type: ignore[attr-defined]
    with pytest.warns(UserWarning, match="missing"):
        build(rows, failing, RIGHT, folder=tmp_path)
    failing.own["2 + 3?"] = "\ud800 5"
    failing.asked.clear()
    assert build(rows, failing, RIGHT, folder=tmp_path)["source"][:] == ["model", "paraphrase", "gold"]
    assert failing.asked == ["2 + 3?"], "a failure is not kept"
    assert build(rows, failing, RIGHT, folder=tmp_path)["completion"][0] == "\ufffd 5"
