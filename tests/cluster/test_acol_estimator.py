"""ACOLClusterer: parents, images, own networks, restarts, warnings, messages."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.preprocessing import StandardScaler
from torch import nn

from tunesmith.cluster.acol import PSEUDO_PARENTS, ACOLClusterer, transform_images
from tunesmith.core.errors import DataError, ParameterError
from tunesmith.metrics.clustering import purity

# The dossier's calibration: six groups on a circle, alternately under two parents, among ten columns of nuisance.
RNG = np.random.default_rng(0)
FINE = RNG.integers(0, 6, 1500)
CIRCLE = 4 * np.c_[np.cos(FINE * np.pi / 3), np.sin(FINE * np.pi / 3)] + 0.7 * RNG.standard_normal((1500, 2))
NUISANCE = RNG.choice([-1, 1], (1500, 10)) + 0.3 * RNG.standard_normal((1500, 10))
CALIBRATION = StandardScaler().fit_transform(np.c_[CIRCLE, NUISANCE]).astype(np.float32)
X, COARSE = CALIBRATION[:300].astype(np.float64), FINE[:300] % 2
IMAGES = (load_digits().images[:120, None] / 8 - 1).astype(np.float32)
DIGITS = load_digits().target[:120]
SHORT: dict[str, object] = {
    "hidden_layer_sizes": (16,),
    "max_iter": 3,
    "n_iter_no_change": None,
    "random_state": 0,
}


def test_it_finds_the_classes_inside_the_parents():
    """Purity 1 with six nodes in use is what the dossier's calibration gives with both weights 0.1."""
    model = ACOLClusterer(3, hidden_layer_sizes=(64, 64), max_iter=60, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(CALIBRATION, FINE % 2)
    assert (model.predict_parent(CALIBRATION) == FINE % 2).mean() > 0.99
    assert purity(FINE, model.labels_) > 0.98
    assert model.n_active_nodes_ == 6
    assert model.affinity_ < 0.05
    assert model.balance_ > 0.95


def test_predictions_agree_with_one_another():
    names = np.array(["even", "odd"])[COARSE]
    model = ACOLClusterer(4, **SHORT).fit(X, names)
    assert model.classes_.tolist() == ["even", "odd"]
    P = model.predict_proba(X)
    assert P.shape == (300, 8)
    assert_allclose(P.sum(axis=1), 1, atol=1e-12)
    assert_array_equal(model.predict(X), P.argmax(axis=1))
    assert_array_equal(model.predict(X), model.labels_)
    Y = np.stack([P[:, p::2].sum(axis=1) for p in range(2)], axis=1)
    assert_allclose(model.predict_parent_proba(X), Y, atol=1e-12)
    assert_array_equal(model.predict_parent(X), model.classes_[Y.argmax(axis=1)])
    assert model.transform(X).shape == (300, 16)
    assert model.n_iter_ == len(model.loss_curve_) == 3


def test_restarts_keep_the_lowest_loss():
    many = ACOLClusterer(3, n_init=4, **SHORT).fit(X, COARSE)
    assert many.loss_ <= ACOLClusterer(3, n_init=1, **SHORT).fit(X, COARSE).loss_


def test_images_and_own_networks():
    parents = DIGITS % 2
    model = ACOLClusterer(5, **SHORT).fit(IMAGES, parents)
    assert any(isinstance(m, nn.Conv2d) for m in model.network_.modules())
    flat = ACOLClusterer(5, image_shape=(1, 8, 8), **SHORT).fit(IMAGES.reshape(120, 64), parents)
    assert_array_equal(model.labels_, flat.labels_)
    own = nn.Sequential(nn.Flatten(), nn.Linear(64, 7), nn.Tanh())
    before = own[1].weight.clone()
    assert ACOLClusterer(5, encoder=own, **SHORT).fit(IMAGES, parents).transform(IMAGES).shape == (120, 7)
    assert torch.equal(own[1].weight, before)


def test_parents_made_from_the_images():
    model = ACOLClusterer(3, pseudo_parents=["identity", "rot90", "rot180", "rot270"], **SHORT).fit(IMAGES)
    assert model.classes_.tolist() == ["identity", "rot90", "rot180", "rot270"]
    assert model.predict_proba(IMAGES).shape == (120, 12)
    given = ACOLClusterer(3, pseudo_parents=["flip"], **SHORT).fit(IMAGES, DIGITS % 2)
    assert given.classes_.tolist() == [0, 1]


def test_the_eight_transformations_are_the_symmetries_of_a_square():
    x = torch.arange(9.0).reshape(1, 1, 3, 3).repeat(8, 1, 1, 1)
    turned = transform_images(x, list(PSEUDO_PARENTS), torch.arange(8))
    assert len({tuple(image.ravel().tolist()) for image in turned}) == 8
    assert_array_equal(turned[0], x[0])
    assert_array_equal(turned[1, 0], np.rot90(x[0, 0].numpy()))
    assert_array_equal(turned[4, 0], x[0, 0].numpy()[:, ::-1])
    assert_array_equal(transform_images(turned, ["rot180"], torch.zeros(8))[2], x[0])


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "sgd"},
        {"balance_type": 0},
        {"balance_type": 7},
        {"c_3": 1e-6, "c_3_start": 1},
        {"dropout": 0.2, "acol_dropout": 0.2},
        {"encoder": "mlp"},
    ],
)
def test_switches(options):
    model = ACOLClusterer(2, **{**SHORT, **options}).fit(X, COARSE)
    assert model.labels_.max() < 4
    assert np.isfinite(model.loss_)
    assert 0 <= model.affinity_ <= 1
    assert 0 <= model.balance_ <= 1


def test_coactivity_starts_when_told():
    curves = [
        ACOLClusterer(3, **SHORT, c_3=c, c_3_start=start).fit(X, COARSE).loss_curve_
        for c, start in ((0.0, 0), (1e-3, 2), (1e-3, 0))
    ]
    assert curves[0][:2] == curves[1][:2]
    assert curves[0][2] < curves[1][2]
    assert curves[0][0] < curves[2][0]


def test_one_parent_and_one_node():
    model = ACOLClusterer(1, **SHORT).fit(X)
    assert_array_equal(model.labels_, 0)
    assert (model.affinity_, model.balance_) == (0, 1)
    assert len(np.unique(ACOLClusterer(3, **SHORT).fit(X).predict_parent(X))) == 1


def test_the_global_random_state_is_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    ACOLClusterer(3, dropout=0.1, **SHORT).fit(X, COARSE)
    assert torch.equal(torch.rand(3), expected)


def test_convergence_and_the_lack_of_it():
    options = {**SHORT, "n_iter_no_change": 2}
    with pytest.warns(
        ConvergenceWarning, match="did not converge: the loss still falls after max_iter=3 epochs"
    ):
        ACOLClusterer(3, **options).fit(X, COARSE)
    rested = ACOLClusterer(3, **{**options, "max_iter": 50, "tol": 10.0})
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        assert rested.fit(X, COARSE).n_iter_ == 3


def test_batches_that_are_too_small_for_the_nodes():
    with pytest.warns(UserWarning, match=r"compares 40 nodes in batches of 32 rows: balance is mostly noise"):
        ACOLClusterer(20, **SHORT, batch_size=32).fit(X, COARSE)


@pytest.mark.parametrize(
    ("options", "data", "y", "message"),
    [
        ({}, X, np.r_[2, COARSE[1:]], r"needs at least two rows per parent; parent 2 has one"),
        ({}, X, COARSE[:-1], r"needs one parent per row: X has 300 rows and y the shape \(299,\)"),
        ({}, X, COARSE + 0.5, r"needs whole numbers or text as parents; y has the type float64"),
        ({}, X, np.where(COARSE, np.nan, 0), r"Input y contains NaN"),
        ({"k": 1, "balance_type": 3}, X, COARSE, r"'k' .* must be at least 2 for balance_type=3\. Got 1"),
        (
            {"batch_size": 1},
            X,
            COARSE,
            r"'batch_size' parameter of ACOLClusterer must be .*\[2, inf\)\. Got 1",
        ),
        ({"encoder": "conv"}, X, COARSE, r"'image_shape' .* must be \(C, H, W\) for encoder='conv'"),
        ({}, IMAGES[:, :, :3], DIGITS % 2, r"'image_shape' .* must be at least 4 pixels high and wide"),
        ({"encoder": nn.Identity()}, IMAGES, DIGITS % 2, r"a module that gives features \(rows, width\)"),
        ({"pseudo_parents": ["flip"]}, X, None, r"'pseudo_parents' .* must be None for X without images"),
        (
            {"pseudo_parents": ["tilt"]},
            IMAGES,
            None,
            r"'pseudo_parents' .* must be of identity, rot90, .*Got 'tilt'",
        ),
        (
            {"pseudo_parents": ["rot90"]},
            IMAGES[..., :6],
            None,
            r"without quarter turns for images that are not sq",
        ),
        (
            {},
            X * 1e30,
            COARSE,
            r"The loss became (nan|inf) in epoch 1\. Scale the data \(StandardScaler\) or lower",
        ),
    ],
)
def test_bad_input(options, data, y, message):
    with pytest.raises(Exception, match=message) as caught:
        ACOLClusterer(**{"k": 3, **SHORT, **options}).fit(data.astype(np.float32), y)
    assert isinstance(caught.value, ParameterError | DataError | ValueError | RuntimeError)
