"""Search for hyperparameters by hiding known classes (Troisemaine et al. 2024, arXiv 2311.05440, Sec. 4 and 6)."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn.base import BaseEstimator, ClusterMixin, MetaEstimatorMixin, clone
from sklearn.model_selection import ParameterGrid, ParameterSampler
from sklearn.pipeline import Pipeline
from sklearn.utils import check_array, check_random_state
from sklearn.utils.metaestimators import available_if
from sklearn.utils.parallel import Parallel, delayed
from sklearn.utils.validation import check_is_fitted

from tunesmith.cluster._base import check_parameters, partial_labels
from tunesmith.cluster.ncd._base import NCDClusterer, hidden_labels
from tunesmith.cluster.ncd.hidden import HiddenClassKFold
from tunesmith.core.errors import DataError, ParameterError, TunesmithError
from tunesmith.metrics.clustering import clustering_accuracy

__all__ = ["NCDSearchCV"]


def _best_has(name: str) -> Any:
    def check(self: NCDSearchCV) -> bool:
        return hasattr(getattr(self, "best_estimator_", self.estimator), name)

    return check


class NCDSearchCV(ClusterMixin, MetaEstimatorMixin, BaseEstimator):  # type: ignore[misc]
    """Choose hyperparameters of a novel-class clusterer without a label of a novel row (arXiv 2311.05440, Sec. 4).

    For each candidate and each split of `HiddenClassKFold` some known classes are hidden: their rows join the
    unlabelled ones, the clusterer's space is made from all rows, and the hidden rows alone are clustered in it.
    The score is their clustering accuracy, averaged over splits. The best candidate is fitted again with all known
    classes.

    With ``count="estimate"`` nothing is known about the number of classes either (Sec. 6, Algorithm 1): in each split
    the number of hidden classes is estimated too. Give the estimator ``n_novel="auto"`` then.

    Time: candidates x splits fits of the space; they are independent, see ``n_jobs``.

    Args:
        estimator: `NCDKMeans`, `NCDSpectralClustering`, `PBN`, or a ``Pipeline`` that ends with one. Another clusterer
            is fitted on all rows with the hidden labels at -1, and its ``labels_`` of the hidden rows are scored.
        param_distributions: lists or ``scipy.stats`` distributions by parameter name, or a list of such dicts.
        n_iter: candidates drawn; ``None`` tries the whole grid (lists only).
        cv: a `HiddenClassKFold`; ``None`` is one with 3 splits.
        count: ``"given"``: the hidden rows are clustered into as many clusters as classes are hidden;
            ``"estimate"``: into as many as silhouette tells.
        refit: fit the best candidate on everything.
        n_jobs: processes, as in joblib.
        error_score: score of a fit that fails, or ``"raise"``.
        random_state: seed of the candidates and of the default splits.

    Attributes:
        best_params_, best_score_, best_index_: of the candidate with the best mean accuracy (the first among equals).
        best_estimator_: fitted again (``refit``); ``labels_`` and ``n_novel_`` are its own.
        cv_results_: as in ``GridSearchCV``: ``params``, ``param_*``, ``split*_test_score``, ``mean_test_score``,
            ``std_test_score``, ``rank_test_score``, ``mean_fit_time``; and ``mean_count_error``, the mean of |estimated
            less hidden classes|.
        n_splits_: number of splits.
    """

    def __init__(
        self,
        estimator: Any,
        param_distributions: Any,
        *,
        n_iter: int | None = 10,
        cv: HiddenClassKFold | None = None,
        count: str = "given",
        refit: bool = True,
        n_jobs: int | None = None,
        error_score: float | str = np.nan,
        random_state: Any = None,
    ):
        self.estimator = estimator
        self.param_distributions = param_distributions
        self.n_iter = n_iter
        self.cv = cv
        self.count = count
        self.refit = refit
        self.n_jobs = n_jobs
        self.error_score = error_score
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> Self:
        """Search, then fit the best candidate.

        Args:
            X: ``(n, d)`` finite numbers; for a pipeline whatever its first step takes.
            y: ``(n,)`` whole numbers, -1 for rows of novel classes (there may be none when ``refit`` is false).

        Raises:
            ParameterError: ``count``, ``n_iter``, ``cv`` or ``param_distributions`` outside their sets.
            DataError: y without -1, fewer than 2 known classes, or every candidate failed.
        """
        if self.count not in ("given", "estimate"):
            raise ParameterError("count", self, "'given' or 'estimate'", self.count)
        cv = HiddenClassKFold(random_state=self.random_state) if self.cv is None else self.cv
        if not isinstance(cv, HiddenClassKFold):
            raise ParameterError("cv", self, "a HiddenClassKFold or None", cv)
        if not isinstance(self.estimator, Pipeline):  # a pipeline may encode categories and fill gaps
            X = check_array(X, dtype=[np.float64, np.float32], input_name="X")
        y = partial_labels(y, X.shape[0] if hasattr(X, "shape") else len(X), self, unlabelled=self.refit)
        splits = list(cv.hide(y))
        if any(len(np.unique(y[rows])) == 1 for _, rows in splits):
            warnings.warn(
                "a split hides one class only, which every candidate clusters rightly when the count is given: y has "
                "too few known classes, or n_hidden is 1.",
                stacklevel=2,
            )
        candidates = self._candidates()
        work = Parallel(n_jobs=self.n_jobs)
        outcomes = work(
            delayed(_try)(self.estimator, params, X, y, *split, self.count, self.error_score)
            for params in candidates
            for split in splits
        )
        self.n_splits_ = len(splits)
        self.cv_results_ = _results(candidates, np.array(outcomes).reshape(len(candidates), len(splits), 3))
        means = self.cv_results_["mean_test_score"]
        if np.isnan(means).all():
            raise DataError(
                "no candidate could be scored; error_score='raise' shows why the first of them failed."
            )
        self.best_index_ = int(np.nanargmax(means))
        self.best_score_ = float(means[self.best_index_])
        self.best_params_ = candidates[self.best_index_]
        if self.refit:
            self.best_estimator_ = clone(self.estimator).set_params(**clone(self.best_params_, safe=False))
            self.best_estimator_.fit(X, y)
            last = _last(self.best_estimator_)
            self.labels_ = last.labels_
            self.n_novel_ = getattr(last, "n_novel_", len(np.unique(self.labels_[self.labels_ >= 0])))
        return self

    def _candidates(self) -> list[dict[str, Any]]:
        space = self.param_distributions
        if not isinstance(space, (Mapping, Sequence)) or isinstance(space, str) or not len(space):
            raise ParameterError(
                "param_distributions", self, "a dict of lists or distributions, or some", space
            )
        if self.n_iter is None:
            return list(ParameterGrid(space))
        if isinstance(self.n_iter, bool) or not isinstance(self.n_iter, (int, np.integer)) or self.n_iter < 1:
            raise ParameterError("n_iter", self, "an int >= 1 or None", self.n_iter)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The total space of parameters")  # all of a small grid
            return list(
                ParameterSampler(space, self.n_iter, random_state=check_random_state(self.random_state))
            )

    def fit_predict(self, X: Any, y: Any = None) -> NDArray[np.int64]:
        """Return ``labels_`` of the best estimator after ``fit(X, y)``."""
        labels: NDArray[np.int64] = self.fit(X, y).labels_
        return labels

    @available_if(_best_has("predict"))
    def predict(self, X: Any) -> NDArray[np.int64]:
        """Return the best estimator's prediction."""
        check_is_fitted(self, "best_estimator_")
        labels: NDArray[np.int64] = self.best_estimator_.predict(X)
        return labels

    @available_if(_best_has("transform"))
    def transform(self, X: Any) -> NDArray[Any]:
        """Return the best estimator's projection."""
        check_is_fitted(self, "best_estimator_")
        Z: NDArray[Any] = self.best_estimator_.transform(X)
        return Z


def _last(estimator: Any) -> Any:
    return estimator[-1] if isinstance(estimator, Pipeline) else estimator


def _try(
    estimator: Any,
    params: dict[str, Any],
    X: Any,
    y: NDArray[Any],
    masked: NDArray[Any],
    rows: NDArray[np.int64],
    count: str,
    error_score: float | str,
) -> tuple[float, float, float]:
    """Fit one candidate under one split; return accuracy on the hidden rows, error of the count, seconds."""
    begin = time.perf_counter()
    hidden = len(np.unique(y[rows]))
    try:
        model = clone(estimator).set_params(**clone(params, safe=False))
        last, Z = _last(model), X
        if isinstance(last, NCDClusterer):
            check_parameters(last)
            if isinstance(model, Pipeline) and len(model) > 1:
                Z = model[:-1].fit_transform(X, masked)
            Z = np.ascontiguousarray(check_array(Z, dtype=[np.float64, np.float32]))
            labels, k = hidden_labels(last, Z, masked, rows, hidden if count == "given" else None)
        else:
            model.fit(X, masked)
            labels = last.labels_[rows]
            k = len(np.unique(labels))
        accuracy = clustering_accuracy(y[rows], labels)
    except (TunesmithError, ValueError, ArithmeticError, np.linalg.LinAlgError) as error:
        if error_score == "raise":
            raise
        warnings.warn(f"the candidate {params} failed and scores {error_score}: {error}", stacklevel=2)
        return float(error_score), np.nan, time.perf_counter() - begin
    return accuracy, float(abs(k - hidden)), time.perf_counter() - begin


def _results(candidates: list[dict[str, Any]], outcomes: NDArray[np.float64]) -> dict[str, Any]:
    """Return the table in scikit-learn's form from ``(candidates, splits, 3)`` accuracy, count error, seconds."""
    scores, errors, seconds = np.moveaxis(outcomes, 2, 0)
    results: dict[str, Any] = {"mean_fit_time": seconds.mean(axis=1), "std_fit_time": seconds.std(axis=1)}
    for name in dict.fromkeys(name for params in candidates for name in params):
        column = np.ma.MaskedArray(np.empty(len(candidates), dtype=object), mask=True)
        for i, params in enumerate(candidates):
            if name in params:
                column[i] = params[name]
        results[f"param_{name}"] = column
    results["params"] = candidates
    for split in range(scores.shape[1]):
        results[f"split{split}_test_score"] = scores[:, split]
    mean = scores.mean(axis=1)
    worst = np.where(np.isnan(mean), -np.inf, mean)
    return {
        **results,
        "mean_test_score": mean,
        "std_test_score": scores.std(axis=1),
        "rank_test_score": rankdata(-worst, method="min").astype(np.int32),
        "mean_count_error": errors.mean(axis=1),
    }
