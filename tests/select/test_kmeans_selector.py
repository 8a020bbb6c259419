import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tunesmith.core.errors import DataError, ParameterError
from tunesmith.numerics import group_softmax, kmeans, weighted_draw
from tunesmith.select import KMeansSelector, resolve_budget

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "kmeans-iterative.json").read_text())["cases"]
CASES = {case["name"]: case for case in GOLDEN}


def fitted(labels, quality=None, **options):
    sampling = "random" if quality is None else "quality"
    return KMeansSelector(**{"sampling": sampling, "random_state": 0, **options}).fit(
        labels=labels, quality=quality
    )


def quietly(selector, budget):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return selector.select(budget)


@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=12),
    st.floats(0.01, 1),
    st.sampled_from(["equal", "proportional"]),
)
@settings(deadline=None)
def test_any_budget_is_filled_with_distinct_rows(sizes, share, allocation):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    selector = fitted(labels, np.linspace(0, 1, len(labels)), allocation=allocation)
    picks = quietly(selector, share)
    assert len(set(picks)) == len(picks) == resolve_budget(share, len(labels), "test")
    assert np.array_equal(np.bincount(labels[picks], minlength=len(sizes)), selector.counts_)


@pytest.mark.parametrize(
    ("sizes", "budget", "counts"), [((60, 30, 10), 20, [12, 6, 2]), ((50, 30, 21), 10, [5, 3, 2])]
)
def test_hand_worked_proportional_counts(sizes, budget, counts):
    selector = fitted(np.repeat([0, 1, 2], sizes))
    selector.select(budget)
    assert selector.counts_.tolist() == counts


def test_hand_worked_equal_counts_with_overflow():
    selector = fitted(np.repeat([0, 1, 2], (1, 2, 50)), allocation="equal")
    selector.select(9)
    assert selector.counts_.tolist() == [1, 2, 6]


def test_one_cluster_with_quality_is_softmax_sampling():
    q = np.array([0.0, 1.0, 2.0])
    firsts = [
        fitted(np.zeros(3, int), q, standardise=False, random_state=seed).select(1)[0] for seed in range(3000)
    ]
    expected = np.exp(q) / np.exp(q).sum() * 3000
    assert stats.chisquare(np.bincount(firsts, minlength=3), expected).pvalue > 1e-3


def test_one_cluster_with_constant_quality_is_uniform():
    firsts = [fitted(np.zeros(4, int), np.ones(4), random_state=seed).select(1)[0] for seed in range(3000)]
    assert stats.chisquare(np.bincount(firsts, minlength=4)).pvalue > 1e-3


@pytest.mark.parametrize("k", [1, 7, 40])
def test_whole_budget_selects_everything(k):
    X = np.random.default_rng(0).normal(size=(40, 5))
    for sampling in ("random", "closest", "quality"):
        selector = KMeansSelector(k, sampling=sampling, random_state=0).fit(X, quality=X[:, 0])
        assert sorted(selector.select(40)) == list(range(40))


def test_constant_quality_draws_as_random():
    labels = np.random.default_rng(1).integers(0, 6, 200)
    for constant in (0.0, 3.7, 1e9):
        assert np.array_equal(fitted(labels, np.full(200, constant)).select(50), fitted(labels).select(50))


@pytest.mark.parametrize("standardise", [True, False])
def test_shifting_the_qualities_of_a_cluster_changes_nothing(standardise):
    rng = np.random.default_rng(2)
    labels, q = rng.integers(0, 4, 200), rng.normal(size=200)
    shift = np.array([0.0, 8.0, -64.0, 1024.0])[labels]
    a, b = (fitted(labels, values, standardise=standardise).select(60) for values in (q, q + shift))
    assert np.array_equal(a, b)


def test_standardised_quality_does_not_depend_on_its_scale():
    rng = np.random.default_rng(3)
    labels, q = rng.integers(0, 4, 200), rng.random(200)
    assert np.array_equal(fitted(labels, q).select(60), fitted(labels, 4096 * q).select(60))
    assert not np.array_equal(
        fitted(labels, q, standardise=False).select(60),
        fitted(labels, 4096 * q, standardise=False).select(60),
    )


def test_temperature_goes_from_the_best_rows_to_any_rows():
    rng = np.random.default_rng(4)
    labels, q = rng.integers(0, 5, 500), rng.normal(size=500)
    mean = [q[fitted(labels, q, temperature=t).select(50)].mean() for t in (0.01, 1.0, 100.0)]
    assert mean[0] > mean[1] > mean[2]
    best = [
        i
        for j in range(5)
        for i in np.argsort(-np.where(labels == j, q, -np.inf))[: (labels == j).sum() // 10]
    ]
    assert set(best) <= set(fitted(labels, q, temperature=1e-6).select(100))


def test_huge_qualities():
    assert fitted([0, 0, 0], [800.0, 5.0, 6.0], standardise=False).select(1).tolist() == [0]
    assert fitted([0, 0, 0], [1e300, -1e300, 0.0], temperature=1e-3).select(1).tolist() == [0]


def test_closest_takes_the_rows_nearest_to_each_centre():
    rng = np.random.default_rng(5)
    X = rng.normal(size=(300, 6)).astype(np.float32)
    selector = KMeansSelector(6, sampling="closest", normalise=False, random_state=0).fit(X)
    picks = selector.select(60)
    away = ((X - selector.cluster_centers_[selector.labels_]) ** 2).sum(1)
    for j in range(6):
        mine = np.flatnonzero(selector.labels_ == j)
        nearest = mine[np.argsort(away[mine], kind="stable")][: selector.counts_[j]]
        assert set(nearest) == set(picks[selector.labels_[picks] == j])
    given_ = KMeansSelector(sampling="closest", normalise=False).fit(X, labels=np.zeros(300, int))
    middle = ((X - X.mean(0)) ** 2).sum(1)
    assert set(given_.select(10)) == set(np.argsort(middle)[:10])


@pytest.mark.parametrize("sampling", ["random", "quality"])
def test_permuting_rows_with_their_ids_permutes_the_answer(sampling):
    rng = np.random.default_rng(6)
    labels, q, order = rng.integers(0, 5, 150), rng.normal(size=150), rng.permutation(150)
    options = {"sampling": sampling, "random_state": 9}
    straight = KMeansSelector(**options).fit(labels=labels, quality=q).select(30)
    shuffled = KMeansSelector(**options).fit(labels=labels[order], quality=q[order], ids=order).select(30)
    assert np.array_equal(order[shuffled], straight)


def test_replacement_draws_by_softmax_and_may_repeat():
    labels = np.repeat([0, 1], [3, 3])
    q = np.array([0.0, 1.0, 2.0, 5.0, 5.0, 5.0])
    picks = np.concatenate(
        [fitted(labels, q, replace=True, standardise=False, random_state=s).select(6) for s in range(1000)]
    )
    share = np.bincount(picks, minlength=6) / 6000
    assert abs(share[:3] - np.exp(q[:3]) / np.exp(q[:3]).sum() / 2).max() < 0.03
    assert abs(share[3:] - 1 / 6).max() < 0.03
    assert len(set(fitted(labels, q, replace=True, temperature=1e-3).select(6))) < 6


def test_default_number_of_clusters_and_attributes():
    X = np.random.default_rng(7).normal(size=(400, 4))
    selector = KMeansSelector(sampling="random", random_state=0).fit(X)
    assert selector.n_clusters_ == 20
    assert selector.cluster_centers_.shape == (20, 4)
    assert selector.labels_.dtype == np.int64
    assert selector.inertia_ > 0
    named = fitted(np.array(["b", "a", "b"]))
    assert named.labels_.tolist() == [1, 0, 1]
    assert named.cluster_centers_ is None


def test_normalise_makes_length_irrelevant():
    rng = np.random.default_rng(8)
    X = rng.normal(size=(200, 5)).astype(np.float32)
    scaled = X * np.exp2(rng.integers(-3, 4, 200))[:, None].astype(np.float32)
    a, b = (KMeansSelector(9, sampling="random", random_state=0).fit(m).labels_ for m in (X, scaled))
    assert np.array_equal(a, b)


def test_rows_of_zeros_and_unit_rows_are_taken_as_they_are():
    X = np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 0, 1]]
    X[5] = 0
    selector = KMeansSelector(5, sampling="random", random_state=0).fit(X)
    assert len(set(selector.labels_[:4])) == 4
    assert selector.labels_[0] == selector.labels_[4]


def test_budget_below_the_clusters_warns():
    selector = fitted(np.arange(10))
    with pytest.warns(UserWarning, match="below the 10 clusters") as caught:
        selector.select(4)
    assert str(caught[0].message) == (
        "KMeansSelector: the budget of 4 rows is below the 10 clusters, so 6 or more of them get none; "
        "a smaller n_clusters covers the pool better."
    )


X5 = np.random.default_rng(0).normal(size=(5, 2))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (
            {"n_clusters": 0},
            "The 'n_clusters' parameter of KMeansSelector must be an int in [1, 5] or 'auto'. Got 0 instead.",
        ),
        (
            {"n_clusters": 6},
            "The 'n_clusters' parameter of KMeansSelector must be an int in [1, 5] or 'auto'. Got 6 instead.",
        ),
        (
            {"n_clusters": "many"},
            "The 'n_clusters' parameter of KMeansSelector must be an int in "
            "[1, 5] or 'auto'. Got 'many' instead.",
        ),
        (
            {"sampling": "best"},
            "The 'sampling' parameter of KMeansSelector must be one of "
            "'quality', 'random', 'closest'. Got 'best' instead.",
        ),
        (
            {"allocation": "all"},
            "The 'allocation' parameter of KMeansSelector must be one of "
            "'proportional', 'equal'. Got 'all' instead.",
        ),
        (
            {"temperature": 0},
            "The 'temperature' parameter of KMeansSelector must be a float > 0. Got 0 instead.",
        ),
        (
            {"sampling": "closest", "replace": True},
            "The 'replace' parameter of KMeansSelector must "
            "be False when sampling='closest'. Got True instead.",
        ),
    ],
)
def test_parameter_messages(parameters, message):
    with pytest.raises(ParameterError) as caught:
        KMeansSelector(**parameters).fit(X5, quality=np.ones(5))
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("options", "given_", "message"),
    [
        (
            {},
            {"X": X5},
            "KMeansSelector with sampling='quality' (kMQ) needs quality, one number per "
            "row; sampling='random' or 'closest' does without.",
        ),
        ({}, {}, "KMeansSelector needs X, the embeddings, or labels, ready clusters."),
        (
            {"sampling": "closest"},
            {"labels": [0, 1]},
            "KMeansSelector with sampling='closest' needs X, the embeddings.",
        ),
        (
            {},
            {"X": X5, "quality": [1, 2, float("nan"), 4, 5]},
            "row 2: 'quality' must be a finite "
            "number for KMeansSelector, but is nan here (1 such rows in all).",
        ),
        (
            {},
            {"X": X5, "quality": [1, 2, 3]},
            "'quality' must have one entry per row, but KMeansSelector got 3 entries for 5 rows.",
        ),
        (
            {"sampling": "random"},
            {"X": X5, "labels": [0]},
            "'labels' must have one entry per row, but KMeansSelector got 1 entries for 5 rows.",
        ),
        (
            {"sampling": "random"},
            {"labels": np.zeros((3, 2))},
            "'labels' must be one cluster per row, but have shape (3, 2).",
        ),
        (
            {"sampling": "random"},
            {"X": X5, "ids": [0, 1, 2, 3, 3]},
            "'ids' must be one distinct integer per row for KMeansSelector.",
        ),
        (
            {"sampling": "random"},
            {"X": X5[:0]},
            "KMeansSelector has nothing to choose from: the pool holds no rows.",
        ),
        (
            {"sampling": "random"},
            {"X": np.where(X5[3, 1] == X5, np.nan, X5)},
            "row 3: the matrix holds a value that is not a finite number.",
        ),
        (
            {"sampling": "random"},
            {"X": X5[:, :0]},
            "k-means needs a matrix of shape (rows, columns), neither 0, but got shape (5, 0).",
        ),
    ],
)
def test_data_messages(options, given_, message):
    with pytest.raises(DataError) as caught:
        KMeansSelector(**options).fit(**given_)
    assert str(caught.value) == message


@pytest.mark.parametrize("name", [n for n in CASES if n.startswith("budget_")])
def test_golden_budget(name):
    case = CASES[name]
    assert (
        resolve_budget(case["params"]["fraction"], case["inputs"]["n"], "test") == case["outputs"]["budget"]
    )


@pytest.mark.parametrize("name", [n for n in CASES if n.startswith(("round0_counts", "kmrandom_counts"))])
def test_golden_counts_are_kept_and_the_lost_budget_is_spent(name):
    """The code gives each cluster int(b / k) (or int(b / (N k))) rows and loses the rest; ours "
    "only adds to that."""
    case = CASES[name]
    labels = np.array(case["inputs"]["labels"])
    rounds = case["params"].get("rounds", 1)
    budget, counts = case["outputs"]["budget"], np.array(case["outputs"]["counts"])
    sizes = np.bincount(labels)
    assert np.array_equal(counts, np.minimum(budget // (rounds * len(sizes)), sizes))
    selector = fitted(labels, allocation="equal")
    quietly(selector, budget // rounds)
    assert (selector.counts_ >= counts).all()
    assert selector.counts_.sum() == budget // rounds >= case["outputs"]["total"]


@pytest.mark.parametrize("name", ["kmq_probabilities_0", "kmq_probabilities_1"])
def test_golden_draw_probabilities(name):
    case = CASES[name]
    labels, k = np.array(case["inputs"]["labels"]), case["params"]["k"]
    q = np.trunc(
        case["inputs"]["quality"]["data"]
    )  # the code cuts to whole numbers; the law is compared with its q
    assert q.tolist() == case["outputs"]["quality_used"]
    assert np.allclose(group_softmax(q, labels), case["outputs"]["p"]["data"], atol=case["tolerance"])
    repeats, n = 20_000, len(q)
    many = np.concatenate([labels + k * r for r in range(repeats)])
    counts = np.tile(case["outputs"]["drawn_per_cluster"], repeats)
    picks = weighted_draw(np.tile(q, repeats), many, counts, seed=0)
    frequency = np.bincount(picks % n, minlength=n) / repeats
    # Exact inclusion probabilities; 4.5 standard deviations of 20,000 draws are 0.016 at most.
    assert abs(frequency - case["outputs"]["inclusion_probability_own"]["data"]).max() < 0.016


def test_golden_overflow_case_draws_the_best_row():
    quality = np.array(CASES["kmq_overflow"]["inputs"]["quality"], dtype=float)
    assert fitted(np.zeros(3, int), quality, standardise=False).select(1).tolist() == [0]


@pytest.mark.parametrize("name", ["kmeans_0", "kmeans_1"])
def test_golden_partition(name):
    case = CASES[name]
    X = np.array(case["inputs"]["X"]["data"], dtype=np.float32)
    result = kmeans(X, case["params"]["k"], n_init=5, random_state=0, tol=0)
    names = {}
    partition = [names.setdefault(label, len(names)) for label in result.labels.tolist()]
    assert partition == case["outputs"]["partition"]
    assert result.inertia == pytest.approx(case["outputs"]["inertia"], rel=case["tolerance"])
