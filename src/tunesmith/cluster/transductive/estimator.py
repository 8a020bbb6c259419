"""`TransductiveClustering`: label a batch of points together from a few labelled ones, or cluster it without any.

Imtiaz Masud Ziko, Malik Boudiaf, Jose Dolz, Eric Granger, Ismail Ben Ayed: "Transductive Few-Shot Learning: Clustering
is All You Need?" (2021), arXiv 2106.09516. Deviations: labelled rows are held at their labels in every update, as the
paper's constraint says (the authors' code lets the first update overwrite them; ``clamp=False``); the bandwidth of
K-modes divides by the number of edges (the code by 5 N; ``variant="official"``); a graph can be made positive
semi-definite, which the proof of descent needs (``psd_shift``).
"""

from __future__ import annotations

import warnings
from contextlib import closing
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.cluster import kmeans_plusplus
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted, validate_data

from tunesmith.cluster._base import UNLABELLED, Clusterer, check_enough_rows, fitting, partial_labels
from tunesmith.cluster.transductive.bound import psd_shift
from tunesmith.cluster.transductive.features import NORMALISATIONS, normalize_features
from tunesmith.cluster.transductive.prototypes import bandwidth, class_means, squared_distances
from tunesmith.cluster.transductive.solver import Problem, Solution, solve
from tunesmith.core.errors import DataError, ParameterError
from tunesmith.numerics.neighbors import knn_graph

__all__ = ["TransductiveClustering"]

_SEED_ROWS = 20_000  # seeds are drawn from at least so many rows, or 16 for each cluster
_EVEN = 0.9  # warn below this share of the largest entropy: even classes hardly ever fall below it


class TransductiveClustering(Clusterer):
    """Prototype clustering with a few known labels and a Laplacian over nearest neighbours.

    Minimises ``sum_p z_p . d(x_p, m) + (lam / 4) sum_pq w_pq |z_p - z_q|^2`` over assignments and prototypes, labelled
    rows fixed (Ziko et al. 2021, arXiv 2106.09516). ``y == -1`` marks rows to label, as in
    ``sklearn.semi_supervised``; without y it is K-means or K-modes with a smoother on top.

    The weight ``lam`` is meant for rows of length 1, whose squared distances lie in [0, 4].

    Args:
        n_clusters: K. By default the number of classes in y, and never less. More add clusters of unlabelled rows,
            seeded by k-means++ and named by the whole numbers after the largest class. Needed where y is missing.
        objective: ``"kmeans"`` (squared distance, means) or ``"kmodes"`` (Gaussian kernel, modes).
        lam: weight of the Laplacian, >= 0; 0 leaves plain K-means or K-modes.
        n_neighbors: of the graph, the row itself counted (3 means two others), as the authors do.
        affinity: ``"exact"``, ``"approximate"`` or ``"auto"`` search for neighbours (`numerics.knn_graph`); or the
            affinities themselves: an (N, N) array or sparse matrix >= 0, or a callable of the normalised features.
        psd_shift: symmetrise the graph and add its degrees to the diagonal, so that every update lowers the energy.
        normalize: ``"cl2n"`` (centre, length 1), ``"l2n"`` or ``"un"`` (leave as is).
        base_mean: (D,) mean of the encoder's training data for ``"cl2n"``; by default the mean of X.
        shift: move the rows to label by the difference of the means of labelled rows and them. Turn it off where the
            classes are not in the same shares in both. Does nothing without labels.
        clamp: hold labelled rows at their labels throughout.
        assignments: ``"hard"``: prototypes from labels (the authors' code; with ``lam=0`` Lloyd's algorithm);
            ``"soft"``: prototypes from Z (the paper's equation), with an energy that never rises over the whole fit.
        modes: K-modes by ``"mean_shift"``, or ``"assigned"``: the row that most clearly belongs to the class.
        sigma: bandwidth of K-modes; by default from the graph, see `bandwidth`.
        init: ``"k-means++"`` or (n_clusters, D) prototypes in the space of the normalised features; used where y gives
            no class means.
        max_iter: most steps.
        tol: stop when the energy changes by no more than this share of itself.
        max_bound_iter: most bound updates per step.
        bound_tol: their relative tolerance.
        variant: ``"official"``: the authors' code, which does not clamp and has another bandwidth and energy.
        n_jobs: threads, as in scikit-learn.
        random_state: of seeds and approximate neighbours.

    Attributes:
        labels_: (N,) int64 classes; ``transduction_`` is the same.
        label_distributions_: (N, K) soft assignments, columns as in ``classes_``.
        classes_: (K,) names of the columns.
        cluster_centers_: (K, D) prototypes in the space of the normalised features.
        energy_: the last energy; ``energies_`` one per step; ``bound_energies_`` those of each step's updates.
        n_iter_: steps.
        rolled_back_: a class lost all its rows, and the step before was kept.
        shift_: (D,) what was added to the rows to label.
        mean_: (D,) what was subtracted by ``"cl2n"``.
        sigma_: bandwidth used by K-modes.
        n_features_in_: D.

    Raises:
        ParameterError: a parameter outside its set, more clusters than rows, or neighbours than other rows.
        DataError: y does not fit X, a row has no direction to normalise, an affinity is negative.

    Time O(N K D) plus updates x O((edges + N) K) per step, and the neighbours; memory four (N, K) arrays.
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "n_clusters": [None, Interval(Integral, 1, None, closed="left")],
        "objective": [StrOptions({"kmeans", "kmodes"})],
        "lam": [Interval(Real, 0, None, closed="left")],
        "n_neighbors": [Interval(Integral, 2, None, closed="left")],
        "affinity": [StrOptions({"auto", "exact", "approximate"}), "array-like", "sparse matrix", callable],
        "psd_shift": ["boolean"],
        "normalize": [StrOptions(set(NORMALISATIONS))],
        "base_mean": [None, "array-like"],
        "shift": ["boolean"],
        "clamp": ["boolean"],
        "assignments": [StrOptions({"hard", "soft"})],
        "modes": [StrOptions({"mean_shift", "assigned"})],
        "sigma": [None, Interval(Real, 0, None, closed="neither")],
        "init": [StrOptions({"k-means++"}), "array-like"],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left")],
        "max_bound_iter": [Interval(Integral, 1, None, closed="left")],
        "bound_tol": [Interval(Real, 0, None, closed="left")],
        "variant": [StrOptions({"paper", "official"})],
        "n_jobs": [None, Integral],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        n_clusters: int | None = None,
        *,
        objective: str = "kmeans",
        lam: float = 0.5,
        n_neighbors: int = 3,
        affinity: Any = "auto",
        psd_shift: bool = False,
        normalize: str = "cl2n",
        base_mean: Any = None,
        shift: bool = True,
        clamp: bool = True,
        assignments: str = "hard",
        modes: str = "mean_shift",
        sigma: float | None = None,
        init: Any = "k-means++",
        max_iter: int = 100,
        tol: float = 1e-4,
        max_bound_iter: int = 600,
        bound_tol: float = 1e-7,
        variant: str = "paper",
        n_jobs: int | None = None,
        random_state: Any = None,
    ):
        self.n_clusters = n_clusters
        self.objective = objective
        self.lam = lam
        self.n_neighbors = n_neighbors
        self.affinity = affinity
        self.psd_shift = psd_shift
        self.normalize = normalize
        self.base_mean = base_mean
        self.shift = shift
        self.clamp = clamp
        self.assignments = assignments
        self.modes = modes
        self.sigma = sigma
        self.init = init
        self.max_iter = max_iter
        self.tol = tol
        self.max_bound_iter = max_bound_iter
        self.bound_tol = bound_tol
        self.variant = variant
        self.n_jobs = n_jobs
        self.random_state = random_state

    @fitting
    def fit(self, X: Any, y: Any = None) -> TransductiveClustering:
        """Cluster X.

        Args:
            X: (N, D) embeddings, float32 or float64.
            y: (N,) whole numbers, -1 where unknown; None for no labels.
        """
        X = validate_data(self, X, dtype=[np.float64, np.float32], ensure_min_samples=2)
        rng = check_random_state(self.random_state)
        seed = int(rng.randint(np.iinfo(np.int32).max))
        known, self.classes_ = self._classes(X, y)
        features = self._features(X, known)
        W, sigma = self._graph(features, seed)
        problem = Problem(
            features,
            known,
            self.objective,
            W if self.lam > 0 else None,
            float(self.lam),
            sigma,
            self.modes,
            self.assignments,
            self.clamp and self.variant != "official",
            self.max_bound_iter,
            self.bound_tol,
            self.n_jobs,
            self.variant,
        )
        phase: Any = self._phase("prototypes and assignments", self.max_iter, X)
        with closing(phase) as steps:
            found = solve(problem, self._seeds(features, known, rng), steps=steps, tol=self.tol)
        self._keep(found, known)
        return self

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the class of the nearest prototype of each row; for rows that were not in the fit.

        ``labels_`` may differ for the rows of the fit: they also followed their neighbours.

        Args:
            X: (M, D).
        """
        check_is_fitted(self)
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        rows = normalize_features(X, self.normalize, self.mean_) + self.shift_.astype(X.dtype)
        return self.classes_[squared_distances(rows, self.cluster_centers_).argmin(axis=1)]

    def _classes(self, X: NDArray[Any], y: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return each row's class as 0..K-1 or -1, and the names of the K classes."""
        if y is None:
            names, known = np.empty(0, dtype=np.int64), np.full(len(X), UNLABELLED)
        else:
            labels = partial_labels(y, len(X), self, unlabelled=False).astype(np.int64)
            names = np.unique(labels[labels != UNLABELLED])
            known = np.where(labels == UNLABELLED, UNLABELLED, np.searchsorted(names, labels))
        if self.n_clusters is None and len(names) == 0:
            raise ParameterError("n_clusters", self, "given where no row has a label", None)
        wanted = len(names) if self.n_clusters is None else int(self.n_clusters)
        K = len(names) + min(max(wanted - len(names), 0), int((known < 0).sum()))
        check_enough_rows(X, wanted, self)
        first = max(0, int(names.max()) + 1) if len(names) else 0
        return known, np.concatenate([names, np.arange(first, first + K - len(names))])

    def _features(self, X: NDArray[Any], known: NDArray[np.int64]) -> NDArray[Any]:
        """Return the rows normalised, those to label shifted."""
        self.mean_ = (
            X.mean(axis=0, dtype=np.float64) if self.base_mean is None else np.asarray(self.base_mean)
        )
        rows = normalize_features(X, self.normalize, self.mean_)
        self.shift_ = np.zeros(X.shape[1])
        labelled = known >= 0
        if self.shift and labelled.any() and not labelled.all():
            self.shift_ = rows[labelled].mean(axis=0) - rows[~labelled].mean(axis=0)
            rows = rows.copy() if rows is X else rows
            rows[~labelled] += self.shift_.astype(rows.dtype)
        return rows

    def _graph(self, rows: NDArray[Any], seed: int) -> tuple[Any, float | None]:
        """Return affinities and bandwidth, as far as they are needed."""
        needs_sigma = self.objective == "kmodes" and self.sigma is None
        self.sigma_ = self.sigma
        if self.lam == 0 and not needs_sigma:
            return None, self.sigma
        n = len(rows)
        if isinstance(self.affinity, str):
            if self.n_neighbors >= n:
                expected = f"an int in [2, {n - 1}], fewer than the rows"
                raise ParameterError("n_neighbors", self, expected, self.n_neighbors)
            W: Any = knn_graph(
                rows, self.n_neighbors - 1, method=self.affinity, random_state=seed, n_jobs=self.n_jobs
            )[0]
        else:
            W = self.affinity(rows) if callable(self.affinity) else self.affinity
            W = W if sparse.issparse(W) else np.asarray(W)
            if W.shape != (n, n):
                raise DataError(f"the affinity has the shape {W.shape}, but X has {n} rows.")
        if needs_sigma:
            self.sigma_ = bandwidth(rows, W, self.variant)
        return psd_shift(W) if self.psd_shift else W, self.sigma_

    def _seeds(self, rows: NDArray[Any], known: NDArray[np.int64], rng: Any) -> NDArray[Any]:
        """Return the first prototypes: class means, then ``init``."""
        K, given = len(self.classes_), int(known.max()) + 1
        M = class_means(rows, known, np.zeros((K, rows.shape[1])))
        if given == K:
            return M
        if not isinstance(self.init, str):
            init = np.asarray(self.init, dtype=rows.dtype)
            if init.shape != M.shape:
                raise ParameterError(
                    "init", self, f"'k-means++' or an array of the shape {M.shape}", init.shape
                )
            M[given:] = init[given:]
            return M
        free = np.flatnonzero(known < 0)
        size = max(_SEED_ROWS, 16 * K)
        sample = rows[np.sort(rng.choice(free, size, replace=False)) if len(free) > size else free]
        if given == 0:
            return kmeans_plusplus(sample, K, random_state=rng)[0]
        nearest = squared_distances(sample, M[:given]).min(axis=1).astype(np.float64)
        for k in range(given, K):
            mass = nearest.sum()
            share = nearest / mass if mass > 0 else None
            M[k] = sample[rng.choice(len(sample), p=share)]
            nearest = np.minimum(nearest, squared_distances(sample, M[k : k + 1])[:, 0])
        return M

    def _keep(self, found: Solution, known: NDArray[np.int64]) -> None:
        """Set the fitted attributes, and warn of what the user should know."""
        self.labels_ = self.classes_[found.labels]
        self.transduction_ = self.labels_
        self.label_distributions_, self.cluster_centers_ = found.Z, found.M
        self.energies_, self.bound_energies_ = found.energies, found.bound_energies
        self.energy_ = found.energies[-1] if found.energies else float("nan")
        self.n_iter_, self.rolled_back_ = found.n_iter, found.rolled_back
        if not found.converged:
            advice = f"TransductiveClustering did not settle in {self.max_iter} steps; raise max_iter or tol."
            warnings.warn(advice, ConvergenceWarning, stacklevel=4)
        if not found.bound_converged:
            advice = "the bound updates of a step did not settle"
            remedy = "raise max_bound_iter" if self.psd_shift else "psd_shift=True makes them descend"
            warnings.warn(f"{advice}; {remedy}.", ConvergenceWarning, stacklevel=4)
        free = known < 0
        if self.shift and free.any() and not free.all() and len(self.classes_) > 1:
            share = np.bincount(found.labels[free], minlength=len(self.classes_)) / free.sum()
            entropy = -(share[share > 0] * np.log(share[share > 0])).sum() / np.log(len(share))
            if entropy < _EVEN:
                message = (
                    "the labels found are far from even over the classes, where shift=True tends to harm; "
                    "compare with shift=False."
                )
                warnings.warn(message, UserWarning, stacklevel=4)
