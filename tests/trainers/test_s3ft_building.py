"""What must hold of the rows of S3FT, with the hand-worked example, and the forms that rows and generators have."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from _s3ft import TEMPLATE, Judge, Model, three
from datasets import Dataset

from tunesmith.core.errors import DataError, ParameterError
from tunesmith.core.events import EventLog
from tunesmith.engine import CutShort, Failure
from tunesmith.trainers import selective_self_targets, self_target_report
from tunesmith.trainers.s3ft import NumberMatch, choose_targets
from tunesmith.trainers.s3ft.rows import AUDIT

YES, NO = Judge(lambda candidate, gold: True), Judge(lambda candidate, gold: False)


def test_the_rule() -> None:
    found = choose_targets(
        ["y0", "y1", "y2", "y3"],
        ["h0", "h1", "h2", "h3"],
        [True, True, False, False],
        ["t0", "t1", "t2", "t3"],
        [True, False, True, False],
    )
    assert found == (["h0", "h1", "t2", "y3"], ["model", "model", "paraphrase", "gold"])
    with pytest.raises(ParameterError) as error:
        choose_targets(["y"], ["h"], [True, False], ["t"], [True])
    assert str(error.value) == (
        "The 'J_hat' parameter of choose_targets must be as long as y, which has 1 items. Got '2 items' instead."
    )


def test_the_hand_worked_example() -> None:
    rows, model = three()
    judge = Judge(lambda candidate, gold: candidate.split()[-1] == gold)
    built = selective_self_targets(rows, model, judge, paraphrase=TEMPLATE)
    assert built["source"][:] == ["model", "paraphrase", "gold"]
    assert built["completion"][:] == ["The answer is 5", "The answer is 7", "9"]
    assert built["prompt"][:] == rows["prompt"][:]
    assert len(model.paraphrased) == 2
    assert len(judge.asked) == 3 + 2
    assert built.column_names == ["prompt", "completion", "source", *AUDIT, "id"]
    assert built["s3ft_prediction_verdict"][:] == ["right", "wrong", "wrong"]
    assert built["s3ft_paraphrase_verdict"][:] == [None, "right", "wrong"]
    assert built["s3ft_paraphrase"][:] == [None, "The answer is 7", "The answer is 1"]
    assert built["s3ft_gold"][:] == ["5", "7", "9"]
    assert judge.asked[0][3] == {"id": "a", "prompt": "2 + 3?", "completion": "5"}, "the judge sees the row"
    for target, source, row in zip(built["completion"], built["source"], rows, strict=True):
        assert source == "gold" or judge.rule(target, row["completion"]), "non-gold targets pass again"


def test_a_judge_that_says_no_gives_sft_and_a_warning() -> None:
    rows, model = three()
    judge, log = Judge(lambda candidate, gold: False), EventLog(listeners=[(events := []).append])
    with pytest.warns(UserWarning, match="plain SFT") as warned:
        built = selective_self_targets(rows, model, judge, paraphrase=TEMPLATE, log=log)
    assert str(warned[0].message) == (
        "No candidate of any of the 3 rows was accepted (6 × wrong): the targets are the gold answers, and training "
        "on them is plain SFT. Does the judge accept the gold answers themselves?"
    )
    assert built.select_columns(["id", "prompt", "completion"])[:] == rows[:]
    assert set(built["source"]) == {"gold"}
    assert len(model.paraphrased) == 3
    assert len(judge.asked) == 6
    assert sum(event["kind"] == "warning" for event in events) == 1


def test_a_judge_that_says_yes_never_asks_for_a_paraphrase() -> None:
    rows, model = three()
    built = selective_self_targets(rows, model, YES, paraphrase=TEMPLATE)
    assert built["completion"][:] == [model.own[prompt] for prompt in rows["prompt"]]
    assert set(built["source"]) == {"model"}
    assert model.paraphrased == []


def test_right_paraphrases_only() -> None:
    rows, model = three()
    model.reworded = {p: f"In words: {p}" for p in rows["prompt"]}
    judge = Judge(lambda candidate, gold: candidate.startswith("In words"))
    built = selective_self_targets(rows, model, judge, paraphrase=TEMPLATE)
    assert set(built["source"]) == {"paraphrase"}
    sdft = selective_self_targets(rows, model, judge, paraphrase=TEMPLATE, predict=False)
    assert sdft["completion"][:] == built["completion"][:]
    assert sdft["s3ft_prediction"][:] == [None] * 3


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("", "empty"),
        (" \n", "empty"),
        (CutShort("The answer is 5"), "cut short"),
        (SimpleNamespace(text="The answer is 5", finish_reason="length"), "cut short"),
        ({"text": "The answer is 5", "finish_reason": "max_tokens"}, "cut short"),
        (SimpleNamespace(outputs=[SimpleNamespace(text="5", finish_reason="length")]), "cut short"),
        ({"text": "The answer is 5", "finish_reason": "stop"}, "right"),
        (SimpleNamespace(text="The answer is 5", finish_reason=None), "right"),
    ],
)
def test_what_is_refused_without_the_judge(reply: Any, verdict: str) -> None:
    rows, model = three()
    model.own["2 + 3?"] = reply
    judge = Judge(lambda candidate, gold: True)
    built = selective_self_targets(rows, model, judge, paraphrase=TEMPLATE)
    assert built["s3ft_prediction_verdict"][:] == [verdict, "right", "right"]
    assert built["source"][:] == ["model" if verdict == "right" else "paraphrase", "model", "model"]
    assert len(judge.asked) == 3, "one paraphrase in place of the refused prediction"


def test_a_paraphrase_that_tells_of_the_reference_is_refused() -> None:
    rows, model = three()
    model.reworded["3 + 4?"] = "As in the Reference, The answer is 7"
    model.own["4 + 5?"] = "As in the reference, it is 9"  # it saw none
    built = selective_self_targets(rows, model, "number", paraphrase=TEMPLATE)
    assert built["s3ft_paraphrase_verdict"][:] == [None, "says 'as in the reference'", None]
    assert built["source"][:] == ["model", "gold", "model"]


def test_messages_keep_their_form_and_the_prompt_of_the_paraphrase_stays_out() -> None:
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "3 + 4?"},
        {"role": "assistant", "content": "7"},
    ]
    rows = Dataset.from_dict({"messages": [chat, chat[:3]], "source": ["book", "web"]})
    asked = []

    def model(chats: Any, *, temperature: float, max_new_tokens: int, seeds: Any) -> list[str]:
        asked.extend(chats)
        assert (temperature, max_new_tokens) == (0.0, 33)
        return [
            "It makes 7." if "7" in c[-1]["content"] else "It makes 2, says the given answer." for c in chats
        ]

    built = selective_self_targets(rows, model, "number", max_new_tokens=33, source_column="target_source")
    assert built["messages"][0] == [*chat[:4], {"role": "assistant", "content": "It makes 7."}]
    assert built["messages"][1] == [
        *chat[:2],
        {"role": "assistant", "content": "It makes 2, says the given answer."},
    ]
    assert built["target_source"][:] == ["paraphrase", "model"]
    assert built["source"][:] == ["book", "web"]
    assert [len(c) for c in asked] == [4, 2, 4], "the longest first; one paraphrase"
    assert asked[2][:3] == chat[:3], "earlier turns stay"
    assert "A correct response to this reads:\n\n7\n" in asked[2][3]["content"]
    prompts = str([m[:-1] for m in built["messages"]])
    assert "A correct response" not in prompts


def test_other_forms_of_rows() -> None:
    question = [{"role": "user", "content": "2 + 3?"}]
    rows = Dataset.from_dict({"prompt": [question], "completion": [[{"role": "assistant", "content": "5"}]]})
    built = selective_self_targets(rows, lambda prompts: ["It is 5"], "number")
    assert built["completion"][0] == [{"role": "assistant", "content": "It is 5"}]
    assert built["prompt"][0] == question
    rows = Dataset.from_dict({"prompt": ["2 + 3?"], "y": ["5"]})
    built = selective_self_targets(rows, lambda prompts: ["It is 5"], "number", gold="y")
    assert built.column_names[:3] == ["prompt", "completion", "source"]
    assert (built["completion"][0], built["y"][0]) == ("It is 5", "5")
    empty = selective_self_targets(rows.select([]), lambda prompts: 1 / 0, "number", gold="y")
    assert len(empty) == 0
    assert "source" in empty.column_names


def test_gold_is_put_into_the_form_that_the_prompt_demands_and_the_judge_sees_it_bare() -> None:
    rows, model = three()
    judge = Judge(lambda candidate, gold: False)
    with pytest.warns(UserWarning, match="plain SFT"):
        built = selective_self_targets(
            rows, model, judge, paraphrase=False, gold_template="The answer is {gold}."
        )
    assert built["completion"][:] == ["The answer is 5.", "The answer is 7.", "The answer is 9."]
    assert built["s3ft_gold"][:] == ["5", "7", "9"]
    assert [asked[2] for asked in judge.asked] == ["5", "7", "9"]
    assert model.paraphrased == []


def test_samples_are_drawn_until_one_is_right() -> None:
    rows, _ = three()
    calls = []

    def model(chats: Any, *, temperature: float, max_new_tokens: int, seeds: Any) -> list[str]:
        calls.append(([chat[0]["content"] for chat in chats], list(seeds)))
        attempt = len(calls)
        return [
            "5" if attempt == 1 and c[0]["content"] == "2 + 3?" else "7" if attempt == 2 else "0"
            for c in chats
        ]

    def build() -> Dataset:
        calls.clear()
        return selective_self_targets(rows, model, "number", paraphrase=False, n_samples=3, temperature=0.7)

    built = build()
    assert [prompts for prompts, _ in calls] == [
        ["2 + 3?", "3 + 4?", "4 + 5?"],
        ["3 + 4?", "4 + 5?"],
        ["4 + 5?"],
    ]
    assert built["source"][:] == ["model", "model", "gold"]
    seeds = [seed for _, given in calls for seed in given]
    assert len(set(seeds)) == 6
    first = [given for _, given in calls]
    build()
    assert [given for _, given in calls] == first


def test_equal_prompts_are_asked_once_and_chunks_go_from_long_to_short() -> None:
    prompts = ["aa", "a", "aaaa", "a", "aaa", "aa"]
    rows = Dataset.from_dict({"id": list(range(6)), "prompt": prompts, "completion": ["1"] * 6})
    model = Model({p: f"{len(p)}" for p in prompts})
    built = selective_self_targets(rows, model, YES, chunk=2)
    assert model.asked == ["aaaa", "aaa", "aa", "a"]
    assert model.sizes == [2, 1, 1]
    assert built["completion"][:] == ["2", "1", "4", "1", "3", "2"]


def test_a_reply_that_is_not_to_be_had_gives_gold_and_is_told() -> None:
    rows, model = three()
    model.own["2 + 3?"] = Failure("HTTP 500")
    model.reworded["2 + 3?"] = Failure("HTTP 500")
    with pytest.warns(UserWarning, match="missing") as warned:
        built = selective_self_targets(rows, model, "number", paraphrase=TEMPLATE)
    assert built["source"][:] == ["gold", "paraphrase", "gold"]
    assert built["s3ft_prediction_verdict"][0] == "no reply: HTTP 500"
    assert str(warned[0].message) == (
        "2 candidates are missing, since the generator gave no reply, and count as not accepted. Build again with the "
        "same folder to ask for these alone."
    )


def test_report() -> None:
    rows, model = three()
    model.reworded["3 + 4?"] = "7"
    built = selective_self_targets(rows, model, "number", paraphrase=TEMPLATE)
    report = self_target_report(built)
    assert report.sources == {"model": 1, "paraphrase": 1, "gold": 1}
    assert report.predictions == {"wrong": 2, "right": 1}
    assert report.paraphrases == {"right": 1, "wrong": 1}
    assert (report.verbatim, report.overlap) == (1, 1.0)
    assert report.table()[0] == ("target", "model", 1, 1 / 3)
    assert "1 paraphrases are the gold answer word for word; overlap of words 1.00." in str(report)
    assert sum(report.to_dict()["sources"].values()) == len(built) == 3
    with pytest.raises(DataError, match="the rows have no column 'source', 's3ft_prediction'"):
        self_target_report(rows)


def test_numbers_judge_a_whole_build() -> None:
    rows, model = three()
    built = selective_self_targets(
        rows, model, NumberMatch(), paraphrase=lambda prompt, gold: f"{prompt}MARK{gold}"
    )
    assert built["source"][:] == ["model", "paraphrase", "gold"]
