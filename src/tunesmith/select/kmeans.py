"""kM-Random, kM-Closest and kMQ: cluster the pool, then spend the budget inside the clusters.

Paper: "Diversify and Conquer: Diversity-Centric Data Selection with Iterative Refinement", Yu, Chen, Ahmadian,
Fadaee 2024, arXiv 2409.11378 (Sec. 2.1, Eqs. 2 and 3).

Where it departs from the paper or its code, and why:
- Draws are without replacement by default (the paper says with, the code does without): a subset holds
  distinct rows. ``replace=True`` gives the paper's.
- Counts per cluster are exact (largest remainder, what overflows a small cluster is split again); the code
  rounds down and loses up to k - 1 rows of the budget and more where clusters are small.
- Counts are proportional to size as in the paper; the code takes equal ones (``allocation="equal"``).
- The code cuts qualities to whole numbers and overflows near 710; here any finite quality works, and by
  default qualities are scaled to standard deviation 1 inside clusters, so that ``temperature`` means the same
  everywhere.
"""

from __future__ import annotations

import warnings
from numbers import Integral, Real
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from tunesmith.core.errors import DataError, ParameterError
from tunesmith.numerics import allocate, group_softmax, kmeans, row_gumbel, top_by_group
from tunesmith.select._base import Indices, Selector
from tunesmith.select._features import check_quality, check_rows, fresh_seed, row_count, row_ids

__all__ = ["KMeansSelector"]

_MOST_CLUSTERS = 4096  # the largest number of clusters the paper found useful


class KMeansSelector(Selector):
    """Spread the budget over k-means clusters; inside each draw by quality, at random, or by closeness.

    Use it when coverage matters and rows have an embedding; with a quality per row it prefers better rows
    inside each cluster (kMQ), without one it still covers the pool (kM-Random). Quality acts inside clusters
    only: junk that forms clusters of its own keeps its share.

    Args:
        n_clusters: k in [1, n], or ``"auto"``: the square root of n, at most 4096. Keep it well below the
            budget. `tunesmith.select.choose_n_clusters` picks it by silhouette.
        sampling: ``"quality"`` (kMQ): softmax draws by quality; ``"random"`` (kM-Random): uniform draws;
            ``"closest"`` (kM-Closest): the rows nearest to the centre.
        allocation: ``"proportional"`` to cluster sizes (Eq. 3), or ``"equal"`` per cluster, which serves test
            sets that weigh all topics the same but takes more from junk clusters.
        temperature: of the softmax, > 0; small takes the best rows, large ignores quality.
        standardise: divide qualities by their standard deviation inside clusters first.
        replace: draw with replacement; then rows may repeat (not for ``"closest"``).
        normalise: scale embeddings to length 1 first, as encoders trained on cosines want.
        n_init: seedings of k-means that are compared.
        max_iter: most k-means steps over all rows.
        random_state: seed of k-means and of the draws; ``None`` draws a fresh one in `fit`.

    Attributes:
        labels_: int64 ``(n,)``, the cluster of each row.
        n_clusters_: k.
        cluster_centers_: ``(k, d)``, or ``None`` when labels were given without X.
        inertia_: sum of squared distances to the centres; NaN when labels were given.
        counts_: int64 ``(k,)``, rows taken per cluster by the last `select`.
        scores_: float64 ``(n,)``, what rows were ranked by inside their cluster: quality over temperature
            plus Gumbel noise, the noise alone, or minus the squared distance.

    Note:
        Time O(n k d) per k-means step plus O(n log n); memory O(n + k d), never n x n. Picks come cluster by
        cluster in rounds, the best of each cluster first.

    References:
        Yu et al. 2024, arXiv 2409.11378, Sec. 2.1, Eqs. 2-3. Gumbel top-k: Vieira 2014.

    Example:
        >>> import numpy as np
        >>> from tunesmith.select import KMeansSelector
        >>> X = np.random.default_rng(0).normal(size=(200, 8))
        >>> selector = KMeansSelector(n_clusters=10, random_state=0).fit(X, quality=X[:, 0])
        >>> len(selector.select(0.25))
        50
    """

    requires: ClassVar[tuple[str, ...]] = ("embedding", "quality")

    labels_: NDArray[np.int64]
    cluster_centers_: NDArray[Any] | None

    def __init__(
        self,
        n_clusters: int | Literal["auto"] = "auto",
        *,
        sampling: Literal["quality", "random", "closest"] = "quality",
        allocation: Literal["proportional", "equal"] = "proportional",
        temperature: float = 1.0,
        standardise: bool = True,
        replace: bool = False,
        normalise: bool = True,
        n_init: int = 1,
        max_iter: int = 100,
        random_state: int | None = None,
    ) -> None:
        self.n_clusters = n_clusters
        self.sampling = sampling
        self.allocation = allocation
        self.temperature = temperature
        self.standardise = standardise
        self.replace = replace
        self.normalise = normalise
        self.n_init = n_init
        self.max_iter = max_iter
        self.random_state = random_state

    def required_features(self) -> tuple[str, ...]:
        """``embedding``, and ``quality`` for kMQ."""
        return self.requires if self.sampling == "quality" else ("embedding",)

    def fit(  # type: ignore[override]  # names its features
        self, X: Any = None, y: Any = None, *, quality: Any = None, labels: Any = None, ids: Any = None
    ) -> Self:
        """Cluster the rows.

        Args:
            X: float ``(n, d)`` embeddings, finite; an array or a memory map.
            y: ignored.
            quality: ``(n,)`` finite, higher is better; needed for ``sampling="quality"``.
            labels: ``(n,)`` ready clusters of any integers or strings, instead of k-means.
            ids: distinct integers per row to which the random draws belong; positions by default.

        Returns:
            self

        Raises:
            ParameterError: a parameter outside its range.
            DataError: missing, misshapen or non-finite input; names the first bad row.
        """
        self._check_parameters()
        given = labels if X is None else X
        if given is None:
            raise DataError("KMeansSelector needs X, the embeddings, or labels, ready clusters.")
        n = row_count(given)
        check_rows(n, self, labels=labels)
        if self.sampling == "quality" and quality is None:
            raise DataError(
                "KMeansSelector with sampling='quality' (kMQ) needs quality, one number per row; "
                "sampling='random' or 'closest' does without."
            )
        if self.sampling == "closest" and X is None:
            raise DataError("KMeansSelector with sampling='closest' needs X, the embeddings.")
        values = None if quality is None else check_quality(quality, n, self, signed=True)
        self._seed = seed = fresh_seed(self.random_state)
        self._noise = row_gumbel(row_ids(ids, n, self), seed)
        if labels is None:
            self._cluster(X, n, seed)
        else:
            self._take_labels(X, np.asarray(labels))
        self._sizes = np.bincount(self.labels_, minlength=self.n_clusters_)
        self._log_weights = np.zeros(n) if self.sampling != "quality" else self._scaled(values)
        self.n_rows_ = n
        return self

    def _check_parameters(self) -> None:
        allowed = {
            "sampling": ("quality", "random", "closest"),
            "allocation": ("proportional", "equal"),
        }
        for name, options in allowed.items():
            if getattr(self, name) not in options:
                raise ParameterError(
                    name, self, "one of " + ", ".join(map(repr, options)), getattr(self, name)
                )
        t = self.temperature
        if isinstance(t, bool) or not isinstance(t, Real) or not 0 < t < np.inf:
            raise ParameterError("temperature", self, "a float > 0", t)
        if self.replace and self.sampling == "closest":
            raise ParameterError("replace", self, "False when sampling='closest'", self.replace)

    def _cluster(self, X: Any, n: int, seed: int) -> None:
        k: Any = self.n_clusters
        if k == "auto":
            k = min(max(1, round(n**0.5)), _MOST_CLUSTERS)
        elif isinstance(k, bool) or not isinstance(k, Integral) or not 1 <= int(k) <= n:
            raise ParameterError("n_clusters", self, f"an int in [1, {n}] or 'auto'", k)
        self._points = _unit_rows(X) if self.normalise else np.asarray(X)
        fitted = kmeans(
            self._points,
            int(k),
            n_init=self.n_init,
            max_iter=self.max_iter,
            random_state=seed,
            dtype=np.float32,
        )
        self.n_clusters_, self.labels_ = int(k), fitted.labels.astype(np.int64)
        self.cluster_centers_, self.inertia_ = fitted.centers, fitted.inertia
        self._keep_closeness()

    def _take_labels(self, X: Any, labels: NDArray[Any]) -> None:
        if labels.ndim != 1:
            raise DataError(f"'labels' must be one cluster per row, but have shape {labels.shape}.")
        names, codes = np.unique(labels, return_inverse=True)
        self.labels_ = codes.astype(np.int64)
        self.n_clusters_, self.inertia_, self.cluster_centers_ = len(names), float("nan"), None
        if self.sampling == "closest":
            self._points = _unit_rows(X) if self.normalise else np.asarray(X)
            sums = np.zeros((len(names), self._points.shape[1]))
            np.add.at(sums, self.labels_, self._points)
            self.cluster_centers_ = sums / np.bincount(self.labels_)[:, None]
            self._keep_closeness()

    def _keep_closeness(self) -> None:
        """Keep minus the squared distances where they rank the rows, and let go of the embeddings."""
        points, centers = self._points, self.cluster_centers_
        del self._points
        if self.sampling != "closest" or centers is None:
            return
        self._closeness = np.empty(len(points))
        for start in range(0, len(points), 8192):
            at = slice(start, start + 8192)
            away = points[at] - centers[self.labels_[at]]
            self._closeness[at] = -np.einsum("ij,ij->i", away, away)

    def _scaled(self, quality: Any) -> NDArray[np.float64]:
        """Quality over temperature; its scale is the spread inside clusters, so shifting a cluster is no
        change."""
        centred = quality - (np.bincount(self.labels_, quality) / np.maximum(self._sizes, 1))[self.labels_]
        largest = float(np.abs(centred).max()) or 1.0
        spread = largest * float(
            np.sqrt(np.mean((centred / largest) ** 2))
        )  # no overflow for any finite quality
        # Below 1e-12 of the values the spread is rounding noise, as for constant quality.
        if self.standardise and spread > 1e-12 * max(1e-300, float(np.abs(quality).max())):
            centred = centred / spread
        return np.asarray(centred / self.temperature)

    def _pick(self, count: int) -> Indices:
        occupied = int((self._sizes > 0).sum())
        if count < occupied:
            warnings.warn(
                f"KMeansSelector: the budget of {count:,} rows is below the {occupied:,} clusters, so "
                f"{occupied - count:,} or more of them get none; a smaller n_clusters covers the pool "
                "better.",
                UserWarning,
                stacklevel=3,
            )
        weights = self._sizes if self.allocation == "proportional" else (self._sizes > 0).astype(float)
        room = np.where(self._sizes > 0, count, 0) if self.replace else self._sizes
        self.counts_ = allocate(weights, count, room, owner=self)
        if self.sampling == "closest":
            self.scores_ = self._closeness
        else:
            self.scores_ = self._log_weights + self._noise
        if self.replace:
            return self._with_replacement()
        return top_by_group(self.scores_, self.labels_, self.counts_)

    def _with_replacement(self) -> Indices:
        """The paper's multinomial draw inside each cluster."""
        p = group_softmax(self._log_weights, self.labels_)
        order = np.argsort(self.labels_, kind="stable")
        edges = np.cumsum(self._sizes)
        rng = np.random.default_rng(self._seed)
        picks = [
            rng.choice(rows := order[edges[j] - self._sizes[j] : edges[j]], size=c, p=p[rows])
            for j, c in enumerate(self.counts_)
            if c
        ]
        return np.concatenate(picks).astype(np.int64)


def _unit_rows(X: Any) -> Any:
    """Return rows of length 1 as float32; X itself where they have it already (zero rows may stay)."""
    array = np.asarray(X)
    if array.ndim != 2 or array.dtype.kind not in "fiu":
        return array  # k-means says what is wrong
    step = 8192
    lengths = np.concatenate(
        [np.linalg.norm(array[s : s + step].astype(np.float64), axis=1) for s in range(0, len(array), step)]
    )
    if array.dtype == np.float32 and np.all((np.abs(lengths - 1) < 1e-4) | (lengths == 0)):
        return array
    lengths[lengths == 0] = 1
    unit = np.empty(array.shape, dtype=np.float32)
    for s in range(0, len(array), step):
        unit[s : s + step] = array[s : s + step] / lengths[s : s + step, None]
    return unit
