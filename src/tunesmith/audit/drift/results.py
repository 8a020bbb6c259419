"""What a window of traffic was found to be."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["FEW", "FeatureDrift", "WindowResult"]

FEW = 100
"""Rows below which a window sees large shifts alone."""


@dataclass(frozen=True)
class FeatureDrift:
    """One statistic of one feature.

    Attributes:
        feature: name of the feature.
        statistic: ``"psi"``, ``"ks"``, ``"mmd"`` or ``"cluster psi"``.
        value: of the window against the held-out rows.
        threshold: family-wise; above it the feature has moved. None where no value would be an alarm.
        ratio: distance from the mean of clean windows, 1 at the threshold.
        moved: whether it is above.
    """

    feature: str
    statistic: str
    value: float
    threshold: float | None
    ratio: float
    moved: bool


@dataclass(frozen=True)
class WindowResult:
    """The verdict on one window.

    Attributes:
        index: which window, from 0.
        first: the stream's row it begins with, from 0.
        rows: how many it has.
        alarm: whether it is told apart from clean traffic.
        p_value: family-wise; at least 1 / (replays + 1).
        drift: every statistic.
        clusters: feature of vectors -> (share of the held-out rows, share of the window) per cluster.
        means: feature of numbers -> mean of the window.
        note: what limits it, empty if nothing does.
    """

    index: int
    first: int
    rows: int
    alarm: bool
    p_value: float
    drift: tuple[FeatureDrift, ...]
    clusters: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    means: dict[str, float] = field(default_factory=dict)
    note: str = ""

    @property
    def worst(self) -> FeatureDrift:
        """The statistic farthest beyond, or nearest to, its threshold."""
        return max(self.drift, key=lambda found: found.ratio)

    @property
    def moved(self) -> list[str]:
        """Features of which a statistic is above its threshold, the farthest first."""
        order = sorted((found for found in self.drift if found.moved), key=lambda found: -found.ratio)
        return list(dict.fromkeys(found.feature for found in order))

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values."""
        return {**asdict(self), "moved": self.moved}
