"""Nearest neighbours: exact against brute force, approximate by recall, duplicates, errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tunesmith.core.errors import ParameterError
from tunesmith.numerics.neighbors import knn_graph, nearest_rows

X = np.random.default_rng(0).random((300, 3))


def test_exact_equals_all_pairs() -> None:
    distance, found = nearest_rows(X, 4)
    every = np.linalg.norm(X[:, None] - X, axis=2)
    np.fill_diagonal(every, np.inf)
    np.testing.assert_array_equal(found, np.argsort(every, axis=1)[:, :4])
    np.testing.assert_allclose(distance, np.sort(every, axis=1)[:, :4])


def test_graph_is_binary_sorted_and_without_loops() -> None:
    W, length = knn_graph(X.astype(np.float32), 4)
    assert W.dtype == np.float32
    assert W.has_sorted_indices
    assert W.diagonal().sum() == 0
    np.testing.assert_array_equal(W.sum(axis=1), 4)
    rows = np.repeat(np.arange(300), 4)
    np.testing.assert_allclose(length.ravel(), np.linalg.norm(X[rows] - X[W.indices], axis=1), rtol=1e-4)


@pytest.mark.parametrize("method", ["exact", "approximate"])
def test_duplicates_are_neighbours_but_never_oneself(method: str) -> None:
    Y = np.zeros((200, 2))
    Y[150:] += 1
    distance, found = nearest_rows(Y, 3, method=method)
    assert (found != np.arange(200)[:, None]).all()
    assert (distance == 0).all()
    assert ((found < 150) == (np.arange(200) < 150)[:, None]).all()


def test_approximate_finds_nearly_all_and_repeats() -> None:
    Y = np.random.default_rng(1).standard_normal((4000, 8))
    _, exact = nearest_rows(Y, 5, method="exact")
    distance, found = nearest_rows(Y, 5, method="approximate", random_state=3)
    shared = np.mean([len(np.intersect1d(a, b)) for a, b in zip(exact, found, strict=True)]) / 5
    assert shared > 0.9
    assert (np.diff(distance, axis=1) >= 0).all()
    assert (found != np.arange(4000)[:, None]).all()
    np.testing.assert_array_equal(nearest_rows(Y, 5, method="approximate", random_state=3)[1], found)


def test_lists_too_short_are_completed() -> None:
    Y = np.random.default_rng(2).standard_normal((2000, 4))
    _, found = nearest_rows(Y, 1500, method="approximate")
    assert found.min() >= 0
    assert all(len(set(row)) == 1500 for row in found[:5].tolist())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"k": 300},
            "The 'k' parameter of nearest_rows must be an int in [1, 299], fewer than the rows. Got 300",
        ),
        ({"k": 0}, "The 'k' parameter of nearest_rows must be"),
        ({"k": 2, "method": "x"}, "must be one of 'auto', 'exact', 'approximate'. Got 'x' instead."),
    ],
)
def test_errors(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError) as caught:
        nearest_rows(X, **arguments)
    assert message in str(caught.value)
