"""LifelongPool: budgets, reductions to simpler methods, growth, pruning, saving, and bad input."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from tunesmith.core.errors import DataError, ParameterError
from tunesmith.core.seeds import child_seed
from tunesmith.select.lifelong import LifelongPool, coverage_sample


def features(n: int = 120, groups: int = 4, seed: int = 0) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Well separated groups, a tight and a wide scorer, and perplexities above 1."""
    rng = np.random.default_rng(seed)
    group = np.arange(n) % groups
    x = 5 * np.eye(groups, 8)[group] + 0.3 * rng.standard_normal((n, 8))
    return x, {"perplexity": 1 + rng.gamma(2.0, 2.0, n), "el2n": rng.uniform(0, 1.4, n)}


def filled(n: int = 120, **parameters: Any) -> LifelongPool:
    x, scores = features(n)
    pool = LifelongPool(**{"n_clusters": 4, "random_state": 3, **parameters})
    pool.add(n, "first")
    return pool.fit(gradient=x, scores=scores)


def test_budgets_hold_and_rows_are_distinct() -> None:
    pool = filled()
    kept = pool.prune(70)
    assert len(kept) == len(set(kept.tolist())) == len(pool) == 70
    for budget in (1, 13, 70):
        picked = pool.select(budget)
        assert picked.dtype == np.int64
        assert len(picked) == len(set(picked.tolist())) == budget
        assert sum(row["quota"] for row in pool.report_) == budget
    assert len(pool.select(0.5)) == 35
    assert {row["scorer"] for row in pool.report_} <= {"perplexity", "el2n"}


def test_clusters_share_the_budget_and_report_says_why() -> None:
    pool = filled()
    picked = pool.select(40)
    assert np.bincount(pool.labels_[picked], minlength=4).tolist() == [10, 10, 10, 10]
    for row in pool.report_:
        assert row["size"] == 30
        assert row["scorer"] == max(row["entropy"], key=row["entropy"].__getitem__)
    chosen = pool.report_[0]["scorer"]
    first = np.flatnonzero(pool.labels_ == 0)
    want = features()[1][chosen][first]
    assert pool.scores_[first] == pytest.approx(np.log(want) if chosen == "perplexity" else want)


def test_one_scorer_and_one_cluster_is_plain_coverage_sampling() -> None:
    pool = filled(n_clusters=1, scorers=["el2n"])
    rng = np.random.default_rng(child_seed(3, "draw", 1, 0))
    assert pool.select(25).tolist() == coverage_sample(features()[1]["el2n"], 25, rng).tolist()


def test_one_scorer_is_clustered_coverage_sampling() -> None:
    pool = filled(scorers=["el2n"])
    picked = pool.select(20)
    for cluster in range(4):
        rows = np.flatnonzero(pool.labels_ == cluster)
        rng = np.random.default_rng(child_seed(3, "draw", 1, cluster))
        want = rows[coverage_sample(features()[1]["el2n"][rows], 5, rng)]
        assert picked[pool.labels_[picked] == cluster].tolist() == want.tolist()


def test_one_stratum_without_trim_is_random_sampling_in_each_cluster() -> None:
    pool = filled(n_clusters=1, strata=1, trim=0.0)
    got = pool.select(30)
    want = np.random.default_rng(child_seed(3, "draw", 1, 0)).choice(120, size=30, replace=False)
    assert got.tolist() == want.tolist()


def test_a_constant_scorer_never_changes_the_selection() -> None:
    x, scores = features()
    plain = filled().select(33)
    for order in (["perplexity", "el2n", "flat"], ["flat", "perplexity", "el2n"]):
        pool = LifelongPool(n_clusters=4, scorers=order, random_state=3)
        pool.add(120, "first")
        pool.fit(gradient=x, scores={**scores, "flat": np.full(120, 2.5)})
        assert pool.select(33).tolist() == plain.tolist()


def test_small_clusters_may_take_the_winner_of_the_whole_pool() -> None:
    pool = filled(min_rows=31)
    pool.select(8)
    assert len({row["scorer"] for row in pool.report_}) == 1


def test_a_scorer_that_is_mostly_missing_stays_out() -> None:
    x, scores = features()
    images = np.arange(120) % 4 == 0  # one group of rows has images
    grounding = np.where(images, np.linspace(0.5, 2, 120), np.nan)
    pool = LifelongPool(n_clusters=4).fit(x, scores={**scores, "grounding": grounding})
    pool.select(40)
    for row in pool.report_:
        has_images = images[pool.labels_ == row["cluster"]].all()
        assert ("grounding" in row["entropy"]) == has_images


@pytest.mark.parametrize("sampling", ["top", "bottom"])
def test_top_and_bottom_take_the_extremes(sampling: str) -> None:
    pool = filled(n_clusters=1, scorers=["el2n"], sampling=sampling)
    values = features()[1]["el2n"]
    order = np.argsort(values)
    want = order[::-1][:9] if sampling == "top" else order[:9]
    assert sorted(pool.select(9).tolist()) == sorted(want.tolist())


@pytest.mark.parametrize("quota", ["spread", "density"])
def test_other_quotas_spend_the_budget(quota: str) -> None:
    pool = filled(quota=quota, sampling="random")
    assert len(set(pool.select(50).tolist())) == 50


def test_identical_rows_share_a_cluster_and_zero_gradients_are_flagged() -> None:
    x, scores = features()
    x[1], x[7] = x[0], 0.0
    pool = LifelongPool(n_clusters=4, random_state=0).fit(gradient=x, scores=scores)
    assert pool.labels_[0] == pool.labels_[1]
    assert np.flatnonzero(pool.zero_gradients_).tolist() == [7]
    doubled = LifelongPool(n_clusters=4, random_state=0).fit(gradient=2 * x, scores=scores)
    assert doubled.labels_.tolist() == pool.labels_.tolist()


def test_pruning_keeps_ids_drops_copies_and_says_why() -> None:
    x, scores = features()
    copies = np.repeat(x[:1], 30, axis=0)
    pool = LifelongPool(n_clusters=4, random_state=0)
    pool.add(120, "a")
    ids = pool.add(30, "copies")
    assert ids[:2] == ["copies:0", "copies:1"]
    tripled = {name: np.concatenate([v, v[:30]]) for name, v in scores.items()}
    pool.fit(gradient=np.concatenate([x, copies]), scores=tripled)
    before = list(pool.ids_)
    kept = pool.prune(120)
    assert [before[i] for i in kept] == pool.ids_
    assert len({row["id"] for row in pool.dropped_} | set(pool.ids_)) == 150
    copies_left = [i for i in pool.ids_ if i.startswith("copies")]
    assert copies_left == []  # exact copies of a row that came first leave before anything else
    assert {row["reason"] for row in pool.dropped_} == {"like an earlier row of its cluster"}
    assert {row["round"] for row in pool.dropped_} == {2}
    assert pool.prune(500).tolist() == list(range(120))


def test_growth_over_rounds_is_deterministic_and_needs_a_new_look() -> None:
    def run() -> tuple[list[str], list[list[str]]]:
        pool = LifelongPool(n_clusters=4, random_state=1)
        picked = []
        for t in range(3):
            pool.add(60, f"set{t}")
            with pytest.raises(NotFittedError):
                pool.select(5)
            x, scores = features(len(pool), seed=t)
            pool.fit(gradient=x, scores=scores)
            pool.prune(80)
            picked.append([pool.ids_[i] for i in pool.select(20)])
        return pool.ids_, picked

    assert run() == run()
    ids, picked = run()
    assert len(ids) == 80
    assert {i.split(":")[0] for i in picked[2]} >= {"set0", "set2"}


def test_semantic_vectors_prune_where_both_are_given() -> None:
    x, scores = features()
    semantic = np.random.default_rng(5).standard_normal((120, 16))
    semantic[60:] = semantic[:60]
    pool = LifelongPool(n_clusters=1).fit(semantic, gradient=x, scores=scores)
    assert pool.prune(60).tolist() == list(range(60))


def test_rows_without_finite_features_are_not_chosen_and_leave_first() -> None:
    x, scores = features()
    x[5, 0] = np.nan
    x[9, 3] = np.inf
    pool = LifelongPool(n_clusters=4)
    with pytest.warns(
        UserWarning, match="^2 of 120 rows have features that are not finite; they are not chosen"
    ):
        pool.fit(gradient=x, scores=scores)
    assert not {5, 9} & set(pool.select(118).tolist())
    with pytest.raises(ParameterError) as error:
        pool.select(119)
    assert str(error.value) == (
        "The 'budget' parameter of LifelongPool must be at most 118, the rows with finite features. "
        "Got 119 instead."
    )
    pool.prune(119)
    assert [(row["id"], row["reason"]) for row in pool.dropped_] == [
        ("pool:5", "features not finite"),
        ("pool:9", "features not finite"),
    ]


def test_contract_of_a_selector() -> None:
    x, scores = features()
    ifd = np.linspace(0.1, 1.2, 120)
    pool = LifelongPool(n_clusters=4, random_state=0)
    assert pool.required_features() == ("embedding", "perplexity", "ifd")
    assert LifelongPool(scorers=["el2n"]).required_features() == ("embedding", "el2n")
    by_gradient = LifelongPool(scorers=["el2n"], cluster_by="gradient")
    assert by_gradient.required_features() == ("embedding", "gradient", "el2n")
    first = pool.fit(x, perplexity=scores["perplexity"], ifd=ifd).select(12)
    assert pool.select(12).tolist() == first.tolist()
    again = clone(pool).fit(x, perplexity=scores["perplexity"], ifd=ifd)
    assert again.select(12).tolist() == first.tolist()
    assert len(pool.fit(x[:40], perplexity=scores["perplexity"][:40]).select(12)) == 12
    with pytest.raises(NotFittedError):
        LifelongPool().prune(3)


def test_saved_in_the_middle_it_continues_as_the_straight_run(tmp_path: Path) -> None:
    straight = filled()
    folder = straight.save(tmp_path / "pool")
    loaded = LifelongPool.load(folder)
    assert loaded.get_params() == straight.get_params()
    for pool in (straight, loaded):
        pool.prune(50)
    assert loaded.ids_ == straight.ids_
    assert loaded.dropped_ == straight.dropped_
    assert loaded.select(17).tolist() == straight.select(17).tolist()
    assert loaded.report_ == straight.report_
    loaded.save(folder)
    third = LifelongPool.load(folder)
    assert third.add(5, "second") == [f"second:{i}" for i in range(5)]
    assert third.round_ == 2
    assert sorted(p.name for p in folder.iterdir()) == ["arrays.safetensors", "pool.json"]
    empty = LifelongPool().save(tmp_path / "empty")
    assert len(LifelongPool.load(empty)) == 0


def test_datasets_come_back_with_their_ids(tmp_path: Path) -> None:
    from datasets import Dataset

    pool = LifelongPool(n_clusters=2)
    first = Dataset.from_dict({"text": [f"a{i}" for i in range(10)]})
    second = Dataset.from_dict({"text": [f"b{i}" for i in range(6)]})
    pool.add(first, "a")
    pool.add(second, "b", ids=[f"row-{i}" for i in range(6)])
    rows = pool.dataset([12, 3])
    assert (rows["text"][:], rows["_id"][:]) == (["b2", "a3"], ["row-2", "a:3"])
    assert len(pool.dataset()) == 16
    loaded = LifelongPool.load(pool.save(tmp_path / "pool"))
    with pytest.raises(DataError) as error:
        loaded.dataset([12])
    assert str(error.value) == (
        "the data of 'b' is not here; add the dataset itself instead of its length, or attach it after "
        "loading."
    )
    loaded.attach("b", second)
    assert loaded.dataset([12])["text"][:] == ["b2"]
    with pytest.raises(ParameterError) as refusal:
        loaded.attach("a", second)
    assert str(refusal.value) == (
        "The 'source' parameter of LifelongPool must be a known source with the rows it was added with: a "
        "(10), "
        "b (6). Got ('a', 6) instead."
    )


FORM = "The '{}' parameter of LifelongPool must be {}. Got {} instead."
X, SCORES = features(12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: LifelongPool(n_clusters=13).fit(X, scores=SCORES),
            FORM.format("n_clusters", "at most 12, the rows with finite features", 13),
        ),
        (
            lambda: LifelongPool(n_clusters=0).fit(X, scores=SCORES),
            FORM.format("n_clusters", "an int >= 1", 0),
        ),
        (lambda: LifelongPool(bins=1).fit(X, scores=SCORES), FORM.format("bins", "an int >= 2", 1)),
        (
            lambda: LifelongPool(trim=0.5).fit(X, scores=SCORES),
            FORM.format("trim", "a float in [0, 0.5)", 0.5),
        ),
        (
            lambda: LifelongPool(quota="equal").fit(X, scores=SCORES),
            FORM.format("quota", "one of 'uniform', 'spread', 'density'", "'equal'"),
        ),
        (
            lambda: LifelongPool(sampling="ccs2").fit(X, scores=SCORES),
            FORM.format("sampling", "one of 'ccs', 'top', 'bottom', 'random'", "'ccs2'"),
        ),
        (
            lambda: LifelongPool(scorers=["el2n", "loss"]).fit(X, scores=SCORES),
            FORM.format("scorers", "scores that fit is given: perplexity, el2n", "['loss']"),
        ),
        (
            lambda: LifelongPool().fit(X),
            FORM.format("scorers", "scores that fit is given: it was given none", "[]"),
        ),
        (
            lambda: LifelongPool().fit(scores=SCORES),
            FORM.format("X", "features of the rows, as X or as gradient", "None"),
        ),
        (lambda: LifelongPool().add(0, "a"), FORM.format("data", "at least one row", 0)),
        (
            lambda: [pool := LifelongPool(), pool.add(2, "a"), pool.add(2, "a")],
            FORM.format("source", "a name that this pool has not seen", "'a'"),
        ),
        (
            lambda: LifelongPool().add(2, "a", ids=["x", "x"]),
            FORM.format("ids", "2 distinct ids new to this pool", "['x', 'x']"),
        ),
        (
            lambda: LifelongPool(n_clusters=2).fit(X, scores=SCORES).prune(0),
            FORM.format("max_size", "an int >= 1", 0),
        ),
        (
            lambda: LifelongPool(n_clusters=2).fit(X, scores=SCORES).select(13),
            FORM.format("budget", "an int in [1, 12] or a float in (0, 1]", 13),
        ),
    ],
)
def test_bad_parameters(call: Any, message: str) -> None:
    with pytest.raises(ParameterError) as error:
        call()
    assert str(error.value) == message


def test_a_pruned_id_cannot_come_back() -> None:
    pool = filled()
    pool.prune(100)
    gone = pool.dropped_[0]["id"]
    with pytest.raises(ParameterError, match="distinct ids new to this pool"):
        pool.add(1, "again", ids=[gone])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: LifelongPool(n_clusters=2).fit(X, scores={"el2n": np.ones(5)}),
            "'el2n' has 5 rows, but the pool has 12.",
        ),
        (
            lambda: [pool := LifelongPool(n_clusters=2), pool.add(7, "a"), pool.fit(X, scores=SCORES)],
            "'X' has 12 rows, but the pool has 7.",
        ),
        (
            lambda: LifelongPool(n_clusters=2).fit(X, perplexity=np.r_[np.ones(11), 0.0]),
            "row 11: 'perplexity' must be > 0 to take its logarithm.",
        ),
        (
            lambda: LifelongPool(n_clusters=2).fit(X[0], scores=SCORES),
            "features must be a matrix (rows, columns); got shape (8,).",
        ),
    ],
)
def test_bad_data(call: Any, message: str) -> None:
    with warnings.catch_warnings(), pytest.raises(DataError) as error:
        call()
    assert str(error.value) == message


def test_folders_that_hold_no_pool(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no LifelongPool in this folder \("):
        LifelongPool.load(tmp_path)
    (tmp_path / "pool.json").write_text('{"format": 99}', encoding="utf-8")
    with pytest.raises(DataError) as error:
        LifelongPool.load(tmp_path)
    assert str(error.value) == (
        f"{tmp_path}: written by another version of LifelongPool; this one reads format 1."
    )
