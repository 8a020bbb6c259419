"""LifelongPool: a bounded pool that grows by datasets, is looked at anew each round, and is pruned for
good."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence, Sized
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted

from tunesmith.core.errors import DataError, ParameterError
from tunesmith.core.seeds import child_seed
from tunesmith.numerics.lloyd import kmeans
from tunesmith.select._base import Indices, Selector, resolve_budget
from tunesmith.select._features import fresh_seed
from tunesmith.select.lifelong import _store
from tunesmith.select.lifelong._checks import check_parameters, scorer_table
from tunesmith.select.lifelong.budgets import density_quota, spread_quota, waterfill
from tunesmith.select.lifelong.entropy import choose_scorer
from tunesmith.select.lifelong.features import unit_rows
from tunesmith.select.lifelong.pruning import prune_duplicates
from tunesmith.select.lifelong.sampling import coverage_sample

__all__ = ["LifelongPool"]

_DEFAULT = ("perplexity", "ifd")  # what tunesmith.data.Pool computes for any causal language model


class LifelongPool(Selector):
    """Adapt-infinity: choose a fixed number of rows each round from a pool that grows and is pruned.

    Maharana et al., ICLR 2025, arXiv 2410.10636. A round with the current model::

        pool.add(new_dataset, "vqa")
        pool.fit(gradient=G, scores={"perplexity": p, "el2n": e, "entropy": h, "grounding": ig})
        pool.prune(100_000)              # code order: prune, then select
        rows = pool.dataset(pool.select(25_000))

    Rows are clustered by k-means on their unit gradient features (pseudo-skills; `fit` takes any other array
    as X instead), each cluster is ranked by the scorer of largest histogram entropy, the budget is shared by
    water-filling, and rows are drawn by coverage-centric sampling. The LITE variant prunes to a small size
    at the *end* of a round, so that the next one scores far fewer rows. On its own, `fit(X, perplexity=...,
    ifd=...)` and `select` are one round over a fixed pool.

    Features must come from the *current* model: stale ones silently turn the method static. They are given
    arrays, so text, image-text or any other rows will do; what is missing for a row is NaN. Pruning is
    permanent; ``dropped_`` keeps the ids. Never add evaluation data.

    Args:
        n_clusters: k pseudo-skills; 5 to 100.
        scorers: names that may be chosen, in order of precedence; ``None`` takes all that `fit` is given.
        log_scale: scorers whose logarithm is used (perplexity, as in the released code).
        bins: bins of the entropy histogram; below a fifth of the usual cluster size.
        min_rows: clusters smaller than this take the scorer that wins in the whole pool, since the histogram
            of a few dozen rows is noisy; 0 asks each cluster.
        strata: strata of coverage sampling, 10 to 50.
        trim: share of extremes left out at each end, 0 to 0.1.
        quota: ``"uniform"`` (water-filling), ``"spread"`` (in proportion to the standard deviation of the
            first scorer) or ``"density"`` (spread of the cluster times its separation).
        sampling: ``"ccs"``; ``"top"`` and ``"bottom"`` take the largest or smallest values of the chosen
            scorer, whose directions differ (high perplexity is hard, high grounding is good); ``"random"``.
        cluster_by: ``"gradient"``, as in the paper, has `tunesmith.data.Pool` compute it (one forward and
            backward pass a row); a gradient that `fit` is given forms the clusters either way.
        random_state: seed; equal inputs give equal answers. ``None`` draws a fresh one in `fit`.

    Attributes:
        ids_: id of each row in the pool, a list of n strings.
        sources_: name of the dataset of each row.
        dropped_: ``{"id", "source", "round", "reason"}`` per row that was pruned.
        round_: number of datasets added so far.
        labels_: int64 ``(n,)`` cluster; -1 for rows without finite features.
        report_: per cluster ``{"cluster", "size", "scorer", "entropy", "quota"}`` of the last `select`.
        scores_: value of the chosen scorer per row (log scale where it applies); NaN where there is none.
        zero_gradients_: bool ``(n,)`` rows whose feature is all zeros; they stay zero.

    References:
        Maharana, Yoon, Chen and Bansal 2025, arXiv 2410.10636.

    Example:
        >>> import numpy as np
        >>> from tunesmith.select import LifelongPool
        >>> rng, pool = np.random.default_rng(0), LifelongPool(4, random_state=0)
        >>> ids = pool.add(100, "first")
        >>> G, scores = rng.normal(size=(100, 8)), {"el2n": rng.random(100), "entropy": rng.random(100)}
        >>> kept = pool.fit(gradient=G, scores=scores).prune(60)
        >>> len(pool), len(pool.select(20))
        (60, 20)

    Time of a round: O(n k p) for the clusters, O(d sum_c n_c^2) for pruning; computing the features
    dominates.
    """

    requires: ClassVar[tuple[str, ...]] = ("embedding", *_DEFAULT)

    def __init__(
        self,
        n_clusters: int = 10,
        *,
        scorers: Sequence[str] | None = None,
        log_scale: Sequence[str] = ("perplexity",),
        bins: int = 50,
        min_rows: int = 0,
        strata: int = 50,
        trim: float = 0.05,
        quota: str = "uniform",
        sampling: str = "ccs",
        cluster_by: str = "embedding",
        random_state: int | None = None,
    ) -> None:
        self.n_clusters = n_clusters
        self.scorers = scorers
        self.log_scale = log_scale
        self.bins = bins
        self.min_rows = min_rows
        self.strata = strata
        self.trim = trim
        self.quota = quota
        self.sampling = sampling
        self.cluster_by = cluster_by
        self.random_state = random_state

    def __len__(self) -> int:
        return len(getattr(self, "ids_", ()))

    def required_features(self) -> tuple[str, ...]:
        """Names of the features that `fit` needs: the embedding, the gradient if asked for, and the scorers."""
        base = ("embedding", "gradient") if self.cluster_by == "gradient" else ("embedding",)
        return (*base, *(_DEFAULT if self.scorers is None else self.scorers))

    def add(self, data: int | Sized, source: str, ids: Sequence[str] | None = None) -> list[str]:
        """Put a new dataset behind the rows that are there; `fit` must follow before the next choice.

        Args:
            data: number of rows, or anything with a length; a ``datasets.Dataset`` is kept for `dataset`.
            source: name of the dataset, new to this pool.
            ids: one string per row, new to this pool (pruned rows included); by default ``"source:0"`` and so
                on.

        Returns:
            The ids.

        Raises:
            ParameterError: no rows, a known source, or an id that is taken.
        """
        self._start()
        count = data if isinstance(data, int) else len(data)
        if isinstance(data, bool) or count < 1:
            raise ParameterError("data", self, "at least one row", data)
        if source in self._lengths:
            raise ParameterError("source", self, "a name that this pool has not seen", source)
        new = [f"{source}:{i}" for i in range(count)] if ids is None else [str(i) for i in ids]
        taken = {*self.ids_, *(row["id"] for row in self.dropped_)}
        if len(new) != count or len(set(new)) != count or taken.intersection(new):
            raise ParameterError("ids", self, f"{count} distinct ids new to this pool", new)
        self.ids_ += new
        self.sources_ += [source] * count
        self._places += range(count)
        self._lengths[source] = count
        if not isinstance(data, int):
            self._data[source] = data
        self.round_ += 1
        self._own = False
        if hasattr(self, "n_rows_"):
            del self.n_rows_
        return new

    def fit(
        self,
        X: ArrayLike | None = None,
        y: Any = None,
        *,
        gradient: ArrayLike | None = None,
        scores: Mapping[str, ArrayLike] | None = None,
        **features: ArrayLike,
    ) -> Self:
        """Look at all rows of the pool under the current model.

        Args:
            X: ``(n, d)`` semantic vectors for pruning, and for the clusters where no gradient is given.
            y: ignored.
            gradient: ``(n, p)`` (projected) gradient of each row's loss; scaled to unit length here.
            scores: name -> ``(n,)``; NaN where a row has no such score.
            **features: more scores by name, as `tunesmith.data.Pool` passes them.

        Returns:
            ``self``. A pool without rows gets n of its own (source ``"pool"``).

        Raises:
            ParameterError: a parameter outside its range, more clusters than rows, no scorer or an unknown
                one.
            DataError: lengths that differ, or no row with finite features.
        """
        check_parameters(self)
        base = gradient if gradient is not None else X
        if base is None or (np.ndim(base) == 2 and np.shape(base)[1] == 0):
            raise ParameterError("X", self, "features of the rows, as X or as gradient", base)
        grouping = np.asarray(base)
        if grouping.ndim != 2:
            raise DataError(f"features must be a matrix (rows, columns); got shape {grouping.shape}.")
        self._own_rows(len(grouping))
        self._seed = fresh_seed(self.random_state)
        vectors = grouping if X is None or np.shape(X)[1] == 0 else np.asarray(X)
        table = scorer_table(self, {**(scores or {}), **features})
        for name, rows in {"X": vectors, "gradient": grouping, **table}.items():
            if len(rows) != len(self.ids_):
                raise DataError(f"'{name}' has {len(rows)} rows, but the pool has {len(self.ids_)}.")
        usable = np.isfinite(grouping).all(axis=1) & np.isfinite(vectors).all(axis=1)
        if self.n_clusters > usable.sum():
            raise ParameterError(
                "n_clusters", self, f"at most {usable.sum()}, the rows with finite features", self.n_clusters
            )
        if not usable.all():
            warnings.warn(
                f"{(~usable).sum()} of {len(usable)} rows have features that are not finite; they "
                "are not chosen, and the next pruning drops them.",
                stacklevel=2,
            )
        unit = np.zeros(grouping.shape, dtype=np.float32)
        self.zero_gradients_ = np.zeros(len(usable), dtype=np.bool_)
        unit[usable], self.zero_gradients_[usable] = unit_rows(grouping[usable])
        found = kmeans(unit[usable], self.n_clusters, random_state=child_seed(self._seed, "clusters"))
        self.labels_ = np.full(len(usable), -1, dtype=np.int64)
        self.labels_[usable] = found.labels
        self.cluster_centers_ = found.centers
        self._unit, self._vectors, self._table = unit, vectors, table
        self.n_rows_ = len(usable)
        return self

    def prune(self, max_size: int) -> Indices:
        """Drop rows for good until at most ``max_size`` are left: near-duplicates of earlier rows go first.

        Args:
            max_size: rows to keep, >= 1; a pool no larger is left alone.

        Returns:
            int64 positions (before the call) of the rows that stay, ascending; arrays of the caller shrink by
            them. `select` works without another `fit`.

        Raises:
            NotFittedError: `fit` was not called since the last `add`.
            ParameterError: ``max_size`` is not an int >= 1.
        """
        check_is_fitted(self, "n_rows_")
        if isinstance(max_size, bool) or not isinstance(max_size, int) or max_size < 1:
            raise ParameterError("max_size", self, "an int >= 1", max_size)
        if max_size >= self.n_rows_:
            return np.arange(self.n_rows_, dtype=np.int64)
        usable = np.flatnonzero(self.labels_ >= 0)
        kept = usable[prune_duplicates(self._vectors[usable], self.labels_[usable], max_size)]
        stays = np.zeros(self.n_rows_, dtype=np.bool_)
        stays[kept] = True
        for i in np.flatnonzero(~stays):
            reason = "features not finite" if self.labels_[i] < 0 else "like an earlier row of its cluster"
            self.dropped_.append(
                {"id": self.ids_[i], "source": self.sources_[i], "round": self.round_, "reason": reason}
            )
        for name in ("ids_", "sources_", "_places"):
            setattr(self, name, [getattr(self, name)[i] for i in kept])
        for name in ("labels_", "zero_gradients_", "_unit", "_vectors"):
            setattr(self, name, getattr(self, name)[kept])
        self._table = {name: values[kept] for name, values in self._table.items()}
        self.n_rows_ = len(kept)
        return kept

    def select(self, budget: int | float) -> Indices:
        """Choose rows to train on this round.

        Args:
            budget: rows (int in [1, n]) or share (float in (0, 1]) of the pool.

        Returns:
            int64 positions in the pool, all distinct; `dataset` and ``ids_`` take them.

        Raises:
            NotFittedError: `fit` was not called since the last `add`.
            ParameterError: the budget is above the rows with finite features.
        """
        check_is_fitted(self, "n_rows_")
        usable = int((self.labels_ >= 0).sum())
        count = resolve_budget(budget, self.n_rows_, self)
        if count > usable:
            raise ParameterError("budget", self, f"at most {usable}, the rows with finite features", budget)
        return super().select(count)

    def _pick(self, count: int) -> Indices:
        sizes = np.bincount(self.labels_[self.labels_ >= 0], minlength=self.n_clusters)
        quotas = self._quotas(count, sizes)
        winner = choose_scorer(self._table, self.labels_ >= 0, bins=self.bins)[0]
        self.scores_ = np.full(self.n_rows_, np.nan)
        self.report_: list[dict[str, Any]] = []
        picks = []
        for cluster, quota in enumerate(quotas):
            rows = np.flatnonzero(self.labels_ == cluster)
            name, entropy = choose_scorer(self._table, rows, bins=self.bins)
            if len(rows) < self.min_rows and winner in entropy:
                name = winner
            values = np.full(len(rows), np.nan) if name is None else self._table[name][rows]
            self.scores_[rows] = values
            picks.append(rows[self._sample(values, int(quota), cluster)])
            self.report_.append(
                {
                    "cluster": cluster,
                    "size": len(rows),
                    "scorer": name,
                    "entropy": entropy,
                    "quota": int(quota),
                }
            )
        return np.concatenate(picks)

    def dataset(self, indices: ArrayLike | None = None) -> Any:
        """Return the rows (all, or those at ``indices``) as one ``datasets.Dataset``, with a column ``_id``.

        Raises:
            DataError: a source was added without its data (or loaded and not attached again).
        """
        where = np.arange(len(self)) if indices is None else np.asarray(indices, dtype=np.int64)
        return _store.gather(self._data, self._lengths, self.ids_, self.sources_, self._places, where)

    def attach(self, source: str, data: Sized) -> None:
        """Give a loaded pool the data of a source again.

        Raises:
            ParameterError: an unknown source, or another number of rows than was added.
        """
        if source not in self._lengths or len(data) != self._lengths[source]:
            expected = "a known source with the rows it was added with: " + ", ".join(
                f"{name} ({count})" for name, count in self._lengths.items()
            )
            raise ParameterError("source", self, expected, (source, len(data)))
        self._data[source] = data

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the pool to a folder (JSON and safetensors): whole or not at all, without the datasets."""
        self._start()
        return _store.save(self, Path(folder))

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote; it continues as the saved one would, `dataset` after `attach`.

        Raises:
            DataError: the folder does not hold a pool.
        """
        return _store.load(cls, Path(folder))

    def _quotas(self, count: int, sizes: Indices) -> Indices:
        if self.quota == "uniform":
            return waterfill(sizes, count)
        usable = self.labels_ >= 0
        if self.quota == "spread":
            first = next(iter(self._table.values()))
            return spread_quota(first[usable], self.labels_[usable], self.n_clusters, count)
        shares = density_quota(self._unit[usable], self.labels_[usable], self.cluster_centers_)
        from tunesmith.numerics.allocation import allocate

        return allocate(shares, count, sizes)

    def _sample(self, values: NDArray[np.float64], quota: int, cluster: int) -> Indices:
        rng = np.random.default_rng(child_seed(self._seed, "draw", self.round_, cluster))
        if self.sampling == "ccs":
            return coverage_sample(values, quota, rng, strata=self.strata, trim=self.trim)
        if self.sampling == "random":
            return rng.permutation(len(values))[:quota]
        return np.argsort(-values if self.sampling == "top" else values, kind="stable")[:quota]  # NaN last

    def _start(self) -> None:
        if not hasattr(self, "ids_"):
            self.ids_: list[str] = []
            self.sources_: list[str] = []
            self.dropped_: list[dict[str, Any]] = []
            self._places: list[int] = []
            self._lengths: dict[str, int] = {}
            self._data: dict[str, Any] = {}
            self.round_ = 0
            self._own = False
            self._seed = 0

    def _own_rows(self, n: int) -> None:
        """Give a pool to which nothing was added n rows of its own; another fit starts over."""
        self._start()
        if self.ids_ and (not self._own or self.dropped_):
            return
        del self.ids_
        self._start()
        self.add(n, "pool")
        self._own = True
