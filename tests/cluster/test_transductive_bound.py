"""The bound update: hand-worked steps, descent, invariances; mean shift and normalisation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import sparse

from tunesmith.cluster.transductive import (
    FeatureNormalizer,
    align_queries,
    bandwidth,
    bound_update,
    laplacian_shot,
    mean_shift,
    normalize_features,
    psd_shift,
    relaxed_energy,
)
from tunesmith.core.errors import DataError, ParameterError
from tunesmith.numerics.neighbors import knn_graph

SWAP = np.array([[0.0, 1.0], [1.0, 0.0]])
NOTHING = np.zeros((2, 2))


def steps(W: Any, start: Any, count: int, lam: float = 4.0) -> np.ndarray:
    return bound_update(NOTHING, W, lam, start, max_iter=count, tol=0).Z


def test_one_update_by_hand() -> None:
    found = bound_update(NOTHING, SWAP, 1.0, [[0.5, 0.5], [1.0, 0.0]], max_iter=1)
    np.testing.assert_allclose(found.Z[0], [0.7311, 0.2689], atol=5e-5)
    np.testing.assert_allclose(found.Z[0], np.exp([1, 0]) / (np.e + 1))


def test_without_psd_it_can_cycle() -> None:
    start = [[0.9, 0.1], [0.1, 0.9]]
    np.testing.assert_allclose(steps(SWAP, start, 1), [[0.039, 0.961], [0.961, 0.039]], atol=5e-4)
    np.testing.assert_allclose(steps(SWAP, start, 2), [[0.976, 0.024], [0.024, 0.976]], atol=5e-4)
    np.testing.assert_allclose(steps(SWAP, start, 3), [[0.022, 0.978], [0.978, 0.022]], atol=5e-4)
    late = steps(SWAP, start, 20)
    np.testing.assert_allclose(np.sort(late), [[0.02125, 0.97875]] * 2, atol=5e-6)
    np.testing.assert_allclose(steps(SWAP, late, 1), late[::-1], atol=1e-9)
    found = bound_update(NOTHING, SWAP, 4.0, start)
    assert found.n_iter < 600
    assert not found.converged  # the energy has settled, the rows have not


def test_with_psd_it_settles() -> None:
    np.testing.assert_array_equal(psd_shift(SWAP), np.ones((2, 2)))
    start = [[0.9, 0.1], [0.2, 0.8]]
    for count, z in ((1, 0.690), (2, 0.954), (3, 0.999)):
        np.testing.assert_allclose(steps(psd_shift(SWAP), start, count), [[z, 1 - z]] * 2, atol=5e-4)
    np.testing.assert_allclose(steps(psd_shift(SWAP), start, 99), [[0.9997, 0.0003]] * 2, atol=5e-5)


@pytest.mark.parametrize("clamped", [False, True])
def test_energy_never_rises_with_a_psd_affinity(clamped: bool) -> None:
    rng = np.random.default_rng(0)
    B = rng.random((12, 5))
    W = B @ B.T
    for _ in range(50):
        a, Z0 = rng.random((12, 3)) * 3, rng.dirichlet(np.ones(3), 12)
        fixed = np.arange(12) < 4
        Z0[fixed] = np.eye(3)[[0, 1, 2, 0]]
        lam = rng.uniform(0.01, 2)
        found = bound_update(a, W, lam, Z0, fixed=fixed if clamped else None, tol=0, max_iter=40)
        assert np.diff(found.energies).max() < 1e-12 * np.abs(found.energies).max()
        assert found.energies[0] == pytest.approx(relaxed_energy(Z0, a, W, lam))
        assert found.energies[-1] == pytest.approx(relaxed_energy(found.Z, a, W, lam))
        if clamped:
            np.testing.assert_array_equal(found.Z[fixed], Z0[fixed])


def test_psd_shift_of_any_graph_is_psd_and_keeps_the_order_of_hard_assignments() -> None:
    rng = np.random.default_rng(1)
    W = sparse.csr_array(sparse.random_array((30, 30), density=0.1, rng=rng))
    shifted = psd_shift(W)
    np.testing.assert_allclose(shifted.toarray(), psd_shift(W.toarray()))
    assert np.linalg.eigvalsh(shifted.toarray()).min() > -1e-12
    hard = [np.eye(3)[rng.integers(3, size=30)] for _ in range(2)]
    before, after = ([np.einsum("pk,pk", w @ z, z) for z in hard] for w in (W, shifted))
    assert before[0] - before[1] == pytest.approx(after[0] - after[1])


def test_rows_are_on_the_simplex_and_positive_whatever_the_scale() -> None:
    rng = np.random.default_rng(2)
    for dtype in (np.float32, np.float64):
        a = (rng.random((50, 4)) * 1e6).astype(dtype)
        W, _ = knn_graph(rng.random((50, 3)).astype(dtype), 2)
        Z = bound_update(a, W, 1.5).Z
        assert Z.dtype == dtype
        assert (Z > 0).all()
        np.testing.assert_allclose(Z.sum(axis=1), 1, rtol=1e-5)


def test_constants_change_nothing_and_classes_may_be_permuted() -> None:
    rng = np.random.default_rng(3)
    a, W = rng.random((20, 3)), rng.random((20, 20))
    Z = bound_update(a, W, 0.1, max_iter=30, tol=0).Z
    for changed in (a + rng.random((20, 1)), a + 7.0):
        np.testing.assert_allclose(bound_update(changed, W, 0.1, max_iter=30, tol=0).Z, Z, atol=1e-12)
    np.testing.assert_allclose(bound_update(a[:, [2, 0, 1]], W, 0.1, max_iter=30, tol=0).Z, Z[:, [2, 0, 1]])


def test_a_clear_majority_of_neighbours_decides() -> None:
    rng = np.random.default_rng(4)
    a, Z0 = rng.random((40, 3)), rng.dirichlet(np.ones(3), 40)
    W, _ = knn_graph(rng.random((40, 2)), 5)
    votes = W @ Z0
    lead = np.diff(np.sort(votes, axis=1)[:, -2:], axis=1)[:, 0]
    decided = 3.0 * lead > np.ptp(a, axis=1)
    assert 0 < decided.sum() < 40
    Z = bound_update(a, W, 3.0, Z0, max_iter=1).Z
    np.testing.assert_array_equal(Z.argmax(axis=1)[decided], votes.argmax(axis=1)[decided])


def test_sparse_dense_threads_and_chunks_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    a = rng.random((60, 4))
    W, _ = knn_graph(rng.random((60, 3)), 3)
    whole = bound_update(a, W, 0.7)
    np.testing.assert_allclose(bound_update(a, W.toarray(), 0.7).Z, whole.Z)
    monkeypatch.setattr("tunesmith.cluster.transductive.bound._CHUNK", 40)
    parts = bound_update(a, W, 0.7, n_jobs=2)
    np.testing.assert_array_equal(parts.Z, whole.Z)
    np.testing.assert_allclose(parts.energies, whole.energies)


def test_laplacian_shot_is_one_bound_update_on_the_queries() -> None:
    rng = np.random.default_rng(6)
    X, M = rng.random((30, 4)), rng.random((3, 4))
    unary = ((X[:, None] - M) ** 2).sum(axis=2)
    W, _ = knn_graph(X, 2)
    Z = np.exp(-unary) / np.exp(-unary).sum(axis=1, keepdims=True)
    found = laplacian_shot(X, M, lam=5.0)
    for _ in range(found.n_iter):
        Z = np.exp(-unary + 5.0 * (W @ Z))
        Z /= Z.sum(axis=1, keepdims=True)
    assert 2 < found.n_iter <= 20
    np.testing.assert_allclose(found.Z, Z, rtol=1e-9)
    whole = bound_update(unary, W, 5.0, max_iter=20, tol=1e-6)
    np.testing.assert_allclose(found.Z, whole.Z, rtol=1e-9)


def test_mean_shift_at_both_ends_of_the_bandwidth() -> None:
    X = np.random.default_rng(7).random((30, 3))
    np.testing.assert_allclose(mean_shift(X, X[0], 1e6)[0], X.mean(axis=0), atol=1e-9)
    np.testing.assert_array_equal(mean_shift(X, X[4], 1e-4)[0], X[4])
    far, _ = mean_shift(X, X[0] + 100, 1e-3)  # every kernel value underflows
    assert np.isfinite(far).all()


def test_mean_shift_with_weights_equals_repetition() -> None:
    X = np.random.default_rng(8).random((10, 2))
    count = np.array([1, 2, 3, 0, 1, 1, 2, 0, 4, 1])
    weighted, _ = mean_shift(X, X[0], 0.3, count)
    repeated, _ = mean_shift(np.repeat(X, count, axis=0), X[0], 0.3)
    np.testing.assert_allclose(weighted, repeated)


def test_normalisation_by_hand() -> None:
    X = np.array([[3.0, 4.0], [0.0, 2.0]])
    np.testing.assert_allclose(normalize_features(X, "l2n"), [[0.6, 0.8], [0, 1]])
    np.testing.assert_allclose(normalize_features(X, "cl2n", [0.0, 0.0]), [[0.6, 0.8], [0, 1]])
    np.testing.assert_allclose(normalize_features(X), np.array([[3, 2], [-3, -2]]) / np.sqrt(13))
    assert normalize_features(X, "un") is X
    np.testing.assert_allclose(align_queries([[1.0], [3.0]], [[0.0], [1.0]]), [[1.5], [2.5]])
    scaler = FeatureNormalizer().fit(X)
    np.testing.assert_allclose(scaler.transform(X + 1), normalize_features(X + 1, "cl2n", X.mean(axis=0)))
    assert scaler.transform(X.astype(np.float32)).dtype == np.float32


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: bound_update([0.0], SWAP, 1),
            "'unary' parameter of bound_update must be an array of shape (N, K)",
        ),
        (
            lambda: bound_update(NOTHING, np.eye(3), 1),
            "The 'W' parameter of bound_update must be of the shape (2, 2)",
        ),
        (
            lambda: bound_update(NOTHING, SWAP, -1),
            "'lam' parameter of bound_update must be a finite float >= 0",
        ),
        (
            lambda: bound_update(NOTHING, SWAP, 1, np.eye(3)),
            "'Z0' parameter of bound_update must be of the shape",
        ),
        (
            lambda: bound_update(NOTHING, SWAP, 1, max_iter=0),
            "'max_iter' parameter of bound_update must be an int",
        ),
        (
            lambda: bound_update(NOTHING, SWAP, 1, variant="x"),
            "must be 'paper' or 'official'. Got 'x' instead",
        ),
        (
            lambda: mean_shift(NOTHING, [0, 0], 0),
            "'sigma' parameter of mean_shift must be a float > 0. Got 0",
        ),
        (lambda: normalize_features(SWAP, "z"), "must be one of cl2n, l2n, un. Got 'z' instead"),
        (
            lambda: normalize_features(SWAP, "cl2n", [1]),
            "'base_mean' parameter of normalize_features must be of",
        ),
        (
            lambda: FeatureNormalizer("z").fit(SWAP),
            "The 'method' parameter of FeatureNormalizer must be a str among",
        ),
    ],
)
def test_parameter_errors(call: Any, message: str) -> None:
    with pytest.raises(ParameterError) as caught:
        call()
    assert message in str(caught.value)


def test_data_errors() -> None:
    with pytest.raises(DataError, match="an affinity is negative or not finite; the weights of W must be"):
        bound_update(NOTHING, -SWAP, 1)
    with pytest.raises(DataError, match="row 1: the row has length 0 and so no direction"):
        normalize_features([[1.0], [0.0]], "l2n")
    with pytest.raises(DataError, match="row 2: the row has length 0 after centring and so no direction"):
        normalize_features([[1.0], [3.0], [2.0]])
    with pytest.raises(
        DataError, match="every row has only duplicates as neighbours, so K-modes has no bandwidth"
    ):
        bandwidth(np.ones((2, 2)), SWAP)
