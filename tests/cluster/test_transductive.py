"""TransductiveClustering: fixed points, clamping, seeds, graph, warnings and errors."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from scipy import sparse
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits, make_blobs
from sklearn.exceptions import ConvergenceWarning

from tunesmith.cluster import TransductiveClustering
from tunesmith.core.errors import DataError, ParameterError
from tunesmith.metrics.clustering import clustering_accuracy


def plain(**changes: Any) -> TransductiveClustering:
    return TransductiveClustering(**{"lam": 0.0, "normalize": "un", "shift": False, "tol": 0.0, **changes})


def episode(seed: int, shots: int = 2) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Five classes of digits, 15 rows each to label; X, y with -1, the truth."""
    X, digit = load_digits(return_X_y=True)
    rng = np.random.default_rng(seed)
    classes = rng.choice(10, 5, replace=False)
    rows = np.concatenate(
        [rng.choice(np.flatnonzero(digit == c), shots + 15, replace=False) for c in classes]
    )
    known = np.tile(np.arange(shots + 15) < shots, 5)
    return X[rows] / 16, np.where(known, digit[rows], -1), digit[rows]


def test_one_dimension_by_hand() -> None:
    X = np.array([[0.0], [4.0], [1.0], [3.0], [2.2]])
    model = plain().fit(X, [0, 1, -1, -1, -1])
    np.testing.assert_array_equal(model.labels_, [0, 1, 0, 1, 1])
    np.testing.assert_allclose(model.cluster_centers_, [[0.5], [(4 + 3 + 2.2) / 3]])
    assert plain(max_iter=1).fit(X, [0, 1, -1, -1, -1]).cluster_centers_[1, 0] == pytest.approx(
        3.0667, abs=5e-5
    )


@pytest.mark.parametrize("seed", range(5))
def test_without_laplacian_and_clamp_it_is_lloyds_algorithm(seed: int) -> None:
    rng = np.random.default_rng(seed)
    X, y = rng.random((200, 3)), np.full(200, -1)
    seeds = rng.choice(200, 6, replace=False)
    y[seeds] = np.arange(6)
    ours = plain(clamp=False).fit(X, y)
    # The support rows' forced labels matter in the first step only: each is its own nearest prototype.
    peer = KMeans(6, init=X[seeds], n_init=1, tol=0, max_iter=1000).fit(X)
    np.testing.assert_array_equal(ours.labels_, peer.labels_)
    np.testing.assert_allclose(ours.cluster_centers_, peer.cluster_centers_)
    assert ours.energy_ == pytest.approx(peer.inertia_)
    unlabelled = plain(n_clusters=6, init=X[seeds]).fit(X)
    np.testing.assert_array_equal(unlabelled.labels_, peer.labels_)


@pytest.mark.parametrize("lam", [0.0, 0.5, 50.0])
@pytest.mark.parametrize("objective", ["kmeans", "kmodes"])
def test_rows_are_distributions_and_clamped_rows_keep_their_labels(lam: float, objective: str) -> None:
    X, y, _ = episode(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = TransductiveClustering(lam=lam, objective=objective).fit(X, y)
    Z = model.label_distributions_
    np.testing.assert_allclose(Z.sum(axis=1), 1)
    assert (Z[y < 0] > 0).all()
    assert (Z >= 0).all()
    np.testing.assert_array_equal(model.labels_[y >= 0], y[y >= 0])
    np.testing.assert_array_equal(model.classes_[Z.argmax(axis=1)], model.labels_)
    np.testing.assert_array_equal(model.transduction_, model.labels_)
    assert model.labels_.dtype == np.int64


def test_only_unclamped_rows_leave_their_label() -> None:
    X, y = np.array([[0.0], [10.0], [0.5]]), [0, 1, 1]  # the last is nearer to 0 than to the mean 5.25
    np.testing.assert_array_equal(plain(clamp=False).fit(X, y).labels_, [0, 1, 0])
    np.testing.assert_array_equal(plain().fit(X, y).labels_, [0, 1, 1])
    np.testing.assert_array_equal(plain(variant="official").fit(X, y).labels_, [0, 1, 0])


@pytest.mark.parametrize("objective", ["kmeans", "kmodes"])
def test_with_psd_shift_the_energy_falls_at_every_step(objective: str) -> None:
    X, y, _ = episode(2)
    common = {"objective": objective, "lam": 0.5, "psd_shift": True}
    for assignments in ("hard", "soft"):
        model = TransductiveClustering(assignments=assignments, **common).fit(X, y)
        for energies in model.bound_energies_:
            assert np.diff(energies).max() <= 1e-12 * np.abs(energies).max()
    whole = np.concatenate(model.bound_energies_)  # soft: Z is carried on, so prototypes lower it too
    assert np.diff(whole).max() <= 1e-12 * np.abs(whole).max()
    assert model.n_iter_ > 1


def test_few_labels_beat_the_nearest_prototype() -> None:
    gains = []
    for seed in range(20):
        X, y, truth = episode(seed, shots=1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            model = TransductiveClustering().fit(X, y)
        free, rows = y < 0, unit(X)
        near = np.linalg.norm(rows[free][:, None] - rows[~free], axis=2).argmin(axis=1)
        right = model.labels_[free] == truth[free], y[~free][near] == truth[free]
        gains.append(right[0].mean() - right[1].mean())
    assert np.mean(gains) > 0.03


def unit(X: np.ndarray) -> np.ndarray:
    X = X - X.mean(axis=0)
    return X / np.linalg.norm(X, axis=1, keepdims=True)


def test_the_shift_moves_the_rows_to_label() -> None:
    X = np.array([[0.0], [4.0], [11.0], [13.0], [14.0]])
    y = [0, 1, -1, -1, -1]
    model = plain(shift=True).fit(X, y)
    assert model.shift_[0] == pytest.approx(2 - 38 / 3)
    np.testing.assert_array_equal(model.labels_, [0, 1, 0, 1, 1])
    np.testing.assert_array_equal(model.predict(X[2:]), [0, 1, 1])
    assert plain().fit(X, y).shift_[0] == 0


def test_no_labels_is_kmeans_or_kmodes_with_a_smoother() -> None:
    X, truth = make_blobs(300, n_features=5, centers=4, cluster_std=0.5, random_state=0)
    everything = (
        {"lam": 0},
        {"lam": 0.5},
        {"objective": "kmodes"},
        {"objective": "kmodes", "modes": "assigned"},
        {"objective": "kmodes", "modes": "assigned", "lam": 0, "sigma": 1.0},
        {"assignments": "soft", "objective": "kmodes", "lam": 0},
    )
    for options in everything:
        model = TransductiveClustering(4, random_state=0, normalize="un", **options)
        for y in (None, np.full(300, -1)):
            labels = model.fit(X, y).labels_
            assert clustering_accuracy(truth, labels) == 1, options
            np.testing.assert_array_equal(model.predict(X), labels)
    assert model.cluster_centers_.shape == (4, 5)


def test_modes_assigned_are_rows() -> None:
    X, y, _ = episode(3)
    model = TransductiveClustering(objective="kmodes", modes="assigned", normalize="un", shift=False).fit(
        X, y
    )
    assert all((np.abs(X - m).max(axis=1) < 1e-12).any() for m in model.cluster_centers_)


def test_more_clusters_than_classes_find_the_rest() -> None:
    X, truth = make_blobs(200, n_features=4, centers=4, cluster_std=0.3, random_state=1)
    y = np.where((truth < 2) & (np.arange(200) < 40), truth * 10 + 5, -1)  # classes 5 and 15
    model = TransductiveClustering(4, normalize="un", shift=False, random_state=0).fit(X, y)
    np.testing.assert_array_equal(model.classes_, [5, 15, 16, 17])
    assert clustering_accuracy(truth, model.labels_) == 1
    np.testing.assert_array_equal(model.labels_[truth < 2], truth[truth < 2] * 10 + 5)


def test_a_class_that_empties_rolls_back() -> None:
    X = np.array([[0.0], [0.1], [0.2], [10.0], [10.1], [0.05]])
    y = [0, 0, 0, 1, 1, 2]
    model = plain(lam=5.0, clamp=False).fit(X, y)
    assert model.rolled_back_
    assert set(model.labels_) == {0, 1, 2}
    assert np.isfinite(model.cluster_centers_).all()
    assert not plain(lam=5.0).fit(X, y).rolled_back_


def test_own_affinity_as_array_sparse_and_callable() -> None:
    X, y, _ = episode(4)
    W = np.exp(-(np.linalg.norm(X[:, None] - X, axis=2) ** 2))
    reference = TransductiveClustering(affinity=W, lam=0.05).fit(X, y)
    for affinity in (sparse.csr_array(W), lambda _: W):
        model = TransductiveClustering(affinity=affinity, lam=0.05).fit(X, y)
        np.testing.assert_array_equal(model.labels_, reference.labels_)
    with pytest.raises(DataError, match=r"the affinity has the shape \(3, 3\), but X has 85 rows"):
        TransductiveClustering(affinity=np.eye(3)).fit(X, y)
    with pytest.raises(DataError, match="an affinity is negative or not finite"):
        TransductiveClustering(affinity=-W).fit(X, y)


def test_a_graph_in_pieces_and_duplicates_do_no_harm() -> None:
    X, _ = make_blobs(40, centers=[[0, 0], [50, 50]], random_state=0)
    X = np.repeat(X, 3, axis=0)
    y = np.full(120, -1)
    y[[0, 3, 6]] = [0, 0, 1] if X[0, 0] < 25 else [1, 1, 0]
    model = TransductiveClustering(2, normalize="un", shift=False, psd_shift=True).fit(X)
    assert len(np.unique(model.labels_[X[:, 0] < 25])) == 1


def test_float32_stays_float32() -> None:
    X, y, _ = episode(5)
    model = TransductiveClustering().fit(X.astype(np.float32), y)
    assert model.label_distributions_.dtype == model.cluster_centers_.dtype == np.float32
    double = TransductiveClustering().fit(X, y)
    assert np.mean(model.labels_ == double.labels_) > 0.97


def test_uneven_labels_are_warned_of() -> None:
    X, truth = make_blobs([95, 5, 5], centers=[[0, 9], [9, 0], [-9, -9]], random_state=0)
    y = np.full(105, -1)
    y[[np.flatnonzero(truth == c)[0] for c in range(3)]] = range(3)
    with pytest.warns(UserWarning, match="far from even over the classes, where shift=True tends to harm"):
        TransductiveClustering().fit(X, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TransductiveClustering(shift=False).fit(X, y)


def test_not_settling_warns_and_returns_something() -> None:
    X, y, _ = episode(6)
    with pytest.warns(ConvergenceWarning, match="did not settle in 1 steps; raise max_iter or tol"):
        model = TransductiveClustering(max_iter=1).fit(X, y)
    assert model.labels_.shape == (85,)
    pair = np.array([[0.0, 1.0], [1.0, 0.0]])
    cycling = plain(affinity=pair, lam=100.0, clamp=False)
    with pytest.warns(
        ConvergenceWarning, match="updates of a step did not settle; psd_shift=True makes them"
    ):
        cycling.fit(np.array([[0.0], [1.0]]), [0, 1])


@pytest.mark.parametrize(
    ("options", "y", "message"),
    [
        (
            {},
            None,
            "The 'n_clusters' parameter of TransductiveClustering must be given where no row has a label",
        ),
        ({"n_clusters": 5}, None, "must be an int in [1, 4], the number of rows. Got 5 instead."),
        ({"n_neighbors": 4}, [0, 1, -1, -1], "must be an int in [2, 3], fewer than the rows. Got 4 instead."),
        (
            {"lam": -0.1},
            [0, 1, -1, -1],
            "The 'lam' parameter of TransductiveClustering must be a float in the range",
        ),
        (
            {"n_clusters": 2, "init": [[0.0]]},
            None,
            "must be 'k-means++' or an array of the shape (2, 1). Got",
        ),
    ],
)
def test_parameter_errors(options: dict[str, Any], y: Any, message: str) -> None:
    X = np.array([[0.0], [1.0], [5.0], [6.0]])
    with pytest.raises(ParameterError) as caught:
        TransductiveClustering(normalize="un", **options).fit(X, y)
    assert message in str(caught.value)


def test_data_errors() -> None:
    X = np.array([[0.0], [1.0], [5.0], [6.0]])
    with pytest.raises(DataError, match="needs one label per row: X has 4 rows"):
        TransductiveClustering().fit(X, [0, 1])
    with pytest.raises(DataError, match="row 0: the row has length 0 and so no direction"):
        TransductiveClustering(normalize="l2n").fit(X, [0, 1, -1, -1])
    with pytest.raises(ValueError, match="Input X contains NaN"):
        TransductiveClustering().fit(X * np.nan, [0, 1, -1, -1])
