"""Parity with the authors' code (ColinTr/PracticalNCD) on tests/golden/tabular-ncd.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.metrics import adjusted_rand_score

from tunesmith.cluster.ncd.graph import affinity, all_distances, kernel_width, laplacian, spectral_embedding
from tunesmith.cluster.ncd.lloyd import (
    class_means,
    cluster_novel,
    draw_probabilities,
    draw_rows,
    lloyd,
    open_table,
)
from tunesmith.cluster.ncd.network import ProjectionNetwork, pbn_loss, train_network
from tunesmith.metrics.clustering import clustering_accuracy
from tunesmith.numerics import nearest_center

FILE = Path(__file__).parents[1] / "golden" / "tabular-ncd.json"


def decoded(value: Any) -> Any:
    if isinstance(value, dict) and "dtype" in value:
        return np.array(value["data"], dtype=value["dtype"]).reshape(value["shape"])
    if isinstance(value, dict):
        return {name: decoded(item) for name, item in value.items()}
    return value


CASES = [
    {**case, "inputs": decoded(case["inputs"]), "outputs": decoded(case["outputs"])}
    for case in json.loads(FILE.read_text(encoding="utf-8"))["cases"]
]


def cases(prefix: str) -> Any:
    found = [case for case in CASES if case["name"].startswith(prefix)]
    assert found
    return pytest.mark.parametrize("case", found, ids=[case["name"] for case in found])


class Script:
    """Uniform numbers in a given order."""

    def __init__(self, draws: list[float]):
        self.draws = list(draws)

    def random_sample(self) -> float:
        return self.draws.pop(0)


def script(given: dict[str, Any], n: int, per_run: int = 0) -> Script:
    """The draws of a case; a first index becomes the number that draws it."""
    draws = list(given.get("uniform_draws", given.get("uniform_draws_in_order", [])))
    firsts = given.get("first_indices", [given["first_index"]] if "first_index" in given else [])
    for place, index in enumerate(firsts):
        draws.insert(place * (per_run + 1), (index + 0.5) / n)
    return Script(draws)


@cases("init_")
def test_draws(case: dict[str, Any]) -> None:
    given, wanted = case["inputs"], case["outputs"]
    X, known = given["X_unlabelled"], given.get("known_centroids")
    table = open_table(X.astype(np.float64))
    fixed = None if known is None else known - table.shift
    uniform = script(given, len(X))
    chosen = draw_rows(table, case["params"]["n_novel"], fixed, case["params"]["init_power"], uniform)
    assert chosen.tolist() == wanted["chosen_rows"]
    centers = [] if known is None else list(known.astype(np.float64))
    steps = list(chosen) if known is not None else list(chosen[1:])
    if known is None:
        centers.append(X[chosen[0]].astype(np.float64))
    for row, probabilities in zip(steps, wanted["draw_probabilities_per_step"], strict=True):
        D = np.linalg.norm(X[:, None] - np.array(centers), axis=2).min(axis=1)
        assert_allclose(draw_probabilities(D, 1), decoded(probabilities), atol=case["tolerance"])
        centers.append(X[row].astype(np.float64))


@cases("lloyd_")
def test_lloyd_steps(case: dict[str, Any]) -> None:
    table = open_table(case["inputs"]["X"])
    start = case["inputs"]["start"] - table.shift
    centers, inertia, steps, _ = lloyd(table, start, **case["params"], plain=True)
    wanted = case["outputs"]
    assert_allclose(centers + table.shift, wanted["centroids"], atol=case["tolerance"])
    assert inertia == pytest.approx(wanted["inertia"], abs=case["tolerance"])
    assert steps == wanted["iterations_used"]


@cases("ncd_kmeans_fit")
def test_restarts(case: dict[str, Any]) -> None:
    given, wanted, p = case["inputs"], case["outputs"], case["params"]
    X = given["X_unlabelled"]
    found = cluster_novel(
        X,
        p["n_novel"],
        given["known_centroids"],
        Script(given["uniform_draws_in_order"]),
        init_power=1,
        tol=p["tol"],
        max_iter=p["max_iter"],
        runs=range(p["n_init"]),
        official=True,
        update_known=p["update_centroids"] == "unlab_and_lab",
    )
    assert_allclose(found.centers, wanted["novel_centroids"], atol=case["tolerance"])
    assert_allclose(found.known, wanted["known_centroids_after"], atol=case["tolerance"])
    assert found.inertia == pytest.approx(wanted["inertia"], abs=case["tolerance"])
    assert_array_equal(found.labels, wanted["labels_novel"])
    assert_array_equal(nearest_center(X, found.known)[0], wanted["labels_by_known_centroids"])


@cases("spectral_smin")
def test_scale_kernel_and_embedding(case: dict[str, Any]) -> None:
    X, wanted, tol = case["inputs"]["X"].astype(np.float64), case["outputs"], case["tolerance"]
    distances = all_distances(X)
    assert_allclose(distances.longest, wanted["max_mst_edge_squared"], atol=tol)
    sigma2 = kernel_width(distances.longest, case["params"]["s_min"])
    assert np.sqrt(sigma2) == pytest.approx(wanted["sigma"], abs=tol)
    A = affinity(distances.squared, sigma2)
    assert_allclose(A[:3], wanted["adjacency_first_3_rows"], atol=tol)
    assert_allclose(laplacian(A)[:3], wanted["laplacian_first_3_rows"], atol=tol)
    assert_allclose(
        (np.diag(A.sum(axis=1)) - A)[:2], wanted["unnormalised_laplacian_first_2_rows"], atol=10 * tol
    )
    assert_allclose(np.linalg.eigvalsh(laplacian(A)), wanted["eigenvalues"], atol=tol)
    values, vectors = spectral_embedding(A, case["params"]["u"], np.random.RandomState(0))
    assert_allclose(values, wanted["eigenvalues"][: case["params"]["u"] + 1], atol=tol)
    assert_allclose((vectors @ vectors.T)[:4], wanted["embedding_projector_first_4_rows"], atol=tol)


@cases("laplacian_isolated")
def test_laplacian_of_an_isolated_node(case: dict[str, Any]) -> None:
    assert_allclose(
        laplacian(case["inputs"]["A"].astype(np.float64)), case["outputs"]["L"], atol=case["tolerance"]
    )


def embedded(X: np.ndarray, p: dict[str, Any]) -> tuple[float, np.ndarray]:
    distances = all_distances(X.astype(np.float64))
    sigma2 = kernel_width(distances.longest, p["s_min"])
    A = affinity(distances.squared, sigma2)
    return float(np.sqrt(sigma2)), spectral_embedding(A, p["u"], np.random.RandomState(0))[1]


@cases("spectral_simple")
def test_spectral_clustering_of_one_set(case: dict[str, Any]) -> None:
    given, p = case["inputs"], case["params"]
    sigma, Z = embedded(given["X"], p)
    uniform = script(given, len(Z), per_run=p["n_clusters"] - 1)
    found = cluster_novel(
        Z,
        p["n_clusters"],
        None,
        uniform,
        init_power=1,
        tol=p["tol"],
        max_iter=p["max_iter"],
        runs=range(p["n_init"]),
        official=True,
    )
    assert adjusted_rand_score(found.labels, case["outputs"]["labels"]) == 1
    assert sigma == pytest.approx(case["outputs"]["sigma"], abs=case["tolerance"])


@cases("spectral_known_and_unknown")
def test_spectral_clustering_beside_known_rows(case: dict[str, Any]) -> None:
    given, p = case["inputs"], case["params"]
    novel = len(given["X_novel"])
    sigma, Z = embedded(np.vstack([given["X_novel"], given["X_known"]]), p)
    known = class_means(Z[novel:], given["y_known"])[1]
    uniform = Script(given["uniform_draws_in_order"])
    found = cluster_novel(
        Z[:novel],
        p["n_novel"],
        known,
        uniform,
        init_power=1,
        tol=1e-10,
        max_iter=1000,
        runs=range(p["n_init"]),
        official=True,
    )
    assert adjusted_rand_score(found.labels, case["outputs"]["labels"]) == 1
    assert sigma == pytest.approx(case["outputs"]["sigma"], abs=case["tolerance"])


def loaded(state: dict[str, Any], dtype: torch.dtype = torch.float32) -> ProjectionNetwork:
    """A network with the authors' weights under our names."""
    ours = {name.replace("_layers.", "."): torch.tensor(value) for name, value in state.items()}
    d, latent, classes = (
        ours["encoder.0.weight"].shape[1],
        ours["encoder.6.weight"].shape[0],
        ours["classifier.weight"].shape[0],
    )
    network = ProjectionNetwork(d, latent, classes)
    missing, unexpected = network.load_state_dict(ours, strict=False)
    assert unexpected == []
    assert all(name.endswith("num_batches_tracked") for name in missing)
    return network.to(dtype)


def parameter(network: ProjectionNetwork, name: str) -> torch.Tensor:
    return network.get_parameter(name.replace("_layers.", "."))


@cases("pbn_forward_eval")
def test_forward_in_evaluation_mode(case: dict[str, Any]) -> None:
    network = loaded(case["inputs"]["state"]).eval()
    X = torch.tensor(case["inputs"]["X"])
    with torch.no_grad():
        z, logits, reconstruction = network(X)
        raw = network.encoder(X)
    for ours, name in (
        (raw, "encoder_raw"),
        (z, "z"),
        (reconstruction, "reconstruction"),
        (logits, "logits"),
    ):
        assert_allclose(ours, case["outputs"][name], atol=case["tolerance"])


@cases("pbn_loss")
def test_loss_and_gradients(case: dict[str, Any]) -> None:
    given, wanted, tol = case["inputs"], case["outputs"], case["tolerance"]
    network = loaded(given["state"]).train()
    X = torch.tensor(given["X"])
    y = torch.tensor(np.where(given["y"] == case["params"]["unknown_label"], -1, given["y"]))
    _, logits, reconstruction = network(X)
    full, entropy, error = pbn_loss(logits, y, reconstruction, X, case["params"]["w"])
    full.backward()
    for ours, name in ((full, "full"), (entropy, "cross_entropy"), (error, "reconstruction")):
        assert ours.item() == pytest.approx(wanted[name], abs=tol)
    for name, gradient in wanted["gradients"].items():
        ours = parameter(network, name).grad
        assert ours is not None
        assert_allclose(ours, gradient, atol=tol)


@cases("pbn_train")
def test_two_epochs_of_training(case: dict[str, Any]) -> None:
    given, wanted, p = case["inputs"], case["outputs"], case["params"]
    network = loaded(given["state"], torch.float64)
    y = torch.tensor(np.where(given["y"] == p["unknown_label"], -1, given["y"]))
    curve = train_network(
        network,
        torch.tensor(given["X"], dtype=torch.float64),
        y,
        w=p["w"],
        learning_rate=p["lr"],
        batch_size=p["batch"],
        epochs=range(p["epochs"]),
        shuffle=None,
    )
    want = np.column_stack([wanted[name] for name in ("full", "cross_entropy", "reconstruction")])
    assert_allclose(curve, want, atol=case["tolerance"])
    state = network.state_dict()
    for name, value in wanted["state_after"].items():
        assert_allclose(state[name.replace("_layers.", ".")], value, atol=case["tolerance"])


@cases("hungarian_")
def test_matched_accuracy(case: dict[str, Any]) -> None:
    given = case["inputs"]
    assert clustering_accuracy(given["true"], given["pred"]) == pytest.approx(
        case["outputs"]["acc"], abs=case["tolerance"]
    )
