import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.core.errors import DataError, ParameterError
from tunesmith.select import choose_n_clusters, cluster_means, reweight

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "kmeans-iterative.json").read_text())["cases"]
CASES = {case["name"]: case for case in GOLDEN}


def test_hand_worked_weights():
    first = reweight(np.full(3, 1 / 3), [2, 1, 1], normaliser="ratio")
    assert np.allclose(first, [0.5, 0.25, 0.25])
    assert np.allclose(reweight(first, [1, 1, 2], normaliser="ratio"), [0.4, 0.2, 0.4])
    without = reweight(np.full(3, 1 / 3), [2, 1, 1], history=False)
    assert np.allclose(without, [0.576, 0.212, 0.212], atol=5e-4)


weights = st.lists(st.floats(0.01, 1), min_size=2, max_size=8).map(lambda w: np.array(w) / sum(w))


@given(weights, st.floats(0.01, 5), st.sampled_from(["softmax", "ratio"]))
def test_equal_scores_leave_weights_alone(w, score, normaliser):
    assert np.allclose(reweight(w, np.full(len(w), score), normaliser=normaliser), w)
    uniform = reweight(w, np.full(len(w), score), normaliser=normaliser, history=False)
    assert np.allclose(uniform, 1 / len(w))


@given(weights, st.integers(0, 2**31), st.sampled_from(["softmax", "ratio"]))
def test_the_lowest_score_never_gains_weight(w, seed, normaliser):
    scores = np.random.default_rng(seed).uniform(0.1, 3, len(w))
    scores[0] = 0.05
    new = reweight(w, scores, normaliser=normaliser)
    assert new[0] <= w[0] + 1e-12
    assert new.sum() == pytest.approx(1)


def test_floor_lets_a_cluster_recover():
    low = reweight([0.5, 0.5], [0.0, 60.0], floor=0.1)
    assert low[0] == pytest.approx(0.05)
    assert low.sum() == pytest.approx(1)


@pytest.mark.parametrize("name", [n for n in CASES if n in ("reweight_0", "reweight_1")])
def test_golden_weights_of_the_code(name):
    case = CASES[name]
    labels, rows = np.array(case["inputs"]["labels"]), case["inputs"]["scored_rows"]
    difference = np.array(case["inputs"]["reward_gold"]["data"]) - case["inputs"]["reward_generated"]["data"]
    k = case["params"]["k"]
    means, _ = cluster_means(difference, labels[rows], k)
    assert np.allclose(means, case["outputs"]["mean_difference_per_cluster"]["data"], atol=case["tolerance"])
    weights_ = reweight(np.full(k, 1 / k), means, history=False)
    assert np.allclose(weights_, case["outputs"]["weights"]["data"], atol=case["tolerance"])


def test_golden_cluster_without_scores_gets_the_mean_of_the_others():
    case = CASES["reweight_cluster_without_scores"]["inputs"]
    labels = np.array(case["labels"])[case["scored_rows"]]
    means, counts = cluster_means(np.array(case["reward_gold"]) - case["reward_generated"], labels, 3)
    assert counts.tolist() == [2, 1, 0]  # the fixture scores clusters 0, 0 and 1
    assert np.allclose(reweight(np.full(3, 1 / 3), means), 1 / 3)
    assert cluster_means([1.0, 3.0, 5.0], [0, 0, 2], 3)[0].tolist() == [2.0, 3.5, 5.0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: reweight([1, 1], [1, -1], normaliser="ratio"),
            "The 'scores' parameter of reweight must be positive under normaliser='ratio'. Got "
            "[1.0, -1.0] instead.",
        ),
        (
            lambda: reweight([1, 1], [1, np.nan]),
            "The 'scores' parameter of reweight must be finite numbers. Got [1.0, nan] instead.",
        ),
        (
            lambda: reweight([1, 1], [1, 1], normaliser="max"),
            "The 'normaliser' parameter of reweight must be 'softmax' or 'ratio'. Got 'max' instead.",
        ),
        (
            lambda: reweight([1, 1], [1, 1], floor=1),
            "The 'floor' parameter of reweight must be a float in [0, 1). Got 1 instead.",
        ),
        (
            lambda: choose_n_clusters(np.zeros((5, 2)), [1, 3]),
            "The 'candidates' parameter of choose_n_clusters must be one or more ints in [2, 4]. "
            "Got [1, 3] instead.",
        ),
    ],
)
def test_parameter_messages(call, message):
    with pytest.raises(ParameterError) as caught:
        call()
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: cluster_means([], [], 2),
            "feedback needs one score per row and at least one row, but got 0 scores for 0 rows.",
        ),
        (
            lambda: cluster_means([1.0], [0, 1], 2),
            "feedback needs one score per row and at least one row, but got 1 scores for 2 rows.",
        ),
        (lambda: cluster_means([1.0, np.inf], [0, 1], 2), "row 1: the feedback is not a finite number."),
        (
            lambda: choose_n_clusters(np.ones((9, 2)), [2, 3], random_state=0),
            "no candidate splits the sampled rows into clusters; are all rows equal?",
        ),
    ],
)
def test_data_messages(call, message):
    with pytest.raises(DataError) as caught:
        call()
    assert str(caught.value) == message


def test_silhouette_finds_the_planted_number_of_clusters():
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(6, 8)) * 4
    X = centers[rng.integers(0, 6, 600)] + 0.4 * rng.normal(size=(600, 8))
    best, values = choose_n_clusters(X, [2, 4, 6, 12], sample_size=300, n_init=4, random_state=0)
    assert best == 6
    assert list(values) == [2, 4, 6, 12]
    assert values[6] > 0.6
    assert choose_n_clusters(X, [2, 4, 6, 12], sample_size=300, n_init=4, random_state=0)[1] == values
