"""K-means SDP: proven optima, bounds on every partition, bad input."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning

from tunesmith.cluster import KMeansSDP
from tunesmith.core.errors import DataError, ParameterError

FOUR = np.array([[0.0], [1], [10], [12]])


def inertia(X: np.ndarray, labels: np.ndarray) -> float:
    return float(sum(np.sum((X[labels == k] - X[labels == k].mean(axis=0)) ** 2) for k in np.unique(labels)))


@pytest.mark.parametrize("solver", ["admm", "burer-monteiro", "cvxpy"])
def test_four_points(solver: str) -> None:
    if solver == "cvxpy":
        pytest.importorskip("cvxpy")
    model = KMeansSDP(2, solver=solver, random_state=0).fit(FOUR)
    assert model.labels_.tolist() == [0, 0, 1, 1]
    assert model.inertia_ == pytest.approx(2.5)  # 0.5 + 2
    assert model.inertia_bound_ == pytest.approx(2.5, rel=1e-3)
    assert model.optimal_ or solver == "cvxpy"
    np.testing.assert_allclose(model.membership_, np.kron(np.eye(2), np.full((2, 2), 0.5)), atol=1e-2)
    np.testing.assert_allclose(model.cluster_centers_, [[0.5], [11]])
    assert model.predict([[-3.0], [7.0]]).tolist() == [0, 1]


@pytest.mark.parametrize("seed", range(4))
def test_no_partition_is_below_the_bound_and_optimal_ones_are_best(seed: int) -> None:
    X = np.random.default_rng(seed).standard_normal((8, 2))
    best = min(
        inertia(X, np.array(labels)) for labels in product(range(3), repeat=8) if len(set(labels)) == 3
    )
    model = KMeansSDP(3, tol=1e-5, max_iter=10_000, random_state=seed).fit(X)
    assert model.inertia_bound_ <= best + 1e-9
    assert model.dual_gap_ == pytest.approx(model.inertia_ - model.inertia_bound_)
    assert model.dual_gap_ >= 0
    if model.optimal_:
        assert model.inertia_ == pytest.approx(best, rel=1e-4)


def test_overlapping_clusters_are_not_proven_and_the_bound_still_holds() -> None:
    X = np.random.default_rng(3).standard_normal((60, 3))
    model = KMeansSDP(3, random_state=0).fit(X)
    assert not model.optimal_
    assert 0 < model.inertia_bound_ <= KMeans(3, n_init=20, random_state=0).fit(X).inertia_
    np.testing.assert_allclose(model.membership_.sum(axis=0), 1, atol=1e-9)
    assert np.trace(model.membership_) == pytest.approx(3)


def test_one_cluster_one_row_each_and_duplicates() -> None:
    one = KMeansSDP(1).fit(FOUR)
    assert one.labels_.tolist() == [0, 0, 0, 0]
    assert one.optimal_
    each = KMeansSDP(4).fit(FOUR)
    assert each.labels_.tolist() == [0, 1, 2, 3]
    assert each.inertia_ == each.inertia_bound_ == 0
    same = KMeansSDP(3, random_state=0).fit(
        np.repeat([[0.0], [5.0]], 6, axis=0)
    )  # fewer distinct rows than clusters
    assert sorted(np.unique(same.labels_)) == [0, 1, 2]
    assert same.inertia_ == pytest.approx(0, abs=1e-9)


def test_sketch_solves_on_some_rows_and_labels_all() -> None:
    rng = np.random.default_rng(0)
    X = np.concatenate([rng.normal(c, 0.5, (100, 2)) for c in (0, 5)]).astype(np.float32)
    model = KMeansSDP(2, sketch=True, sketch_size=40, max_rows=100, random_state=0).fit(X)
    assert model.labels_.shape == (200,)
    assert model.membership_.shape == (40, 40)
    assert len(model.sketch_indices_) == 40
    assert model.cluster_centers_.dtype == np.float32
    assert len(np.unique(model.labels_[:100])) == len(np.unique(model.labels_[100:])) == 1
    assert (
        KMeansSDP(2, sketch=True, random_state=0).fit(X).sketch_indices_ is None
    )  # fewer rows than the sketch


def test_bad_input() -> None:
    with pytest.raises(
        ParameterError, match=r"The 'n_clusters' parameter of KMeansSDP must be an int in \[1, 4\]"
    ):
        KMeansSDP(5).fit(FOUR)
    wanted = (
        r"KMeansSDP got 4 rows; memory grows as their square and time as their cube. Pass sketch=True to solve on "
        r"1,000 of them, or raise max_rows \(now 3\)."
    )
    with pytest.raises(DataError, match=wanted):
        KMeansSDP(2, max_rows=3).fit(FOUR)
    with pytest.raises(ValueError, match="Input X contains NaN"):
        KMeansSDP(2).fit([[0.0], [np.nan]])


def test_too_few_iterations_warn_and_leave_a_usable_result() -> None:
    X = np.random.default_rng(0).standard_normal((40, 2))
    wanted = "KMeansSDP stopped after 25 iterations before its tolerance 1e-08; labels and bound are valid"
    with pytest.warns(ConvergenceWarning, match=wanted):
        model = KMeansSDP(2, tol=1e-8, max_iter=25, random_state=0).fit(X)
    assert set(model.labels_) == {0, 1}
    assert model.inertia_bound_ <= model.inertia_
