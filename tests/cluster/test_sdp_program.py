"""The lifted likelihood, its covariance step, its bound and its roundings, on numbers worked by hand."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.cluster.sdp import (
    affinities,
    argmax_rounding,
    covariance_step,
    lift,
    log_likelihood,
    spectral_rounding,
)
from tunesmith.cluster.sdp.likelihood import distances, gaussian_scores
from tunesmith.cluster.sdp.program import Constraints, check_blocks, partition_value, upper_bound, value
from tunesmith.cluster.sdp.rounding import all_used, by_first_row, leading_vectors, match_groups
from tunesmith.core.errors import ParameterError

seeds = st.integers(0, 2**32 - 1)


def covariances(rng: np.random.Generator, k: int, p: int) -> np.ndarray:
    B = rng.standard_normal((k, p, p + 2))
    return B @ B.transpose(0, 2, 1) / p + 0.2 * np.eye(p)


def labelled(rng: np.random.Generator, n: int, k: int) -> np.ndarray:
    return rng.permutation(np.concatenate([np.arange(k), rng.integers(0, k, n - k)]))


def partitions(n: int, k: int) -> list[np.ndarray]:
    """Every labelling of n rows that uses all k names."""
    return [np.array(labels) for labels in product(range(k), repeat=n) if len(set(labels)) == k]


@settings(max_examples=25, deadline=None)
@given(seeds, st.integers(1, 4), st.integers(1, 4))
def test_exact_memberships_are_feasible_and_give_the_discrete_likelihood(seed: int, k: int, p: int) -> None:
    rng = np.random.default_rng(seed)
    n = 12
    X, labels, sigma = rng.standard_normal((n, p)) * 3 + 5, labelled(rng, n, k), covariances(rng, k, p)
    Z = lift(labels, k)
    assert Z.min() >= 0
    np.testing.assert_allclose(Z @ Z, Z, atol=1e-12)
    np.testing.assert_allclose(np.trace(Z, axis1=1, axis2=2), 1, atol=1e-12)
    np.testing.assert_allclose(Z.sum(axis=2), labels == np.arange(k)[:, None], atol=1e-12)
    np.testing.assert_allclose(Z.sum(axis=(0, 2)), 1, atol=1e-12)
    A, direct = affinities(X, sigma), log_likelihood(X, labels, sigma)
    assert value(A, Z) == pytest.approx(direct, rel=1e-9, abs=1e-9)
    assert partition_value(A, labels, k) == pytest.approx(direct, rel=1e-9, abs=1e-9)
    np.testing.assert_allclose(lift(labels, 1)[0], Z.sum(axis=0), atol=1e-12)
    np.testing.assert_array_equal(argmax_rounding(Z), labels)
    np.testing.assert_array_equal(match_groups(spectral_rounding(Z, k, random_state=0), Z), labels)


def test_two_points_by_hand() -> None:
    A = affinities([[0.0], [1.0]], [[[1.0]]])
    np.testing.assert_allclose(A, [[[0, -0.5], [-0.5, 0]]], atol=1e-15)
    assert value(A, np.full((1, 2, 2), 0.5)) == pytest.approx(-0.5)  # minus the sum of squares within


def test_ridge_term_by_hand() -> None:
    # Sigma = 4: log 4, and eps tr(Sigma^-1) = 0.5 / 4
    A = affinities([[0.0], [2.0]], [[[4.0]]], eps=0.5)
    np.testing.assert_allclose(A[0], [[-np.log(4) - 0.125, -0.5 - np.log(4) - 0.125]] * 1 + [
        [-0.5 - np.log(4) - 0.125, -np.log(4) - 0.125]])  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(seeds)
def test_covariance_step_on_exact_memberships_is_the_sample_covariance(seed: int) -> None:
    rng = np.random.default_rng(seed)
    X, labels = rng.standard_normal((15, 3)) + 100, labelled(rng, 15, 3)
    Z = lift(labels, 3)
    own = [np.cov(X[labels == k].T, bias=True) for k in range(3)]
    np.testing.assert_allclose(covariance_step(X, Z).full, own, atol=1e-9)
    np.testing.assert_allclose(
        covariance_step(X, Z, "diag", 0.5).full, [np.diag(np.diag(s) + 0.5) for s in own], atol=1e-9
    )
    tied = sum(s * np.sum(labels == k) for k, s in enumerate(own)) / 15
    np.testing.assert_allclose(covariance_step(X, Z, "tied").full, [tied] * 3, atol=1e-9)
    round_ = [np.trace(s) / 3 * np.eye(3) for s in own]
    np.testing.assert_allclose(covariance_step(X, Z, "spherical").full, round_, atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(seeds, st.sampled_from(["full", "diag", "tied", "spherical"]), st.floats(1e-3, 1.0))
def test_covariance_step_maximises_the_likelihood_with_its_ridge_term(
    seed: int, kind: str, eps: float
) -> None:
    """No other covariance of the kind has a larger l_eps."""
    rng = np.random.default_rng(seed)
    X, labels = rng.standard_normal((12, 2)), labelled(rng, 12, 2)
    Z = 0.7 * lift(labels, 2) + 0.3 * Constraints(12, 2, 2).interior()  # feasible, not exact
    best = covariance_step(X, Z, kind, eps).full
    top = value(affinities(X, best, eps), Z)
    for scale in (0.8, 0.97, 1.03, 1.3):
        assert value(affinities(X, scale * best, eps), Z) <= top + 1e-9 * abs(top)
    if kind == "full":
        turned = best + 0.02 * np.array([[0, 1], [1, 0]])
        if np.linalg.eigvalsh(turned).min() > 0:
            assert value(affinities(X, turned, eps), Z) <= top + 1e-9 * abs(top)


def test_floors_are_reported_and_a_group_that_is_off_takes_the_average() -> None:
    X = np.array([[0.0, 0], [1, 1], [2, 2], [0, 5], [3, 1], [7, 2.0]])  # the first three lie on a line
    Z = lift([0, 0, 0, 1, 1, 1], 2)
    step = covariance_step(X, Z, "full", 1e-3)
    assert step.floored.tolist() == [True, False]
    np.testing.assert_allclose(step.full[0], np.full((2, 2), 2 / 3) + 1e-3 * np.eye(2), atol=1e-12)
    off = np.stack([lift([0] * 6, 1)[0], np.zeros((6, 6))])
    np.testing.assert_allclose(covariance_step(X, off).full[1], np.cov(X.T, bias=True), atol=1e-12)


def test_memberships_that_are_slightly_negative_still_give_a_covariance() -> None:
    X = np.array([[0.0], [1], [10]])
    Z = np.array([[[0.5, 0.51, -0.01], [0.51, 0.5, -0.01], [-0.01, -0.01, 0.02]]])
    assert covariance_step(X, Z).full[0, 0, 0] >= 0


@pytest.mark.parametrize(
    ("k", "groups", "joint"), [(1, 1, False), (3, 1, False), (3, 3, False), (3, 3, True)]
)
def test_projection_meets_every_constraint_and_is_idempotent(k: int, groups: int, joint: bool) -> None:
    rng = np.random.default_rng(0)
    c = Constraints(7, k, groups, joint)
    M = rng.standard_normal((groups, 7, 7))
    M = M + M.transpose(0, 2, 1)
    Z = c.project(M)
    np.testing.assert_allclose(Z.sum(axis=(0, 2)), 1, atol=1e-12)
    traces = np.trace(Z, axis1=1, axis2=2)
    np.testing.assert_allclose(traces.sum() if joint else traces, k if joint else k / groups, atol=1e-12)
    np.testing.assert_allclose(c.project(Z), Z, atol=1e-12)
    # nearest: what was taken off is orthogonal to every feasible direction
    other = c.project(M[:, ::-1, ::-1])
    assert np.vdot(M - Z, other - Z) == pytest.approx(0, abs=1e-9)
    inside = c.interior()
    assert inside.min() > 0
    assert np.linalg.eigvalsh(inside).min() > 0 or k == 1
    np.testing.assert_allclose(c.project(np.repeat(inside[None], groups, 0)), [inside] * groups, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(seeds, st.booleans(), st.booleans())
def test_any_multipliers_bound_every_partition(seed: int, single: bool, joint: bool) -> None:
    rng = np.random.default_rng(seed)
    X, k = rng.standard_normal((6, 2)), 2
    A = -0.5 * distances(X)[None] if single else affinities(X, covariances(rng, k, 2))
    N = rng.exponential(size=A.shape) * rng.integers(0, 2, A.shape)
    N, y = N + N.transpose(0, 2, 1), rng.standard_normal(6)
    bound = upper_bound(A, N, y, Constraints(6, k, len(A), joint))
    best = max(partition_value(A, labels, k) for labels in partitions(6, k))
    assert bound >= best - 1e-9


def test_scores_and_names() -> None:
    # Sigma = 4 at mean 1: -log 4 - (3 - 1)^2 / 4
    assert gaussian_scores([[3.0]], [[1.0]], [[[4.0]]])[0, 0] == pytest.approx(-np.log(4) - 1)
    assert by_first_row([7, 7, 2, 9, 2]).tolist() == [0, 0, 1, 2, 1]
    assert all_used(np.array([0, 0, 0, 2]), 3).tolist() == [0, 0, 1, 2]
    Z = lift([0, 0, 1, 1, 2], 3)
    assert match_groups(np.array([2, 2, 0, 0, 1]), Z).tolist() == [0, 0, 1, 1, 2]
    vectors = leading_vectors(Z.sum(axis=0), 3)
    np.testing.assert_allclose(vectors @ vectors.T, Z.sum(axis=0), atol=1e-9)


def test_errors() -> None:
    with pytest.raises(
        ParameterError, match=r"The 'labels' parameter of lift must be labels 0 to 2, each at least once"
    ):
        lift([0, 1, 1], 3, 3)
    with pytest.raises(
        ParameterError, match=r"The 'A' parameter of f must be an array of shape \(1 or 3, n, n\)"
    ):
        check_blocks(np.zeros((2, 4, 4)), 3, "f")
    with pytest.raises(
        ParameterError, match=r"The 'n_clusters' parameter of f must be an int in \[1, 4\]. Got 5"
    ):
        check_blocks(np.zeros((1, 4, 4)), 5, "f")
    with pytest.raises(ParameterError, match=r"The 'A' parameter of f must be finite and symmetric"):
        check_blocks(np.triu(np.ones((1, 4, 4))), 2, "f")
