"""k-means as the baseline of the family: scikit-learn's contract around `tunesmith.numerics.kmeans`."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import TransformerMixin
from sklearn.metrics import pairwise_distances
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval
from sklearn.utils.validation import check_is_fitted, validate_data

from tunesmith.cluster._base import Clusterer, check_enough_rows, fitting
from tunesmith.numerics import kmeans, nearest_center

__all__ = ["KMeans"]


class KMeans(TransformerMixin, Clusterer):
    """k-means for many rows: `tunesmith.numerics.kmeans` as an estimator.

    Seeding and the first steps run on nested samples, so a million rows take minutes; scikit-learn's KMeans finds
    the same quality in several times the time (docs/benchmarks). Use scikit-learn's for ``sample_weight`` or sparse
    matrices.

    Time O(n k d) per step over all rows, memory O(n + k d).

    Args:
        n_clusters: k in [1, n].
        n_init: seedings to try.
        max_iter: most steps over all rows.
        tol: stop when a step lowers the inertia by less than this share.
        random_state: seed.

    Attributes:
        cluster_centers_: (k, d).
        labels_: int64 (n,).
        inertia_: sum of squared distances to the nearest centres.
        n_iter_: steps over all rows.
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "n_clusters": [Interval(Integral, 1, None, closed="left")],
        "n_init": [Interval(Integral, 1, None, closed="left")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, 1, closed="left")],
        "random_state": ["random_state"],
    }

    cluster_centers_: NDArray[Any]
    labels_: NDArray[np.int64]
    inertia_: float
    n_iter_: int

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        n_init: int = 1,
        max_iter: int = 100,
        tol: float = 5e-4,
        random_state: Any = None,
    ) -> None:
        self.n_clusters = n_clusters
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.random_state = random_state

    @fitting
    def fit(self, X: Any, y: Any = None) -> Self:
        """Cluster X (n, d), finite float32 or float64.

        Raises:
            ParameterError: a parameter outside its range, or more clusters than rows.
        """
        X = validate_data(self, X, dtype=[np.float64, np.float32])
        check_enough_rows(X, self.n_clusters, self)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        found = kmeans(
            X, self.n_clusters, n_init=self.n_init, max_iter=self.max_iter, tol=self.tol, random_state=seed
        )
        self.cluster_centers_ = found.centers
        self.labels_ = found.labels.astype(np.int64)
        self.inertia_, self.n_iter_ = float(found.inertia), found.n_iter
        return self

    def predict(self, X: Any) -> NDArray[np.int64]:
        """Return the nearest centre of each row."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        return nearest_center(X, self.cluster_centers_)[0].astype(np.int64)

    def transform(self, X: Any) -> NDArray[Any]:
        """Return the distances (n, k) to the centres."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        return pairwise_distances(X, self.cluster_centers_)

    @property
    def _n_features_out(self) -> int:
        return len(self.cluster_centers_)
