"""Losses and the spectral step of deep subspace clustering: hand-worked numbers, closed forms, invariances."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.metrics import adjusted_rand_score

from tunesmith.cluster.deep_subspace import (
    affinity_from_coefficients,
    distance_product_loss,
    quality_loss,
    reconstruction_loss,
    ridge_coefficients,
    self_expression_loss,
    shifted_laplacian,
    spectral_from_coefficients,
)
from tunesmith.core.errors import DataError, ParameterError


def subspaces(
    seed: int, k: int = 3, d0: int = 2, D: int = 12, each: int = 10
) -> tuple[np.ndarray, np.ndarray]:
    """Points on independent subspaces without noise, rows of length 1."""
    rng = np.random.default_rng(seed)
    X = np.concatenate([rng.standard_normal((each, d0)) @ rng.standard_normal((d0, D)) for _ in range(k)])
    return X / np.linalg.norm(X, axis=1, keepdims=True), np.repeat(np.arange(k), each)


def test_self_expression_at_its_extremes() -> None:
    V = [torch.randn(6, w, dtype=torch.float64, generator=torch.Generator().manual_seed(w)) for w in (4, 3)]
    assert self_expression_loss(torch.eye(6, dtype=torch.float64), V, zero_diagonal=False) == 0
    nothing = torch.zeros(6, 6, dtype=torch.float64)
    total = sum((v**2).sum() for v in V)
    torch.testing.assert_close(self_expression_loss(nothing, V), total)
    torch.testing.assert_close(self_expression_loss(torch.eye(6, dtype=torch.float64), V), total)  # masked


def test_a_masked_diagonal_gets_no_gradient_and_stays_zero() -> None:
    V = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    C = torch.zeros(5, 5, requires_grad=True)
    optimizer = torch.optim.Adam([C], lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        self_expression_loss(C, [V]).backward()
        assert (C.grad.diagonal() == 0).all()
        assert (C.grad != 0).sum() == 20
        optimizer.step()
    assert (C.detach().diagonal() == 0).all()


def test_without_encoder_the_ridge_form_is_the_minimum() -> None:
    X, lam = np.random.default_rng(0).random((7, 4)), 0.3
    C = torch.tensor(ridge_coefficients(X, lam), requires_grad=True)
    x = torch.tensor(X)
    loss = self_expression_loss(C, [x]) + lam * (C**2).sum()
    loss.backward()
    assert C.grad.abs().max() < 1e-12
    assert (C.detach().diagonal() == 0).all()
    others = [i for i in range(7) if i != 2]
    A = X[others].T  # row 2 by plain ridge regression on the others
    alone = np.linalg.solve(A.T @ A + lam * np.eye(6), A.T @ X[2])
    np.testing.assert_allclose(C.detach().numpy()[2, others], alone)


def test_quality_by_hand() -> None:
    C = torch.tensor([[0.0, 4.0], [0.0, 0.0]])
    assert quality_loss(C, torch.tensor([0, 1])) == 4
    assert quality_loss(C, torch.tensor([1, 1])) == 0
    W = (C.abs() + C.abs().T).sqrt()
    Q = torch.eye(2)
    assert torch.trace(Q.T @ (torch.diag(W.sum(1)) - W) @ Q) == 4


def test_quality_is_zero_only_without_links_between_clusters() -> None:
    rng = torch.Generator().manual_seed(1)
    C = torch.randn(8, 8, generator=rng, dtype=torch.float64)
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2])
    loss = quality_loss(C, labels)
    assert loss > 0
    renamed = torch.tensor([2, 0, 1])[labels]
    torch.testing.assert_close(quality_loss(C, renamed), loss)
    order = torch.randperm(8, generator=rng)
    torch.testing.assert_close(quality_loss(C[order][:, order], labels[order]), loss)
    assert quality_loss(C, torch.zeros(8)) == 0
    inside = torch.where(labels[:, None] == labels, C, torch.zeros_like(C))
    assert quality_loss(inside, labels) == 0
    inside[0, 7] = 1e-6
    assert quality_loss(inside, labels) > 0


def test_quality_has_a_finite_gradient_at_zero() -> None:
    C = torch.zeros(3, 3, requires_grad=True)
    quality_loss(C, torch.tensor([0, 1, 2])).backward()
    assert (C.grad == 0).all()
    D = torch.tensor([[0.0, 4.0], [0.0, 0.0]], requires_grad=True)
    quality_loss(D, torch.tensor([0, 1])).backward()
    torch.testing.assert_close(D.grad, torch.tensor([[0.0, 0.5], [0.0, 0.0]]))  # d/dx 2 sqrt(x) at 4


def test_pre_training_losses_by_hand() -> None:
    X, Y = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [3.0]])
    assert reconstruction_loss(X, Y) == 4
    # H^0 = [[0, 1], [1, 0]], H^1 = [[0, 9], [9, 0]]: (2 * 1 + 2 * 9) / 2
    assert distance_product_loss([X, Y]) == 10


def test_independent_subspaces_are_separated_as_the_penalty_vanishes() -> None:
    for seed in range(3):
        X, y = subspaces(seed)
        C = ridge_coefficients(X, 1e-6)
        across = y[:, None] != y
        assert np.abs(C[across]).max() < 1e-4 * np.abs(C).max()
        assert adjusted_rand_score(y, spectral_from_coefficients(C, 3, 4)) == 1


def test_columns_keep_their_largest_entries() -> None:
    C = np.random.default_rng(2).random((12, 12))
    S = (C + C.T) / 2
    A = affinity_from_coefficients(C, 4).toarray()
    np.testing.assert_array_equal(A, A.T)
    kept = np.sort(S, axis=0)[-4]
    T = np.where(kept <= S, S, 0)
    assert ((T > 0).sum(axis=0) == 4).all()
    np.testing.assert_allclose(A, (T + T.T) / 2)
    np.testing.assert_allclose(affinity_from_coefficients(C, 12).toarray(), S)
    np.testing.assert_allclose(affinity_from_coefficients(C, 99).toarray(), S)
    tied = np.ones((4, 4)) - np.eye(4)
    assert (affinity_from_coefficients(tied, 2).toarray() > 0).sum() == 12  # ties are all kept
    assert affinity_from_coefficients(np.diag([1.0, 0, 0]), 1).nnz == 1  # fewer non-zeros than d stay few


def test_eigenvalues_of_the_shifted_laplacian() -> None:
    rng = np.random.default_rng(3)
    blocks = [np.abs(rng.standard_normal((m, m))) + 0.1 for m in (3, 4, 5)]
    A = sparse.block_diag([b + b.T for b in blocks]).toarray()
    M = shifted_laplacian(A).toarray()
    np.testing.assert_allclose(M, M.T)
    values = np.linalg.eigvalsh(M)
    assert values.min() > -1e-9
    assert (np.abs(values - 2) < 1e-9).sum() == 3
    lonely = np.linalg.eigvalsh(shifted_laplacian(sparse.block_diag([A, [[0.0]]])).toarray())
    assert (np.abs(lonely - 2) < 1e-9).sum() == 3
    assert (np.abs(lonely - 1) < 1e-9).sum() >= 1


def test_permuted_samples_give_permuted_results() -> None:
    X, y = subspaces(4)
    order = np.random.default_rng(5).permutation(30)
    C, P = ridge_coefficients(X, 0.1), ridge_coefficients(X[order], 0.1)
    np.testing.assert_allclose(P, C[order][:, order], atol=1e-12)
    first, second = (affinity_from_coefficients(c, 4).toarray() for c in (C, P))
    np.testing.assert_allclose(second, first[order][:, order], atol=1e-12)
    labels = spectral_from_coefficients(C, 3, 4)
    assert adjusted_rand_score(labels[order], spectral_from_coefficients(P, 3, 4)) == 1
    assert adjusted_rand_score(labels, y) == 1


def test_lanczos_agrees_with_lapack(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = subspaces(6, each=60)
    C = ridge_coefficients(X, 1e-3)
    values = np.linalg.eigvalsh(shifted_laplacian(affinity_from_coefficients(C, 12)).toarray())
    assert (values > 2 - 1e-3).sum() == 3  # an eigenvalue that repeats, up to rounding
    dense = spectral_from_coefficients(C, 3, 12)
    monkeypatch.setattr("tunesmith.cluster.deep_subspace.spectral._DENSE", 50)
    assert adjusted_rand_score(dense, spectral_from_coefficients(C, 3, 12)) == 1
    assert adjusted_rand_score(dense, y) == 1
    np.testing.assert_array_equal(spectral_from_coefficients(C, 3, 12, start=dense), dense)


def test_rows_without_links_follow_the_nearest() -> None:
    X, y = subspaces(7)
    C = ridge_coefficients(X, 1e-3)
    C[5], C[:, 5] = 0, 0
    with pytest.warns(UserWarning, match="1 of 30 rows have no link to another; they take the label"):
        labels = spectral_from_coefficients(C, 3, 4, X=X)
    others = np.arange(30) != 5
    near = np.linalg.norm(X - X[5], axis=1)[others].argmin()
    assert labels[5] == labels[others][near]
    assert adjusted_rand_score(y[others], labels[others]) == 1
    with pytest.warns(UserWarning, match="their labels are arbitrary"):
        spectral_from_coefficients(C, 3, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: ridge_coefficients(np.eye(3), 0),
            "The 'lam' parameter of ridge_coefficients must be a float > 0",
        ),
        (
            lambda: affinity_from_coefficients(np.ones((2, 3)), 1),
            "must be a square matrix. Got (2, 3) instead",
        ),
        (
            lambda: affinity_from_coefficients(np.eye(3), 0),
            "'subspace_dim' parameter of affinity_from_coefficients",
        ),
        (
            lambda: spectral_from_coefficients(np.eye(3), 1, 1),
            "spectral_from_coefficients must be an int in [2, 2]",
        ),
        (
            lambda: spectral_from_coefficients(np.eye(3), 3, 1),
            "spectral_from_coefficients must be an int in [2, 2]",
        ),
    ],
)
def test_parameter_errors(call: Any, message: str) -> None:
    with pytest.raises(ParameterError) as caught:
        call()
    assert message in str(caught.value)


def test_no_links_at_all() -> None:
    with pytest.raises(DataError, match="all coefficients are 0, so no row is linked to another"):
        spectral_from_coefficients(np.zeros((4, 4)), 2, 1)
