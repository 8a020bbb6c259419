"""DEPICT's start: agglomeration by path integrals and the first head, against the authors' code and brute force."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.datasets import make_moons
from sklearn.metrics import adjusted_rand_score
from torch import nn

from tunesmith.cluster.depict import DEPICT, LayeredAutoencoder, path_integral_labels
from tunesmith.cluster.depict.path_integral import (
    MAX_ROWS,
    PathIntegrals,
    nearest_components,
    neighbour_graph,
)
from tunesmith.cluster.depict.training import JointTraining
from tunesmith.core.errors import ParameterError

GOLDEN = {
    case["name"]: case
    for case in json.loads((Path(__file__).parents[1] / "golden" / "depict.json").read_text())["cases"]
}


def array(value):
    return np.array(value["data"], dtype=value["dtype"]).reshape(value["shape"])


@pytest.mark.parametrize("name", ["acpic_K4_a1_z0.01", "acpic_K7_a0.05_z0.5"])
def test_path_integrals_of_the_authors(name):
    case = GOLDEN[name]
    params, out, atol = case["params"], case["outputs"], case["tolerance"]
    X = array(case["inputs"]["squared_distances_from"])
    T, s2, nearest = neighbour_graph(X, params["K"], params["a"])
    assert s2 == pytest.approx(out["s2"], abs=1e-8)
    W = array(out["W"])
    assert_allclose(T.toarray(), W / W.sum(axis=1, keepdims=True), atol=atol)
    parts = nearest_components(nearest)
    assert sorted(part.tolist() for part in parts) == sorted(out["initial_components"])
    parts = [np.array(part) for part in out["initial_components"]]
    integrals = PathIntegrals(T, params["z"])
    alone = [integrals.alone(part) for part in parts]
    assert_allclose(alone, out["S"], atol=atol)
    for i, row in enumerate(out["gain_upper_triangle"]):
        for j in range(i + 1, len(parts)):
            gain = integrals.gain(parts[i], parts[j], alone[i], alone[j])
            assert gain == pytest.approx(row[j], abs=atol)
    labels = path_integral_labels(
        X, params["n_clusters"], n_neighbors=params["K"], scale=params["a"], z=params["z"]
    )
    assert adjusted_rand_score(labels, out["labels"]) == 1


def start(codes, n_clusters, init):
    """Run initial labels and head on given codes."""
    owner = DEPICT(n_clusters, init=init)
    x = torch.tensor(codes)
    d = codes.shape[1]
    network = LayeredAutoencoder([nn.Identity()], [nn.Identity()], 0.0)
    run = JointTraining(
        owner, network, nn.Linear(d, n_clusters).double(), x, torch.Generator(), np.random.RandomState(0)
    )
    labels = run.initial_labels()
    run.set_head(labels)
    return labels, run.head.weight.detach().numpy()


@pytest.mark.parametrize("init", ["kmeans", "acpic"])
def test_head_of_the_authors_put_right(init):
    """Column k belongs to label k and has unit norm; the authors' labels are shifted, or their matrix is turned."""
    case = GOLDEN[f"init_{init}_branch"]
    labels, weight = start(array(case["inputs"]["codes"]), 3, init)
    if init == "kmeans":
        theirs, columns = np.array(case["outputs"]["labels_shifted"]) + 1, array(case["outputs"]["head_W"])
    else:
        theirs, columns = np.array(case["outputs"]["labels"]), array(case["outputs"]["head_W_intended"])
    assert adjusted_rand_score(labels, theirs) == 1
    renamed = [int(labels[theirs == k][0]) for k in range(3)]
    assert_allclose(weight[renamed].T, columns, atol=case["tolerance"])


def test_an_empty_cluster_takes_a_row():
    with pytest.warns(UserWarning, match="distinct clusters"):
        labels, weight = start(np.repeat([[1.0, 0.0], [0.0, 2.0]], 5, axis=0), 3, "kmeans")
    assert set(labels) == {0, 1}
    assert_allclose(np.linalg.norm(weight, axis=1), 1)


def test_gain_is_that_of_the_dense_matrices():
    X = np.random.default_rng(0).standard_normal((40, 3))
    T, _, _ = neighbour_graph(X, 6)
    a, b = np.arange(10), np.arange(10, 27)
    integrals = PathIntegrals(T, 0.3)
    dense = T.toarray()

    def inside(part, union):
        inverse = np.linalg.inv(np.eye(len(union)) - 0.3 * dense[np.ix_(union, union)])
        member = np.isin(union, part).astype(float)
        return member @ inverse @ member / len(part) ** 2

    both = np.concatenate([a, b])
    assert integrals.alone(a) == pytest.approx(inside(a, a), abs=1e-14)
    expected = inside(a, both) - inside(a, a) + inside(b, both) - inside(b, b)
    assert integrals.gain(a, b, inside(a, a), inside(b, b)) == pytest.approx(expected, abs=1e-14)


def test_it_finds_what_k_means_cannot():
    X, y = make_moons(200, noise=0.05, random_state=0)
    assert adjusted_rand_score(y, path_integral_labels(X, 2, n_neighbors=10)) == 1


def test_parts_without_edges_are_joined_by_their_means():
    X = np.concatenate([np.random.default_rng(i).normal(100.0 * i, 0.1, (12, 1)) for i in (0, 1, 2, 4)])
    labels = path_integral_labels(X, 3, n_neighbors=3)
    assert adjusted_rand_score(labels, np.repeat([0, 0, 1, 2], 12)) > 0.5
    assert len(np.unique(labels)) == 3


def test_few_rows_duplicates_and_the_limits():
    assert path_integral_labels(np.eye(3), 3).tolist() == [0, 1, 2]
    pairs = np.array([[0.0], [0.1], [9.0], [9.1]])
    assert len(np.unique(path_integral_labels(pairs, 3))) == 3  # the first joining leaves two
    assert_array_equal(np.unique(path_integral_labels(np.zeros((6, 2)), 2)), [0, 1])
    with pytest.raises(
        ParameterError, match=r"'X' .* must be at most 20,000 rows \(use k-means beyond\)\. Got 20001"
    ):
        path_integral_labels(np.zeros((MAX_ROWS + 1, 1)), 2)
    with pytest.raises(ParameterError, match=r"'n_clusters' .* must be at most 4, the number of rows. Got 5"):
        path_integral_labels(pairs, 5)
