from __future__ import annotations

from typing import Any

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from tunesmith import methods
from tunesmith.core.errors import ParameterError
from tunesmith.curate import CurateReport, Deduplicate


def conversation(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


ROWS = Dataset.from_list(
    [
        conversation("What is 1 + 1?", "2"),
        conversation("what  is\n1 + 1?", "2 "),
        conversation("What is 1 + 1?", "Two"),
        conversation("WHAT IS 1 + 1?", "two"),
        conversation("What is 1 + 2?", "3"),
    ]
)


def test_whole_rows() -> None:
    method = Deduplicate()
    kept = method.fit(ROWS).transform(ROWS)
    assert kept.to_list() == ROWS.select([0, 2, 4]).to_list()
    assert method.report_ == CurateReport(
        n_in=5,
        n_out=3,
        reasons={"the same text as an earlier row": 2},
        dropped=[(1, "the same text as an earlier row"), (3, "the same text as an earlier row")],
    )
    assert str(method.report_) == "5 rows in, 3 out.\n  2 × the same text as an earlier row"


def test_prompts() -> None:
    method = Deduplicate(on="prompt")
    assert method.fit_transform(ROWS).to_list() == ROWS.select([0, 4]).to_list()
    assert method.report_.reasons == {"the same prompt as an earlier row": 3}


def test_where_the_border_lies_counts() -> None:
    rows = Dataset.from_list([conversation("a b", "c"), conversation("a", "b c")])
    assert len(Deduplicate().fit_transform(rows)) == 2
    pairs = Dataset.from_list([{"anchor": "a b", "positive": "c"}, {"anchor": "a", "positive": "b c"}])
    assert len(Deduplicate().fit_transform(pairs)) == 2
    turn = [{"role": "assistant", "content": "x"}]
    rejected = Dataset.from_list([{**conversation("q", "a"), "rejected": r} for r in (turn, None, turn)])
    assert len(Deduplicate().fit_transform(rejected)) == 2


def test_raw_text_has_no_prompt_and_is_compared_whole() -> None:
    rows = Dataset.from_dict({"text": ["a", "b", "A "]})
    assert Deduplicate(on="prompt").fit_transform(rows)["text"][:] == ["a", "b"]


def test_nothing_to_drop_and_nothing_at_all() -> None:
    method = Deduplicate()
    assert len(method.fit_transform(ROWS.select([0, 4]))) == 2
    assert method.report_.dropped == []
    assert len(method.fit_transform(ROWS.select([]))) == 0


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(["a", "A", " a", "b", "B b", "b  b", "c"]), max_size=12))
def test_agrees_with_the_plain_loop_and_is_idempotent(texts: list[str]) -> None:
    rows = Dataset.from_dict({"text": texts, "number": list(range(len(texts)))})
    first: dict[str, int] = {}
    for i, text in enumerate(texts):
        first.setdefault(" ".join(text.casefold().split()), i)
    kept = Deduplicate().fit_transform(rows)
    assert list(kept["number"]) == sorted(first.values())
    assert list(Deduplicate().fit_transform(kept)["number"]) == sorted(first.values())


def test_is_registered_and_behaves_as_an_estimator() -> None:
    method = methods.create("curate.dedup", on="prompt")
    assert clone(method).get_params() == {"on": "prompt"}


def test_errors() -> None:
    with pytest.raises(NotFittedError):
        Deduplicate().transform(ROWS)
    with pytest.raises(
        ParameterError,
        match=r"The 'on' parameter of Deduplicate must be 'row' or 'prompt'\. Got 'answer'",
    ):
        Deduplicate(on="answer").fit(ROWS)
