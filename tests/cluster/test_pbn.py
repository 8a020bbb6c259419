"""PBN: what must hold (Troisemaine et al. 2024, Sec. 3.4), and bad input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.exceptions import ConvergenceWarning
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tunesmith.cluster import PBN, NCDSpectralClustering
from tunesmith.cluster.ncd.network import ProjectionNetwork, pbn_loss, train_network
from tunesmith.core.errors import DataError, ParameterError, TrainingError
from tunesmith.metrics.clustering import novel_class_accuracy

QUICK = {"epochs": 15, "batch_size": 64, "learning_rate": 5e-3, "random_state": 0}


def table(n: int = 240, seed: int = 0) -> tuple[Any, Any, Any]:
    """Six clear classes, each raised in three columns of its own, standardised; three are known."""
    true = np.arange(n) % 6
    centers = 3 * np.kron(np.eye(6), np.ones(3))
    X = centers[true] + 0.5 * np.random.default_rng(seed).standard_normal((n, 18))
    return StandardScaler().fit_transform(X), true, np.where(true < 3, true, -1)


def batch(w: float) -> tuple[ProjectionNetwork, torch.Tensor]:
    """A network after one backward pass over a mixed batch."""
    X, _, y = table(40)
    torch.manual_seed(0)
    network, x = ProjectionNetwork(18, 3, 3), torch.tensor(X, dtype=torch.float32)
    _, logits, reconstruction = network(x)
    loss, _, _ = pbn_loss(logits, torch.tensor(y), reconstruction, x, w)
    loss.backward()
    return network, loss


def test_each_end_of_w_switches_one_head_off() -> None:
    for w, off, on in ((1.0, "decoder", "classifier"), (0.0, "classifier", "decoder")):
        network, _ = batch(w)
        gradients = {name: p.grad for name, p in network.named_parameters()}
        assert all(torch.count_nonzero(g) == 0 for name, g in gradients.items() if name.startswith(off))
        assert any(torch.count_nonzero(g) > 0 for name, g in gradients.items() if name.startswith(on))
        assert any(torch.count_nonzero(g) > 0 for name, g in gradients.items() if name.startswith("encoder"))


def test_loss_is_unchanged_by_a_positive_scale_of_the_encoder() -> None:
    X, _, y = table(40)
    torch.manual_seed(0)
    network = ProjectionNetwork(18, 3, 3).double().eval()
    x, labels = torch.tensor(X), torch.tensor(y)

    def loss() -> float:
        z, logits, reconstruction = network(x)
        assert_allclose(z.detach().norm(dim=1), 1, atol=1e-12)
        return pbn_loss(logits, labels, reconstruction, x, 0.4)[0].item()

    before = loss()
    last = network.encoder[-1]
    with torch.no_grad():
        last.weight *= 7.5
        last.bias *= 7.5
    assert loss() == pytest.approx(before, rel=1e-12)


def test_loss_by_hand() -> None:
    """Two rows, one known: CE = ln 2 at equal logits; R = (1 + 4 + 9 + 0) / 2 rows = 7, a sum over columns."""
    x, back = torch.tensor([[0.0, 0.0], [0.0, 0.0]]), torch.tensor([[1.0, 2.0], [3.0, 0.0]])
    y, logits = torch.tensor([1, -1]), torch.zeros(2, 2)
    full, entropy, error = pbn_loss(logits, y, back, x, 0.25)
    assert entropy.item() == pytest.approx(np.log(2))
    assert error.item() == 7
    assert full.item() == pytest.approx(0.25 * np.log(2) + 0.75 * 7)
    alone, entropy, _ = pbn_loss(logits, torch.tensor([-1, -1]), back, x, 0.25)
    assert entropy.item() == 0
    assert alone.item() == 0.75 * 7


def test_widths_are_three_quarters_and_half() -> None:
    network = ProjectionNetwork(10, 4, 2, dropout=0.2)
    assert [m.out_features for m in network.encoder if isinstance(m, torch.nn.Linear)] == [7, 5, 4]
    assert [m.out_features for m in network.decoder if isinstance(m, torch.nn.Linear)] == [5, 7, 10]
    assert [type(m).__name__ for m in network.encoder[:4]] == ["Linear", "ReLU", "BatchNorm1d", "Dropout"]


def test_a_batch_of_one_row_is_skipped() -> None:
    torch.manual_seed(0)
    network, x = ProjectionNetwork(4, 2, 0), torch.randn(5, 4)
    train_network(
        network,
        x,
        torch.full((5,), -1),
        w=0.5,
        learning_rate=0.01,
        batch_size=4,
        epochs=range(1),
        shuffle=None,
    )
    assert network.encoder[2].num_batches_tracked == 1


def test_novel_classes_are_found() -> None:
    X, true, y = table()
    for options in ({}, {"clustering": "ncd_kmeans"}, {"normalize": False}, {"variant": "official"}):
        model = PBN(3, **QUICK, **options).fit(X, y)
        assert novel_class_accuracy(true, model.labels_, known=[0, 1, 2]) > 0.95
        assert_array_equal(model.labels_[y >= 0], -1)
        assert_array_equal(model.predict(X[y < 0]), model.labels_[y < 0])
    assert model.n_iter_ == 15
    assert model.losses_.shape == (15, 3)
    assert model.losses_[-1, 0] < model.losses_[0, 0]


def test_codes_have_length_one_unless_asked() -> None:
    X, _, y = table()
    Z = PBN(3, latent_dim=5, **QUICK).fit(X, y).transform(X)
    assert Z.shape == (240, 5)
    assert_allclose(np.linalg.norm(Z, axis=1), 1, rtol=1e-12)
    for options in ({"normalize": False}, {"variant": "official"}):
        raw = PBN(3, latent_dim=5, **QUICK, **options).fit(X, y).transform(X)
        assert np.ptp(np.linalg.norm(raw, axis=1)) > 0.1


def test_the_count_comes_from_the_codes() -> None:
    X, true, y = table()
    model = PBN(**QUICK, k_max=6).fit(X, y)
    assert model.n_novel_ == 3
    assert model.cluster_centers_.shape == (3, model.latent_dim_)
    assert novel_class_accuracy(true, model.labels_, known=[0, 1, 2]) > 0.95


def test_true_labels_of_novel_rows_are_never_seen() -> None:
    X, true, _ = table()
    shuffled = true.copy()
    shuffled[true >= 3] = np.random.default_rng(0).permutation(true[true >= 3])
    first, second = (PBN(3, **QUICK).fit(X, np.where(t < 3, t, -1)) for t in (true, shuffled))
    assert_array_equal(first.labels_, second.labels_)
    assert_array_equal(first.transform(X), second.transform(X))


def test_torchs_own_stream_is_left_alone() -> None:
    X, _, y = table(60)
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    PBN(3, epochs=1, random_state=0).fit(X, y)
    assert torch.equal(torch.rand(3), want)


def test_training_is_in_the_type_of_the_rows() -> None:
    X, _, y = table(60)
    for dtype in (np.float32, np.float64):
        model = PBN(3, epochs=2, random_state=0).fit(X.astype(dtype), y)
        assert model.transform(X.astype(dtype)).dtype == dtype
        assert model.cluster_centers_.dtype == dtype


def test_spectral_clustering_in_the_latent_space() -> None:
    X, true, y = table()
    chain = make_pipeline(PBN(3, **QUICK), NCDSpectralClustering(3, random_state=0)).fit(X, y)
    assert novel_class_accuracy(true, chain[-1].labels_, known=[0, 1, 2]) > 0.95
    assert list(chain[0].get_feature_names_out())[:2] == ["pbn0", "pbn1"]


def test_one_or_no_known_class() -> None:
    X, _, y = table(90)
    with pytest.warns(UserWarning, match="PBN found one known class only"):
        PBN(3, epochs=2, random_state=0).fit(X, np.where(y == 0, 0, -1))
    assert PBN(3, epochs=2, random_state=0).fit(X).labels_.min() == 0
    with pytest.raises(
        ParameterError, match=r"^The 'w' parameter of PBN must be below 1 when no class is known"
    ):
        PBN(3, w=1, epochs=2).fit(X)


def test_bad_input() -> None:
    X, _, y = table(60)
    with pytest.raises(DataError, match=r"^PBN found no row to cluster: no label is -1\.$"):
        PBN(3).fit(X, np.abs(y))
    with pytest.raises(
        ParameterError, match="The 'device' parameter of PBN must be 'auto' or a device that torch"
    ):
        PBN(3, device="abacus").fit(X, y)
    with pytest.raises(TrainingError, match=r"^PBN's loss is not finite in epoch \d+\. Scale the data"):
        PBN(3, epochs=3, random_state=0).fit(X * 1e200, y)
    with pytest.warns(ConvergenceWarning, match="PBN did not converge in max_iter=1"):
        PBN(5, epochs=1, max_iter=1, tol=0, random_state=0).fit(X, y)
