"""DEPICT as an estimator: images, own networks, gradients, warnings, messages."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.datasets import load_digits, make_blobs
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import adjusted_rand_score
from sklearn.preprocessing import StandardScaler
from torch import nn

from tunesmith.cluster.depict import DEPICT, LayeredAutoencoder, cluster_loss, target_distribution
from tunesmith.cluster.depict.training import JointTraining
from tunesmith.core.errors import DataError, ParameterError

X, y = make_blobs(120, n_features=6, centers=3, cluster_std=0.5, random_state=0)
X = StandardScaler().fit_transform(X)
IMAGES = (load_digits().images[:160, None] / 8 - 1).astype(np.float32)
SHORT: dict[str, object] = {
    "hidden_layer_sizes": (12,),
    "pretrain_epochs": 4,
    "warmup_epochs": 2,
    "max_iter": 3,
    "tol": 0.0,
    "n_init": 2,
    "random_state": 0,
}
TINY_IMAGES = dict(SHORT, n_filters=(4, 4))


def fit(model, data=X):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(data)


def running(model, data, dropout=0.1):
    """The training of a model that has been fitted, ready for single steps."""
    return JointTraining(
        model, model.network_, model.head_, torch.tensor(data), torch.Generator(), np.random.RandomState(0)
    )


# --- what must hold ---


def test_7_a_weight_of_zero_cuts_the_gradient():
    x = torch.tensor(X)
    Q = torch.softmax(torch.randn(len(X), 3, dtype=torch.float64), 1)
    for clustering, reconstruction in ((0, 1), (1, 0), (1, 1)):
        model = fit(DEPICT(3, clustering_weight=clustering, reconstruction_weight=reconstruction, **SHORT))
        run = running(model, X)
        run.joint_loss(x, Q, run.clean(x) if reconstruction else None).backward()
        assert all((p.grad is not None) == bool(clustering) for p in run.head.parameters())
        assert all((p.grad is not None) == bool(reconstruction) for p in run.network.decoder.parameters())
        assert all(p.grad is not None for p in run.network.encoder.parameters())


def test_gradients_reach_the_clean_targets_only_if_asked():
    x = torch.tensor(X)
    gradients = []
    for stop in (True, False):
        model = fit(DEPICT(3, stop_gradient=stop, inner_weight=1.0, dropout=0.0, **SHORT))
        model.set_params(stop_gradient=stop)
        run = running(fit(DEPICT(3, inner_weight=1.0, dropout=0.0, **SHORT)), X)
        run.owner = model
        clean = run.clean(x)
        assert all(z.requires_grad != stop for z in clean[1:])
        run.joint_loss(x, None, clean).backward()
        gradients.append(run.network.encoder[0][0].weight.grad)
    assert not torch.allclose(gradients[0], gradients[1])


def test_8_permuting_the_head_permutes_the_labels_and_nothing_else():
    model = fit(DEPICT(3, **SHORT))
    P, Z, labels = model.predict_proba(X), model.transform(X), model.predict(X)
    order = [2, 0, 1]
    with torch.no_grad():
        model.head_.weight.copy_(model.head_.weight[order].clone())
        model.head_.bias.copy_(model.head_.bias[order].clone())
    assert_allclose(model.predict_proba(X), P[:, order], atol=1e-12)
    assert_array_equal(np.array(order)[model.predict(X)], labels)
    assert_array_equal(model.transform(X), Z)


def test_10_predictions_do_not_depend_on_the_batch():
    model = fit(DEPICT(3, **TINY_IMAGES), IMAGES)
    assert_array_equal(model.predict(IMAGES), model.labels_)
    assert_array_equal(model.predict(IMAGES), model.predict(IMAGES))
    alone = np.concatenate([model.predict_proba(image[None]) for image in IMAGES[:5]])
    assert_allclose(alone, model.predict_proba(IMAGES)[:5], atol=1e-6)


# --- the estimator ---


def test_it_finds_clear_groups_and_tells_of_itself():
    model = fit(DEPICT(3, **SHORT))
    assert adjusted_rand_score(y, model.labels_) == 1
    assert model.n_iter_ == 3
    assert [len(model.pretrain_loss_curve_), len(model.warmup_loss_curve_), len(model.loss_curve_)] == [
        4,
        2,
        3,
    ]
    P = model.predict_proba(X)
    assert_allclose(P.sum(axis=1), 1, atol=1e-12)
    assert model.confidence_ == pytest.approx(P.max(axis=1).mean(), abs=1e-9)
    assert model.transform(X).shape == (120, 3)
    assert list(model.get_feature_names_out()) == ["depict0", "depict1", "depict2"]


def test_images_as_tensors_and_as_rows_are_the_same():
    model = fit(DEPICT(4, **TINY_IMAGES), IMAGES)
    rows = IMAGES.reshape(len(IMAGES), -1)
    flat = fit(DEPICT(4, image_shape=(1, 8, 8), **TINY_IMAGES), rows)
    assert_array_equal(model.labels_, flat.labels_)
    assert model.image_shape_ == flat.image_shape_ == (1, 8, 8)
    assert model.transform(IMAGES).dtype == np.float32
    perceptron = fit(DEPICT(4, encoder="mlp", output="tanh", **SHORT), IMAGES)
    assert perceptron.transform(IMAGES).shape == (160, 4)


def test_own_blocks_and_own_module_are_copied_and_trained():
    encoder = [nn.Sequential(nn.Linear(6, 5), nn.ReLU()), nn.Linear(5, 2)]
    decoder = [nn.Sequential(nn.Linear(2, 5), nn.ReLU()), nn.Linear(5, 6)]
    before = encoder[0][0].weight.clone()
    blocks = fit(DEPICT(3, encoder=encoder, decoder=decoder, **SHORT))
    assert torch.equal(encoder[0][0].weight, before)
    assert not torch.equal(blocks.network_.encoder[0][0].weight, before.double())
    whole = fit(DEPICT(3, encoder=LayeredAutoencoder(encoder, decoder), **SHORT))
    assert_array_equal(whole.labels_, blocks.labels_)
    assert whole.transform(X).shape == (120, 2)


def test_the_global_random_state_is_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fit(DEPICT(3, **SHORT))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    "options", [{"refresh": "epoch"}, {"target": "paper"}, {"init": "acpic"}, {"patience": None}]
)
def test_switches(options):
    model = fit(DEPICT(3, **SHORT, **options))
    assert adjusted_rand_score(y, model.labels_) == 1


def test_the_targets_of_an_epoch_come_from_its_begin_or_from_its_steps():
    """With a learning rate of nearly nothing both ways are the same."""
    slow = dict(SHORT, learning_rate=1e-12, dropout=0.0, pretrain_epochs=0, warmup_epochs=0)
    curves = [fit(DEPICT(3, refresh=refresh, **slow)).loss_curve_ for refresh in ("epoch", "batch")]
    assert_allclose(curves[0], curves[1], rtol=1e-9)
    model = fit(DEPICT(3, reconstruction_weight=0, **slow))
    P = torch.tensor(model.predict_proba(X))
    expected = float(cluster_loss(P.log(), target_distribution(P)))
    assert model.loss_curve_[-1] == pytest.approx(expected, rel=1e-6)


def test_a_prior_goes_to_the_initial_clusters_by_size(monkeypatch):
    seen = []
    monkeypatch.setattr(JointTraining, "refine", lambda self, prior: seen.append(prior) or [])
    uneven = np.concatenate([X[y == 0], X[y == 1][:20], X[y == 2][:8]])
    model = DEPICT(3, prior=[1, 6, 3], **SHORT).fit(uneven)
    sizes = np.bincount(model.initial_labels_)
    assert sorted(sizes) == [8, 20, 40]
    assert_allclose(seen[0][np.argsort(sizes)], [0.1, 0.3, 0.6])


def test_patience_ends_the_pretraining_and_keeps_the_best():
    model = fit(DEPICT(3, **dict(SHORT, pretrain_epochs=500, patience=0, learning_rate=0.05)))
    assert len(model.pretrain_loss_curve_) < 500


def test_convergence_and_the_lack_of_it():
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        done = [DEPICT(3, refresh=way, **dict(SHORT, tol=1.0)).fit(X).n_iter_ for way in ("epoch", "batch")]
    assert done == [1, 2]
    with pytest.warns(ConvergenceWarning, match=r"DEPICT did not converge: after 3 epochs .* tol=1e-09"):
        DEPICT(3, **dict(SHORT, tol=1e-9)).fit(X)


def test_a_dead_cluster_is_reseeded():
    model = fit(DEPICT(3, **SHORT))
    with torch.no_grad():
        model.head_.bias[1] = -100.0
    run = running(model, X)
    P = run.probabilities().clone()
    assert float(P[:, 1].sum()) < 1e-8
    with pytest.warns(ConvergenceWarning, match=r"re-seeded cluster 1, which had died .* below 0\.001"):
        run._reseed(P)
    assert float(P[:, 1].sum()) > 1
    assert_allclose(P.sum(dim=1), 1, atol=1e-12)


# --- bad input ---


@pytest.mark.parametrize(
    ("options", "data", "message"),
    [
        (
            {"n_clusters": 1},
            X,
            r"The 'n_clusters' parameter of DEPICT must be an int in the range \[2, inf\)\. Got 1",
        ),
        ({"n_clusters": 121}, X, r"must be an int in \[1, 120\], the number of rows\. Got 121"),
        ({"prior": [0.5, 0.5]}, X, r"'prior' parameter of DEPICT must be 3 positive numbers"),
        ({"prior": [0.5, 0.5, 0.0]}, X, r"'prior' parameter of DEPICT must be 3 positive numbers"),
        (
            {"device": "abacus"},
            X,
            r"'device' .* must be 'auto' or a device that torch can use here\. Got 'abacus'",
        ),
        (
            {"encoder": "conv"},
            X,
            r"'image_shape' .* must be \(C, H, W\) for encoder='conv' and rows as vectors",
        ),
        ({"image_shape": (1, 2)}, X, r"'image_shape' .* must be \(C, H, W\)"),
        ({"image_shape": (3, 8, 8)}, IMAGES, r"'image_shape' .* must be \(C, H, W\), here \(1, 8, 8\)"),
        (
            {"image_shape": (1, 8, 8)},
            X,
            r"DEPICT needs images of the shape \(1, 8, 8\); the rows of X have the shape",
        ),
        ({}, IMAGES[:, 0], r"\(images, channels, height, width\); it has the shape \(160, 8, 8\)"),
        ({}, IMAGES * 8 + 8, r"needs values in \[-1, 1\]; X ranges from 0 to 16\. Scale it, for pixels with"),
        ({"encoder": nn.Linear(6, 2)}, X, r"a module with activations and reconstructions\. Got 'Linear'"),
        ({}, np.where(np.arange(6) == 2, np.nan, X), r"Input X contains NaN"),
    ],
)
def test_bad_input(options, data, message):
    with pytest.raises((ParameterError, DataError, ValueError), match=message):
        DEPICT(**{"n_clusters": 3, **SHORT, **options}).fit(data)


@pytest.mark.parametrize(
    ("encoder", "decoder", "message"),
    [
        (
            [nn.BatchNorm1d(6), nn.Linear(6, 2)],
            [nn.Linear(2, 6), nn.Identity()],
            "without batch normalisation",
        ),
        ([nn.Linear(6, 2)], [nn.Linear(2, 5)], r"gives back level 0 as \(6,\), not \(5,\)"),
        (
            [nn.Unflatten(1, (2, 3))],
            [nn.Flatten()],
            r"last block gives \(rows, width\), not the shape \(2, 2, 3\)",
        ),
    ],
)
def test_networks_that_cannot_be_used(encoder, decoder, message):
    with pytest.raises(ParameterError, match=message):
        DEPICT(3, encoder=encoder, decoder=decoder, **SHORT).fit(X)


def test_images_of_another_shape_at_prediction():
    model = fit(DEPICT(3, **TINY_IMAGES), IMAGES)
    with pytest.raises(DataError, match=r"DEPICT needs images of the shape \(1, 8, 8\)"):
        model.predict(IMAGES[:, :, :4])


def test_vectors_may_have_any_scale():
    one, other = (fit(DEPICT(3, **SHORT), data) for data in (X, 1000 * X + 5))
    assert_array_equal(one.labels_, other.labels_)
    assert_allclose(one.transform(X), other.transform(1000 * X + 5), atol=1e-6)
