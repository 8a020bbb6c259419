"""What cluster-based selectors share: feedback per cluster, new weights, and the choice of k.

From "Diversify and Conquer" (Yu, Chen, Ahmadian, Fadaee 2024, arXiv 2409.11378), Sec. 4.3, Eqs. 5 and 6.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tunesmith.core.errors import DataError, ParameterError

__all__ = ["choose_n_clusters", "cluster_means", "reweight"]


def choose_n_clusters(
    X: ArrayLike,
    candidates: Iterable[int],
    *,
    sample_size: int = 10_000,
    n_init: int = 1,
    random_state: int | None = None,
) -> tuple[int, dict[int, float]]:
    """Choose the number of clusters with the largest mean silhouette (Sec. 4.3).

    Args:
        X: ``(n, d)`` finite.
        candidates: numbers of clusters, each in [2, n - 1].
        sample_size: rows on which the silhouette is computed, which is quadratic in them (10,000 rows take
            seconds and 100 MB in scikit-learn's chunks). k-means itself sees all rows.
        n_init: seedings per candidate.
        random_state: seed of the sample and of k-means.

    Returns:
        The best candidate (the smallest among equals) and every candidate's mean silhouette; NaN where the
        sample falls into a single cluster or into clusters of one row each.

    Raises:
        ParameterError: no candidate, or one outside [2, n - 1].
    """
    from sklearn.metrics import silhouette_score

    from tunesmith.numerics import kmeans

    array = np.asarray(X)
    n, ks = len(array), sorted(set(candidates))
    if not ks or ks[0] < 2 or ks[-1] > n - 1:
        raise ParameterError("candidates", choose_n_clusters, f"one or more ints in [2, {n - 1}]", ks)
    rng = np.random.default_rng(random_state)
    sample = np.sort(rng.choice(n, size=min(n, sample_size), replace=False))
    seed = int(rng.integers(2**31))
    values: dict[int, float] = {}
    for k in ks:
        labels = kmeans(array, k, n_init=n_init, random_state=seed).labels[sample]
        distinct = len(np.unique(labels))
        values[k] = np.nan
        if 2 <= distinct < len(sample):
            values[k] = float(silhouette_score(array[sample], labels))
    if all(np.isnan(value) for value in values.values()):
        raise DataError("no candidate splits the sampled rows into clusters; are all rows equal?")
    return max(ks, key=lambda k: (-np.inf if np.isnan(values[k]) else values[k], -k)), values


def cluster_means(
    values: ArrayLike, labels: ArrayLike, n_clusters: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Average feedback per cluster (Eq. 5).

    Args:
        values: ``(m,)`` finite, one per scored row.
        labels: ``(m,)`` clusters of the scored rows, in [0, n_clusters).
        n_clusters: k.

    Returns:
        float64 ``(k,)`` means and int64 ``(k,)`` numbers of scored rows. A cluster without any gets the mean
        of the other clusters' means, so that it neither gains nor loses.

    Raises:
        DataError: no value, different lengths, or a value that is not finite.
    """
    scores, group = np.asarray(values, dtype=np.float64), np.asarray(labels, dtype=np.int64)
    if scores.shape != group.shape or scores.ndim != 1 or not len(scores):
        raise DataError(
            f"feedback needs one score per row and at least one row, but got {scores.size} scores for "
            f"{group.size} rows."
        )
    if not np.isfinite(scores).all():
        raise DataError("the feedback is not a finite number.", row=int(np.argmax(~np.isfinite(scores))))
    counts = np.bincount(group, minlength=n_clusters)
    means = np.bincount(group, weights=scores, minlength=n_clusters) / np.maximum(counts, 1)
    means[counts == 0] = means[counts > 0].mean()
    return means, counts


def reweight(
    weights: ArrayLike,
    scores: ArrayLike,
    *,
    normaliser: Literal["softmax", "ratio"] = "softmax",
    history: bool = True,
    floor: float = 0.0,
) -> NDArray[np.float64]:
    """Move the budget towards clusters with larger scores (Eq. 6, made to sum to 1).

    Args:
        weights: ``(k,)`` of the round before, >= 0, not all 0.
        scores: ``(k,)`` mean feedback per cluster.
        normaliser: ``"softmax"``: ``exp(s_j) / sum exp(s)``, for any finite scores; ``"ratio"``: ``s_j / sum
            s`` as printed, for positive scores only.
        history: multiply by the former weights, as the paper does; the authors' code does not.
        floor: every cluster keeps at least ``floor / k``, so that it can recover; in [0, 1).

    Returns:
        float64 ``(k,)`` that sums to 1.

    Raises:
        ParameterError: a score that is not finite, or not positive under ``"ratio"``; an unknown normaliser;
            a floor outside its range.
    """
    old, s = np.asarray(weights, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if not 0 <= floor < 1:
        raise ParameterError("floor", reweight, "a float in [0, 1)", floor)
    if not np.isfinite(s).all():
        raise ParameterError("scores", reweight, "finite numbers", s.tolist())
    if normaliser == "softmax":
        factor = np.exp(s - s.max())
    elif normaliser == "ratio":
        if (s <= 0).any():
            raise ParameterError("scores", reweight, "positive under normaliser='ratio'", s.tolist())
        factor = s / s.max()
    else:
        raise ParameterError("normaliser", reweight, "'softmax' or 'ratio'", normaliser)
    new = factor * old if history else factor
    new = new / new.sum()
    return np.asarray(floor / len(new) + (1 - floor) * new)
