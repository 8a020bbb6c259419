"""GORACS: every item of its dossier's "What must hold"; messages."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from tunesmith.core.errors import DataError, ParameterError
from tunesmith.numerics.transport import cost_matrix, solve_exact
from tunesmith.select.goracs import GORACSSelector, objective_cost, poo_score
from tunesmith.select.goracs.objective import unit_range
from tunesmith.select.goracs.search import estimates, greedy, refine, rest_costs


def problem(T, V, d=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((T, d)), rng.standard_normal((V, d)) + 0.4, rng.random(T)


HAND_X, HAND_Y = np.array([[0.0], [1], [4], [10]]), np.array([[0.0], [2], [4], [9]])
HAND_G = np.array([0.2, 0.9, 0.4, 1])


# --- what must hold ---


def test_1_path_falls_strictly_and_rows_are_distinct():
    X, Y, g = problem(60, 37)
    for lam in (0.0, 0.3):
        selector = GORACSSelector(lam=lam).fit(X, target_embedding=Y, gradient_norm=g)
        picks = selector.select(9)
        assert np.unique(picks).size == 9
        assert (np.diff(selector.objective_path_) < 0).all()
        assert len(selector.objective_path_) == selector.n_exchanges_ + 1 > 1
        cost = unit_range(objective_cost(X, Y, gradient_norm=g, lam=lam))
        assert solve_exact(cost[picks]).cost == pytest.approx(selector.objective_path_[-1], abs=1e-12)
        assert selector.objective_ == pytest.approx(
            poo_score(picks, X, Y, gradient_norm=g, lam=lam), abs=1e-12
        )


def test_2_one_cost_carries_both_terms():
    X, Y, g = problem(40, 30)
    rng = np.random.default_rng(1)
    for lam in (0.1, 2.0):
        rows = rng.choice(40, 7, replace=False)
        plain = poo_score(rows, X, Y, scale=False)
        both = poo_score(rows, X, Y, gradient_norm=g, lam=lam, scale=False)
        assert both == pytest.approx(plain - lam * g[rows].mean(), abs=1e-9)


def test_3_everything_against_itself_costs_nothing():
    X, _, _ = problem(12, 5)
    selector = GORACSSelector(scale=False).fit(X, target_embedding=X)
    assert sorted(selector.select(12)) == list(range(12))
    assert selector.objective_ == pytest.approx(0, abs=1e-12)


def test_4_a_large_lambda_takes_the_largest_norms():
    X, Y, g = problem(25, 14)
    top = np.sort(g)[::-1]
    lam = 1.01 * 4 * cost_matrix(X, Y, "euclidean").max() / (top[3] - top[4])
    selector = GORACSSelector(lam=lam, n_candidates=None, scale=False)
    picks = selector.fit(X, target_embedding=Y, gradient_norm=g).select(4)
    assert set(picks) == set(np.argsort(-g)[:4])


def test_5_hand_example():
    values = {(0, 1): 3.25, (0, 2): 1.75, (0, 3): 2.25, (1, 2): 1.75, (1, 3): 2.25, (2, 3): 3.25}
    for pair, value in values.items():
        assert poo_score(list(pair), HAND_X, HAND_Y, scale=False) == pytest.approx(value, abs=1e-12)
    for lam, sets, best in ((0, ({0, 2}, {1, 2}), 1.75), (1, ({1, 2},), 1.10), (10, ({1, 3},), -7.25)):
        selector = GORACSSelector(lam=lam, scale=False).fit(
            HAND_X, target_embedding=HAND_Y, gradient_norm=HAND_G
        )
        assert set(selector.select(2).tolist()) in sets
        assert selector.objective_ == pytest.approx(best, abs=1e-12)


def test_6_hand_example_of_the_greedy_stage():
    C = cost_matrix(HAND_X, HAND_Y, "euclidean")
    assert C.sum(axis=1).tolist() == [15, 13, 11, 25]
    assert np.minimum(C[2], C).sum(axis=1).tolist() == [7, 7, 11, 7]
    assert greedy(C, 2).tolist() == [2, 0]
    found = refine(C, np.array([2, 0]), candidates=4, max_exchanges=100)
    assert found.path == [pytest.approx(1.75, abs=1e-12)]
    assert found.optimal


def test_7_shift_and_scale_of_the_cost_change_nothing():
    X, Y, _ = problem(40, 23)
    C = cost_matrix(X, Y, "euclidean")
    wanted = refine(C, greedy(C, 6), candidates=10, max_exchanges=50)
    for other in (C + 3.0, 5 * C):
        got = refine(other, greedy(other, 6), candidates=10, max_exchanges=50)
        assert_array_equal(got.rows, wanted.rows)
    one = GORACSSelector().fit(X, target_embedding=Y).select(6)
    two = GORACSSelector(scale=False).fit(3 * X, target_embedding=3 * Y).select(6)
    assert_array_equal(one, two)


def test_8_semi_dual_identity_and_free_constant():
    X, Y, _ = problem(30, 20)
    C = cost_matrix(X, Y, "euclidean")
    rows = np.array([3, 8, 11, 19])
    solved = solve_exact(C[rows])
    u = solved.f
    assert u.mean() + (C[rows] - u[:, None]).min(axis=0).mean() == pytest.approx(solved.cost, abs=1e-12)
    est = [estimates(C, np.arange(30), rest_costs(C[rows] - v[:, None])[0][None], 4)[0] for v in (u, u + 2.5)]
    assert_allclose(est[0] - est[0][0], est[1] - est[1][0], atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), V=st.sampled_from([5, 30, 32, 33]), n=st.integers(2, 7))
def test_9_the_estimate_is_the_maximum_and_the_bound_holds(seed, V, n):
    rng = np.random.default_rng(seed)
    C = rng.random((20, V))
    rows = rng.choice(20, n, replace=False)
    u = solve_exact(C[rows]).f
    i, o = int(rng.integers(n)), int(rng.choice(np.setdiff1d(np.arange(20), rows)))
    keep = np.delete(np.arange(n), i)
    rest = (C[rows[keep]] - u[keep, None]).min(axis=0)
    (est,), (y,) = estimates(C, np.array([o]), rest[None], n)
    grid = np.concatenate([C[o] - rest, [y - 0.01, y + 0.01]])
    values = [np.minimum(C[o] - z - rest, 0).mean() + z / n for z in grid]
    assert est == pytest.approx(max(values), abs=1e-12)
    bound = u[keep].sum() / n + rest.mean() + est
    assert bound <= solve_exact(C[np.append(rows[keep], o)]).cost + 1e-12
    first, second, holder = rest_costs(C[rows] - u[:, None])
    assert_allclose(np.where(holder == i, second, first), rest)


@pytest.mark.parametrize("seed", range(5))
def test_10_with_all_candidates_no_single_exchange_helps(seed):
    X, Y, _ = problem(18, 8 + seed, seed=seed)
    selector = GORACSSelector(n_candidates=None).fit(X, target_embedding=Y)
    picks = selector.select(3)
    assert selector.optimal_
    value = poo_score(picks, X, Y)
    C = objective_cost(X, Y)
    for i, o in itertools.product(range(3), np.setdiff1d(np.arange(18), picks)):
        assert solve_exact(C[np.append(np.delete(picks, i), o)]).cost >= value - 1e-9
    brute = min(solve_exact(C[list(rows)]).cost for rows in itertools.combinations(range(18), 3))
    assert value >= brute - 1e-12


def labelled(seed=0):
    X, Y, g = problem(40, 21, seed=seed)
    return X, np.arange(40) % 3, Y, np.repeat([0, 1, 2], [12, 6, 3]), g


def test_11_label_aware_budgets_and_one_class():
    X, y, Y, yv, _ = labelled()
    selector = GORACSSelector().fit(X, y, target_embedding=Y, target_labels=yv)
    picks = selector.select(7)
    assert selector.class_budgets_.tolist() == [4, 2, 1]
    assert np.bincount(y[picks]).tolist() == [4, 2, 1]
    assert np.unique(picks).size == 7
    assert (np.diff(selector.objective_path_) < 0).all()
    assert not np.isnan(selector.scores_).any()
    plain = GORACSSelector().fit(X, target_embedding=Y).select(7)
    single = GORACSSelector().fit(X, np.zeros(40), target_embedding=Y, target_labels=np.zeros(21))
    assert_array_equal(single.select(7), plain)


# --- beyond the dossier's list ---


def test_budget_one_is_the_nearest_row_on_average():
    X, Y, _ = problem(20, 9)
    selector = GORACSSelector().fit(X, target_embedding=Y)
    assert selector.select(1).tolist() == [int(cost_matrix(X, Y, "euclidean").mean(axis=1).argmin())]
    assert selector.optimal_


def test_duplicates_do_not_cycle():
    X, Y, _ = problem(10, 9)
    selector = GORACSSelector(n_candidates=None, max_exchanges=10_000).fit(
        np.vstack([X, X, X]), target_embedding=Y
    )
    assert np.unique(selector.select(5)).size == 5
    assert selector.n_exchanges_ < 100


def test_whole_pool_and_no_exchanges():
    X, Y, _ = problem(10, 9)
    assert sorted(GORACSSelector().fit(X, target_embedding=Y).select(1.0)) == list(range(10))
    still = GORACSSelector(max_exchanges=0).fit(X, target_embedding=Y)
    assert_array_equal(still.select(3), greedy(unit_range(objective_cost(X, Y)), 3))
    assert len(still.objective_path_) == 1


def test_gradient_norms_are_required_only_where_they_count():
    assert GORACSSelector().required_features() == ("embedding", "target_embedding")
    assert GORACSSelector(lam=0.1).required_features() == ("embedding", "target_embedding", "gradient_norm")


# --- bad input ---


def test_messages():
    X, Y, g = problem(20, 9)
    bad = X.copy()
    bad[3, 1] = np.inf
    negative = g.copy()
    negative[5] = -0.5
    minus = {"gradient_norm": negative}
    labels = {"target_labels": np.zeros(9)}
    cases = [
        (DataError, "X, row 3: GORACSSelector needs finite numbers in 'X'", bad, Y, {}, {}),
        (DataError, "GORACSSelector needs at least one row in 'target_embedding'", X, Y[:0], {}, {}),
        (DataError, "X has 3 dimensions, target_embedding has 2.", X, Y[:, :2], {}, {}),
        (ParameterError, "The 'target_embedding' parameter of GORACSSelector must be", X, None, {}, {}),
        (DataError, "GORACSSelector with lam > 0 needs 'gradient_norm'", X, Y, {"lam": 1.0}, {}),
        (DataError, "row 5: GORACSSelector needs finite gradient norms >= 0, and 1 of 20", X, Y, {}, minus),
        (DataError, "needs 'gradient_norm' to be 20 numbers.", X, Y, {}, {"gradient_norm": g[:3]}),
        (ParameterError, "The 'lam' parameter of GORACSSelector must be a finite", X, Y, {"lam": -1.0}, {}),
        (ParameterError, "The 'cost' parameter of GORACSSelector must be one of", X, Y, {"cost": "l1"}, {}),
        (ParameterError, "must be 'paper' or 'official'. Got 'x' instead.", X, Y, {"variant": "x"}, {}),
        (ParameterError, "must be None or an int >= 1. Got 0 instead.", X, Y, {"n_candidates": 0}, {}),
        (ParameterError, "must be an int >= 0. Got -1 instead.", X, Y, {"max_exchanges": -1}, {}),
        (
            DataError,
            "all distances to the validation rows are zero.",
            np.ones((4, 2)),
            np.ones((3, 2)),
            {},
            {},
        ),
        (DataError, "with 'target_labels' needs 'y'", X, Y, {}, labels),
        (DataError, "needs 'y' to be 20 labels. Its shape is (2,).", X, Y, {}, {"y": [0, 1], **labels}),
        (
            DataError,
            "validation rows of class 0.0 but no rows to choose",
            X,
            Y,
            {},
            {"y": np.ones(20), **labels},
        ),
    ]
    for error, message, x, target, params, features in cases:
        with pytest.raises(error) as caught:
            GORACSSelector(**params).fit(x, target_embedding=target, **features)
        assert message in str(caught.value)


def test_messages_of_budgets_and_sets():
    X, Y, _ = problem(20, 9)
    with pytest.raises(ParameterError, match=r"must be an int in \[1, 20\] or a float in \(0, 1\]. Got 21"):
        GORACSSelector().fit(X, target_embedding=Y).select(21)
    y = np.array([0] * 18 + [1] * 2)
    selector = GORACSSelector().fit(X, y, target_embedding=Y, target_labels=[1] * 6 + [0] * 3)
    with pytest.raises(DataError, match=r"would choose 6 rows by the share .* class 1 has only 2. Lower"):
        selector.select(9)
    with pytest.warns(UserWarning, match=r"chooses no rows of the classes \[1\]: they have no validation"):
        GORACSSelector().fit(X, y, target_embedding=Y, target_labels=[0] * 9)
    for rows in ([], [0, 0], [20], [-1], [0.5]):
        with pytest.raises(ParameterError, match=r"'indices' parameter of poo_score must be distinct ints"):
            poo_score(rows, X, Y)
