"""Parity with the authors' code (imtiazziko/SLK-few-shot and LaplacianShot) in golden/transductive-clustering.json.

The file says which variant each case shows.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tunesmith.cluster.transductive import TransductiveClustering, bandwidth, bound_update, mean_shift
from tunesmith.cluster.transductive.features import align_queries, normalize_features
from tunesmith.cluster.transductive.prototypes import class_means
from tunesmith.cluster.transductive.solver import Problem, solve
from tunesmith.numerics.neighbors import knn_graph

FILE = Path(__file__).parents[1] / "golden" / "transductive-clustering.json"


def decoded(value: Any) -> Any:
    if isinstance(value, dict) and "dtype" in value:
        return np.array(value["data"], dtype=value["dtype"]).reshape(value["shape"])
    if isinstance(value, dict):
        return {name: decoded(item) for name, item in value.items()}
    return value


CASES = {case["name"]: decoded(case) for case in json.loads(FILE.read_text(encoding="utf-8"))["cases"]}


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("bound_")])
def test_bound_updates(name: str) -> None:
    case = CASES[name]
    given, wanted, tol = case["inputs"], case["outputs"], case["tolerance"]
    energies = []
    for steps, Z in wanted["Z_after_at_most_iterations"].items():
        found = bound_update(
            given["unary"],
            given["W_dense"],
            case["params"]["lambda"],
            given["Z0"],
            max_iter=int(steps),
            variant="official",
        )
        np.testing.assert_allclose(found.Z, Z, atol=tol, rtol=0)
        energies.append(found.energies[-1])
    np.testing.assert_allclose(energies, wanted["monitored_energy"], atol=tol)
    np.testing.assert_array_equal(found.Z.argmax(axis=1), wanted["labels_after_last"])
    np.testing.assert_array_equal(found.Z.argmax(axis=0), wanted["row_of_largest_z_per_class_after_last"])


def test_laplacian_shot() -> None:
    case = CASES["laplacianshot_bound_update"]
    given, params = case["inputs"], case["params"]
    found = bound_update(given["unary"], given["W_dense"], params["lambda"], max_iter=20, tol=1e-6)
    np.testing.assert_array_equal(found.Z.argmax(axis=1), case["outputs"]["labels"])


@pytest.mark.parametrize("name", ["affinity_sigma_knn3_n8", "affinity_sigma_knn4_n7"])
def test_graph_and_bandwidth(name: str) -> None:
    case = CASES[name]
    X, wanted = case["inputs"]["X"], case["outputs"]
    W, _ = knn_graph(X, case["params"]["n_neighbors"] - 1)
    np.testing.assert_array_equal(W.toarray(), wanted["W_dense"])
    sigma = bandwidth(X, W, "official")
    assert sigma == pytest.approx(wanted["sigma"], abs=case["tolerance"])
    assert bandwidth(X, W) == pytest.approx(sigma * np.sqrt(5 * len(X) / W.sum()))


@pytest.mark.parametrize("name", ["mean_shift_sigma0.7", "mean_shift_sigma2.5"])
def test_mean_shift(name: str) -> None:
    case = CASES[name]
    given = case["inputs"]
    mode, steps = mean_shift(given["X"][given["members"]], given["start"][0], case["params"]["sigma"])
    np.testing.assert_allclose(mode, case["outputs"]["mode"][0], atol=case["tolerance"])
    assert steps == case["outputs"]["steps_used"]


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("slk_")])
def test_whole_solver(name: str) -> None:
    case = CASES[name]
    params, wanted, tol = case["params"], case["outputs"], case["tolerance"]
    X, M = case["inputs"]["X_support_then_query"], case["inputs"]["initial_prototypes"]
    known = np.full(len(X), -1)
    n_support = sum(params["shots_per_class"])
    known[:n_support] = np.repeat(np.arange(len(M)), params["shots_per_class"])
    W, _ = knn_graph(X, params["n_neighbors"] - 1)
    objective = {"kmeans": "kmeans", "MS": "kmodes"}[params["method"]]
    sigma = bandwidth(X, W, "official")
    problem = Problem(X, known, objective, W, params["lambda"], sigma, clamp=False, variant="official")
    found = solve(problem, M)
    np.testing.assert_array_equal(found.labels[n_support:], wanted["query_labels"])
    np.testing.assert_allclose(found.M, wanted["prototypes"], atol=tol)
    np.testing.assert_allclose(found.energies, wanted["outer_energies"], atol=tol)
    assert found.rolled_back is wanted["rolled_back"]
    if "Z" in wanted:
        np.testing.assert_allclose(found.Z, wanted["Z"], atol=tol)


@pytest.mark.parametrize("norm", ["CL2N", "L2N", "UN"])
def test_whole_episode(norm: str) -> None:
    case = CASES[f"episode_{norm}"]
    given, wanted, tol = case["inputs"], case["outputs"], case["tolerance"]
    support, query = (
        normalize_features(given[part], norm.lower(), given["base_mean"]) for part in ("support", "query")
    )
    X = np.concatenate([support, align_queries(support, query)])
    np.testing.assert_allclose(X, wanted["X_support_then_query"], atol=tol)
    known = np.r_[np.unique(given["support_class_ids"], return_inverse=True)[1], [-1] * len(query)]
    M = class_means(X, known, np.zeros((3, 5)))
    np.testing.assert_allclose(M, wanted["initial_prototypes"], atol=tol)

    y = np.r_[given["support_class_ids"], [-1] * len(query)]
    model = TransductiveClustering(
        lam=case["params"]["lambda"],
        normalize=norm.lower(),
        base_mean=given["base_mean"],
        variant="official",
    )
    model.fit(np.concatenate([given["support"], given["query"]]), y)
    accuracy = np.mean(model.labels_[len(support) :] == given["query_class_ids"])
    assert accuracy == pytest.approx(wanted["query_accuracy"])
