"""NCD spectral clustering: what must hold (Troisemaine et al. 2024, Sec. 3.3), hand-worked numbers, and bad input."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse
from scipy.sparse.csgraph import minimum_spanning_tree
from sklearn.metrics import adjusted_rand_score

from tunesmith.cluster import NCDSpectralClustering
from tunesmith.cluster.ncd import graph, spectral
from tunesmith.cluster.ncd.graph import (
    affinity,
    all_distances,
    kernel_width,
    laplacian,
    longest_tree_edge,
    neighbour_distances,
    spectral_embedding,
)
from tunesmith.core.errors import DataError, ParameterError
from tunesmith.metrics.clustering import novel_class_accuracy


def rings(n: int = 240, seed: int = 0) -> tuple[Any, Any, Any]:
    """Four rings side by side, each around a blob: no k-means finds them. Rings and blobs of the left are known."""
    rng = np.random.default_rng(seed)
    true = np.arange(n) % 4
    angle, radius = rng.uniform(0, 2 * np.pi, n), np.where(true % 2, 3, 0.4 * rng.random(n))
    X = np.column_stack([radius * np.cos(angle), radius * np.sin(angle)]) + 0.05 * rng.standard_normal((n, 2))
    X[:, 0] += np.where(true < 2, 0, 9)
    return X, true, np.where(true < 2, true, -1)


def blobs(n: int = 150, seed: int = 0) -> tuple[Any, Any, Any]:
    """Five blobs at equal distances; two are known."""
    true = np.arange(n) % 5
    X = 5 * np.eye(5)[true] + 0.3 * np.random.default_rng(seed).standard_normal((n, 5))
    return X, true, np.where(true < 2, true, -1)


def test_hand_check_of_the_scale() -> None:
    """d_max = 2, s_min = 0.5: sigma^2 = 4 / ln 2 and 0.7071 at that edge; exact: 2 / ln 2 and 0.5."""
    X = np.array([[0.0], [1], [3], [4]])
    distances = all_distances(X)
    assert distances.longest == 4
    for exact, sigma2, weakest in ((False, 5.770780163, 0.7071067812), (True, 2.885390082, 0.5)):
        width = kernel_width(distances.longest, 0.5, exact=exact)
        assert width == pytest.approx(sigma2, rel=1e-9)
        A = affinity(distances.squared, width)
        assert A[1, 2] == pytest.approx(weakest, rel=1e-9)
        assert_array_equal(np.diag(A), 0)
        fitted = NCDSpectralClustering(2, s_min=0.5, exact_scale=exact, random_state=0).fit(X)
        assert fitted.sigma2_ == pytest.approx(sigma2, rel=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_longest_tree_edge_is_scipys_and_survives_duplicates(seed: int) -> None:
    X = np.random.default_rng(seed).standard_normal((60, 3))
    D = all_distances(X)
    assert D.longest == pytest.approx(minimum_spanning_tree(D.squared).max(), rel=1e-12)
    doubled = all_distances(np.repeat(X, 3, axis=0))
    assert doubled.longest == pytest.approx(D.longest, rel=1e-9)


def test_laplacian_spectrum_and_orthonormal_vectors() -> None:
    X, _, _ = blobs()
    distances = all_distances(X)
    A = affinity(distances.squared, kernel_width(distances.longest, 0.5))
    values = np.linalg.eigvalsh(laplacian(A))
    assert (np.abs(values) < 1e-10).sum() == 1
    assert values.min() > -1e-10
    assert values.max() < 2 + 1e-10
    found, vectors = spectral_embedding(A, 6, np.random.RandomState(0))
    assert_allclose(found, values[:7], atol=1e-10)
    assert_allclose(vectors.T @ vectors, np.eye(6), atol=1e-10)
    apart = np.kron(np.eye(2), np.ones((3, 3)) - np.eye(3))
    assert (np.abs(np.linalg.eigvalsh(laplacian(apart))) < 1e-10).sum() == 2  # two parts, 0 twice


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_lanczos_finds_the_vectors_of_the_full_solver(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    X, _, _ = blobs()
    distances = all_distances(X) if kind == "dense" else neighbour_distances(X, 20)[0]
    A = affinity(distances.squared, kernel_width(distances.longest, 0.2))
    want_values, want = spectral_embedding(A, 4, np.random.RandomState(0))
    monkeypatch.setattr(graph, "FULL_SOLVER_ROWS", 0)
    values, vectors = spectral_embedding(A, 4, np.random.RandomState(0))
    assert_allclose(values, want_values, atol=1e-6)
    assert_allclose(vectors @ vectors.T, want @ want.T, atol=1e-5)


def test_all_neighbours_are_all_pairs() -> None:
    X, _, _ = blobs(40)
    joined, parts = neighbour_distances(X, 39)
    dense = all_distances(X)
    assert parts == 1
    assert joined.longest == pytest.approx(dense.longest, rel=1e-9)
    assert_allclose(joined.squared.toarray(), dense.squared, atol=1e-9)


def test_a_graph_in_parts_is_joined_by_its_shortest_links() -> None:
    X = np.array([[0.0], [0.1], [0.2], [5], [5.1], [5.2], [9], [9.1], [9.2]])
    joined, parts = neighbour_distances(X, 2)
    assert parts == 3
    assert joined.longest == pytest.approx(4.8**2)
    D = joined.squared.toarray()
    assert D[2, 3] == pytest.approx(4.8**2)
    assert D[5, 6] == pytest.approx(3.8**2)
    assert sparse.csgraph.connected_components(joined.squared)[0] == 1
    copies, parts = neighbour_distances(np.repeat(X, 4, axis=0), 3)  # nearest neighbours at distance 0 only
    assert parts == 9
    assert copies.longest == pytest.approx(4.8**2)


@pytest.mark.parametrize("seed", range(3))
def test_rings_are_found_and_candidates_judged_by_the_known_ring(seed: int) -> None:
    X, true, y = rings(seed=seed)
    model = NCDSpectralClustering(2, s_min=[1e-6, 0.3, 0.999], n_components=[2, 3], random_state=0)
    labels = model.fit_predict(X, y)
    assert set(model.known_accuracies_) == {(s, u) for s in (1e-6, 0.3, 0.999) for u in (2, 3)}
    assert model.known_accuracies_[1e-6, 2] == 1
    assert model.known_accuracies_[0.999, 2] < 0.9
    assert (model.s_min_, model.n_components_) == (1e-6, 2)  # the first of the best
    assert novel_class_accuracy(true, labels, known=[0, 1]) == 1
    assert_array_equal(labels[y >= 0], -1)
    assert model.embedding_.shape == (240, 2)
    assert model.eigenvalues_.shape == (3,)


def test_sparse_graph_gives_the_same_partition() -> None:
    X, true, y = rings()
    model = NCDSpectralClustering(
        2, s_min=0.3, n_components=4, graph="sparse", n_neighbors=8, random_state=0
    ).fit(X, y)
    assert novel_class_accuracy(true, model.labels_, known=[0, 1]) == 1
    assert model.n_parts_ >= 4


def test_known_classes_may_seed_the_draws() -> None:
    X, true, y = blobs()
    model = NCDSpectralClustering(3, seed_known=True, random_state=0).fit(X, y)
    assert novel_class_accuracy(true, model.labels_, known=[0, 1]) == 1


def test_the_count_comes_from_the_rows() -> None:
    X, true, y = blobs()
    model = NCDSpectralClustering(random_state=0).fit(X, y)
    assert (model.n_novel_, model.n_components_) == (3, 3)
    assert novel_class_accuracy(true, model.labels_, known=[0, 1]) == 1


def test_large_inputs_take_the_sparse_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    X, _, y = blobs()
    monkeypatch.setattr(spectral, "DENSE_ROWS", 100)
    sparse_labels = NCDSpectralClustering(3, random_state=0).fit(X, y).labels_
    assert (
        adjusted_rand_score(
            sparse_labels, NCDSpectralClustering(3, graph="dense", random_state=0).fit(X, y).labels_
        )
        == 1
    )
    monkeypatch.setattr(spectral, "MOST_DENSE_ROWS", 100)
    with pytest.raises(
        ParameterError, match=r"must be 'sparse' or 'auto' above 100 rows\. Got 'dense' instead"
    ):
        NCDSpectralClustering(3, graph="dense").fit(X, y)


def test_bad_input() -> None:
    X, _, y = blobs()
    with pytest.raises(
        DataError, match=r"^NCDSpectralClustering needs two different rows; all rows are the same"
    ):
        NCDSpectralClustering(1).fit(np.ones((5, 2)))
    with pytest.raises(
        ParameterError,
        match=re.escape("n_components' parameter of NCDSpectralClustering must be an int in [1, 149]"),
    ):
        NCDSpectralClustering(3, n_components=150).fit(X, y)
    with pytest.raises(ParameterError, match=r"must be a float in \(0, 1\), or some\. Got \[0\.5, 1\.0\]"):
        NCDSpectralClustering(3, s_min=[0.5, 1.0]).fit(X, y)
    with pytest.raises(
        DataError, match=r"by the known classes and needs at least 2; y has 1\. Give one s_min and one"
    ):
        NCDSpectralClustering(3, s_min=[0.5, 0.9]).fit(X, np.where(y == 1, -1, y))
    with pytest.raises(DataError, match="no label is -1"):
        NCDSpectralClustering(3).fit(X, np.abs(y))


def test_longest_edge_of_two_rows() -> None:
    assert longest_tree_edge(np.array([[0.0, 9], [9, 0]])) == 9
