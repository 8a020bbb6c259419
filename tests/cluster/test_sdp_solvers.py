"""The solvers of the lifted programs: optima worked by hand, every partition counted, and a conic solver."""

from __future__ import annotations

import sys
from itertools import product
from typing import Any

import numpy as np
import pytest
from sklearn.cluster import KMeans

from tunesmith.cluster.sdp import (
    affinities,
    lift,
    log_likelihood,
    solve_admm,
    solve_burer_monteiro,
    solve_cvxpy,
)
from tunesmith.cluster.sdp._psd import PositivePart
from tunesmith.cluster.sdp.admm import _Iteration
from tunesmith.cluster.sdp.likelihood import distances
from tunesmith.cluster.sdp.low_rank import low_rank_factors
from tunesmith.cluster.sdp.program import Constraints, value
from tunesmith.cluster.sdp.rounding import argmax_rounding
from tunesmith.core.errors import ParameterError, TunesmithError

FOUR = np.array([[0.0], [1], [10], [12]])
TIGHT = {"tol": 1e-7, "max_iter": 20_000}


def variances(*values: float) -> np.ndarray:
    return np.array(values)[:, None, None]


def draw(n: int, seed: int, k: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Points and k diagonal covariances."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, 2)), np.stack([np.diag(rng.uniform(0.3, 2, 2)) for _ in range(k)])


@pytest.mark.parametrize(
    ("sigma", "joint", "optimum"),
    [
        ((1, 4), False, -0.5 - (2 * np.log(4) + 0.5)),  # -3.7726, Z_1 on {0, 1} and Z_2 on {10, 12}
        ((1, 4), True, -2.5),  # Z_1 takes both blocks
        ((1, 1), False, -2.5),
        ((1, 1), True, -2.5),
    ],
)
def test_four_points_by_hand(sigma: tuple[float, float], joint: bool, optimum: float) -> None:
    found = solve_admm(affinities(FOUR, variances(*sigma)), 2, joint=joint, **TIGHT)
    assert found.converged
    assert found.value == pytest.approx(optimum, abs=1e-6)
    assert found.bound == pytest.approx(optimum, abs=1e-6)
    first, second = (
        np.kron(np.diag([1, 0]), np.full((2, 2), 0.5)),
        np.kron(np.diag([0, 1]), np.full((2, 2), 0.5)),
    )
    if sigma == (1, 4):
        wanted = [first + second, np.zeros((4, 4))] if joint else [first, second]
        np.testing.assert_allclose(found.Z, wanted, atol=1e-4)
    else:
        np.testing.assert_allclose(found.Z.sum(axis=0), first + second, atol=1e-4)


def test_the_swapped_partition_is_the_next_best() -> None:
    best, swapped = (log_likelihood(FOUR, labels, variances(1, 4)) for labels in ([0, 0, 1, 1], [1, 1, 0, 0]))
    assert best == pytest.approx(-3.7726, abs=1e-4)
    assert swapped == pytest.approx(-4.8976, abs=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_the_value_bounds_every_partition_and_joint_is_never_smaller(seed: int) -> None:
    X, sigma = draw(7, seed)
    A = affinities(X, sigma)
    best = max(
        log_likelihood(X, labels, sigma)
        for labels in map(np.array, product(range(2), repeat=7))
        if len(set(labels.tolist())) == 2
    )
    group, joint = (solve_admm(A, 2, joint=joint, **TIGHT) for joint in (False, True))
    assert group.value >= best - 1e-5
    assert group.bound >= best - 1e-9
    assert joint.value >= group.value - 1e-5


def test_equal_covariances_reduce_to_the_k_means_program() -> None:
    X, _ = draw(12, 5)
    gram = solve_admm((X @ X.T)[None], 3, **TIGHT)
    lifted = [
        solve_admm(affinities(X, np.stack([np.eye(2)] * 3)), 3, joint=j, **TIGHT) for j in (False, True)
    ]
    wanted = gram.value - np.sum(X**2)
    for found in lifted:
        assert found.value == pytest.approx(wanted, abs=1e-5)
    for seed in range(5):
        assert wanted >= -KMeans(3, n_init=1, random_state=seed).fit(X).inertia_ - 1e-6


def test_translation_and_permutation() -> None:
    X, sigma = draw(10, 1)
    found = solve_admm(affinities(X, sigma), 2, **TIGHT)
    moved = solve_admm(affinities(X + 1e3, sigma), 2, **TIGHT)
    assert moved.value == pytest.approx(found.value, abs=1e-5)
    swapped = solve_admm(affinities(X, sigma[::-1]), 2, **TIGHT)
    assert swapped.value == pytest.approx(found.value, abs=1e-5)
    np.testing.assert_allclose(swapped.Z[::-1], found.Z, atol=1e-3)


def test_one_cluster_and_one_row_each_have_a_single_feasible_point() -> None:
    A = -0.5 * distances(np.arange(6.0)[:, None])[None]
    one = solve_admm(A, 1)
    np.testing.assert_allclose(one.Z, np.full((1, 6, 6), 1 / 6))
    assert one.value == one.bound == pytest.approx(-17.5)  # inertia of 0..5 about 2.5
    each = solve_admm(A, 6)
    np.testing.assert_allclose(each.Z[0], np.eye(6))
    assert each.labels is not None
    assert solve_burer_monteiro(A, 1).value == one.value


@pytest.mark.parametrize(("groups", "joint"), [(1, False), (2, False), (2, True)])
def test_same_optimum_as_a_conic_solver(groups: int, joint: bool) -> None:
    pytest.importorskip("cvxpy")
    X, sigma = draw(14, 2)
    A = affinities(X, sigma) if groups == 2 else -0.5 * distances(X)[None]
    reference = solve_cvxpy(A, 2, joint=joint, conic="CLARABEL")
    found = solve_admm(A, 2, joint=joint, **TIGHT)
    assert reference.converged
    assert found.value == pytest.approx(reference.value, rel=1e-5)
    assert found.bound == pytest.approx(reference.value, rel=1e-5)
    assert reference.bound >= reference.value - 1e-5 * abs(reference.value)


def test_one_iteration_is_the_scheme_of_the_docstring() -> None:
    X, sigma = draw(6, 3)
    A = affinities(X, sigma)
    c = Constraints(6, 2, 2)
    it = _Iteration(A, c, None)
    for _ in range(3):
        Z, N, y, s, sigma_ = it.Z.copy(), it.N.copy(), it.y.copy(), it.s.copy(), it.sigma
        it.step()
        values, vectors = np.linalg.eigh(Z + sigma_ * (N + A - c.adjoint(y, s)))
        P = np.einsum("kij,kj,klj->kil", vectors, np.maximum(values, 0), vectors)
        later = np.maximum(0, N - c.project(P) / sigma_)
        R = P + sigma_ * (later - N)
        np.testing.assert_allclose(it.N, later, atol=1e-10)
        np.testing.assert_allclose(it.Z, Z + 1.618 * (c.project(R) - Z), atol=1e-10)
        change = c.adjoint(it.y - y, it.s - s) * sigma_
        np.testing.assert_allclose(R - change, c.project(R), atol=1e-10)


def test_a_proven_partition_ends_the_search() -> None:
    rng = np.random.default_rng(0)
    X = np.concatenate([rng.normal(0, 1, (15, 2)), rng.normal(12, 2, (15, 2))])
    truth, sigma = np.repeat([0, 1], 15), np.stack([np.eye(2), 4 * np.eye(2)])
    A = affinities(X, sigma)
    found = solve_admm(A, 2, tol=1e-6, candidate=argmax_rounding)
    np.testing.assert_array_equal(found.labels, truth)
    np.testing.assert_allclose(found.Z, lift(truth, 2))
    assert found.value == pytest.approx(log_likelihood(X, truth, sigma))
    assert found.infeasibility == 0
    assert found.bound >= found.value


def test_warm_start_and_rounds() -> None:
    X, sigma = draw(20, 4)
    A = affinities(X, sigma)
    cold = solve_admm(A, 2, tol=1e-6)
    warm = solve_admm(A * 1.001, 2, tol=1e-6, start=cold.state)
    assert warm.n_iter < cold.n_iter
    assert warm.value == pytest.approx(1.001 * cold.value, rel=1e-5)
    short = solve_admm(A, 2, tol=1e-9, rounds=iter(range(2)))
    assert (short.n_iter, short.converged) == (50, False)
    assert short.bound >= cold.value - 1e-4
    assert solve_admm(A, 2, tol=1e-9, max_iter=30).n_iter == 30


def test_positive_part_follows_a_matrix_that_moves() -> None:
    rng = np.random.default_rng(0)
    V = np.linalg.qr(rng.standard_normal((220, 220)))[0]
    values = np.concatenate([[3.0, 1.0, 0.4, 0.01], -rng.uniform(0, 2, 216)])
    drift = 1e-3 * rng.standard_normal((220, 220))
    part = PositivePart()
    filtered = 0
    for t in range(8):
        W = (V * values) @ V.T + t * (drift + drift.T)
        exact_values, exact = np.linalg.eigh(W)
        wanted = (exact * np.maximum(exact_values, 0)) @ exact.T
        filtered += part.basis is not None
        np.testing.assert_allclose(part(W, 1e-9), wanted, atol=1e-7)
        assert part.rank == np.sum(exact_values > 0)
    assert filtered > 0


def test_positive_part_of_many_positive_eigenvalues_is_exact_too() -> None:
    W = np.random.default_rng(1).standard_normal((200, 200))
    W = W + W.T
    values, vectors = np.linalg.eigh(W)
    part = PositivePart()
    for _ in range(2):
        np.testing.assert_allclose(part(W, 1e-9), (vectors * np.maximum(values, 0)) @ vectors.T, atol=1e-9)


def test_low_rank_agrees_where_the_relaxation_is_tight_and_is_never_above_the_bound() -> None:
    rng = np.random.default_rng(0)
    X = np.concatenate([rng.normal(c, 1, (12, 2)) for c in (0, 9, 18)])
    A, truth = -0.5 * distances(X)[None], np.repeat([0, 1, 2], 12)
    start = rng.permutation(truth)
    found = solve_burer_monteiro(A, 3, labels=truth, tol=1e-6)
    exact = value(A, lift(truth, 1))
    assert found.value == pytest.approx(exact, rel=1e-4)
    assert found.bound == pytest.approx(exact, rel=1e-4)
    U, _, steps = low_rank_factors(A, 3, labels=start, tol=1e-5)
    assert U.min() >= 0
    assert np.sum(U**2) == pytest.approx(3)
    assert steps > 0
    for joint in (False, True):
        Y, sigma = draw(14, 2)
        loose = solve_burer_monteiro(affinities(Y, sigma), 2, joint=joint, tol=1e-6)
        full = solve_admm(affinities(Y, sigma), 2, joint=joint, **TIGHT)
        assert loose.value <= full.value + 1e-3
        assert loose.bound >= full.value - 1e-6


def test_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    A = -0.5 * distances(FOUR)[None]
    with pytest.raises(ParameterError, match="The 'n_clusters' parameter of solve_admm must be"):
        solve_admm(A, 9)
    monkeypatch.setitem(sys.modules, "cvxpy", None)
    with pytest.raises(
        TunesmithError, match=r"The solver 'cvxpy' needs the package cvxpy. Install it with: pip install"
    ):
        solve_cvxpy(A, 2)


def test_conic_solver_that_is_not_there() -> None:
    pytest.importorskip("cvxpy")
    with pytest.raises(TunesmithError, match="NOSUCH could not solve the program"):
        solve_cvxpy(-0.5 * distances(FOUR)[None], 2, conic="NOSUCH")


def test_a_decomposition_that_lapack_gives_up_on_is_done_another_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """MRRR ends with an internal error on some spectra; it happened with embeddings of 384 columns."""
    from tunesmith.cluster.sdp import _psd

    W = np.random.default_rng(0).standard_normal((200, 200))
    W = W + W.T
    expected = _psd.PositivePart()(W, 1e-9)

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise np.linalg.LinAlgError("Internal Error.")

    monkeypatch.setattr(_psd, "eigh", refuse)
    np.testing.assert_allclose(_psd.PositivePart()(W, 1e-9), expected, atol=1e-9)
