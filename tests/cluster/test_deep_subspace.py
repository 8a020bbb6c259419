"""DeepSubspaceClustering: stages, encoders, guards and errors."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import adjusted_rand_score
from torch import nn

from tunesmith.cluster import DeepSubspaceClustering
from tunesmith.cluster.deep_subspace import estimator, ridge_coefficients
from tunesmith.cluster.deep_subspace.networks import ConvAutoencoder, MLPAutoencoder
from tunesmith.core.errors import DataError, ParameterError, TrainingError

QUICK: dict[str, Any] = {
    "subspace_dim": 3,
    "hidden": (8,),
    "pretrain_epochs": 20,
    "expression_epochs": 20,
    "quality_epochs": 5,
    "random_state": 0,
    "device": "cpu",
}


def subspaces(seed: int = 0, each: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Noisy points on three planes in ten dimensions."""
    rng = np.random.default_rng(seed)
    X = np.concatenate([rng.standard_normal((each, 2)) @ rng.standard_normal((2, 10)) for _ in range(3)])
    return X + 0.02 * rng.standard_normal(X.shape), np.repeat(np.arange(3), each)


def fitted(X: np.ndarray, **options: Any) -> DeepSubspaceClustering:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return DeepSubspaceClustering(3, **{**QUICK, **options}).fit(X)


def test_planes_are_found() -> None:
    X, y = subspaces()
    model = fitted(X)
    assert adjusted_rand_score(y, model.labels_) == 1
    assert list(model.stage_labels_) == ["start", "expression", "quality"]
    assert list(model.loss_curves_) == ["pre-training", "self-expression", "clustering quality"]
    assert model.n_iter_ == sum(map(len, model.loss_curves_.values()))
    assert model.loss_curves_["self-expression"][-1] < model.loss_curves_["self-expression"][0]
    assert model.loss_curves_["clustering quality"][-1] < model.loss_curves_["clustering quality"][0]
    assert model.coef_.shape == model.affinity_matrix_.shape == (36, 36)
    assert (np.diag(model.coef_) == 0).all()
    assert model.layer_norms_.shape == (2, 2)
    np.testing.assert_allclose(model.layer_norms_[0], 6)  # 36 rows of length 1


def test_stage_three_leaves_the_encoder_bit_identical() -> None:
    X, _ = subspaces()
    without, with_it = (fitted(X, quality_epochs=epochs) for epochs in (0, 5))
    pairs = zip(without.encoder_.parameters(), with_it.encoder_.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not np.array_equal(without.coef_, with_it.coef_)


def test_labels_are_never_looked_at() -> None:
    X, y = subspaces()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        seen = DeepSubspaceClustering(3, **QUICK).fit(X, y)
    np.testing.assert_array_equal(seen.coef_, fitted(X).coef_)
    for name, function in inspect.getmembers(DeepSubspaceClustering, inspect.isfunction):
        if function.__module__ == estimator.__name__ and name != "fit":
            assert "y" not in inspect.signature(function).parameters, name


def test_without_an_encoder_it_is_linear_and_follows_a_permutation() -> None:
    X, _ = subspaces(1)
    order = np.random.default_rng(0).permutation(36)
    first, second = (fitted(rows, encoder=None) for rows in (X, X[order]))
    assert first.encoder_ is None
    assert "pre-training" not in first.loss_curves_
    np.testing.assert_allclose(second.coef_, first.coef_[order][:, order], atol=1e-9)
    assert adjusted_rand_score(first.labels_[order], second.labels_) == 1


def test_one_cluster_holds_all_rows() -> None:
    X, _ = subspaces()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = DeepSubspaceClustering(1, **QUICK).fit(X)
    assert (model.labels_ == 0).all()
    assert model.loss_curves_["clustering quality"] == [0.0]


def test_ridge_alone_is_the_closed_form() -> None:
    X, y = subspaces(2)
    model = fitted(X, encoder=None, expression_epochs=0, quality_epochs=0, ridge=0.1)
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    np.testing.assert_allclose(model.coef_, ridge_coefficients(unit, 0.1))
    assert adjusted_rand_score(y, model.labels_) == 1
    assert model.n_iter_ == 0


def test_as_the_authors_code_runs_it() -> None:
    X, _ = subspaces(3)
    model = fitted(X, c_init="constant", zero_diagonal=False, pretrain="distance_product")
    assert "start" not in model.stage_labels_
    assert (np.diag(model.coef_) != 0).any()
    assert len(np.unique(model.labels_)) == 3


@pytest.mark.parametrize("size", [7, 8])
def test_convolutions_take_images_flat_or_not(size: int) -> None:
    X = np.random.default_rng(0).random((20, 1, size, size)).astype(np.float32)
    options = {"encoder": "conv", "kernel_size": 3, "channels": (4, 2), "subspace_dim": 4}
    images = fitted(X, **options)
    flat = fitted(X.reshape(20, -1), image_shape=(1, size, size), **options)
    np.testing.assert_array_equal(images.labels_, flat.labels_)
    assert images.coef_.dtype == np.float32
    assert images.layer_norms_.shape == (3, 2)
    assert images.loss_curves_["pre-training"][-1] < images.loss_curves_["pre-training"][0]


def test_autoencoders_show_every_layer_and_decode_to_the_input() -> None:
    x = torch.rand(5, 3 * 9 * 6)
    conv = ConvAutoencoder((3, 9, 6), (4, 8), 3)
    assert [tuple(layer.shape) for layer in conv(x)] == [(5, 4 * 5 * 3), (5, 8 * 3 * 2)]
    assert conv.decode(conv(x)[-1]).shape == x.shape
    flat = MLPAutoencoder(7, (4, 2))
    assert [layer.shape[1] for layer in flat(x[:, :7])] == [4, 2]
    assert flat.decode(flat(x[:, :7])[-1]).shape == (5, 7)


class Halving(nn.Module):
    """One layer, no decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((10, 4), 0.5))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [x @ self.weight]


def test_own_module_is_copied() -> None:
    X, _ = subspaces(4)
    mine = Halving()
    model = fitted(X, encoder=mine, pretrain=None)
    assert torch.equal(mine.weight, torch.full((10, 4), 0.5))
    assert not torch.equal(model.encoder_.weight, mine.weight.double())
    assert isinstance(clone(model).encoder, Halving)
    with pytest.raises(
        ParameterError, match="'distance_product' or None where the encoder has no method decode"
    ):
        fitted(X, encoder=mine)


def test_a_collapsed_encoder_is_told() -> None:
    X, _ = subspaces(5)
    options = {"pretrain": "distance_product", "pretrain_epochs": 300, "learning_rate": 0.01, "tol": 0.0}
    with pytest.warns(UserWarning, match="the encoder has collapsed in layer 1: its outputs are almost 0"):
        fitted(X, encoder=Halving(), expression_epochs=0, quality_epochs=0, **options)


def test_stages_stop_by_their_own_loss() -> None:
    X, _ = subspaces(6)
    loose = fitted(X, tol=0.5, expression_epochs=200)
    assert len(loose.loss_curves_["self-expression"]) == 10  # two means of five epochs
    with pytest.warns(
        ConvergenceWarning, match=r"self-expression did not settle in 7 epochs \(relative change 0\)"
    ):
        DeepSubspaceClustering(3, **{**QUICK, "expression_epochs": 7, "tol": 0.0}).fit(X)


def test_zero_rows_and_duplicates_are_survived() -> None:
    X, _ = subspaces(7)
    X[3] = 0
    with pytest.warns(UserWarning, match="1 of 36 rows have no link to another"):
        model = fitted(X, encoder=None, quality_epochs=0)
    assert model.labels_.shape == (36,)
    assert fitted(np.repeat(X[:12], 3, axis=0)).labels_.shape == (36,)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"n_clusters": 0},
            ParameterError,
            "'n_clusters' parameter of DeepSubspaceClustering must be an int in the",
        ),
        ({"n_clusters": 36}, ParameterError, "must be an int in [1, 35] for 36 rows. Got 36 instead."),
        (
            {"subspace_dim": 36},
            ParameterError,
            "'subspace_dim' parameter of DeepSubspaceClustering must be an int in",
        ),
        ({"max_rows": 20}, DataError, "keeps an n x n matrix: 36 rows need 0.0 GiB for the coefficients"),
        (
            {"encoder": "conv"},
            DataError,
            "needs images of shape (channels, height, width) with 10 numbers; image_shape",
        ),
        (
            {"encoder": "conv", "image_shape": (1, 2, 5), "kernel_size": 4},
            ParameterError,
            "must be odd. Got 4 instead",
        ),
        (
            {"c_init": "constant", "expression_epochs": 0},
            ParameterError,
            "must be 'ridge' where expression_epochs is 0",
        ),
        (
            {"device": "nowhere"},
            ParameterError,
            "must be 'auto' or a device that torch can use here. Got 'nowhere'",
        ),
    ],
)
def test_errors(options: dict[str, Any], error: type[Exception], message: str) -> None:
    X, _ = subspaces()
    with pytest.raises(error) as caught:
        DeepSubspaceClustering(**{"n_clusters": 3, **QUICK, **options}).fit(X)
    assert message in str(caught.value)


def test_a_loss_that_is_not_finite_ends_the_fit() -> None:
    X, _ = subspaces()
    message = r"the loss of (pre-training|self-expression) became (nan|inf) in epoch \d+; lower learning_rate"
    with pytest.raises(TrainingError, match=message):
        fitted(X.astype(np.float32) * 1e15, normalize=False, learning_rate=1e30)
