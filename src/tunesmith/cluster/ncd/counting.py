"""How many novel classes there are, by a cluster validity index (Troisemaine et al. 2024, Sec. 5)."""

from __future__ import annotations

from collections.abc import Callable
from math import isqrt
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.cluster import KMeans
from sklearn.metrics import (
    calinski_harabasz_score,
    davies_bouldin_score,
    pairwise_distances,
    silhouette_score,
)
from sklearn.utils import check_array, check_random_state

from tunesmith.core.errors import DataError, ParameterError

__all__ = ["dunn_index", "estimate_n_novel"]


def dunn_index(Z: NDArray[Any], labels: NDArray[Any]) -> float:
    """Return the least distance between rows of two clusters over the largest inside one; larger is better.

    Infinite where every cluster is one point. Time and memory O(n^2).
    """
    D = pairwise_distances(Z)
    same = labels[:, None] == labels
    inside = float(D[same].max())
    between = float(D[~same].min())
    return between / inside if inside > 0 else float("inf")


# Each is to be maximised.
INDICES: dict[str, Callable[[Any, Any], float]] = {
    "silhouette": silhouette_score,
    "calinski_harabasz": calinski_harabasz_score,
    "davies_bouldin": lambda Z, labels: -davies_bouldin_score(Z, labels),
    "dunn": dunn_index,
}


def estimate_n_novel(
    Z: ArrayLike,
    *,
    k_min: int = 2,
    k_max: int = 30,
    index: str = "silhouette",
    n_repeats: int = 3,
    n_init: int = 10,
    sample_size: int | None = 10_000,
    random_state: Any = None,
) -> tuple[int, dict[int, float]]:
    """Estimate the number of novel classes C^u from the unlabelled rows alone (arXiv 2311.05440, Sec. 5).

    k-means for each k, ``n_repeats`` times; the k with the best mean index wins (the smallest among equals). In the
    latent space of `PBN` errors are much smaller than in the raw one (App. C). A good index is no proof of good
    clusters, and silhouette may prefer 2 where gaps are unequal; Davies-Bouldin and Dunn tend to large k.

    Args:
        Z: ``(n, p)`` rows of novel classes, finite; L2-normalised projections of `PBN`, or raw columns.
        k_min: least k, from 2.
        k_max: largest k; at most ``max(k_min, sqrt(n))`` and the number of distinct rows less 1 are tried.
        index: ``"silhouette"``, ``"calinski_harabasz"``, ``"davies_bouldin"`` or ``"dunn"``.
        n_repeats: clusterings per k over which the index is averaged.
        n_init: restarts of k-means in each.
        sample_size: a random sample of so many rows stands for larger inputs (the index is quadratic in them);
            ``None`` takes all.
        random_state: seed or ``RandomState``.

    Returns:
        C^u and the mean index of each k tried (Davies-Bouldin negated, so that larger is better throughout).
        Time O(m^2 p k_max) for m rows used, memory O(m p) in scikit-learn's chunks (``"dunn"``: O(m^2)).

    Raises:
        ParameterError: k_min below 2, k_max below k_min, an unknown index, a count below 1.
        DataError: fewer than 3 distinct rows, or values that are not finite.
    """
    for name, value, least in (("k_min", k_min, 2), ("k_max", k_max, k_min), ("n_repeats", n_repeats, 1)):
        if value < least:
            raise ParameterError(name, estimate_n_novel, f"an int >= {least}", value)
    if index not in INDICES:
        raise ParameterError("index", estimate_n_novel, f"one of {', '.join(map(repr, INDICES))}", index)
    rows: NDArray[Any] = check_array(Z, dtype=[np.float64, np.float32], input_name="Z")
    rng = check_random_state(random_state)
    if sample_size is not None and len(rows) > sample_size:
        rows = rows[np.sort(rng.choice(len(rows), sample_size, replace=False))]
    distinct = len(np.unique(rows, axis=0))
    if distinct <= k_min:
        raise DataError(
            f"estimate_n_novel needs more than k_min={k_min} distinct rows to compare counts; it got {distinct}."
        )
    largest = min(k_max, max(k_min, isqrt(len(rows))), distinct - 1)
    scores: dict[int, float] = {}
    for k in range(k_min, largest + 1):
        model = KMeans(k, n_init=n_init)
        seeds = rng.randint(2**31 - 1, size=n_repeats)
        values = []
        for seed in seeds:
            labels = model.set_params(random_state=int(seed)).fit_predict(rows)
            values.append(INDICES[index](rows, labels))
        scores[k] = float(np.mean(values))
    return max(scores, key=lambda k: scores[k]), scores
