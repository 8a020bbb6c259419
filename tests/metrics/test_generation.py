"""Exact match and task score."""

from __future__ import annotations

import json

import pytest

from tunesmith.core.errors import DataError, ParameterError
from tunesmith.metrics import ExactMatch, TaskScore, score_task


def row(answer: str, **more) -> dict:
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]
    return {"messages": messages, **more}


def test_exact_match_sets_white_space_aside():
    result = ExactMatch().compute(
        predictions=["a  b\n", "A b", "c"], references=["a b", row("a b"), {"text": "c"}]
    )
    assert result == {"exact_match": pytest.approx(2 / 3), "scores": [1.0, 0.0, 1.0]}
    assert ExactMatch(ignore_case=True).compute(predictions=["A b"], references=["a B"])["exact_match"] == 1


def test_task_score_over_all_kinds():
    pytest.importorskip("reasoning_gym")
    import reasoning_gym

    entry = reasoning_gym.create_dataset("chain_sum", seed=1, size=1)[0]
    tasks = [
        {"kind": "exact", "answer": "4 2"},
        {"kind": "function_call", "truth": {"f": {"x": [1]}}},
        {
            "kind": "reasoning_gym",
            "dataset": "chain_sum",
            "entry": json.loads(json.dumps(entry, default=str)),
        },
        {"kind": "reasoning_gym", "dataset": "chain_sum", "entry": {}},
    ]
    result = TaskScore().compute(
        predictions=[" 4  2", "f(x=2)", f"{entry['answer']} ", "1"],
        references=[row("", task=json.dumps(tasks[0])), tasks[1], json.dumps(tasks[2]), tasks[3]],
    )
    assert result["scores"] == [1, 0.5, 1, 0]
    assert result["task_score"] == 0.625
    assert result["failures"] == {"chain_sum: KeyError": 1}


def test_a_wrong_answer_of_a_reasoning_task_stays_in_the_unit_interval():
    reasoning_gym = pytest.importorskip("reasoning_gym")
    for family in ("chain_sum", "letter_counting", "spell_backward", "syllogism"):
        entry = json.loads(json.dumps(reasoning_gym.create_dataset(family, seed=2, size=1)[0], default=str))
        task = {"kind": "reasoning_gym", "dataset": family, "entry": entry}
        assert score_task(entry["answer"], task) == 1
        for answer in ("", "no idea", "999999"):
            assert 0 <= score_task(answer, task) < 1


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("{", r"the task is not valid JSON\. The row reads: \{"),
        (
            {"kind": "poem"},
            "the task must be an object whose 'kind' is one of function_call, reasoning_gym, exact",
        ),
        ("[1]", "the task must be an object whose 'kind' is one of"),
        ({"kind": "exact"}, "the task of kind 'exact' lacks answer"),
        ({"kind": "reasoning_gym"}, "the task of kind 'reasoning_gym' lacks dataset, entry"),
        ({"kind": "function_call", "truth": {}}, "the task's truth must name one function"),
    ],
)
def test_malformed_tasks(task, message):
    with pytest.raises(DataError, match=message):
        score_task("x", task)
    with pytest.raises(DataError, match="row 0: "):
        TaskScore().compute(
            predictions=["x"], references=[task if isinstance(task, dict) else row("", task=task)]
        )


def test_unknown_reasoning_dataset():
    pytest.importorskip("reasoning_gym")
    with pytest.raises(DataError, match="reasoning-gym has no dataset 'chess_mate'"):
        score_task("x", {"kind": "reasoning_gym", "dataset": "chess_mate", "entry": {}})


def test_reasoning_gym_is_named_when_it_is_not_installed(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(DataError, match=r"scored by reasoning-gym, which is not installed. Run `pip install"):
        score_task("x", {"kind": "reasoning_gym", "dataset": "chain_sum", "entry": {}})


def test_rows_without_what_the_metric_needs():
    with pytest.raises(
        DataError, match="row 1: the row has no 'task', so task_score cannot score it; use exact_match"
    ):
        TaskScore().compute(predictions=["x", "y"], references=[{"kind": "exact", "answer": "x"}, row("y")])
    with pytest.raises(DataError, match="row 0: the row has no answer to compare with"):
        ExactMatch().compute(predictions=["x"], references=[{"anchor": "x"}])


@pytest.mark.parametrize("metric", [ExactMatch(), TaskScore()])
def test_lengths_and_emptiness(metric):
    with pytest.raises(
        ParameterError,
        match=rf"'predictions' parameter of {type(metric).__name__} must be as long as references, which "
        rf"has 2 items",
    ):
        metric.compute(predictions=["x"], references=["x", "y"])
    with pytest.raises(DataError, match=f"there are no answers to compute {metric.name} from"):
        metric.compute(predictions=[], references=[])


@pytest.mark.parametrize("metric", [ExactMatch, TaskScore])
def test_max_new_tokens(metric):
    with pytest.raises(
        ParameterError, match=r"The 'max_new_tokens' parameter of .* must be an int of at least 1. Got 0"
    ):
        metric(max_new_tokens=0)
