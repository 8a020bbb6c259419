"""GOT-D: every item of its dossier's "What must hold", parity with the authors' code, messages."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.exceptions import NotFittedError

from tunesmith.core.errors import DataError, ParameterError
from tunesmith.numerics.transport import c_transform, cost_matrix, sinkhorn, solve_exact
from tunesmith.select.gotd import GOTDSelector, calibrated_gradient

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "got-d.json").read_text())["cases"]


def golden(prefix):
    return [pytest.param(case, id=case["name"]) for case in GOLDEN if case["name"].startswith(prefix)]


def array(value):
    return np.array(value["data"], dtype=value["dtype"]).reshape(value["shape"])


def points(n, d=5, seed=0, shift=0.0):
    return np.random.default_rng(seed).standard_normal((n, d)) + shift


# 50 and 31 have no common divisor, so the exact dual is unique.
X, Y = points(50), points(31, seed=1, shift=0.7)


def exact_gradient(cost, a=None, b=None):
    return calibrated_gradient(solve_exact(cost, a=a, b=b).f, a)


# --- what must hold ---


def test_1_gradients_sum_to_zero_ignore_constants_and_rank_as_f():
    f = points(200, 1, 3)[:, 0]
    grad = calibrated_gradient(f)
    assert abs(grad.sum()) < 1e-12
    assert_allclose(calibrated_gradient(f + 123.0), grad, atol=1e-12)
    assert_array_equal(np.argsort(grad), np.argsort(f))
    assert_allclose(grad, 200 / 199 * (f - f.mean()), atol=1e-12)


@pytest.mark.parametrize("weighted", [False, True])
def test_2_finite_differences(weighted):
    C = cost_matrix(X, Y)
    rng = np.random.default_rng(5)
    a = rng.random(50) + 0.5 if weighted else np.ones(50)
    b = rng.random(31) + 0.5 if weighted else np.ones(31)
    a, b = a / a.sum(), b / b.sum()
    base, grad = solve_exact(C, a=a, b=b).cost, exact_gradient(C, a, b)
    eps = 1e-6
    for i in (0, 7, 33, int(grad.argmin()), int(grad.argmax())):
        moved = a * (1 - eps / (1 - a[i]))
        moved[i] = a[i] + eps
        assert moved.sum() == pytest.approx(1, abs=1e-14)
        assert (solve_exact(C, a=moved, b=b).cost - base) / eps == pytest.approx(grad[i], abs=1e-6)


def test_3_hand_example():
    candidates, target = np.array([[0.0], [1], [3]]), np.array([[2.0], [4]])
    solved = solve_exact(cost_matrix(candidates, target))
    assert solved.cost == pytest.approx(10 / 3, abs=1e-12)
    assert_allclose(solved.f - solved.f[2] + 1, [12, 9, 1], atol=1e-12)
    assert_allclose(calibrated_gradient(solved.f), [7, 2.5, -9.5], atol=1e-12)
    selector = GOTDSelector(epsilon=0.01, tol=1e-9).fit(candidates, target_embedding=target)
    assert_allclose(selector.scores_, [7, 2.5, -9.5], atol=0.05)
    assert selector.select(1).tolist() == [2]


def test_4_cats_and_dogs():
    candidates = np.zeros((100, 1))
    candidates[99] = 1
    target = np.repeat([[0.0], [1.0]], 50, axis=0)
    C = cost_matrix(candidates, target, "euclidean")
    solved = solve_exact(C)
    assert solved.cost == pytest.approx(0.49, abs=1e-12)
    grad = calibrated_gradient(solved.f)
    assert grad[99] == pytest.approx(-1, abs=1e-12)
    assert_allclose(grad[:99], 1 / 99, atol=1e-12)
    selector = GOTDSelector(cost="euclidean", epsilon=0.01, tol=1e-6).fit(candidates, target_embedding=target)
    assert selector.select(1).tolist() == [99]
    assert selector.scores_[99] == pytest.approx(-1, abs=0.05)


def test_5_equal_sets_have_no_cost_and_debiased_potentials_vanish():
    x = points(80, 1, 4)
    assert solve_exact(cost_matrix(x, x)).cost == pytest.approx(0, abs=1e-12)
    plain = GOTDSelector(epsilon=0.1, tol=1e-10, max_iter=5000).fit(x, target_embedding=x)
    debiased = GOTDSelector(epsilon=0.1, tol=1e-10, max_iter=5000, debias=True).fit(x, target_embedding=x)
    assert 0.01 < np.abs(plain.scores_).max() < 0.1 * np.log(80) * 2
    assert np.abs(debiased.scores_).max() < 1e-3
    assert debiased.ot_cost_ == pytest.approx(0, abs=1e-4)
    new = debiased.score_samples(x)  # free up to a constant
    assert_allclose(new - new.mean(), 0, atol=1e-3)


def test_6_the_slope_of_mixing_and_convexity():
    C = cost_matrix(X, Y)
    base, grad = solve_exact(C).cost, exact_gradient(C)
    picks = np.argsort(grad)[:5]
    line = 49 / 50 * grad[picks].mean()

    def mixed(lam, rows):
        a = np.full(50, (1 - lam) / 50)
        a[rows] += lam / len(rows)
        return solve_exact(C, a=a).cost

    assert (mixed(1e-6, picks) - base) / 1e-6 == pytest.approx(line, abs=1e-5)
    assert abs(grad[picks].mean() - line) > 0.01
    rng = np.random.default_rng(0)
    others = [rng.choice(50, 5, replace=False) for _ in range(10)]
    for lam in (0.01, 0.05, 0.3, 1.0):
        assert mixed(lam, picks) >= base + lam * line - 1e-9
    for lam in (0.01, 0.05):
        assert mixed(lam, picks) < min(mixed(lam, rows) for rows in others)
    # Duplicating rows is mixing: 5 of 50 rows twice is lambda = 5 / 55.
    twice = np.vstack([C, C[picks]])
    assert solve_exact(twice).cost == pytest.approx(mixed(5 / 55, picks), rel=1e-12)


def test_7_away_is_the_reversed_order():
    toward = GOTDSelector().fit(X, target_embedding=Y).select(50)
    away = GOTDSelector(direction="away").fit(X, target_embedding=Y).select(50)
    assert_array_equal(away, toward[::-1])


@pytest.mark.parametrize(("cost", "power"), [("sqeuclidean", 2), ("euclidean", 1)])
def test_8_invariance_of_distance_costs(cost, power):
    rotation = np.linalg.qr(points(5, 5, 9))[0]
    plain = GOTDSelector(cost=cost, epsilon=0.3, tol=1e-9).fit(X, target_embedding=Y)
    turned = GOTDSelector(cost=cost, epsilon=0.3, tol=1e-9).fit(
        X @ rotation + 4.0, target_embedding=Y @ rotation + 4.0
    )
    scaled = GOTDSelector(cost=cost, epsilon=0.3 * 3**power, tol=1e-9).fit(3 * X, target_embedding=3 * Y)
    assert_array_equal(plain.select(5), turned.select(5))
    assert_array_equal(plain.select(5), scaled.select(5))
    assert_allclose(scaled.scores_, 3**power * plain.scores_, atol=1e-6)


def test_8_cosine_is_invariant_to_rotation_and_scale_only():
    rotation = np.linalg.qr(points(5, 5, 9))[0]
    fits = [
        GOTDSelector(cost="cosine", tol=1e-9).fit(x, target_embedding=y)
        for x, y in ((X, Y), (X @ rotation, Y @ rotation), (X * 7, Y * 0.1), (X + 4, Y + 4))
    ]
    assert_allclose(fits[1].scores_, fits[0].scores_, atol=1e-7)
    assert_allclose(fits[2].scores_, fits[0].scores_, atol=1e-7)
    assert not np.allclose(fits[3].scores_, fits[0].scores_, atol=1e-3)


def test_9_error_and_limits():
    selector = GOTDSelector(tol=1e-5).fit(X, target_embedding=Y)
    assert selector.error_ <= 1e-5
    exact, tight = exact_gradient(cost_matrix(X, Y)), {"tol": 1e-8, "max_iter": 20_000}
    gaps = [
        np.abs(GOTDSelector(relative_epsilon=r, **tight).fit(X, target_embedding=Y).scores_ - exact).max()
        for r in (0.1, 0.02, 0.002)
    ]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 0.15
    flat = GOTDSelector(relative_epsilon=1e4, tol=1e-10).fit(X, target_embedding=Y)
    assert_array_equal(flat.select(5), np.argsort(cost_matrix(X, Y).mean(axis=1))[:5])


def test_10_scores_of_the_rows_themselves_give_f():
    selector = GOTDSelector().fit(X, target_embedding=Y)
    assert_allclose(selector.score_samples(X), selector.potentials_[0], atol=1e-12)
    assert selector.score_samples(X[:1]).shape == (1,)


# --- beyond the dossier's list ---


def test_solving_on_a_part_scores_everything_nearly_as_well():
    x, y = points(3000, 3, 11), points(200, 3, 12, 1.0)
    whole = GOTDSelector().fit(x, target_embedding=y)
    part = GOTDSelector(n_candidates=1000, n_target=150).fit(x, target_embedding=y)
    assert part.scores_.shape == (3000,)
    assert part.target_indices_.size == 150
    assert np.corrcoef(whole.scores_, part.scores_)[0, 1] > 0.98
    again = GOTDSelector(n_candidates=1000, n_target=150).fit(x, target_embedding=y)
    # In the process that compiles the kernel, the last bit of its sums can change from one call to the next.
    assert_allclose(part.scores_, again.scores_, rtol=0, atol=1e-13)
    assert_array_equal(part.select(100), again.select(100))


def test_weights_count_as_repeated_rows():
    w = np.ones(50)
    w[[2, 8]] = 3
    weighted = GOTDSelector(epsilon=0.3, tol=1e-9).fit(X, target_embedding=Y, sample_weight=w)
    repeated = GOTDSelector(epsilon=0.3, tol=1e-9).fit(np.vstack([X, X[[2, 2, 8, 8]]]), target_embedding=Y)
    f, g = weighted.potentials_[0], repeated.potentials_[0][:50]
    assert_allclose(f - f[0], g - g[0], atol=1e-6)


def test_warns_beyond_a_tenth_and_not_below():
    selector = GOTDSelector().fit(X, target_embedding=Y)
    with pytest.warns(UserWarning, match="GOTDSelector chooses 6 of 50 rows; beyond about 10%"):
        selector.select(6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert selector.select(0.1).size == 5


# --- parity with the authors' code ---


@pytest.mark.parametrize("case", golden("calibrated_gradient"))
def test_golden_calibration(case):
    notebook = "notebook" in case["name"]
    f = array(next(iter(case["inputs"].values())))
    grad = calibrated_gradient(f, variant="official" if notebook else "paper")
    assert_allclose(grad, array(case["outputs"]["grad"]), atol=case["tolerance"])
    if not notebook:
        assert np.argsort(grad, kind="stable").tolist() == case["outputs"]["order_lowest_first"]


@pytest.mark.parametrize("case", golden("lava_potentials"))
def test_golden_lava_schedule(case):
    """Their solver from our c-transform: averaged, simultaneous updates over a fixed schedule."""
    x, y = array(case["inputs"]["candidates"]), array(case["inputs"]["target"])
    C = cost_matrix(x, y) / 2
    steps = case["params"]["eps_schedule"]
    kw = {"cost": "precomputed"}
    f, g = c_transform(C, epsilon=steps[0], **kw), c_transform(C.T.copy(), epsilon=steps[0], **kw)
    for eps in steps:
        new = c_transform(C, g=g, epsilon=eps, **kw), c_transform(C.T.copy(), g=f, epsilon=eps, **kw)
        f, g = (f + new[0]) / 2, (g + new[1]) / 2
    f = c_transform(C, g=g, epsilon=steps[-1], **kw)
    assert_allclose(f - f.mean(), array(case["outputs"]["f_centred"]), atol=case["tolerance"])
    grad = calibrated_gradient(f)
    assert_allclose(grad, array(case["outputs"]["grad"]), atol=case["tolerance"])
    assert np.argsort(grad).tolist() == case["outputs"]["order_lowest_first"]
    converged = sinkhorn(C, cost="precomputed", epsilon=0.1, tol=1e-10, max_iter=5000)
    assert_allclose(
        calibrated_gradient(converged.f),
        array(case["outputs"]["grad_of_converged_plain_sinkhorn_own"]),
        atol=1e-6,
    )


@pytest.mark.parametrize("case", golden("notebook_selection"))
def test_golden_notebook(case):
    x, y, out = array(case["inputs"]["candidates"]), array(case["inputs"]["target"]), case["outputs"]
    official = GOTDSelector(variant="official").fit(x, target_embedding=y)
    f = official.potentials_[0]
    assert official.n_iter_ == out["sweeps_until_stop"]
    assert_allclose(f - f.mean(), array(out["potential_centred_threshold_0.1"]), atol=case["tolerance"])
    order = np.argsort(official.scores_, kind="stable")
    assert order.tolist() == out["order_lowest_first_threshold_0.1"]
    tight = GOTDSelector(epsilon=0.1, tol=1e-9, max_iter=5000).fit(x, target_embedding=y)
    assert_allclose(tight.scores_, array(out["grad_converged_step4"]), atol=1e-6)
    assert tight.ot_cost_ == pytest.approx(out["reg_ot_cost_converged"], abs=1e-6)
    assert np.argsort(tight.scores_).tolist() == out["order_lowest_first_converged"]


# --- bad input ---


def test_messages():
    bad = X.copy()
    bad[3, 1] = np.nan
    cases = [
        (DataError, "X, row 3: GOTDSelector needs finite numbers in 'X', and 1 of 50 rows have", bad, Y, {}),
        (DataError, "GOTDSelector needs at least one row in 'target_embedding'. It has 0.", X, Y[:0], {}),
        (DataError, "GOTDSelector needs at least 2 rows in 'X'. It has 1.", X[:1], Y, {}),
        (DataError, "X has 5 dimensions, target_embedding has 2.", X, Y[:, :2], {}),
        (ParameterError, "The 'target_embedding' parameter of GOTDSelector must be an array", X, None, {}),
        (ParameterError, "must be one of 'toward', 'away'. Got 'near'", X, Y, {"direction": "near"}),
        (ParameterError, "The 'variant' parameter of GOTDSelector must be", X, Y, {"variant": "ours"}),
        (ParameterError, "The 'cost' parameter of GOTDSelector must be one of", X, Y, {"cost": "l1"}),
        (ParameterError, "must be None or an int >= 2. Got 1 instead.", X, Y, {"n_candidates": 1}),
        (ParameterError, "must be None or an int >= 1. Got 0 instead.", X, Y, {"n_target": 0}),
        (ParameterError, "The 'epsilon' parameter of GOTDSelector must be None or", X, Y, {"epsilon": -1.0}),
        (ParameterError, "The 'tol' parameter of GOTDSelector must be", X, Y, {"tol": 0}),
    ]
    for error, message, x, y, params in cases:
        with pytest.raises(error) as caught:
            GOTDSelector(**params).fit(x, target_embedding=y)
        assert message in str(caught.value)
    fitted = GOTDSelector().fit(X, target_embedding=Y)
    with pytest.raises(ParameterError) as caught:
        fitted.select(51)
    assert str(caught.value) == (
        "The 'budget' parameter of GOTDSelector must be an int in [1, 50] or a float in (0, 1]. "
        "Got 51 instead."
    )
    with pytest.raises(NotFittedError):
        GOTDSelector().score_samples(X)
    with pytest.raises(ParameterError, match="must be a vector of at least 2 potentials"):
        calibrated_gradient([1.0])
    with pytest.raises(ParameterError, match="'variant' parameter of calibrated_gradient must be 'paper' or"):
        calibrated_gradient([1.0, 2.0], variant="mine")
