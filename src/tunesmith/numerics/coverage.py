"""Concave coverage: ``E(D) = sum_p phi(z_p(D))`` where ``z(D)`` adds up the non-negative rows of D.

phi is strictly increasing and concave, so E is monotone and submodular: every gain can only fall as rows are
taken, and lazy greedy gives the full scan's picks. Rows are sparse; the loops are compiled by numba on first
use.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Concave", "ConcaveCoverage", "GreedyResult", "Rule"]

Rule = Literal["first_order", "exact"]
_BLOCK = 2_000  # picks per call of the compiled loop: Ctrl-C is heard in between


@dataclass(frozen=True)
class Concave:
    """A concave function of x >= 0.

    Attributes:
        kind: ``"power"``: ``(x + offset) ** beta``; ``"exponential"``: ``1 - exp(-gamma x)``.
        beta: exponent in (0, 1].
        offset: >= 0; keeps the slope of the power at 0 finite.
        gamma: rate > 0.
    """

    kind: Literal["power", "exponential"] = "power"
    beta: float = 0.8
    offset: float = 1e-6
    gamma: float = 1.0

    def slope(self, x: ArrayLike) -> NDArray[np.float64]:
        """Derivative at x, elementwise."""
        z = np.asarray(x, dtype=np.float64)
        if self.kind == "power":
            return np.asarray(self.beta * (z + self.offset) ** (self.beta - 1))
        return np.asarray(self.gamma * np.exp(-self.gamma * z))

    def increase(self, x: ArrayLike, by: ArrayLike) -> NDArray[np.float64]:
        """``phi(x + by) - phi(x)`` elementwise, without cancellation."""
        z, step = np.asarray(x, dtype=np.float64), np.asarray(by, dtype=np.float64)
        if self.kind == "exponential":
            return np.asarray(-np.exp(-self.gamma * z) * np.expm1(-self.gamma * step))
        u = z + self.offset
        with np.errstate(divide="ignore", invalid="ignore"):
            grown = u**self.beta * np.expm1(self.beta * np.log1p(step / u))
        return np.where(u > 0, grown, step**self.beta)


@dataclass(frozen=True)
class GreedyResult:
    """What a greedy run gives.

    Attributes:
        order: int64 ``(budget,)`` picks in order.
        gains: float64 ``(budget,)`` gain of each pick when it was taken.
        keys: float64 ``(n,)`` the last gain computed for each row, an upper bound of its present one.
        evaluations: gains computed after the first n.
    """

    order: NDArray[np.int64]
    gains: NDArray[np.float64]
    keys: NDArray[np.float64]
    evaluations: int


class ConcaveCoverage:
    """The objective for a fixed set of rows.

    Args:
        rows: scipy CSR matrix ``(n, K)`` with entries >= 0; kept, not copied, when its values are float64.
        phi: the concave function.
    """

    def __init__(self, rows: Any, phi: Concave) -> None:
        self.rows, self.phi = rows, phi
        self._data = np.ascontiguousarray(rows.data, dtype=np.float64)

    def value(self, indices: ArrayLike) -> float:
        """Return ``E(D) - E(empty)`` for the set D of ``indices``. O(non-zeros of D + K)."""
        chosen = np.asarray(indices, dtype=np.int64)
        z = np.asarray(self.rows[chosen].sum(axis=0)).ravel()
        return float(self.phi.increase(np.zeros_like(z), z).sum())

    def greedy(self, budget: int, rule: Rule = "exact") -> GreedyResult:
        """Pick rows one by one, each time the one with the largest gain; ties go to the lowest index.

        Args:
            budget: picks, in [0, n].
            rule: ``"exact"``: gain ``E(D + d) - E(D)``; ``"first_order"``: ``row . phi'(z)``.

        Returns:
            The picks. Time O(non-zeros + n) to begin with, then per pick a few evaluations of one row each
            and O(log n) for the heap; memory three numbers per row beside the matrix.
        """
        from tunesmith.numerics import _coverage_kernels as kernels

        n, width = self.rows.shape
        phi, exact = self.phi, rule == "exact"
        power = phi.kind == "power"
        strength = phi.beta if power else phi.gamma
        matrix = (self.rows.indptr, self.rows.indices, self._data)
        z = np.zeros(width)
        slope, base = np.empty(width), np.empty(width)
        kernels.refresh(np.arange(width), z, slope, base, power, strength, phi.offset, True)
        keys = kernels.first_gains(*matrix, z, slope, base, exact, power, strength, phi.offset)
        heap = kernels.heapify(keys)
        fresh = np.full(n, -1, dtype=np.int64)
        order, gains = np.empty(budget, dtype=np.int64), np.empty(budget)
        evaluations = 0
        for start in range(0, budget, _BLOCK):
            stop = min(start + _BLOCK, budget)
            evaluations += kernels.pick(
                *matrix, z, slope, base, exact, power, strength, phi.offset, keys, heap, fresh, order, gains,
                start, stop,
            )  # fmt: skip
        return GreedyResult(order, gains, keys, int(evaluations))
