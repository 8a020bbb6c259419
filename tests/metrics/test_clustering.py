"""Clustering measures: hand-worked tables, invariances, and errors."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from tunesmith.core.errors import DataError, ParameterError
from tunesmith.metrics import clustering, clustering_accuracy, novel_class_accuracy, purity

TRUE = [0, 0, 0, 1, 1, 2, 2, 2]
PRED = [1, 1, 0, 0, 0, 2, 2, 0]  # clusters 0: classes 0, 1, 1, 2 · 1: 0, 0 · 2: 2, 2


def test_by_hand() -> None:
    assert clustering_accuracy(TRUE, PRED) == 6 / 8
    assert purity(TRUE, PRED) == 6 / 8
    assert novel_class_accuracy(TRUE, PRED, known=[0]) == 4 / 5
    assert novel_class_accuracy(TRUE, PRED, known=[]) == 6 / 8


def test_the_best_map_is_not_the_greedy_one() -> None:
    # Table [[3, 2], [2, 0]]: taking the largest cell first agrees on 3 rows, the best map on 2 + 2.
    assert clustering_accuracy([0] * 5 + [1] * 2, [0, 0, 0, 1, 1, 0, 0]) == 4 / 7


def test_more_or_fewer_clusters_than_classes() -> None:
    assert clustering_accuracy([0, 0, 0, 1], [0, 0, 1, 2]) == 3 / 4  # cluster 1 matches nothing
    assert purity([0, 0, 0, 1], [0, 0, 1, 2]) == 1
    assert clustering_accuracy([0, 0, 1], [5, 5, 5]) == 2 / 3
    assert clustering_accuracy(["a", "b", "a"], [-1, 7, -1]) == 1


def test_compute_agrees_with_scikit_learn() -> None:
    found = clustering.compute(predictions=PRED, references=TRUE)
    assert found == {
        "accuracy": 0.75,
        "nmi": normalized_mutual_info_score(TRUE, PRED),
        "ari": adjusted_rand_score(TRUE, PRED),
        "purity": 0.75,
    }


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
def test_it_is_the_best_of_all_maps_and_names_do_not_matter(pairs: list[tuple[int, int]]) -> None:
    true, pred = np.array(pairs).T
    best = max(np.mean(np.array(p)[pred] == true) for p in permutations(range(4)))
    assert clustering_accuracy(true, pred) == pytest.approx(best)
    assert clustering_accuracy(true, 9 - 2 * pred) == pytest.approx(best)
    assert purity(true, pred) >= best - 1e-12


def test_errors() -> None:
    wanted = r"The 'labels_pred' parameter of clustering_accuracy must be of the shape \(n,\) of labels_true: \(3,\)"
    with pytest.raises(ParameterError, match=wanted):
        clustering_accuracy([0, 1, 2], [0, 1])
    with pytest.raises(ParameterError, match=r"parameter of purity must be .* Got \(2, 1\) instead"):
        purity([[0], [1]], [[0], [1]])
    with pytest.raises(DataError, match="there are no labels to compute clustering_accuracy from"):
        clustering_accuracy([], [])
    with pytest.raises(DataError, match="there is no row of a novel class"):
        novel_class_accuracy([0, 1], [0, 1], known=[0, 1])
