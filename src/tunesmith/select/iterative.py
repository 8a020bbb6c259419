"""Iterative kMQ: spend the budget in rounds and move it to clusters where the model has something to learn.

Paper: "Diversify and Conquer", Yu, Chen, Ahmadian, Fadaee 2024, arXiv 2409.11378 (Algorithm 1, Eqs. 4 to 6).
After each round the base model is tuned on all rows chosen so far, answers their prompts, and a scorer
compares the gold answers with its own; clusters whose gold answers are much better gain weight.

Where it departs from the paper or its code, and why:
- Eq. 6 does not sum to 1 and turns negative with negative scores: weights are renormalised, and the softmax
  of the cluster scores replaces their share (``normaliser="ratio"`` is Eq. 6 as printed, for positive scores).
- The budget is spent exactly: ``b // N`` rows a round, the rest in the last; the code divides by k once too
  often.
- Clusters without scored rows count as the mean of the others; the code raises.
- ``history=False`` is the code's form: the softmax alone, without the former weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from numbers import Integral
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted

from tunesmith.core.errors import DataError, ParameterError, TunesmithError
from tunesmith.core.files import hash_text
from tunesmith.numerics import allocate, top_by_group
from tunesmith.select._base import Indices, resolve_budget
from tunesmith.select.clusters import cluster_means, reweight
from tunesmith.select.kmeans import KMeansSelector

__all__ = ["IterativeKMeansSelector"]

Feedback = Callable[[Indices, int], Any]


class IterativeKMeansSelector(KMeansSelector):
    """k-means clusters whose weights follow feedback from the model that is being trained.

    Around any trainer::

        selector = IterativeKMeansSelector(64, n_rounds=3, random_state=0).fit(X, quality=q)
        selector.begin(budget=10_000)
        while not selector.done:
            new = selector.propose()                       # rows of this round, never chosen before
            model = train(selector.selected_)              # the base model on all rows so far
            selector.update(score(model, selector.selected_))
        rows = selector.selected_

    or ``selector.run(train_and_score, budget)``. `tunesmith.select.feedback` has scorers: perplexity (Eq. 7),
    a reward model, and the step "answer, then score". Without feedback, as in a recipe, ``select(budget)``
    keeps the first weights: kMQ with equal counts per cluster (``w0="uniform"``) or proportional ones
    (``w0="size"``), taken in rounds.

    Args:
        n_clusters: k in [1, n], or ``"auto"``; see `KMeansSelector`.
        n_rounds: N; 2 to 5. A budget below N is spent one row a round.
        w0: ``"uniform"``, 1/k for each cluster (as printed), or ``"size"``, n_j/n (round 1 is then plain
            kMQ).
        normaliser: ``"softmax"`` of the cluster scores, or ``"ratio"`` for positive scores.
        history: multiply by the former weights (Eq. 6).
        floor: every cluster keeps at least ``floor / k``, in [0, 1); 0 lets a cluster lose its weight for
            good.
        feedback: ``(rows, round) -> scores`` used by `select`; see `run`.
        sampling: ``"quality"`` (kMQ's draw) or ``"random"`` inside clusters.
        temperature, standardise, normalise, n_init, max_iter, random_state: as in `KMeansSelector`.

    Attributes:
        labels_: int ``(n,)``, the cluster of each row.
        selected_: int64 rows chosen so far, in order.
        weights_: float64 ``(k,)`` of the next round, summing to 1.
        round_: rounds proposed.
        history_: per round ``{"round", "counts", "weights"}``, after feedback also ``{"means", "scored"}``.

    References:
        Yu et al. 2024, arXiv 2409.11378, Algorithm 1, Eqs. 4-7.

    Example:
        >>> import numpy as np
        >>> from tunesmith.select import IterativeKMeansSelector
        >>> X = np.random.default_rng(0).normal(size=(200, 8))
        >>> selector = IterativeKMeansSelector(8, sampling="random", random_state=0).fit(X)
        >>> rows = selector.run(lambda rows, number: X[rows, 0], budget=30)
        >>> [sum(round["counts"]) for round in selector.history_]
        [10, 10, 10]

    Time per round O(n log n) beside training and generation, which dominate; 20 scored rows per cluster
    estimate its mean well enough.
    """

    def __init__(
        self,
        n_clusters: int | Literal["auto"] = "auto",
        *,
        n_rounds: int = 3,
        w0: Literal["uniform", "size"] = "uniform",
        normaliser: Literal["softmax", "ratio"] = "softmax",
        history: bool = True,
        floor: float = 0.0,
        feedback: Feedback | None = None,
        sampling: Literal["quality", "random"] = "quality",
        temperature: float = 1.0,
        standardise: bool = True,
        normalise: bool = True,
        n_init: int = 1,
        max_iter: int = 100,
        random_state: int | None = None,
    ) -> None:
        super().__init__(
            n_clusters,
            sampling=sampling,
            temperature=temperature,
            standardise=standardise,
            normalise=normalise,
            n_init=n_init,
            max_iter=max_iter,
            random_state=random_state,
        )
        self.n_rounds = n_rounds
        self.w0 = w0
        self.normaliser = normaliser
        self.history = history
        self.floor = floor
        self.feedback = feedback

    def fit(  # type: ignore[override]  # the features it takes are named
        self, X: Any = None, y: Any = None, *, quality: Any = None, labels: Any = None, ids: Any = None
    ) -> Self:
        """Cluster the rows as `KMeansSelector.fit` does; a run begun on other clusters is forgotten."""
        super().fit(X, quality=quality, labels=labels, ids=ids)
        self.__dict__.pop("history_", None)
        return self

    def begin(self, budget: int | float) -> None:
        """Start a run that will choose ``budget`` rows (int) or that share of them (float in (0, 1])."""
        check_is_fitted(self, "n_rows_")
        self.budget_ = resolve_budget(budget, self.n_rows_, self)
        self.round_ = 0
        sizes = self._sizes.astype(np.float64)
        filled = (sizes > 0).astype(np.float64)
        start = filled if self.w0 == "uniform" else sizes
        self.weights_: NDArray[np.float64] = start / start.sum()
        self.selected_: Indices = np.zeros(0, dtype=np.int64)
        self.history_: list[dict[str, Any]] = []

    @property
    def done(self) -> bool:
        """Whether every round was proposed."""
        self._check_begun()
        return self.round_ >= min(self.n_rounds, self.budget_)

    def propose(self) -> Indices:
        """Return the rows of the next round, none of which was chosen before.

        Raises:
            TunesmithError: no run was begun, or all of its rounds were proposed.
        """
        if self.done:
            raise TunesmithError(
                f"All {self.round_} rounds were proposed and the budget of {self.budget_} rows is spent; "
                f"begin again "
                "for another run."
            )
        rounds = min(self.n_rounds, self.budget_)
        count = self.budget_ // rounds
        if self.round_ == rounds - 1:
            count = self.budget_ - len(self.selected_)
        keys = self._log_weights + self._noise
        keys[self.selected_] = -np.inf
        left = self._sizes - np.bincount(self.labels_[self.selected_], minlength=self.n_clusters_)
        counts = allocate(self.weights_, count, left, owner=self)
        new = top_by_group(keys, self.labels_, counts)
        self.round_ += 1
        self.selected_ = np.concatenate([self.selected_, new])
        self.history_.append(
            {"round": self.round_, "counts": counts.tolist(), "weights": self.weights_.tolist()}
        )
        return new

    def update(self, scores: ArrayLike, rows: ArrayLike | None = None) -> None:
        """Move the weights by the feedback of this round (Eqs. 5 and 6).

        Args:
            scores: one number per row: score of the gold answer minus score of the model's own (Eq. 4).
            rows: the rows that were scored, chosen ones; by default all of ``selected_``, in its order.

        Raises:
            TunesmithError: no round was proposed, or this one had its feedback.
            DataError: lengths that differ, a row that was not chosen, or a score that is not finite.
            ParameterError: a score that is not positive under ``normaliser="ratio"``.
        """
        self._check_begun()
        if not self.history_ or "means" in self.history_[-1]:
            raise TunesmithError("update follows propose, once a round.")
        scored = self.selected_ if rows is None else np.asarray(rows, dtype=np.int64)
        strangers = np.setdiff1d(scored, self.selected_)
        if len(strangers):
            raise DataError(
                f"row {strangers[0]} has feedback but was not chosen ({len(strangers)} such rows)."
            )
        group = self.labels_[scored] if scored.ndim == 1 else scored
        means, counts = cluster_means(scores, group, self.n_clusters_)
        self.weights_ = reweight(
            self.weights_, means, normaliser=self.normaliser, history=self.history, floor=self.floor
        )
        self.history_[-1].update(means=means.tolist(), scored=counts.tolist())

    def run(self, train_and_score: Feedback, budget: int | float) -> Indices:
        """Do all rounds.

        Args:
            train_and_score: ``(rows, round)`` with all rows chosen so far and the round's number from 1;
                trains, and returns one score per row, or ``(rows, scores)`` for some of them, or ``None`` for
                no feedback.
            budget: rows, or share of them.

        Returns:
            int64 rows in the order in which they were chosen.
        """
        self.begin(budget)
        while not self.done:
            self.propose()
            answer = train_and_score(self.selected_.copy(), self.round_)
            if isinstance(answer, tuple):
                self.update(answer[1], rows=answer[0])
            elif answer is not None:
                self.update(answer)
        return self.selected_

    def get_state(self) -> dict[str, Any]:
        """Return the run as plain JSON values, for `set_state` of an equally fitted selector."""
        self._check_begun()
        return {
            "format": 1,
            "fitted_on": self._fingerprint(),
            "budget": self.budget_,
            "round": self.round_,
            "weights": self.weights_.tolist(),
            "selected": self.selected_.tolist(),
            "history": self.history_,
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue the run that `get_state` returned.

        Raises:
            DataError: the state is none, or belongs to other clusters or another seed.
        """
        check_is_fitted(self, "n_rows_")
        if not isinstance(state, Mapping) or state.get("format") != 1:
            raise DataError("this is no state of an IterativeKMeansSelector.")
        if state["fitted_on"] != self._fingerprint():
            raise DataError(
                "the state belongs to a selector with other clusters or another seed; fit with the same "
                "rows (or "
                "labels) and the same random_state before set_state."
            )
        self.budget_, self.round_ = int(state["budget"]), int(state["round"])
        self.weights_ = np.asarray(state["weights"], dtype=np.float64)
        self.selected_ = np.asarray(state["selected"], dtype=np.int64)
        self.history_ = [dict(row) for row in state["history"]]

    def _pick(self, count: int) -> Indices:
        self.scores_ = self._log_weights + self._noise
        return self.run(self.feedback or (lambda rows, number: None), count)

    def _fingerprint(self) -> str:
        return hash_text(
            np.asarray(self.labels_, dtype="<i8").tobytes().hex(), self._noise[:64].tobytes().hex()
        )

    def _check_begun(self) -> None:
        check_is_fitted(self, "n_rows_")
        if not hasattr(self, "history_"):
            raise TunesmithError("No run was begun: call begin(budget) first.")

    def _check_parameters(self) -> None:
        if self.sampling not in ("quality", "random"):
            raise ParameterError("sampling", self, "'quality' or 'random'", self.sampling)
        super()._check_parameters()
        if isinstance(self.n_rounds, bool) or not isinstance(self.n_rounds, Integral) or self.n_rounds < 1:
            raise ParameterError("n_rounds", self, "an int >= 1", self.n_rounds)
        for name, valid in (("w0", ("uniform", "size")), ("normaliser", ("softmax", "ratio"))):
            if getattr(self, name) not in valid:
                raise ParameterError(name, self, " or ".join(map(repr, valid)), getattr(self, name))
        if not 0 <= self.floor < 1:
            raise ParameterError("floor", self, "a float in [0, 1)", self.floor)
        if self.feedback is not None and not callable(self.feedback):
            raise ParameterError("feedback", self, "a callable or None", self.feedback)
