"""AutoFilter and AutoCorrect on sums: what stays, what is replaced, what is said of it."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from tunesmith.core.errors import DataError, ParameterError
from tunesmith.curate import AutoCorrect, AutoFilter
from tunesmith.engine import Failure

BELOW = "the model is not confident of the answer"
BETTER = "the candidate is confidently better"


class Sums:
    """Knows ``a + b``, and doubts sums in proportion to ``a``: of k samples so many tenths are wrong."""

    def __init__(self, fails: str = "", favours: str = "") -> None:
        self.fails, self.favours, self.calls = fails, favours, 0

    def __call__(self, chats: Any, *, temperature: float, max_new_tokens: int, seeds: Any) -> list[Any]:
        self.calls += len(chats)
        return [self.reply(chat, temperature, seed) for chat, seed in zip(chats, seeds, strict=True)]

    def reply(self, chat: Any, temperature: float, seed: int) -> Any:
        text = "\n".join(message["content"] for message in chat)
        a, b = map(int, re.findall(r"(\d+) \+ (\d+)", text)[0])
        if self.fails and self.fails in text:
            return Failure("no reply after 5 tries: HTTP 500")
        if "Which answer is better?" in chat[-1]["content"]:
            first, second = re.findall(r"Answer [12]:\n(\S+)", text)
            right = str(a + b)
            return "(A)" if first == right else "(B)" if second == right else "(C)"
        if "Your verdict:" in text:
            return "(A)"
        if "Proposed answer:" in text:
            said = re.findall(r"Proposed answer:\n(\S+)", text)[0]
            return "(A)" if said == str(a + b) else "(B)"
        if not temperature:
            return str(a + b)
        wrong = np.random.default_rng(seed).random() < a / 10
        return f"I add.\nAnswer: {a + b + wrong}"


def sums(answers: dict[str, str]) -> Dataset:
    return Dataset.from_list(
        [
            {
                "id": i,
                "messages": [
                    {"role": "system", "content": "Add."},
                    {"role": "user", "content": f"{q}?"},
                    {"role": "assistant", "content": answer},
                ],
                "kind": "odd" if i % 2 else "even",
            }
            for i, (q, answer) in enumerate(answers.items())
        ]
    )


ROWS = sums(
    {"0 + 1": "1", "0 + 2": "7", "1 + 1": "2", "3 + 1": "9", "0 + 4": "4", "2 + 2": "5", "0 + 0": "0"}
)
EASY: dict[str, Any] = {"nli": lambda a, b: [1.0] * len(a)}


def test_rows_below_the_median_go() -> None:
    method = AutoFilter(Sums(), **EASY)
    out = method.fit_transform(ROWS)
    assert method.confidence_[[0, 4, 6]].tolist() == [1.0] * 3
    assert method.confidence_[[1, 3, 5]].max() <= 0.3, "wrong answers"
    assert 0.3 <= method.confidence_[2] < 1
    assert out["id"][:] == [0, 4, 6]
    assert out["clear_confidence"][:] == [1.0] * 3
    assert out.remove_columns("clear_confidence").to_list() == ROWS.select([0, 4, 6]).to_list()
    report = method.report_
    assert report.reasons == {BELOW: 4}
    assert report.dropped[0] == (
        1,
        f"{BELOW} → {method.confidence_[1]:.3f}, threshold {method.threshold_:.3f}",
    )
    assert str(report) == f"7 rows in, 3 out.\n  4 × {BELOW}"


def test_thresholds() -> None:
    # Confidences: three of 1, one between, three of at most 0.3.
    for rule in ("45%", 0.31):
        assert AutoFilter(Sums(), threshold=rule, **EASY).fit_transform(ROWS)["id"][:] == [0, 2, 4, 6]
    low = AutoFilter(Sums(), threshold=0.0, beta=1.0, alpha=0.5, nli=lambda a, b: [0.5] * len(a))
    assert len(low.fit_transform(ROWS)) == 7, "a threshold below the lowest confidence keeps everything"
    for rule in (1.0, 1):
        with pytest.raises(ParameterError) as caught:
            AutoFilter(Sums(), threshold=rule, **EASY).fit(ROWS)
        assert str(caught.value) == (
            "The 'threshold' parameter of AutoFilter must be below the highest confidence, 1, or no row would be "
            f"left. Got {rule!r} instead."
        )


def test_the_median_of_equal_confidences_keeps_half_by_chance() -> None:
    rows = sums({f"0 + {i}": str(i) for i in range(10)})
    method = AutoFilter(Sums(), **EASY)
    out = method.fit_transform(rows)
    assert len(out) == 5
    assert method.report_.reasons == {"no more confident than rows that went, and not drawn": 5}
    order = np.random.default_rng(0).permutation(10).tolist()
    turned = AutoFilter(Sums(), **EASY).fit_transform(rows.select(order))
    assert sorted(turned["id"][:]) == out["id"][:], "the draw belongs to the rows, not to their places"
    other = AutoFilter(Sums(), random_state=1, **EASY).fit_transform(rows)
    assert other["id"][:] != out["id"][:]
    assert len(AutoFilter(Sums(), min_keep=8, **EASY).fit_transform(rows)) == 8


def test_a_row_that_cannot_be_judged_is_kept_and_reported() -> None:
    method = AutoFilter(Sums(fails="0 + 2"), **EASY)
    out = method.fit_transform(ROWS)
    assert 1 in out["id"][:]
    assert np.isnan(out["clear_confidence"][out["id"][:].index(1)])
    assert method.report_.noted == [
        (1, "kept, since it could not be judged → no reply after 5 tries: HTTP 500")
    ]
    assert ("kept", "kept, since it could not be judged", 1) in method.report_.table()
    everything = AutoFilter(Sums(fails="+"), **EASY)
    assert len(everything.fit_transform(ROWS)) == 7
    assert np.isnan(everything.threshold_)
    assert len(everything.report_.noted) == 7


def test_rows_of_fit_are_not_judged_again() -> None:
    llm = Sums()
    method = AutoFilter(llm, **EASY).fit(ROWS)
    calls = llm.calls
    method.transform(ROWS)
    assert llm.calls == calls == 7 * 7
    other = sums({"0 + 1": "1", "5 + 5": "11"})
    assert method.transform(other)["id"][:] == [0]
    assert llm.calls == calls + 7


def test_failed_rows_are_asked_again_by_transform() -> None:
    llm = Sums(fails="0 + 4")
    method = AutoFilter(llm, **EASY).fit(ROWS)
    llm.fails = ""
    method.transform(ROWS)
    assert method.report_.noted == []


def test_slices() -> None:
    method = AutoFilter(Sums(), slice_column="kind", **EASY)
    method.fit_transform(ROWS)
    assert method.slices_ == {"even": (4, 1), "odd": (3, 3)}
    guarded = AutoFilter(Sums(), slice_column="kind", protect=["odd"], **EASY)
    out = guarded.fit_transform(ROWS)
    assert out["id"][:] == [0, 1, 3, 4, 5, 6]
    assert guarded.slices_ == {"even": (4, 1), "odd": (3, 0)}
    assert [i for i, _ in guarded.report_.noted] == [1, 3, 5]
    with pytest.raises(
        DataError, match=r"slice_column names 'kin', which the rows do not have\. They have id, "
    ):
        AutoFilter(Sums(), slice_column="kin", **EASY).fit(ROWS)


def test_prompt_and_completion_columns() -> None:
    rows = Dataset.from_dict({"prompt": ["0 + 1?", "0 + 2?"], "completion": ["1", "7"]})
    assert AutoFilter(Sums(), **EASY).fit_transform(rows)["completion"][:] == ["1"]
    fixed = AutoCorrect(Sums(), candidate=Sums(), **EASY).fit_transform(rows)
    assert fixed["completion"][:] == ["1", "2"]


# Auto-Correct


def test_wrong_targets_are_replaced() -> None:
    method = AutoCorrect(Sums(), candidate=Sums(), **EASY)
    out = method.fit_transform(ROWS)
    assert method.actions_.tolist() == ["keep", "replace", "remove", "replace", "keep", "replace", "keep"]
    assert out["id"][:] == [0, 1, 3, 4, 5, 6]
    assert [m[-1]["content"] for m in out["messages"][:]] == ["1", "2", "4", "4", "4", "0"]
    assert [m[:-1] for m in out["messages"][:]] == [ROWS[i]["messages"][:-1] for i in out["id"][:]]
    assert out["clear_action"][:] == ["keep", "replace", "replace", "keep", "replace", "keep"]
    assert out["clear_original"][:] == [None, "7", "9", None, "5", None]
    assert out["clear_better_confidence"][:] == [0.0, 1.0, 1.0, 0.0, 1.0, 0.0]
    report = method.report_
    assert report.changed == [
        (i, f"{BETTER} → 1.000, threshold 0.8", old, new)
        for i, old, new in ((1, "7", "2"), (3, "9", "4"), (5, "5", "4"))
    ]
    assert [i for i, _ in report.dropped] == [2]
    assert report.n_out + len(report.dropped) == 7
    assert out.features["messages"] == ROWS.features["messages"]


def test_a_correction_threshold_of_one_is_the_filter() -> None:
    plain = AutoFilter(Sums(), **EASY)
    kept = plain.fit_transform(ROWS)
    method = AutoCorrect(Sums(), candidate=Sums(), correction_threshold=1, **EASY)
    out = method.fit_transform(ROWS)
    columns = ["clear_action", "clear_better_confidence", "clear_original"]
    assert out.remove_columns(columns).to_list() == kept.to_list()
    assert method.report_ == plain.report_
    assert method.better_confidence_.max() == 1.0, "one was preferred, and yet nothing replaced"


def test_an_equal_candidate_is_never_better() -> None:
    llm = Sums()
    method = AutoCorrect(llm, candidate=lambda chats, **options: [" 7 "] * len(chats), **EASY)
    method.fit(ROWS.select([1, 0]))
    calls = llm.calls
    method.transform(ROWS.select([1]))
    assert method.better_confidence_.tolist() == [0.0]
    assert llm.calls == calls, "and not judged"


def test_the_share_of_replaced_rows_is_capped() -> None:
    method = AutoCorrect(Sums(), candidate=Sums(), max_replaced=0.3, **EASY)  # of 7 rows: 2
    method.fit_transform(ROWS)
    assert (method.actions_ == "replace").sum() == 2


def test_candidates_come_from_the_model_tuned_on_the_kept_rows() -> None:
    seen: list[list[int]] = []

    def finetune(rows: Dataset) -> Any:
        seen.append(rows["id"][:])
        return Sums()

    method = AutoCorrect(Sums(), finetune=finetune, **EASY)
    assert method.fit_transform(ROWS)["clear_action"][:].count("replace") == 3
    assert seen == [[0, 4, 6]]
    own = AutoCorrect(Sums(), **EASY).fit_transform(ROWS)
    assert own["clear_action"][:].count("replace") == 3, "without either the judge writes them itself"


def test_rows_of_which_a_reply_is_missing_stay_as_they_are() -> None:
    no_candidate = AutoCorrect(Sums(), candidate=Sums(fails="0 + 2"), **EASY)
    out = no_candidate.fit_transform(ROWS)
    assert out["clear_action"][out["id"][:].index(1)] == "keep"
    assert no_candidate.report_.noted == [
        (1, "kept, since it could not be judged → no reply after 5 tries: HTTP 500")
    ]
    judge = Sums()
    method = AutoCorrect(judge, candidate=Sums(), **EASY).fit(ROWS)
    judge.fails = "3 + 1"
    out = method.transform(ROWS)
    assert 3 in out["id"][:]
    assert np.isnan(method.better_confidence_[3])
    assert [i for i, _ in method.report_.noted] == [3]
    empty = AutoCorrect(Sums(), candidate=lambda chats, **o: [" "] * len(chats), **EASY)
    assert (empty.fit(ROWS).transform(ROWS)["clear_action"][:]) == ["keep"] * 3


def test_protected_rows_are_not_changed() -> None:
    method = AutoCorrect(Sums(), candidate=Sums(), slice_column="kind", protect=["odd"], **EASY)
    method.fit_transform(ROWS)
    assert method.actions_.tolist() == ["keep", "keep", "remove", "keep", "keep", "keep", "keep"]


def test_the_record_of_changes_can_be_written(tmp_path: Any) -> None:
    method = AutoCorrect(Sums(), candidate=Sums(), **EASY)
    method.fit_transform(ROWS)
    method.report_.save_lines(tmp_path / "reasons.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "reasons.jsonl").read_text().splitlines()]
    assert lines[0] == {
        "row": 1,
        "action": "change",
        "reason": f"{BETTER} → 1.000, threshold 0.8",
        "old": "7",
        "new": "2",
    }


@pytest.mark.parametrize("method", [AutoFilter, AutoCorrect])
def test_rows_that_cannot_be_used(method: Any) -> None:
    with pytest.raises(DataError) as caught:
        method(Sums()).fit(Dataset.from_dict({"text": ["a"]}))
    assert str(caught.value) == (
        f"{method.__name__} needs rows with 'messages', or with texts 'prompt' and 'completion'; these have text."
    )
    with pytest.raises(DataError, match="row 1: the answer is empty, so there is nothing to judge"):
        method(Sums()).fit(sums({"1 + 1": "2", "1 + 2": " "}))


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("threshold", "mean", "'median', a share to drop such as '20%', or a number in [0, 1]"),
        ("threshold", "100%", "'median', a share to drop such as '20%', or a number in [0, 1]"),
        ("threshold", "x%", "'median', a share to drop such as '20%', or a number in [0, 1]"),
        ("threshold", 1.5, "a number in [0, 1]"),
        ("min_keep", 0, "an int >= 1"),
        ("slice_column", 3, "a column's name or None"),
        ("protect", "odd", "a list of values of slice_column"),
        ("protect", ["odd"], "empty unless slice_column is given"),
        ("alpha", -0.1, "a number in [0, 1]"),
        ("n_samples", 0, "an int >= 1"),
        ("correction_threshold", 2, "a number in [0, 1]"),
        ("max_replaced", -1, "a number in [0, 1]"),
        ("candidate_tokens", 0, "an int >= 1"),
        ("finetune", "sft", "a callable or None"),
    ],
)
def test_bad_parameters(name: str, value: Any, expected: str) -> None:
    methods = [m for m in (AutoFilter, AutoCorrect) if name in m().get_params()]
    for method in methods:
        with pytest.raises(ParameterError) as caught:
            method(Sums(), **{name: value}).fit(ROWS)
        assert str(caught.value) == (
            f"The '{name}' parameter of {method.__name__} must be {expected}. Got {value!r} instead."
        )


def test_a_candidate_and_a_way_to_make_one() -> None:
    with pytest.raises(
        ParameterError, match="'finetune' parameter of AutoCorrect must be None where candidate is"
    ):
        AutoCorrect(Sums(), candidate=Sums(), finetune=lambda rows: Sums()).fit(ROWS)
