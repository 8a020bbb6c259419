"""Phases stacked and in order: every row once, replay counted, orders that repeat, and what is refused."""

from __future__ import annotations

from collections import Counter

import pytest
from datasets import Dataset, Value

from tunesmith.core.errors import DataError, ParameterError
from tunesmith.data import phased, stacked


def phase(name: str, n: int) -> Dataset:
    return Dataset.from_dict({"text": [f"{name}{i}" for i in range(n)], "id": list(range(n))})


A, B, C = phase("a", 1000), phase("b", 200), phase("c", 50)


def test_stacked_is_the_multiset_union_and_its_order_depends_on_seed_and_epoch_alone() -> None:
    twice = [A, B, B]
    rows = stacked(twice, seed=1)["text"]
    assert Counter(rows) == Counter([*A["text"], *B["text"], *B["text"]])
    assert stacked(twice, seed=1)["text"] == rows
    assert stacked(twice, seed=1, epoch=1)["text"] != rows
    assert stacked(twice, seed=2)["text"] != rows
    assert 0.05 < sum(t.startswith("b") for t in rows[:200]) / 200 < 0.6, "not shuffled together"


def test_one_phase_is_stacked() -> None:
    for epoch in (0, 3):
        (only,) = phased([A], replay=0.5, seed=4, epoch=epoch)
        assert only.to_dict() == stacked([A], seed=4, epoch=epoch).to_dict()


def test_without_replay_no_phase_comes_back() -> None:
    for own, found in zip((A, B, C), phased([A, B, C]), strict=True):
        assert sorted(found["text"]) == sorted(own["text"])


@pytest.mark.parametrize(
    ("share", "of_a", "of_b"), [(0.01, 10, 2), (0.0005, 0, 0), (0.333, 333, 67), (1, 1000, 200)]
)
def test_replay_adds_that_share_of_every_earlier_phase(share: float, of_a: int, of_b: int) -> None:
    assert of_a == round(share * 1000)
    first, second, third = phased([A, B, C], replay=share, seed=5)
    counts = [Counter(text[0] for text in p["text"]) for p in (first, second, third)]
    assert counts == [
        Counter(a=1000),
        Counter({k: v for k, v in {"a": of_a, "b": 200}.items() if v}),
        Counter({k: v for k, v in {"a": of_a, "b": of_b, "c": 50}.items() if v}),
    ]
    for found in (first, second, third):
        assert len(set(found["text"])) == len(found), "a replayed row comes twice"


def test_replayed_rows_are_the_same_in_every_epoch_and_others_in_every_phase() -> None:
    def replayed(p: Dataset) -> set[str]:
        return {text for text in p["text"] if text.startswith("a")}

    one, two = (phased([A, B, C], replay=0.1, seed=5, epoch=epoch) for epoch in (0, 1))
    assert replayed(one[1]) == replayed(two[1]) != replayed(one[2])
    assert one[1]["text"] != two[1]["text"]


def test_columns_in_another_order_are_the_same_columns() -> None:
    turned = B.select_columns(["id", "text"])
    assert stacked([A, turned]).column_names == ["text", "id"]


@pytest.mark.parametrize("arrange", [stacked, phased])
@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ([], r"The 'phases' parameter of {} must be a list of at least one datasets\.Dataset\. Got \[\] instead\."),
        ([[{"text": "a"}]], r"The 'phases' parameter of {} must be a list of at least one datasets\.Dataset\."),
        ([A, A.select([])], r"phase 2 of 2 has no rows\. Leave it out\."),
        (
            [A, B.rename_column("id", "number").add_column("more", [0] * 200)],
            "phases 1 and 2 have different columns: only phase 1 has 'id', only phase 2 has 'more', 'number'. Bring "
            "all phases to the same columns, for example with select_columns.",
        ),
        (
            [A, B, C.remove_columns("id")],
            "phases 1 and 3 have different columns: only phase 1 has 'id', only phase 3 has none.",
        ),
        (
            [A, B.cast_column("id", Value("string"))],
            r"the column 'id' has another type in phase 2 than in phase 1: Value\('string'\) instead of "
            r"Value\('int64'\)\. Bring them to one type with cast\.",
        ),
    ],
)  # fmt: skip
def test_what_is_refused(arrange, phases, message) -> None:
    kind = ParameterError if "parameter" in message else DataError
    with pytest.raises(kind, match=f"^{message.format(arrange.__name__)}"):
        arrange(phases)


@pytest.mark.parametrize("replay", [-0.1, 1.5, float("nan"), True, "1%"])
def test_replay_outside_its_range(replay) -> None:
    with pytest.raises(
        ParameterError, match=r"^The 'replay' parameter of phased must be a float in \[0, 1\]\. Got"
    ):
        phased([A, B], replay=replay)


def test_seed_and_epoch_outside_their_range() -> None:
    with pytest.raises(
        ParameterError, match=r"^The 'epoch' parameter of stacked must be an int of at least 0\. Got -1"
    ):
        stacked([A], epoch=-1)
    with pytest.raises(
        ParameterError, match=r"^The 'seed' parameter of phased must be an int of at least 0\. Got 0\.5"
    ):
        phased([A], seed=0.5)  # type: ignore[arg-type]
