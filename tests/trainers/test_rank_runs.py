"""The ranking of partly trained runs: by hand, its invariances, and what it refuses."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tunesmith.core.errors import DataError, ParameterError
from tunesmith.trainers.recipe_guide import EarlyRun, rank_runs, read_signals, samples_after


def records(
    g: float, loss: float, n: int = 20, lr: float = 1e-5, first: float = 3.0
) -> list[dict[str, float]]:
    """A run of n steps of 10 rows: one gradient norm throughout, and the loss at once where it stays."""
    losses = [first, *[loss] * (n - 1)]
    return [{"samples_seen": 10 * (i + 1), "loss": x, "grad_norm": g, "lr": lr} for i, x in enumerate(losses)]


def test_signals_by_hand() -> None:
    rows = [
        {"samples_seen": 10 * i, "loss": 4.0 - 0.2 * i, "grad_norm": float(i), "lr": 1e-5}
        for i in range(1, 13)
    ]
    (run,) = rank_runs({"a": rows}, 100).runs
    assert run.n_records == 10
    assert run.g == pytest.approx((np.log(5) + np.log(6)) / 2)  # steps 1 to 10
    assert run.l == pytest.approx(np.mean([2.8, 2.6, 2.4, 2.2, 2.0]))  # steps 6 to 10
    assert run.progress == pytest.approx((3.8 - 2.4) / 3.8)
    assert (run.status, run.rank, run.score) == ("keep", 1, 2.0)


def test_a_dominated_run_stops_and_the_rest_are_ranked() -> None:
    runs = {
        "calm": records(1.0, 2.0),
        "loud": records(2.0, 1.5),
        "fast": records(3.0, 1.0),
        "odd": records(0.5, 1.2),  # the lowest norm: never stopped
    }
    found = rank_runs(runs, 200)
    assert found.kept == ["calm", "odd"]
    assert found.stopped == ["loud", "fast"]
    by_name = {run.run: run for run in found.runs}
    assert by_name["loud"].dominated_by == ("calm",)
    assert by_name["fast"].dominated_by == ("calm", "loud", "odd")
    assert by_name["loud"].score is None
    assert by_name["loud"].rank is None
    assert by_name["calm"].score == by_name["odd"].score == 3.0
    assert found.ties == [["calm", "odd"]]


def test_the_short_last_step_of_an_epoch_is_not_the_size_of_the_next() -> None:
    seen = [samples_after(step, 10, 4) for step in range(1, 13)]
    assert seen[-3:] == [34, 38, 40]
    rows = [{**row, "samples_seen": s} for row, s in zip(records(1.0, 2.0, 12), seen, strict=True)]
    assert rank_runs({"a": rows}, 43).runs[0].n_records == 12  # the next step would end at 44
    with pytest.raises(DataError, match="has seen 40 of the window's 44 samples"):
        rank_runs({"a": rows}, 44)


def test_margins_are_strict() -> None:
    def stopped(g: float, loss: float) -> list[str]:
        return rank_runs({"q": records(1.0, 2.0), "r": records(float(np.exp(g)), loss)}, 200).stopped

    assert stopped(0.06, 1.98) == ["r"]
    assert stopped(0.04, 1.98) == []
    assert stopped(0.06, 1.995) == []


def test_opposite_signals_tie_and_stop_nothing() -> None:
    runs = {
        "a": records(1.33, 1.79, lr=5e-4),
        "b": records(0.80, 0.66, lr=5e-4),
        "c": records(0.91, 1.13, lr=2e-3),
        "d": records(0.66, 0.41, lr=2e-3),
    }
    found = rank_runs(runs, 200)
    assert found.kept == ["a", "b", "c", "d"], "ties are listed by lower learning rate, then id"
    assert {run.score for run in found.runs} == {5.0}
    assert {run.rank for run in found.runs} == {1}


def test_identical_runs_tie_and_one_run_is_never_stopped() -> None:
    found = rank_runs({"b": records(1.0, 2.0), "a": records(1.0, 2.0)}, 200)
    assert found.ties == [["a", "b"]]
    assert [run.score for run in found.runs] == [3.0, 3.0]
    assert rank_runs({"a": records(9.0, 0.1)}, 200).kept == ["a"]


def test_a_run_that_does_not_learn_neither_stops_nor_is_stopped() -> None:
    runs = {"still": records(0.1, 2.99), "calm": records(1.0, 2.0), "loud": records(2.0, 1.5)}
    found = rank_runs(runs, 200)
    assert (found.kept, found.no_signal, found.stopped) == (["calm"], ["still"], ["loud"])
    assert next(run for run in found.runs if run.run == "loud").dominated_by == ("calm",)
    assert found.order == ["calm", "still", "loud"]
    assert rank_runs({"still": records(5.0, 2.99), "calm": records(1.0, 3.5)}, 200).kept == []


signal = st.tuples(
    st.floats(0.1, 10).map(lambda x: round(x, 2)), st.floats(0.1, 2.9).map(lambda x: round(x, 2))
)


@hypothesis_settings(max_examples=60, deadline=None)
@given(st.lists(signal, min_size=2, max_size=7), st.integers(-4, 4), st.randoms(use_true_random=False))
def test_invariances_and_survivors(values, power: int, draw: random.Random) -> None:
    runs = {f"r{i}": records(g, loss) for i, (g, loss) in enumerate(values)}
    found = rank_runs(runs, 200)
    names = list(runs)
    draw.shuffle(names)
    assert rank_runs({name: runs[name] for name in names}, 200) == found
    noise = [{"samples_seen": 300 + i, "loss": 99.0, "grad_norm": 99.0, "lr": 1.0} for i in range(3)]
    assert rank_runs({name: [*rows, *noise] for name, rows in runs.items()}, 200) == found
    scaled = {
        name: [{**row, "grad_norm": row["grad_norm"] * 2.0**power} for row in rows]
        for name, rows in runs.items()
    }
    again = rank_runs(scaled, 200)
    margin = {abs(a.g - b.g) for a in found.runs for b in found.runs}
    if all(abs(m - 0.05) > 1e-9 for m in margin):  # on the margin the last bit decides
        assert [(r.run, r.status) for r in again.runs] == [(r.run, r.status) for r in found.runs]
    learning = [run for run in found.runs if run.status != "no signal"]
    if learning:
        assert found.kept
        assert min(learning, key=lambda run: run.g).status == "keep"
        assert max(learning, key=lambda run: run.l).status == "keep"


def test_runs_that_are_not_comparable() -> None:
    one = EarlyRun(records(1.0, 2.0), {"data": "abc", "model": "m"})
    other = EarlyRun(records(2.0, 1.0), {"data": "xyz", "model": "m"})
    with pytest.raises(DataError) as error:
        rank_runs({"a": one, "b": other}, 200)
    assert str(error.value) == (
        "the runs 'a' and 'b' cannot be compared: they differ in data (abc against xyz). Rank runs on the same model, "
        "tokenizer, template, data and loss."
    )
    with pytest.raises(DataError, match=r"they differ in model, template \(m against None\)"):
        rank_runs(
            {"a": EarlyRun(records(1, 2), {"model": "m", "template": "t"}), "b": EarlyRun(records(1, 2))}, 200
        )


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            records(1, 2, n=30)[::4],
            "the run 'a' has 5 records within 200 samples, and at least 10 are needed: log every optimiser step, or "
            "widen the window.",
        ),
        (
            records(1, 2, n=15),
            "the run 'a' has seen 150 of the window's 200 samples: train it on, or narrow the window.",
        ),
        (
            [{**r, "samples_seen": s} for r, s in zip(records(1, 2, 12), [*range(10), 900, 950], strict=True)],
            "the run 'a' has no record in the second half of 200 samples.",
        ),
        (
            [{"samples_seen": 1, "loss": 2.0, "lr": 1e-5}] * 12,
            "record 0 of the run 'a' needs 'grad_norm', a finite number of at least 0. Got None instead.",
        ),
        (
            [*records(1, 2), {"samples_seen": 210, "loss": float("nan"), "grad_norm": 1.0, "lr": 0.1}],
            "record 20 of the run 'a' needs 'loss', a finite number of at least 0. Got nan instead.",
        ),
        ([], "the run 'a' has 0 records within 200 samples"),
    ],
)  # fmt: skip
def test_records_that_do_not_suffice(rows, message) -> None:
    with pytest.raises(DataError) as error:
        rank_runs({"a": rows}, 200)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ({}, 200),
            "The 'runs' parameter of rank_runs must be a mapping of at least one run id to its records. Got {}",
        ),
        (
            ({"a": []}, 0),
            "The 'samples' parameter of rank_runs must be a number of rows above 0. Got 0 instead.",
        ),
    ],
)
def test_ranking_nothing(arguments, message) -> None:
    with pytest.raises(ParameterError) as error:
        rank_runs(*arguments)
    assert str(error.value).startswith(message)


def test_margins_outside_their_set() -> None:
    with pytest.raises(
        ParameterError, match=r"^The 'eps_l' parameter of rank_runs must be a float of at least 0\. Got -1"
    ):
        rank_runs({"a": records(1, 2)}, 200, eps_l=-1)


def test_records_from_a_file(tmp_path) -> None:
    path = tmp_path / "signals.jsonl"
    lines = [json.dumps({"setting": {"data": "x"}}), *map(json.dumps, records(1.0, 2.0))]
    path.write_text("\n".join(lines) + '\n{"samples_seen": 99')  # torn
    assert read_signals(path) == EarlyRun(records(1.0, 2.0), {"data": "x"})
    assert rank_runs({"file": path}, 200).kept == ["file"]
    with pytest.raises(DataError, match=r"none\.jsonl: the records of a run cannot be read\."):
        read_signals(tmp_path / "none.jsonl")
