"""Measures of a clustering against the true classes; names of clusters never matter.

Accuracy matches clusters with classes one to one so that most rows agree (Kuhn 1955, as is usual since Xie et al.
2016); normalised mutual information and the adjusted Rand index are scikit-learn's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tunesmith.core.errors import DataError, ParameterError

__all__ = ["clustering_accuracy", "compute", "novel_class_accuracy", "purity"]


def clustering_accuracy(labels_true: ArrayLike, labels_pred: ArrayLike) -> float:
    """Return the share of rows that agree under the best one-to-one map of clusters to classes.

    With more clusters than classes the clusters left over match nothing, and their rows count as wrong; with fewer,
    some classes stay without a cluster.

    Args:
        labels_true: (n,) classes, numbers or text.
        labels_pred: (n,) clusters; -1 (noise) is a cluster like any other.

    Returns:
        A share in (0, 1]. Time O(n log n + k^3) for k classes or clusters, memory O(n + k^2).

    Raises:
        ParameterError: shapes differ or are not (n,).
        DataError: there is no row.
    """
    from scipy.optimize import linear_sum_assignment

    table = _contingency(labels_true, labels_pred, clustering_accuracy)
    rows, columns = linear_sum_assignment(table, maximize=True)
    return float(table[rows, columns].sum() / table.sum())


def purity(labels_true: ArrayLike, labels_pred: ArrayLike) -> float:
    """Return the share of rows that belong to the commonest class of their cluster.

    It grows with the number of clusters (one row each gives 1), so compare at equal numbers only.

    Args:
        labels_true: (n,) classes.
        labels_pred: (n,) clusters.

    Raises:
        ParameterError: shapes differ or are not (n,).
        DataError: there is no row.
    """
    table = _contingency(labels_true, labels_pred, purity)
    return float(table.max(axis=0).sum() / table.sum())


def novel_class_accuracy(labels_true: ArrayLike, labels_pred: ArrayLike, known: ArrayLike) -> float:
    """Return `clustering_accuracy` on the rows whose class is not among ``known``.

    Args:
        labels_true: (n,) classes.
        labels_pred: (n,) clusters; those of the known classes' rows are not looked at.
        known: classes that had labels in training; may be empty.

    Raises:
        ParameterError: shapes differ or are not (n,).
        DataError: no row has a class outside ``known``.
    """
    true, pred = _pair(labels_true, labels_pred, novel_class_accuracy)
    novel = ~np.isin(true, np.asarray(known))
    if not novel.any():
        raise DataError("there is no row of a novel class: every class of labels_true is in known.")
    return clustering_accuracy(true[novel], pred[novel])


def compute(*, predictions: ArrayLike, references: ArrayLike) -> dict[str, float]:
    """Return ``accuracy`` (Hungarian), ``nmi``, ``ari`` and ``purity``.

    Args:
        predictions: (n,) clusters.
        references: (n,) classes.

    Raises:
        ParameterError: shapes differ or are not (n,).
        DataError: there is no row.
    """
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    return {
        "accuracy": clustering_accuracy(references, predictions),
        "nmi": float(normalized_mutual_info_score(references, predictions)),
        "ari": float(adjusted_rand_score(references, predictions)),
        "purity": purity(references, predictions),
    }


def _pair(labels_true: ArrayLike, labels_pred: ArrayLike, owner: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    true, pred = np.asarray(labels_true), np.asarray(labels_pred)
    if true.ndim != 1 or pred.shape != true.shape:
        raise ParameterError(
            "labels_pred", owner, f"of the shape (n,) of labels_true: {true.shape}", pred.shape
        )
    if len(true) == 0:
        raise DataError(f"there are no labels to compute {owner.__name__} from.")
    return true, pred


def _contingency(labels_true: ArrayLike, labels_pred: ArrayLike, owner: Any) -> NDArray[np.int64]:
    """Return how many rows each class (row) has in each cluster (column)."""
    true, pred = _pair(labels_true, labels_pred, owner)
    classes, i = np.unique(true, return_inverse=True)
    clusters, j = np.unique(pred, return_inverse=True)
    counts = np.bincount(i * len(clusters) + j, minlength=len(classes) * len(clusters))
    return counts.reshape(len(classes), len(clusters))
