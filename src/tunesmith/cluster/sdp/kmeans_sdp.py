"""K-means as a semidefinite program (Peng & Wei 2007): labels with a proof of how good they are.

Peng & Wei, "Approximating K-means-type Clustering via Semidefinite Programming", SIAM J. Optim. 2007; spectral rounding
and the baseline's role from Zhuang, Chen & Yang, ICML 2023 (arXiv 2209.15097).
"""

from __future__ import annotations

import warnings
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import pairwise_distances_argmin
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted, validate_data

from tunesmith.cluster._base import Clusterer, check_enough_rows, fitting
from tunesmith.cluster.sdp.likelihood import distances
from tunesmith.cluster.sdp.program import partition_value
from tunesmith.cluster.sdp.rounding import by_first_row, leading_vectors, spectral_rounding
from tunesmith.cluster.sdp.solvers import SOLVERS, sketch, solve

__all__ = ["KMeansSDP"]

Labels = NDArray[np.int64]


class KMeansSDP(Clusterer):
    """Cluster by the convex relaxation of k-means, and say how far from the best partition the labels can be.

    max <XX', Z> over Z PSD, Z >= 0, Z 1 = 1, tr Z = K (Peng & Wei 2007), then spectral rounding. No start matters.
    The dual gives a bound that no partition's inertia is below; where labels meet it they are a *proven* optimum of
    k-means, and the solver stops as soon as that is so. Assumes round clusters of like size, as k-means does; for
    others see `LikelihoodAdjustedSDP`.

    Time O(n^2 r) per iteration for a solution of rank r (near K), some hundred iterations; memory 6 n^2 float64.

    Args:
        n_clusters: K, in [1, n].
        solver: ``"admm"``; ``"burer-monteiro"``, low rank and quick, exact where the relaxation is tight; ``"cvxpy"``,
            the reference for small n (extra ``sdp``).
        tol: relative gap between bound and value, and infeasibility, at which the solver stops.
        max_iter: most iterations of the solver; a ``ConvergenceWarning`` says if they were not enough.
        n_init: restarts of k-means in the rounding.
        sketch: solve on ``sketch_size`` random rows and give the others the nearest centre.
        sketch_size: rows to solve on.
        max_rows: refuse more rows than this without ``sketch``.
        random_state: of rounding, sketch and the low-rank start.

    Attributes:
        labels_: (n,) int64.
        cluster_centers_: (K, p).
        membership_: (m, m) solution Z of the m rows solved on; 1/|G| within clusters where the relaxation is tight.
        inertia_: sum of squared distances to the centres, of the rows solved on.
        inertia_bound_: no partition of those rows into K clusters has a lower inertia; proven.
        dual_gap_: inertia_ - inertia_bound_, >= 0.
        optimal_: whether the gap is within ``tol``: the labels are a best partition.
        infeasibility_: distance of Z from the PSD and the non-negative matrices, relative.
        sketch_indices_: rows solved on, None for all.
        n_iter_: iterations of the solver.

    Example:
        >>> import numpy as np
        >>> from tunesmith.cluster import KMeansSDP
        >>> X = np.array([[0.0], [1], [10], [12]])
        >>> model = KMeansSDP(n_clusters=2).fit(X)
        >>> sorted(np.bincount(model.labels_).tolist()), model.inertia_, model.optimal_
        ([2, 2], 2.5, True)
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "n_clusters": [Interval(Integral, 1, None, closed="left")],
        "solver": [StrOptions(set(SOLVERS))],
        "tol": [Interval(Real, 0, None, closed="neither")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "n_init": [Interval(Integral, 1, None, closed="left")],
        "sketch": ["boolean"],
        "sketch_size": [Interval(Integral, 2, None, closed="left")],
        "max_rows": [Interval(Integral, 1, None, closed="left")],
        "random_state": ["random_state"],
    }

    labels_: Labels
    cluster_centers_: NDArray[Any]
    membership_: NDArray[np.float64]
    inertia_: float
    inertia_bound_: float
    dual_gap_: float
    optimal_: bool
    infeasibility_: float
    sketch_indices_: Labels | None
    n_iter_: int

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        solver: str = "admm",
        tol: float = 1e-4,
        max_iter: int = 3000,
        n_init: int = 10,
        sketch: bool = False,
        sketch_size: int = 1000,
        max_rows: int = 3000,
        random_state: Any = None,
    ) -> None:
        self.n_clusters = n_clusters
        self.solver = solver
        self.tol = tol
        self.max_iter = max_iter
        self.n_init = n_init
        self.sketch = sketch
        self.sketch_size = sketch_size
        self.max_rows = max_rows
        self.random_state = random_state

    @fitting
    def fit(self, X: Any, y: Any = None) -> Self:
        """Solve, round, and measure the gap.

        Args:
            X: (n, p), float32 or float64.
            y: ignored.

        Raises:
            ParameterError: a parameter outside its set, more clusters than rows.
            DataError: more than ``max_rows`` rows without ``sketch``.
            ValueError: NaN or infinity in X.
            TunesmithError: solver ``"cvxpy"`` without the package.
        """
        X = validate_data(self, X, dtype=[np.float64, np.float32], order="C", ensure_min_samples=2)
        check_enough_rows(X, self.n_clusters, self)
        random = check_random_state(self.random_state)
        rows = sketch(
            len(X), self.sketch, self.sketch_size, self.max_rows, self.n_clusters, random, self
        )  # fmt: skip
        self.sketch_indices_ = rows
        part = X if rows is None else X[rows]
        self._fit_rows(part.astype(np.float64), random)
        self.cluster_centers_ = self.cluster_centers_.astype(X.dtype)
        if rows is not None:
            labels = self.predict(X).astype(np.int64)
            labels[rows] = self.labels_
            self.labels_ = labels
        return self

    def _fit_rows(self, X: NDArray[np.float64], random: np.random.RandomState) -> None:
        k = self.n_clusters
        X = X - (shift := X.mean(axis=0))
        A = -0.5 * distances(X)[None]

        def candidate(Z: NDArray[np.float64]) -> Labels:
            return _lloyd(X, _quick(leading_vectors(Z[0], k), k), k)

        seed = int(random.randint(2**31 - 1))
        first = KMeans(k, n_init=1, random_state=seed).fit_predict(X)
        rounds = self._phase("solving", -(-self.max_iter // 25), X)
        found = solve(
            A, k, self.solver, tol=self.tol, max_iter=self.max_iter, labels=first, candidate=candidate,
            rounds=rounds, random_state=seed,
        )  # fmt: skip
        self.membership_ = found.Z[0]
        self.n_iter_ = found.n_iter
        self.infeasibility_ = found.infeasibility
        rounded = found.labels
        if rounded is None:
            rounded = spectral_rounding(found.Z, k, n_init=self.n_init, random_state=random)
        self.labels_ = by_first_row(rounded)
        self.cluster_centers_ = shift + np.stack([X[self.labels_ == c].mean(axis=0) for c in range(k)])
        worth = partition_value(A, self.labels_, k)
        self.inertia_, self.inertia_bound_ = -worth, max(-max(found.bound, worth), 0.0)
        self.dual_gap_ = self.inertia_ - self.inertia_bound_
        total = -float(A.sum()) / len(X)
        self.optimal_ = bool(self.dual_gap_ <= self.tol * max(self.inertia_, total - self.inertia_))
        if not found.converged:
            warnings.warn(
                f"KMeansSDP stopped after {found.n_iter} iterations before its tolerance {self.tol:g}; labels and "
                "bound are valid, the solution is not exact. Raise max_iter.",
                ConvergenceWarning,
                stacklevel=4,
            )

    def predict(self, X: Any) -> Labels:
        """Return the nearest centre of each row of X (m, p); a rule added to the program, not part of it.

        Raises:
            NotFittedError: `fit` was not called.
        """
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=[np.float64, np.float32])
        return np.asarray(pairwise_distances_argmin(X, self.cluster_centers_.astype(X.dtype)), dtype=np.int64)


def _quick(vectors: NDArray[np.float64], k: int) -> Labels:
    return KMeans(k, n_init=1, random_state=0).fit_predict(vectors)


def _lloyd(X: NDArray[np.float64], labels: Labels, k: int) -> Labels:
    """Improve a partition by k-means from its centres; unchanged where a cluster is empty."""
    if np.bincount(labels, minlength=k).min() == 0:
        return labels.astype(np.int64)
    centres = np.stack([X[labels == c].mean(axis=0) for c in range(k)])
    return KMeans(k, init=centres, n_init=1).fit_predict(X).astype(np.int64)
