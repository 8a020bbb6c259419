"""Thresholds by replay: what each statistic would be for windows drawn from clean rows and the window together.

A window of m rows stands beside H held-out clean rows. If the window is clean too, all N = H + m rows are exchangeable,
so the window is one of the subsets of m rows like any other: the statistics of B random subsets, each against the
N - m rows outside it, are what chance gives. That holds for any distribution and any statistic that is fixed before
(bins, clusters and bandwidth come from other rows), ties included.

Over several statistics the maximum of the standardised ones is taken (Westfall and Young, *Resampling-Based Multiple
Testing*, 1993): it uses that they move together, where Bonferroni's bound acts as if they did not.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.audit.drift.statistics import gaussian_kernel, psi_of_counts

__all__ = [
    "KernelPart",
    "ks_statistics",
    "memberships",
    "p_value",
    "psi_statistics",
    "standardise",
    "threshold_rank",
]

Array = NDArray[np.float64]
Members = NDArray[np.float32]

_NO_SPREAD = 1e-6  # below this, differences are rounding
_TIE = 1e-7


def memberships(held_out: int, window: int, replays: int, seed: int) -> Members:
    """Return (1 + B, H + m): 1 where a row belongs to the subset. Row 0 is the window itself, the last m columns.

    Memory 4 (1 + B)(H + m) bytes.
    """
    rng = np.random.default_rng(seed)
    total = held_out + window
    members = np.zeros((1 + replays, total), dtype=np.float32)
    members[0, held_out:] = 1
    for b in range(1, 1 + replays):
        members[b, rng.choice(total, window, replace=False)] = 1
    return members


def psi_statistics(codes: NDArray[np.int64], n_bins: int, members: Members) -> Array:
    """Return the index (1 + B,) of each subset against the rest. Time O(B N n_bins).

    Args:
        codes: (N,) bins in [0, n_bins).
        n_bins: number of bins.
        members: see `memberships`.
    """
    one_hot = np.zeros((len(codes), n_bins), dtype=np.float32)
    one_hot[np.arange(len(codes)), codes] = 1
    inside = (members @ one_hot).astype(np.float64)  # counts: exact in float32 below 2^24
    return np.asarray(psi_of_counts(np.bincount(codes, minlength=n_bins) - inside, inside))


def ks_statistics(values: Array, members: Members) -> Array:
    """Return the Kolmogorov-Smirnov distance (1 + B,) of each subset from the rest.

    Time O(N log N + B N), memory O(B N).
    """
    order = np.argsort(values, kind="stable")
    last = np.flatnonzero(np.append(np.diff(values[order]) > 0, True))  # only behind the last of equal values
    m = members[0].sum()
    below = np.cumsum(members[:, order], axis=1)[:, last].astype(np.float64)
    rest = (last + 1) - below
    return np.asarray(np.abs(below / m - rest / (len(values) - m)).max(axis=1))


class KernelPart:
    """The unbiased MMD^2 of each subset against the rest; what depends on held-out rows alone is computed once.

    Memory O(H^2 + B H), time of a window O(m H (d + B)).

    Args:
        held_out: (H, d).
        bandwidth: of the Gaussian kernel.
        members: see `memberships`.
    """

    def __init__(self, held_out: NDArray[Any], bandwidth: float, members: Members) -> None:
        self.held_out, self.bandwidth = held_out, bandwidth
        H = len(held_out)
        self.old, self.new = np.ascontiguousarray(members[:, :H]), np.ascontiguousarray(members[:, H:])
        K = gaussian_kernel(held_out, held_out, bandwidth).astype(np.float32, copy=False)
        np.fill_diagonal(K, 0)
        self.row_sums = K.sum(axis=1, dtype=np.float64)
        self.inside = np.einsum("bh,bh->b", self.old @ K, self.old, dtype=np.float64)

    def statistics(self, window: NDArray[Any]) -> Array:
        """Return (1 + B,) for a window (m, d)."""
        H, m = len(self.held_out), len(window)
        across = gaussian_kernel(window, self.held_out, self.bandwidth).astype(np.float32, copy=False)
        own = gaussian_kernel(window, window, self.bandwidth).astype(np.float32, copy=False)
        np.fill_diagonal(own, 0)
        inside = self.inside + 2 * np.einsum("bh,bh->b", self.new @ across, self.old, dtype=np.float64)
        inside += np.einsum("bm,bm->b", self.new @ own, self.new, dtype=np.float64)
        sums_old = self.row_sums + across.sum(axis=0, dtype=np.float64)
        sums_new = across.sum(axis=1, dtype=np.float64) + own.sum(axis=1, dtype=np.float64)
        reach = self.old @ sums_old + self.new @ sums_new  # from the subset to all rows
        total = sums_old.sum() + sums_new.sum()
        outside, between = total - 2 * reach + inside, reach - inside
        return np.asarray(inside / (m * (m - 1)) + outside / (H * (H - 1)) - 2 * between / (m * H))


def standardise(values: Array) -> tuple[Array, float, float]:
    """Return (values - mean) / spread over the window and its replays, with mean and spread.

    A statistic without spread (a constant feature) is 0 throughout. The window is among them, which keeps the
    replays exchangeable with it.
    """
    mean, spread = float(values.mean()), float(values.std())
    if spread < _NO_SPREAD:
        return np.zeros_like(values), mean, 0.0
    return (values - mean) / spread, mean, spread


def p_value(values: Array) -> float:
    """Return the share of the window and its replays whose value is at least the window's (the first)."""
    return float((values >= values[0] - _TIE * max(1.0, abs(values[0]))).mean())


def threshold_rank(replays: int, level: float) -> int:
    """Return r such that an alarm above the r-th largest of B replays comes with probability r / (B + 1) <= level."""
    return int(np.floor(level * (replays + 1) + 1e-9))
