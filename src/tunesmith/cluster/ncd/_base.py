"""What the three novel-class clusterers share: a space, a count, a clustering of the unlabelled rows in that space."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import validate_data

from tunesmith.cluster._base import UNLABELLED, Clusterer, check_enough_rows, fitting, partial_labels
from tunesmith.cluster.ncd.counting import estimate_n_novel
from tunesmith.cluster.ncd.lloyd import NovelClusters, class_means, cluster_novel

__all__ = ["NCDClusterer", "hidden_labels", "labels_or_none"]


class NCDClusterer(Clusterer):
    """Base: ``fit(X, y)`` with -1 for the novel rows; ``labels_`` is -1 for the known ones.

    A subclass says in which space the rows are clustered (`_space`) and whether known classes seed the draws
    (`_seeding`).
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "n_novel": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"})],
        "n_init": [Interval(Integral, 1, None, closed="left")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left")],
        "k_max": [Interval(Integral, 2, None, closed="left")],
        "sample_size": [Interval(Integral, 3, None, closed="left"), None],
        "random_state": ["random_state"],
    }

    n_novel: int | str
    n_init: int
    max_iter: int
    tol: float
    k_max: int
    sample_size: int | None
    random_state: Any

    @fitting
    def fit(self, X: Any, y: Any = None) -> Self:
        """Cluster the rows whose label is -1.

        Args:
            X: ``(n, d)`` float32 or float64 (other numbers become float64), finite; standardise it before.
            y: ``(n,)`` whole numbers, -1 for rows of novel classes. ``None``: no class is known, all rows are novel.

        Returns:
            The fitted estimator.

        Raises:
            ParameterError: a parameter outside its set; more clusters than unlabelled rows.
            DataError: labels that are not whole numbers, or without any -1.
        """
        X = validate_data(self, X, dtype=[np.float64, np.float32], ensure_min_samples=2)
        y = labels_or_none(y, len(X), self)
        novel = y == UNLABELLED
        if not isinstance(self.n_novel, str):
            check_enough_rows(X[novel], self.n_novel, self, "n_novel")
        rng = check_random_state(self.random_state)
        count = self._count(X[novel], rng) if self._counts_in_X else None
        Z = self._space(X, y, count, rng)
        self.n_novel_ = self._count(Z[novel], rng) if count is None else count
        found = self._cluster(Z, y, self.n_novel_, rng, self._phase("restarts", self.n_init))
        if not found.converged:
            warnings.warn(
                f"{type(self).__name__} did not converge in max_iter={self.max_iter} steps; the labels are those of "
                "the last one. Raise max_iter or tol.",
                ConvergenceWarning,
                stacklevel=3,
            )
        distinct = len(np.unique(found.labels))
        if distinct < self.n_novel_:
            warnings.warn(
                f"{type(self).__name__} found {distinct} distinct clusters where n_novel is {self.n_novel_}: some "
                "rows may be duplicates.",
                ConvergenceWarning,
                stacklevel=3,
            )
        self.known_classes_ = np.unique(y[~novel])
        self.labels_ = np.full(len(X), UNLABELLED, dtype=np.int64)
        self.labels_[novel] = found.labels
        self._finish(Z, found)
        return self

    def fit_predict(self, X: Any, y: Any = None) -> NDArray[np.int64]:
        """Return ``labels_`` after ``fit(X, y)``: novel clusters 0, 1, …, and -1 for rows of known classes."""
        labels: NDArray[np.int64] = self.fit(X, y).labels_
        return labels

    _counts_in_X = False  # "auto" looks at the rows as given, not at their space

    def _space(
        self, X: NDArray[Any], y: NDArray[Any], k: int | None, rng: np.random.RandomState
    ) -> NDArray[Any]:
        """Return all rows ``(n, p)`` in the space in which the unlabelled ones are clustered; k is C^u if known."""
        raise NotImplementedError

    def _seeding(self) -> dict[str, Any]:
        """Return ``known`` (whether known classes seed the draws) and options of `cluster_novel`."""
        raise NotImplementedError

    def _finish(self, Z: NDArray[Any], found: NovelClusters) -> None:
        """Set the fitted attributes of the subclass."""
        raise NotImplementedError

    def _count(self, Z: NDArray[Any], rng: np.random.RandomState) -> int:
        """Return C^u, estimated from the novel rows' Z if asked."""
        if not isinstance(self.n_novel, str):
            return int(self.n_novel)
        count, self.novel_scores_ = estimate_n_novel(
            Z, k_max=self.k_max, sample_size=self.sample_size, random_state=rng
        )
        return count

    def _cluster(
        self, Z: NDArray[Any], y: NDArray[Any], k: int, rng: np.random.RandomState, runs: Iterable[int]
    ) -> NovelClusters:
        """Cluster the unlabelled rows of Z into k."""
        novel = y == UNLABELLED
        options = self._seeding()
        known = None
        if options.pop("known") and not novel.all():
            known = class_means(Z[~novel], y[~novel])[1]
        return cluster_novel(
            np.ascontiguousarray(Z[novel]),
            k,
            known,
            rng,
            runs=runs,
            tol=self.tol,
            max_iter=self.max_iter,
            **options,
        )


def labels_or_none(y: Any, n: int, owner: Any) -> NDArray[Any]:
    """Return checked labels; all unlabelled for ``None``."""
    return np.full(n, UNLABELLED, dtype=np.int64) if y is None else partial_labels(y, n, owner)


def hidden_labels(
    estimator: NCDClusterer, X: NDArray[Any], y: NDArray[Any], rows: NDArray[np.int64], k: int | None
) -> tuple[NDArray[np.int64], int]:
    """Return cluster ids of rows whose class is hidden (in order of their places), and how many clusters there are.

    The space is that of all rows (hidden rows count as unlabelled); only ``rows`` are clustered in it, beside the
    classes that are still known (paper, Sec. 4; that only they are clustered is inferred).

    Args:
        estimator: unfitted; its ``n_novel`` is not used.
        X: ``(n, d)``.
        y: ``(n,)`` with -1 for novel and hidden rows.
        rows: the hidden rows.
        k: number of clusters; ``None`` estimates it from the hidden rows (Sec. 6, Algorithm 1).
    """
    rng = check_random_state(estimator.random_state)
    rows = np.sort(rows)
    if k is None and estimator._counts_in_X:
        k = _hidden_count(estimator, X[rows], rng)
    Z = estimator._space(X, y, k, rng)
    if k is None:
        k = _hidden_count(estimator, Z[rows], rng)
    kept = np.union1d(rows, np.flatnonzero(y != UNLABELLED))
    found = estimator._cluster(Z[kept], y[kept], k, rng, range(estimator.n_init))
    return found.labels, k


def _hidden_count(estimator: NCDClusterer, Z: NDArray[Any], rng: np.random.RandomState) -> int:
    limits: dict[str, Any] = {"k_max": estimator.k_max, "sample_size": estimator.sample_size}
    return estimate_n_novel(Z, **limits, random_state=rng)[0]
