"""Entropic and exact transport: against POT, against the linear programme, limits, guards and messages."""

from __future__ import annotations

import warnings

import numpy as np
import ot
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from sklearn.exceptions import ConvergenceWarning

from tunesmith.core.errors import DataError, ParameterError
from tunesmith.numerics.transport import (
    c_transform,
    cost_matrix,
    mean_cost,
    self_potential,
    sinkhorn,
    solve_exact,
)
from tunesmith.numerics.transport.costs import CostBlocks
from tunesmith.numerics.transport.kernels import row_sweep


def points(n, d=5, seed=0, shift=0.0):
    return np.random.default_rng(seed).standard_normal((n, d)) + shift


X, Y = points(50), points(31, seed=1, shift=0.5)
C = cost_matrix(X, Y)


def plan(solved, cost, a, b):
    return a[:, None] * b * np.exp((solved.f[:, None] + solved.g - cost) / solved.epsilon)


@pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean", "cosine"])
@pytest.mark.parametrize("weighted", [False, True])
def test_plan_equals_pots(cost, weighted):
    rng = np.random.default_rng(3)
    a = rng.random(50) if weighted else np.ones(50)
    b = rng.random(31) + 0.1 if weighted else np.ones(31)
    a, b = a / a.sum(), b / b.sum()
    matrix = cost_matrix(X, Y, cost)
    eps = 0.05 * matrix.mean()
    theirs = ot.sinkhorn(a, b, matrix, eps, method="sinkhorn_log", numItermax=20_000, stopThr=1e-13)
    ours = sinkhorn(X, Y, a=a, b=b, cost=cost, epsilon=eps, tol=1e-11, max_iter=5000)
    assert ours.converged
    assert_allclose(plan(ours, matrix, a, b), theirs, atol=1e-10)
    assert_allclose(plan(ours, matrix, a, b).sum(axis=1), a, atol=1e-14)


@pytest.mark.parametrize("momentum", [1.0, 1.3, "auto"])
@pytest.mark.parametrize("anneal", [True, False])
def test_every_way_ends_at_the_same_potentials_and_the_asked_error(momentum, anneal):
    eps = 0.05 * C.mean()
    reference = sinkhorn(X, Y, epsilon=eps, tol=1e-12, max_iter=5000)
    for tol in (1e-2, 1e-9):
        s = sinkhorn(X, Y, epsilon=eps, tol=tol, momentum=momentum, anneal=anneal, max_iter=5000)
        P = plan(s, C, np.full(50, 1 / 50), np.full(31, 1 / 31))
        assert s.converged
        assert np.abs(P.sum(axis=0) - 1 / 31).sum() <= tol * (1 + 1e-6)
        assert_allclose(P.sum(axis=1), 1 / 50, rtol=1e-12)  # ended on an f-update
    assert_allclose(s.f - s.f.mean(), reference.f - reference.f.mean(), atol=1e-7)
    assert_allclose(s.cost, reference.cost, rtol=1e-9)


def test_acceleration_needs_fewer_sweeps():
    plain = sinkhorn(X, Y, relative_epsilon=0.01, tol=1e-6, momentum=1.0, max_iter=20_000)
    mixed = sinkhorn(X, Y, relative_epsilon=0.01, tol=1e-6)
    assert mixed.n_iter * 3 < plain.n_iter


def test_small_epsilon_approaches_the_exact_potentials():
    """Sizes without a common divisor: the dual is unique (dossier item 9)."""
    exact = solve_exact(C)
    gaps = []
    for r in (0.1, 0.02, 0.002, 0.0005):
        f = sinkhorn(X, Y, relative_epsilon=r, tol=1e-8, max_iter=20_000).f
        gaps.append(np.abs(f - f.mean() - exact.f).max())
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 0.02


def test_large_epsilon_ranks_by_mean_cost():
    f = sinkhorn(X, Y, relative_epsilon=1e4, tol=1e-10).f
    mean = C.mean(axis=1)
    assert_allclose(f - f.mean(), mean - mean.mean(), atol=1e-3)


def test_float32_agrees_with_float64_and_never_overflows():
    x, y = points(1500, 16, 4).astype(np.float32), points(700, 16, 5).astype(np.float32)
    one = sinkhorn(x, y, tol=1e-4, dtype="float32")
    two = sinkhorn(x, y, tol=1e-4, dtype="float64")
    assert one.error <= 1e-4
    assert_allclose(one.f - one.f.mean(), two.f - two.f.mean(), atol=0.2 * one.epsilon)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_tiny_epsilon_from_zero_never_overflows():
    x, y = points(300, 4, 4).astype(np.float32), points(200, 4, 5).astype(np.float32)
    for anneal in (True, False):
        far = sinkhorn(
            x * 1e3, y * 1e3 + 5e3, relative_epsilon=1e-4, max_iter=20, anneal=anneal, dtype="float32"
        )
        assert np.isfinite(far.f).all()
        assert np.isfinite(far.g).all()


def test_blocks_made_anew_give_the_stored_result():
    x, y = points(2500, 24, 6), points(300, 24, 7)
    stored = sinkhorn(x, y, tol=1e-8, dtype="float64")
    anew = sinkhorn(x, y, tol=1e-8, dtype="float64", max_bytes=1 << 20)
    assert_allclose(anew.f - anew.f.mean(), stored.f - stored.f.mean(), atol=1e-6)
    assert_allclose(anew.cost, stored.cost, rtol=1e-9)


@pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean", "cosine"])
def test_blocks_hold_the_distances(cost):
    x, y = points(700, 40, 8, 3.0), points(90, 40, 9, 3.0)
    source = CostBlocks(x, y, cost, np.float64, 0)
    assert source.stored is None
    whole = np.vstack([block.copy() for _, _, block in source.blocks(rows=128)])
    assert_allclose(whole, cost_matrix(x, y, cost), atol=1e-9)


def test_c_transform_gives_f_back():
    s = sinkhorn(X, Y, tol=1e-6)
    assert_allclose(c_transform(X, Y, s.g, epsilon=s.epsilon), s.f, atol=1e-12)
    assert_allclose(c_transform(C, g=s.g, cost="precomputed", epsilon=s.epsilon), s.f, atol=1e-12)
    tiny = 1e-9
    assert_allclose(c_transform(X, Y, s.g, epsilon=tiny), (C - s.g).min(axis=1), atol=1e-7)


def test_self_potential_is_the_symmetric_fixed_point():
    x = points(60, 1)
    eps = 0.1
    p = self_potential(x, epsilon=eps, tol=1e-11, max_iter=2000)
    assert_allclose(c_transform(x, x, p, epsilon=eps), p, atol=1e-9)
    s = sinkhorn(x, x, epsilon=eps, tol=1e-11, debias=True, max_iter=5000)
    assert_allclose(s.f - s.f.mean(), p - p.mean(), atol=1e-6)
    assert_allclose(s.f_self, p, atol=1e-3)
    assert_allclose(s.f_self, s.g_self, atol=1e-12)


def test_exact_duals():
    s = solve_exact(C)
    assert s.cost == pytest.approx(ot.emd2(np.full(50, 1 / 50), np.full(31, 1 / 31), C), rel=1e-12)
    assert (s.f[:, None] + s.g - C).max() < 1e-9
    assert s.f.mean() + s.g.mean() == pytest.approx(s.cost, rel=1e-12)
    assert s.f.mean() == pytest.approx(0, abs=1e-12)
    again = solve_exact(C, start=(s.f, s.g))
    assert again.cost == pytest.approx(s.cost, rel=1e-12)


def test_mean_cost():
    a, b = np.random.default_rng(0).random(50), np.random.default_rng(1).random(31)
    a, b = a / a.sum(), b / b.sum()
    for cost in ("sqeuclidean", "euclidean", "cosine"):
        assert mean_cost(X, Y, cost, a, b) == pytest.approx(a @ cost_matrix(X, Y, cost) @ b, rel=1e-10)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n=st.integers(1, 40),
    m=st.integers(1, 40),
    wide=st.booleans(),
    scale=st.sampled_from([1e-2, 1.0, 50.0, 3e3]),
)
def test_sweep_is_a_logsumexp(seed, n, m, wide, scale):
    from scipy.special import logsumexp

    rng = np.random.default_rng(seed)
    for kind, tol in ((np.float64, 1e-10), (np.float32, 2e-3)):
        cost = (scale * rng.random((n, m))).astype(kind)
        u, h = rng.standard_normal(n).astype(kind), rng.standard_normal(m).astype(kind)
        weight = np.full(n, 1 / n) if wide else np.empty(0)
        out, column = np.empty(n), np.full((2, m), 7.0)
        row_sweep(cost, kind(1.0), u, h, weight, 1.0, out, column)
        v = u[:, None].astype(float) + h - cost
        wanted = logsumexp(v, axis=1)
        assert_allclose(out, wanted, atol=tol, rtol=tol)
        if wide:
            assert_allclose(column.sum(axis=0), weight @ np.exp(v - wanted[:, None]), atol=max(tol, 1e-6))


def test_not_converged_warns_and_is_usable():
    with pytest.warns(ConvergenceWarning, match=r"sinkhorn stopped after 2 sweeps at a marginal error of"):
        s = sinkhorn(X, Y, relative_epsilon=0.005, tol=1e-9, max_iter=2, anneal=False)
    assert not s.converged
    assert np.isfinite(s.f).all()
    with pytest.warns(ConvergenceWarning, match="self_potential stopped after 1 sweeps"):
        self_potential(X, epsilon=0.01, tol=1e-12, max_iter=1)


def test_one_point_each_and_zero_weights():
    s = sinkhorn([[0.0]], [[2.0]], epsilon=1.0)
    assert s.f[0] + s.g[0] == pytest.approx(4.0)
    a = np.ones(50)
    a[:10] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        s = sinkhorn(X, Y, a=a, tol=1e-8)
    part = sinkhorn(X[10:], Y, epsilon=s.epsilon, tol=1e-8)
    assert s.cost == pytest.approx(part.cost, rel=1e-6)
    assert np.isfinite(s.f).all()


BAD = X.copy()
BAD[7, 2] = np.nan
BAD[9, 0] = np.inf


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: sinkhorn(BAD, Y),
            DataError,
            "X, row 7: sinkhorn needs finite numbers in 'X', and 2 of 50 rows",
        ),
        (
            lambda: sinkhorn(X, Y[:0]),
            DataError,
            "sinkhorn needs at least one row in 'target_embedding'. It has 0.",
        ),
        (lambda: sinkhorn(X, Y[:, :3]), DataError, "X has 5 dimensions, target_embedding has 3."),
        (lambda: sinkhorn(X[:, 0], Y), DataError, "needs 'X' as an array of shape (rows, dimensions)."),
        (lambda: sinkhorn([["a"]], Y), DataError, "sinkhorn needs numbers in 'X', and these are <U1."),
        (lambda: sinkhorn(X, Y, a=np.ones(3)), DataError, "'a' to be 50 finite numbers >= 0, not all zero."),
        (lambda: sinkhorn(X, Y, b=np.zeros(31)), DataError, "'b' to be 31 finite numbers > 0."),
        (
            lambda: sinkhorn(X[:1], X[:1]),
            DataError,
            "cannot derive epsilon from costs whose mean is not positive",
        ),
        (lambda: sinkhorn(X, Y, cost="l1"), ParameterError, "'cost' parameter of sinkhorn must be one of"),
        (
            lambda: sinkhorn(X, Y, epsilon=0),
            ParameterError,
            "'epsilon' parameter of sinkhorn must be None or a",
        ),
        (
            lambda: sinkhorn(X, Y, relative_epsilon=-1),
            ParameterError,
            "'relative_epsilon' parameter of sinkhorn",
        ),
        (
            lambda: sinkhorn(X, Y, momentum=2.0),
            ParameterError,
            "must be 'auto' or a float in [1, 2). Got 2.0",
        ),
        (
            lambda: sinkhorn(X, Y, tol=0),
            ParameterError,
            "'tol' parameter of sinkhorn must be a finite float > 0",
        ),
        (
            lambda: sinkhorn(X, Y, max_iter=0),
            ParameterError,
            "'max_iter' parameter of sinkhorn must be an int >= 1",
        ),
        (
            lambda: sinkhorn(C, cost="precomputed", debias=True),
            ParameterError,
            "must be False for a precomputed",
        ),
        (lambda: c_transform(X, Y, np.ones(3), epsilon=1.0), DataError, "needs 'g' to be 31 finite numbers."),
        (
            lambda: cost_matrix(X, Y, max_entries=10),
            DataError,
            "a cost matrix of 50 x 31 needs 0.0 GiB; the guard",
        ),
        (
            lambda: solve_exact(C, max_iter=1),
            DataError,
            "did not finish within 1 iterations; raise max_iter.",
        ),
    ],
)
def test_messages(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value)
