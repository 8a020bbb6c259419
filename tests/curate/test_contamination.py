"""Contamination of a pool by evaluation sets: word sequences by hand, templates, short questions, meaning."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.exceptions import NotFittedError

from tunesmith.core.errors import DataError, ParameterError
from tunesmith.curate import ContaminationFilter, contamination
from tunesmith.curate.overlap import Match, NgramIndex, embedding_matches

LETTERS = list("abcdefghijklmnop")


def talk(question: str, answer: str, system: str | None = None) -> dict[str, Any]:
    first = [] if system is None else [{"role": "system", "content": system}]
    return {
        "messages": [*first, {"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    }


def test_share_by_hand() -> None:
    # Ten words have three sequences of eight; the first nine words hold two of them.
    index = NgramIndex([" ".join(LETTERS[:10])], ngram=8, share=2 / 3)
    assert index.match("x " + " ".join(LETTERS[:9]) + " y") == Match(0, 2 / 3, "a b c d e f g h")
    assert index.match(" ".join(LETTERS[:8])) is None
    assert NgramIndex([" ".join(LETTERS[:10])], share=0.0).match(" ".join(LETTERS[1:9])) == Match(
        0, 1 / 3, "b c d e f g h i"
    )


def test_case_signs_and_forms_of_letters_do_not_matter() -> None:
    index = NgramIndex(["What, exactly, is the boiling point of WATER at sea-level?"])
    assert index.match("what exactly is  the boiling point\nof ｗater at sea level") is not None


def test_sequences_do_not_run_across_parts_and_count_once() -> None:
    index = NgramIndex([" ".join(LETTERS[:8])])
    assert index.match(" ".join(LETTERS[:4]), " ".join(LETTERS[4:8])) is None
    longer = NgramIndex([" ".join(LETTERS[:11])], share=0.5)  # four sequences
    one = " ".join(LETTERS[:8])
    assert longer.match(one, one, one) is None


def test_what_many_evaluation_rows_share_is_form_and_counts_for_none() -> None:
    system = "you are a careful assistant that answers with one number and nothing else"
    rows = [f"{system} what is the product of {i} and the number that follows it" for i in range(6)]
    index = NgramIndex(rows, common=3, share=0.5)
    assert index.match(system) is None
    assert index.match(f"{system} name a colour") is None
    found = index.match(f"{system} what is the product of 4 and the number that follows it")
    assert found is not None
    assert (found.row, found.score) == (4, 1.0)
    # Without that rule the system prompt alone would give every row away.
    assert NgramIndex(rows, common=6, share=0.3).match(system) is not None


def test_the_wording_of_many_different_rows_of_the_pool_is_form_too() -> None:
    wording = "give only the answer restore the correct order of the following words"
    test = Dataset.from_dict({"text": [f"{wording} one", f"{wording} two"]})
    pool = Dataset.from_dict({"text": [f"{wording} {i} {i}" for i in range(12)] + [f"{wording} one"] * 3})
    method = ContaminationFilter(test)
    assert method.fit_transform(pool)["text"][:] == pool["text"][:12]
    assert method.report_.n_out == 12
    # Eleven different rows are more than ten; equal ones count once. Without the limit all of them go.
    assert len(ContaminationFilter(test, common_rows=None).fit_transform(pool)) == 0
    assert len(ContaminationFilter(test, common_rows=13).fit_transform(pool)) == 0


def test_short_rows_are_matched_by_an_equal_text_alone() -> None:
    index = NgramIndex(["What is 2 + 2?", "", "Capital of France?"])
    assert index.n_whole == 3
    assert index.match("what is 2 2") == Match(0, 1.0, "what is 2 2")
    assert index.match("so, what is 2 + 2?") is None
    assert index.match("") is None
    assert index.match("a", "capital of france") == Match(2, 1.0, "capital of france")


def test_a_repeated_test_question_is_found_however_often_it_was_copied() -> None:
    question = " ".join(LETTERS)
    pool = Dataset.from_dict({"text": [question] * 50 + ["clean"]})
    method = ContaminationFilter(Dataset.from_dict({"text": [question]}))
    assert method.fit_transform(pool)["text"][:] == ["clean"]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(LETTERS), min_size=3, max_size=9), min_size=1, max_size=4),
    st.lists(st.sampled_from(LETTERS), min_size=0, max_size=14),
    st.sampled_from([0.0, 0.3, 0.5, 1.0]),
)
def test_agrees_with_the_plain_definition(tests: list[list[str]], row: list[str], share: float) -> None:
    n = 3
    own = {tuple(row[i : i + n]) for i in range(len(row) - n + 1)}
    scores = []
    for test in tests:
        grams = {tuple(test[i : i + n]) for i in range(len(test) - n + 1)}
        hits = len(grams & own)
        scores.append(1.0 if test == row else hits / len(grams) if hits else -1.0)
    found = NgramIndex([" ".join(t) for t in tests], ngram=n, share=share, common=99).match(" ".join(row))
    best = max(scores)
    if best >= share and best >= 0:
        assert found is not None
        assert found.score == best
    else:
        assert found is None


def test_messages_are_searched_in_every_turn_and_named() -> None:
    secret = "which treaty ended the war between the two northern kingdoms in that year"
    pool = Dataset.from_list(
        [talk("hello", f"My exam asked: {secret}"), talk(secret, "x"), talk("hello", "nothing of it")]
    )
    method = ContaminationFilter([Dataset.from_list([talk("one", "two"), talk(secret, "a treaty")])])
    assert len(method.fit_transform(pool)) == 1
    assert method.report_.reasons == {"holds an evaluation row": 2}
    assert method.report_.dropped[0] == (
        0,
        "holds an evaluation row → evaluation set, row 1: 100% of its word sequences, such as “which treaty ended "
        "the war between the two”",
    )
    assert method.evaluation_hit_.tolist() == [False, True]
    assert method.n_evaluation_ == 2


def test_on_rows_the_answer_of_the_evaluation_counts_too() -> None:
    answer = "the answer that must be kept secret until everybody has handed in their paper"
    test = Dataset.from_list([talk("q", answer)])
    pool = Dataset.from_list([talk("something", answer)])
    assert len(ContaminationFilter(test).fit_transform(pool)) == 1
    assert len(ContaminationFilter(test, on="row").fit_transform(pool)) == 0


def test_flagging_keeps_every_row() -> None:
    pool = Dataset.from_dict({"text": ["what is 2 2", "clean"], "n": [1, 2]})
    method = ContaminationFilter(Dataset.from_dict({"text": ["What is 2 + 2?"]}), action="flag")
    out = method.fit_transform(pool)
    reason = (
        "holds an evaluation row → evaluation set, row 0: 100% of its word sequences, such as “what is 2 2”"
    )
    assert out["contamination"][:] == [reason, None]
    assert out["n"][:] == [1, 2]
    assert method.report_.noted == [(0, reason)]
    assert method.report_.dropped == []
    assert method.report_.table() == [("kept", "holds an evaluation row", 1)]
    with pytest.raises(DataError, match="the rows have a column 'contamination' already; rename it"):
        method.fit_transform(out)


def test_by_embedding_and_by_both() -> None:
    def rows(degrees: list[float]) -> Dataset:
        angles = np.deg2rad(degrees)
        vectors = np.column_stack([np.cos(angles), np.sin(angles)]).tolist()
        return Dataset.from_dict({"text": [f"row {d}" for d in degrees], "embedding": vectors})

    test, pool = rows([0.0, 90.0]), rows([10.0, 45.0, 80.0, 90.0])
    method = ContaminationFilter(test, by="embedding", on="row", threshold=0.98)
    assert method.fit_transform(pool)["text"][:] == ["row 45.0"]
    assert method.report_.dropped[0] == (
        0,
        "means the same as an evaluation row → evaluation set, row 0: cosine 0.98",
    )
    assert [m and m.row for m in method.matches_] == [0, None, 1, 1]
    both = ContaminationFilter(test, by="both", on="row", threshold=0.98)
    assert len(both.fit_transform(pool)) == 1
    assert both.report_.reasons == {
        "means the same as an evaluation row": 2,
        "holds an evaluation row": 1,
    }
    found, cosine = embedding_matches(np.eye(2, 3), np.eye(1, 3), 0.5)
    assert found.tolist() == [0, -1]
    assert cosine.tolist() == [1.0, 0.0]
    with pytest.raises(DataError, match="the pool's embeddings have 2 columns, the evaluation set's 3"):
        embedding_matches(np.eye(2), np.eye(3), 0.5)


def test_by_an_encoder(tiny_encoder_dir: str) -> None:
    pool = Dataset.from_dict({"text": ["the cat sat", "plus minus"]})
    method = ContaminationFilter(
        Dataset.from_dict({"text": ["the cat sat"]}),
        by="embedding",
        encoder=tiny_encoder_dir,
        threshold=0.999,
    )
    assert method.fit_transform(pool)["text"][:] == ["plus minus"]


def test_the_function_and_the_demo_sets(write_jsonl: Any, tmp_path: Any) -> None:
    from tunesmith.data import demo

    test = demo.load("test")
    leaked = [test[i] for i in (3, 8)]
    path = write_jsonl(tmp_path / "pool.jsonl", [{"messages": row["messages"]} for row in leaked])
    result = contamination(path, "demo:test")
    assert result["rows"] == result["contaminated"] == 2
    assert result["evaluation_rows"] == 100
    assert result["evaluation_hit"] >= 1
    assert result["reasons"] == {"holds an evaluation row": 2}
    assert "demo:test, row" in result["found"][0][1]


def test_errors() -> None:
    pool = Dataset.from_dict({"text": ["a"]})
    with pytest.raises(NotFittedError):
        ContaminationFilter(pool).transform(pool)
    with pytest.raises(ParameterError) as caught:
        ContaminationFilter(3).fit(pool)
    assert str(caught.value) == (
        "The 'against' parameter of ContaminationFilter must be paths, ids or datasets. Got 3 instead."
    )
    with pytest.raises(DataError, match="the evaluation set has no rows, so nothing can be compared with it"):
        ContaminationFilter([]).fit(pool)
    with pytest.raises(
        ParameterError, match=r"The 'ngram' parameter of NgramIndex must be an int >= 1\. Got 0"
    ):
        NgramIndex([], ngram=0)
    with pytest.raises(
        ParameterError, match=r"The 'share' parameter of NgramIndex must be a float in \[0, 1\]"
    ):
        NgramIndex([], share=2)
