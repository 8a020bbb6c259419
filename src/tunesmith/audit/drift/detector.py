"""The detector: fitted on clean traffic, it tells for each window of live traffic whether it is different."""

from __future__ import annotations

import dataclasses
import os
from numbers import Integral, Real
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator

from tunesmith.audit.drift import state
from tunesmith.audit.drift.columns import Columns, as_columns
from tunesmith.audit.drift.replays import (
    KernelPart,
    ks_statistics,
    memberships,
    p_value,
    psi_statistics,
    standardise,
    threshold_rank,
)
from tunesmith.audit.drift.results import FEW, FeatureDrift, WindowResult
from tunesmith.audit.drift.statistics import bin_edges, median_distance
from tunesmith.core.errors import DataError, ParameterError
from tunesmith.core.seeds import child_seed

__all__ = ["DriftDetector"]

_PARTS, _PARTS_HELD = 3, 2  # of a reference: one part for bins and clusters, two to compare with
_TIE = 1e-7


class DriftDetector(BaseEstimator):
    """Tell windows of live traffic that differ from clean traffic, with a bound on false alarms.

    A third of the reference (more of a large one) sets bins (deciles), clusters (k-means) and kernel width; the rest,
    at most ``max_held_out`` rows, is what windows are compared with. Numbers are compared by `psi` and Kolmogorov-
    Smirnov, vectors by the kernel test and by the `psi` over the clusters. All statistics of a window form one family:
    the window is replayed as ``replays`` random subsets of held-out rows and window together, and alarms when its
    largest standardised statistic is larger than those of all but few replays (`tunesmith.audit.drift.replays`).

    What is guaranteed: if window and reference rows are exchangeable, a window alarms with probability at most
    ``false_alarm_rate / 2``, for any distribution, ties included. That is an average over references. All windows of
    one detector share its held-out rows, which may be an odd draw, so that the rate of a single detector lies around
    the average; the other half of the rate is the margin for it. What breaks it is traffic whose windows differ from
    one another while nothing is wrong (day and night, repeated prompts of one user): let a window cover the cycle.

    Fitting takes O(n k d) and sorts; a window of m rows O(replays (H + m) (features + m)) and O(m H d), a few tens of
    milliseconds at 250 rows. Memory O(H^2 + replays H): about 30 MB at 2,000 held-out rows, however many rows there
    were and however many pass.

    Args:
        window: rows per window, >= 2. Below 100 only large shifts show, and each result says so.
        false_alarm_rate: the share of clean windows that may alarm, in (0, 1).
        n_clusters: clusters of each feature of vectors.
        bins: bins of each number.
        replays: B; 399 resolve p-values of 1/400.
        max_held_out: most rows to compare with.
        random_state: seed of split, clusters and replays.

    Attributes:
        features_: names, in order.
        n_reference_: rows of the reference.
        held_out_: feature -> rows that windows are compared with.
        edges_: feature of numbers -> inner edges of its bins.
        centers_: feature of vectors -> (k, d).
        bandwidth_: feature of vectors -> kernel width.
        n_windows_: windows seen by `update`.
        n_rows_: rows in these windows.
        bookmark_: what `save` was given.
    """

    features_: list[str]
    n_reference_: int
    held_out_: Columns
    edges_: dict[str, NDArray[np.float64]]
    centers_: dict[str, NDArray[np.float32]]
    bandwidth_: dict[str, float]
    n_windows_: int
    n_rows_: int
    bookmark_: Any
    _buffer: Columns
    _cache: dict[int, tuple[Any, dict[str, KernelPart]]]

    def __init__(
        self,
        window: int = 250,
        *,
        false_alarm_rate: float = 0.05,
        n_clusters: int = 10,
        bins: int = 10,
        replays: int = 399,
        max_held_out: int = 2_000,
        random_state: int = 0,
    ) -> None:
        self.window = window
        self.false_alarm_rate = false_alarm_rate
        self.n_clusters = n_clusters
        self.bins = bins
        self.replays = replays
        self.max_held_out = max_held_out
        self.random_state = random_state

    def fit(self, reference: Any, y: Any = None) -> Self:
        """Learn what clean traffic looks like.

        Args:
            reference: feature -> (n,) numbers or (n, d) vectors: the training pool, or traffic known to be clean. An
                array is one feature, ``"value"`` (n,) or ``"embedding"`` (n, d).
            y: ignored.

        Raises:
            ParameterError: a parameter is out of range.
            DataError: fewer rows than three windows, no feature, or a value that is not finite.
        """
        from tunesmith.numerics import kmeans

        columns = as_columns(reference)
        n = len(next(iter(columns.values())))
        self.check_size(n)
        H = min(_PARTS_HELD * n // _PARTS, self.max_held_out)
        order = np.random.default_rng(child_seed(self.random_state, "split")).permutation(n)
        held, rest = np.sort(order[:H]), np.sort(order[H:])
        self.features_, self.n_reference_ = list(columns), n
        self.held_out_ = {name: np.ascontiguousarray(values[held]) for name, values in columns.items()}
        self.edges_, self.centers_, self.bandwidth_ = {}, {}, {}
        for name, values in columns.items():
            if values.ndim == 1:
                self.edges_[name] = bin_edges(values[rest], self.bins)
                continue
            if self.n_clusters > len(rest):
                raise ParameterError("n_clusters", self, f"an int in [2, {len(rest)}]", self.n_clusters)
            own = np.ascontiguousarray(values[rest])
            seed = child_seed(self.random_state, "clusters", name)
            self.centers_[name] = kmeans(own, self.n_clusters, random_state=seed).centers.astype(np.float32)
            self.bandwidth_[name] = median_distance(own, self.random_state)
        self._begin()
        return self

    def check_size(self, n: int) -> None:
        """Refuse parameters out of range and a reference of n rows that is too short, before anything is embedded.

        Raises:
            ParameterError: a parameter is out of range.
            DataError: fewer rows than three windows.
        """
        self._check_parameters()
        if n < _PARTS * self.window:
            raise DataError(
                f"the reference has {n:,} usable rows; a window of {self.window:,} needs at least "
                f"{_PARTS * self.window:,}: a third for bins and clusters, the rest to compare with. Give more rows "
                "or a smaller window."
            )

    def check(self, window: Any) -> WindowResult:
        """Return the verdict on one window of at least 2 rows, of any size; nothing is remembered.

        Args:
            window: feature -> values, as for `fit`, with the same features.

        Raises:
            DataError: other features than the reference's, fewer than 2 rows, a value that is not finite, or the
                detector is not fitted.
        """
        columns = self._columns(window)
        m = len(next(iter(columns.values())))
        if m < 2:
            raise DataError(f"a window needs at least 2 rows; this one has {m}.")
        members, kernels = self._replayed(m)
        found: list[tuple[str, str, NDArray[np.float64]]] = []
        clusters: dict[str, list[tuple[float, float]]] = {}
        for name, new in columns.items():
            both = np.concatenate([self._codes(name, self.held_out_[name]), self._codes(name, new)])
            if new.ndim == 1:
                pooled = np.concatenate([self.held_out_[name], new])
                found.append((name, "psi", psi_statistics(both, len(self.edges_[name]) + 1, members)))
                found.append((name, "ks", ks_statistics(pooled, members)))
            else:
                k = len(self.centers_[name])
                found.append((name, "cluster psi", psi_statistics(both, k, members)))
                found.append((name, "mmd", kernels[name].statistics(new)))
                counts = [np.bincount(part, minlength=k) / len(part) for part in (both[:-m], both[-m:])]
                clusters[name] = list(zip(*(c.tolist() for c in counts), strict=True))
        drift, p = self._judge(found)
        return WindowResult(
            index=0,
            first=0,
            rows=m,
            alarm=any(one.moved for one in drift),
            p_value=p,
            drift=drift,
            clusters=clusters,
            means={name: float(values.mean()) for name, values in columns.items() if values.ndim == 1},
            note=f"{m} rows: below {FEW} only large shifts are seen" if m < FEW else "",
        )

    def update(self, batch: Any) -> list[WindowResult]:
        """Take in the next rows of the stream; return the verdicts on the windows that became full.

        The outcome does not depend on how the stream is cut into batches. Memory O(window + batch).

        Raises:
            DataError: see `check`; then nothing of the batch was taken in.
        """
        columns = self._columns(batch, empty=True)
        self._buffer = {name: np.concatenate([self._buffer[name], columns[name]]) for name in self.features_}
        results = []
        while self.n_waiting >= self.window:
            results.append(self._take(self.window))
        return results

    def flush(self) -> WindowResult | None:
        """Return the verdict on the rows left over at the end of a stream, None where they are too few.

        Too few is less than half a window or less than 100 rows, unless the window itself is smaller.
        """
        self._check_fitted()
        if self.n_waiting < max(self.window / 2, min(self.window, FEW)):
            return None
        return self._take(self.n_waiting)

    @property
    def n_waiting(self) -> int:
        """Rows that wait for their window to fill."""
        self._check_fitted()
        return len(self._buffer[self.features_[0]])

    @property
    def level_(self) -> float:
        """The largest p-value that is an alarm: half the false alarm rate, see the class."""
        return self.false_alarm_rate / 2

    def save(self, path: str | os.PathLike[str], bookmark: Any = None) -> None:
        """Write everything, rows that wait included, to one safetensors file with JSON inside; whole or not at all.

        It holds numbers and vectors of held-out and waiting rows, no texts.

        Args:
            path: the file.
            bookmark: JSON-able; where the stream goes on, for example `NewRows.place`. Kept in the same file, so that
                a kill can neither lose nor repeat a row.

        Raises:
            DataError: the detector is not fitted.
            DiskFullError: no room; what was there is left.
        """
        self._check_fitted()
        self.bookmark_ = bookmark
        state.write(path, self)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> DriftDetector:
        """Return what `save` wrote; it goes on exactly as the saved one would have.

        Raises:
            DataError: the file is no such state, or is torn.
        """
        return state.read(path, cls)

    def _begin(self) -> None:
        self.n_windows_ = self.n_rows_ = 0
        self.bookmark_ = None
        self._buffer = {name: values[:0] for name, values in self.held_out_.items()}
        self._cache = {}

    def _take(self, m: int) -> WindowResult:
        result = self.check({name: values[:m] for name, values in self._buffer.items()})
        result = dataclasses.replace(result, index=self.n_windows_, first=self.n_rows_)
        self._buffer = {name: values[m:].copy() for name, values in self._buffer.items()}
        self.n_windows_ += 1
        self.n_rows_ += m
        return result

    def _replayed(self, m: int) -> tuple[Any, dict[str, KernelPart]]:
        if m not in self._cache:
            for other in [size for size in self._cache if size != self.window]:
                del self._cache[other]
            held = len(self.held_out_[self.features_[0]])
            members = memberships(held, m, self.replays, child_seed(self.random_state, "replays", m))
            kernels = {
                name: KernelPart(self.held_out_[name], self.bandwidth_[name], members)
                for name in self.centers_
            }
            self._cache[m] = (members, kernels)
        return self._cache[m]

    def _codes(self, name: str, values: NDArray[Any]) -> NDArray[np.int64]:
        from tunesmith.numerics import nearest_center

        if name in self.edges_:
            return np.searchsorted(self.edges_[name], values).astype(np.int64)
        return nearest_center(values, self.centers_[name])[0].astype(np.int64)

    def _judge(
        self, found: list[tuple[str, str, NDArray[np.float64]]]
    ) -> tuple[tuple[FeatureDrift, ...], float]:
        parts = [standardise(values) for _, _, values in found]
        largest = np.max([z for z, _, _ in parts], axis=0)
        rank = threshold_rank(self.replays, self.level_)
        limit = float(np.partition(largest[1:], -rank)[-rank])
        drift = []
        for (name, statistic, values), (z, mean, spread) in zip(found, parts, strict=True):
            own = float(z[0])
            moved = own - limit > _TIE * max(1.0, abs(own))
            ratio = own / limit if limit > _TIE else 1 + own - limit if moved else 0.0
            threshold = mean + limit * spread if spread else None
            drift.append(FeatureDrift(name, statistic, float(values[0]), threshold, ratio, moved))
        return tuple(drift), p_value(largest)

    def _columns(self, rows: Any, empty: bool = False) -> Columns:
        self._check_fitted()
        columns = as_columns(rows, empty=empty)
        for name in columns:
            if name not in self.held_out_:
                raise DataError(
                    f"the rows have a feature '{name}' that the reference lacks; it has {_listed(self.features_)}."
                )
        for name in self.features_:
            if name not in columns:
                raise DataError(f"the rows lack the feature '{name}', which the reference has.")
            if columns[name].shape[1:] != self.held_out_[name].shape[1:]:
                raise DataError(
                    f"the feature '{name}' has rows of shape {columns[name].shape[1:]}, those of the reference have "
                    f"{self.held_out_[name].shape[1:]}."
                )
        return {name: columns[name] for name in self.features_}

    def _check_fitted(self) -> None:
        if not hasattr(self, "held_out_"):
            raise DataError("this DriftDetector is not fitted: call fit with clean traffic first.")

    def _check_parameters(self) -> None:
        for name, least in (
            ("window", 2),
            ("n_clusters", 2),
            ("bins", 2),
            ("replays", 1),
            ("max_held_out", 2),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
                raise ParameterError(name, self, f"an int >= {least}", value)
        rate = self.false_alarm_rate
        if isinstance(rate, bool) or not isinstance(rate, Real) or not 0 < rate < 1:
            raise ParameterError("false_alarm_rate", self, "a float in (0, 1)", rate)
        if threshold_rank(self.replays, self.level_) < 1:
            least = int(np.ceil(2 / float(rate))) - 1
            raise ParameterError(
                "replays", self, f"an int >= {least} for a false alarm rate of {rate}", self.replays
            )


def _listed(names: list[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
