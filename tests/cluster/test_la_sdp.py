"""Likelihood-adjusted SDP: one objective that never falls, its symmetries, its certificates, bad input."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning

from tunesmith.cluster import LikelihoodAdjustedSDP
from tunesmith.cluster.sdp import argmax_rounding, lift, log_likelihood, spectral_rounding
from tunesmith.cluster.sdp.alternate import alternate
from tunesmith.core.errors import DataError, ParameterError
from tunesmith.metrics.clustering import clustering_accuracy

FOUR = np.array([[0.0], [1], [10], [12]])
EXACT = {"solver": "admm", "exact": True, "solver_tol": 1e-7, "max_iter": 20_000}


def crossed(n: int, seed: int, p: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Two long groups, one along each of the first two axes."""
    rng = np.random.default_rng(seed)
    groups = []
    for k in range(2):
        variance, centre = np.full(p, 0.3), np.zeros(p)
        variance[k], centre[:3] = 12, 2 * k
        groups.append(centre + np.sqrt(variance) * rng.standard_normal((n // 2, p)))
    return np.vstack(groups), np.repeat([0, 1], n // 2)


@pytest.mark.parametrize("start", ["truth", "random"])
@pytest.mark.parametrize("kind", ["full", "diag", "tied", "spherical"])
def test_the_likelihood_with_its_ridge_never_falls(start: str, kind: str) -> None:
    X, truth = crossed(14, 0)
    labels = truth if start == "truth" else np.random.default_rng(1).permutation(truth)
    run = alternate(X, labels, 2, kind=kind, eps=1e-2, outer_iter=6, outer_tol=0.0, **EXACT)
    assert len(run.history) >= 2
    assert np.diff(run.history).min() >= -1e-4


def test_a_loose_solver_falls_by_no_more_than_its_tolerance() -> None:
    X, truth = crossed(14, 0)
    labels = np.random.default_rng(1).permutation(truth)
    loose = {**EXACT, "solver_tol": 1e-3, "max_iter": 200}
    run = alternate(X, labels, 2, eps=1e-2, outer_iter=6, outer_tol=0.0, **loose)
    assert np.diff(run.history).min() >= -4e-3 * max(map(abs, run.history))


def test_translation_and_linear_maps() -> None:
    X, truth = crossed(16, 2)
    B = np.array([[2.0, 1.0], [-0.5, 3.0]])
    runs = [alternate(Y, truth, 2, outer_iter=2, outer_tol=0.0, **EXACT) for Y in (X, X + 100, X @ B)]
    np.testing.assert_allclose(runs[1].history, runs[0].history, rtol=1e-5)
    shift = -2 * 16 * np.log(abs(np.linalg.det(B)))
    np.testing.assert_allclose(runs[2].history, np.add(runs[0].history, shift), rtol=1e-5)
    own = [[np.cov(Y[truth == k].T, bias=True) for k in range(2)] for Y in (X, X @ B)]
    direct = [log_likelihood(Y, truth, sigma) for Y, sigma in zip((X, X @ B), own, strict=True)]
    assert direct[1] - direct[0] == pytest.approx(shift, abs=1e-9)


def test_permuting_the_groups_permutes_their_memberships() -> None:
    X, truth = crossed(14, 3)
    one, other = (alternate(X, labels, 2, eps=0.1, outer_iter=3, **EXACT) for labels in (truth, 1 - truth))
    np.testing.assert_allclose(one.found.Z, other.found.Z[::-1], atol=1e-4)
    np.testing.assert_allclose(one.covariances.full, other.covariances.full[::-1], atol=1e-3)
    assert one.history == pytest.approx(other.history, abs=1e-4)


@pytest.mark.parametrize(
    ("trace", "l", "second"), [("group", -0.5 - (2 * np.log(4) + 0.5), 1.0), ("joint", -2.5, 0.0)]
)
def test_known_covariances_solve_one_program(trace: str, l: float, second: float) -> None:  # noqa: E741
    model = LikelihoodAdjustedSDP(
        2, covariances=[[[1.0]], [[4.0]]], trace=trace, solver_tol=1e-6, random_state=0
    )
    model.fit(FOUR)
    assert model.n_iter_ == 1
    assert model.lower_bound_ == pytest.approx(l, abs=1e-5)
    assert np.trace(model.memberships_[1]) == pytest.approx(second, abs=1e-4)
    np.testing.assert_allclose(model.covariances_, [[[1.0]], [[4.0]]])
    if trace == "group":
        assert model.labels_.tolist() == [0, 0, 1, 1]
        np.testing.assert_allclose(model.means_, [[0.5], [11]])
        assert model.dual_gap_ == pytest.approx(0, abs=1e-4)
        # -log 1 - (3 - 0.5)^2 = -6.25 against -log 4 - (3 - 11)^2 / 4 = -17.4; at 8: -56.25 against -3.64
        assert model.predict([[3.0], [8.0]]).tolist() == [0, 1]
    else:
        assert model.upper_bound_ >= -2.5 >= model.partition_value_  # no partition reaches the joint optimum


def test_one_cluster_and_one_row_each() -> None:
    X, _ = crossed(10, 0)
    one = LikelihoodAdjustedSDP(1, ridge=0).fit(X)
    np.testing.assert_allclose(one.memberships_, np.full((1, 10, 10), 0.1))
    np.testing.assert_allclose(one.covariances_[0], np.cov(X.T, bias=True))
    assert one.labels_.tolist() == [0] * 10
    each = LikelihoodAdjustedSDP(4, random_state=0).fit(FOUR)
    assert sorted(each.labels_) == [0, 1, 2, 3]
    assert each.floored_.all()


def test_long_groups_that_k_means_cuts_across() -> None:
    """The dossier's kind of data, its seeds 0 and 1: k-means near .77, iLA-SDP .95 and above."""
    ours, plain = [], []
    for seed in (0, 1):
        X, truth = crossed(60, seed, p=6)
        model = LikelihoodAdjustedSDP(2, random_state=0).fit(X)
        ours.append(clustering_accuracy(truth, model.labels_))
        plain.append(clustering_accuracy(truth, KMeans(2, n_init=20, random_state=0).fit_predict(X)))
        assert model.converged_
        assert 0 <= model.dual_gap_ <= 1e-3 * abs(model.lower_bound_)
        assert not model.floored_.any()
        np.testing.assert_array_equal(argmax_rounding(model.memberships_), model.labels_)
    assert min(ours) >= 0.95
    assert np.mean(plain) < 0.85


def test_more_starts_keep_the_largest_likelihood() -> None:
    X, _ = crossed(40, 5, p=3)
    models = [LikelihoodAdjustedSDP(2, n_init=n, random_state=0).fit(X) for n in (1, 4)]
    assert models[1].lower_bound_ >= models[0].lower_bound_ - 1e-6


@pytest.mark.parametrize("init", ["kmeans", "spectral", "ward", "random"])
def test_every_start_gives_labels(init: str) -> None:
    X, _ = crossed(24, 1)
    model = LikelihoodAdjustedSDP(2, init=init, covariance_type="diag", random_state=0).fit(X)
    assert set(model.labels_) == {0, 1}
    assert (
        model.lower_bounds_[-1] == model.lower_bound_ <= model.upper_bound_ + 1e-2 * abs(model.upper_bound_)
    )


def test_starting_labels_and_both_roundings_agree_on_clear_groups() -> None:
    X, truth = crossed(24, 1)
    X[12:] += 20
    by_name = [
        LikelihoodAdjustedSDP(2, init=1 - truth, rounding=rounding, random_state=0).fit(X)
        for rounding in ("spectral", "argmax")
    ]
    for model in by_name:
        np.testing.assert_array_equal(model.labels_, 1 - truth)  # groups keep the names they were given
    np.testing.assert_allclose(by_name[0].memberships_, lift(1 - truth, 2), atol=1e-6)
    assert clustering_accuracy(truth, spectral_rounding(by_name[0].memberships_, 2, random_state=0)) == 1


@pytest.mark.parametrize(
    ("kind", "shape"), [("full", (2, 3, 3)), ("diag", (2, 3)), ("tied", (3, 3)), ("spherical", (2,))]
)
def test_covariances_have_the_shapes_of_gaussian_mixture_and_the_type_of_X(
    kind: str, shape: tuple[int, ...]
) -> None:
    X, _ = crossed(20, 0, p=3)
    model = LikelihoodAdjustedSDP(2, covariance_type=kind, max_iter=2, random_state=0)
    with pytest.warns(ConvergenceWarning, match="LikelihoodAdjustedSDP: l had not converged"):
        model.set_params(tol=0, max_iter=1).fit(X.astype(np.float32))
    assert model.covariances_.shape == shape
    assert model.covariances_.dtype == model.means_.dtype == np.float32
    assert set(model.labels_) == {0, 1}
    assert set(model.predict(X.astype(np.float32))) == {0, 1}


def test_a_hard_program_cut_short_warns() -> None:
    X, _ = crossed(40, 0)
    wanted = (
        r"the last program had not converged when its iterations ended \(1 programs\); the labels are usable"
    )
    with pytest.warns(ConvergenceWarning, match=wanted):
        LikelihoodAdjustedSDP(2, covariances=[np.eye(2)] * 2, solver_tol=1e-9, solver_max_iter=25).fit(X)


def test_low_rank_and_conic_solvers() -> None:
    pytest.importorskip("cvxpy")
    X, truth = crossed(16, 4)
    X[8:] += 10
    for solver in ("burer-monteiro", "cvxpy"):
        model = LikelihoodAdjustedSDP(2, solver=solver, max_iter=2, tol=0.1, random_state=0).fit(X)
        assert clustering_accuracy(truth, model.labels_) == 1


def test_sketch_labels_the_other_rows_by_their_score() -> None:
    X, truth = crossed(120, 0)
    X[60:] += 20
    model = LikelihoodAdjustedSDP(
        2, sketch=True, sketch_size=30, max_rows=60, init=truth, random_state=0
    ).fit(X)
    assert model.memberships_.shape == (2, 30, 30)
    np.testing.assert_array_equal(model.labels_, truth)
    np.testing.assert_array_equal(model.sketch_indices_, np.sort(model.sketch_indices_))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"n_clusters": 5}, "The 'n_clusters' parameter of LikelihoodAdjustedSDP must be an int in [1, 4]"),
        (
            {"n_clusters": 0},
            "The 'n_clusters' parameter of LikelihoodAdjustedSDP must be an int in the range [1, inf)",
        ),
        (
            {"covariances": [[[1.0]]]},
            "The 'covariances' parameter of LikelihoodAdjustedSDP must be an array of shape (2, 1, 1). Got (1, 1, 1)",
        ),
        (
            {"covariances": [[[1.0]], [[-1.0]]]},
            "The 'covariances' parameter of LikelihoodAdjustedSDP must be finite, symmetric and positive definite. Got",
        ),
        (
            {"init": [0, 0, 0, 0]},
            "The 'init' parameter of LikelihoodAdjustedSDP must be a name or labels 0 to 1, one per row (4), each",
        ),
    ],
)
def test_parameters_that_cannot_be_used(parameters: dict, message: str) -> None:
    with pytest.raises(ParameterError) as caught:
        LikelihoodAdjustedSDP(**parameters).fit(FOUR)
    assert message in str(caught.value)


def test_data_that_cannot_be_used() -> None:
    wanted = "LikelihoodAdjustedSDP with full covariances and ridge=0 needs more than 2 rows per cluster"
    with pytest.raises(DataError, match=wanted):
        LikelihoodAdjustedSDP(2, ridge=0).fit(np.arange(8.0).reshape(4, 2))
    with pytest.raises(DataError, match="met a singular covariance: a group lies in a hyperplane"):
        LikelihoodAdjustedSDP(2, ridge=0).fit(np.column_stack([np.arange(12.0), np.ones(12)]))
    with pytest.raises(
        DataError, match=r"LikelihoodAdjustedSDP got 4 rows; .* Pass sketch=True to solve on 1,000"
    ):
        LikelihoodAdjustedSDP(2, max_rows=3).fit(FOUR)
    with pytest.raises(ValueError, match="Input X contains NaN"):
        LikelihoodAdjustedSDP(2).fit([[0.0], [np.nan], [1.0]])


def test_constant_columns_and_equal_rows_meet_the_floor() -> None:
    X = np.column_stack([np.repeat([0.0, 9.0], 6) + np.tile([0, 0.5, 1], 4), np.ones(12)])
    model = LikelihoodAdjustedSDP(2, random_state=0).fit(X)
    assert model.floored_.all()
    assert clustering_accuracy(np.repeat([0, 1], 6), model.labels_) == 1
    assert LikelihoodAdjustedSDP(2, random_state=0).fit(np.ones((6, 2))).labels_.shape == (6,)
