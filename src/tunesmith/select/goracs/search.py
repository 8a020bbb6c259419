"""The two stages of GORACS on a cost matrix: greedy start, then exchanges pruned by transport duals.

**Cutting planes.** Let member i leave S and an outsider o come. For any dual u of the members that stay and
any y of the newcomer the semi-dual gives

    OT_C(S - i + o) >= (1/n) sum_{s != i} u_s + mean_v r_v + F_o(y),    r_v = min_{s != i} (C_sv - u_s),

with F_o as in `estimates`. The bound holds for **every** o, so each dual found on the way, above all the
optimal dual of a pair that was solved in vain, is held against all other outsiders at once: O(T V). Rows are
alike, so a few such planes raise the bounds of nearly all outsiders above the present value; what remains is
solved from the lowest bound on. Exact: no pair is dropped unless its value is proven not to be lower.
"""

from __future__ import annotations

import itertools
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.numerics import lazy_greedy
from tunesmith.numerics.transport import Transport, solve_exact
from tunesmith.select.goracs.kernels import raise_parallel, raise_serial

__all__ = ["Chosen", "estimates", "greedy", "refine", "rest_costs"]

Matrix = NDArray[np.float64]
Indices = NDArray[np.int64]

# An exchange must lower the objective by more than this, relatively: rounding must not start a cycle among
# duplicated rows.
_RELATIVE = 1e-12

# Waking the threads pays from about this many entries on.
_SERIAL = 1 << 17


@dataclass
class Chosen:
    """A set and how it was reached.

    Attributes:
        rows: the set, in order of arrival.
        path: objective after the greedy stage and after each exchange, strictly falling.
        dual: ``(n,)`` optimal dual of the rows, mean 0.
        solves: exact transport problems solved.
        optimal: no single exchange (of the candidates looked at) lowers the objective.
    """

    rows: Indices
    path: list[float] = field(default_factory=list)
    dual: Matrix = field(default_factory=lambda: np.zeros(0))
    solves: int = 0
    optimal: bool = False


class _Full(Exception):
    """Ends the greedy stage."""


def greedy(cost: Matrix, budget: int) -> Indices:
    """Choose rows by the relaxed objective ``sum_v min_s C_sv`` (Eq. 14), keeping only rows that serve
    someone.

    Rows are added until ``budget`` of them are the nearest of some column (a row can lose all its columns to
    later ones); the others are dropped. A pool with at most ``budget`` rows that are nearest for some column
    cannot reach that: the first ``budget`` rows are returned then. Ties go to the smallest index.

    The gain of a row only falls as rows are added, so `lazy_greedy` is exact: O(T V), then a few rows per
    pick, where the full scan takes O(n T V).

    Args:
        cost: ``(T, V)``.
        budget: n in [1, T].

    Returns:
        n int64 rows in pick order.
    """
    T, V = cost.shape
    level = cost.max(axis=0)
    nearest = np.zeros(V, dtype=np.int64)
    chosen: list[int] = []
    keep_first = np.unique(cost.argmin(axis=0)).size <= budget

    def gain(row: int) -> float:
        return float(np.maximum(level - cost[row], 0.0).sum())

    def take(row: int) -> None:
        # Strict: an equal cost stays with the earlier member. The first member serves everyone.
        closer = cost[row] < level if chosen else np.ones(V, dtype=bool)
        nearest[closer] = len(chosen)
        np.minimum(level, cost[row], out=level)
        chosen.append(row)
        if len(chosen) >= budget and (keep_first or np.unique(nearest).size >= budget):
            raise _Full

    with suppress(_Full):
        lazy_greedy(gain, take, T, T, upper=(level - cost).sum(axis=1))
    rows = np.array(chosen, dtype=np.int64)
    serving = np.unique(nearest)
    # Among exact ties the earlier member serves, so even the whole pool can fall short of the count by index.
    return rows[:budget] if keep_first or serving.size < budget else rows[serving]


def rest_costs(reduced: Matrix) -> tuple[Matrix, Matrix, Indices]:
    """Return per column the smallest and second smallest reduced cost, and which member holds the first."""
    holder = reduced.argmin(axis=0)
    columns = np.arange(reduced.shape[1])
    first = reduced[holder, columns]
    others = reduced.copy()
    others[holder, columns] = np.inf
    return first, others.min(axis=0), holder


def _raise(cost: Matrix, rows: Indices, *arguments: Any) -> None:
    run = raise_serial if rows.size * cost.shape[1] <= _SERIAL else raise_parallel
    run(cost, rows, *arguments)


def estimates(
    cost: Matrix, rows: Indices, rest: Matrix, n: int, *, largest: bool = False
) -> tuple[Matrix, Matrix]:
    """Return ``max_y F(y)`` and its argument for rows seen as members (Theorem 4.3); small is attractive.

    ``F(y) = mean_v min(C_iv - y - rest_v, 0) + y / n`` is concave and piecewise linear, so its maximum lies
    at the R-th smallest ``C_iv - rest_v`` with R = ceil(V / n). The authors' code takes the R-th largest.

    Args:
        cost: ``(T, V)``.
        rows: rows to estimate.
        rest: reduced cost of the other members, ``(1, V)`` for all or ``(len(rows), V)``.
        n: size of the set.
        largest: the code's choice, no bound.
    """
    V = cost.shape[1]
    R = -(-V // n)
    out, y = np.full(rows.size, -np.inf), np.zeros(rows.size)
    rank = V - R if largest else R - 1
    _raise(cost, rows, np.atleast_2d(rest), 0.0, n, rank, np.inf, out, y)
    return out, y


@dataclass
class _Search:
    """A set under refinement, and what earlier steps leave to later ones.

    Attributes:
        cost: ``(T, V)``.
        rows: ``(n,)`` members.
        state: their transport problem, solved.
        candidates: members and outsiders looked at per step; ``None`` for all.
        solves: problems solved.
        tried: members for which nobody better was found since all others had their turn.
        planes: per member the last dual found with it gone, and the members it belongs to.
    """

    cost: Matrix
    rows: Indices
    state: Transport
    candidates: int | None
    solves: int = 1
    tried: set[int] = field(default_factory=set)
    planes: dict[int, tuple[Indices, Matrix]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.n, self.V = self.rows.size, self.cost.shape[1]
        self.rank = -(-self.V // self.n) - 1

    def solve(self, rows: Indices, dual: Matrix) -> Transport:
        """Solve a set exactly, from a dual near its own."""
        self.solves += 1
        return solve_exact(self.cost[rows], start=(dual, (self.cost[rows] - dual[:, None]).min(axis=0)))

    def step(self, official: bool) -> bool:
        """Make one exchange; False if none of the candidates lowers the value."""
        cost, n, dual = self.cost, self.n, self.state.f
        outside = np.setdiff1d(np.arange(cost.shape[0]), self.rows)
        first, second, holder = rest_costs(cost[self.rows] - dual[:, None])
        own = first[None] if official else np.where(holder == np.arange(n)[:, None], second, first)
        est_in, _ = estimates(cost, self.rows, own, n, largest=official)
        est_out, y = estimates(cost, outside, first[None], n, largest=official)
        order = np.argsort(est_out, kind="stable")[: self.candidates]
        outside, est_out, y = outside[order], est_out[order], y[order]
        if official:
            return self._first(np.argsort(-est_in, kind="stable")[: self.candidates][::-1], outside, y)
        if len(self.tried) == n:
            self.tried.clear()
        # Members that had their turn wait for the others. All are candidates, so order is free; the paper's
        # few are the worst by estimate.
        waits = np.array([self.candidates is None and int(s) in self.tried for s in self.rows])
        for i in np.lexsort((-est_in, waits))[: self.candidates]:
            # What the others leave only rises when i goes, so the estimate with i still there bounds from
            # below.
            floor = (dual.sum() - dual[i]) / n + first.mean() + est_out
            able = floor < self.limit
            if self._replace(int(i), outside[able], y[able]):
                return True
            self.tried.add(int(self.rows[i]))
        return False

    @property
    def limit(self) -> float:
        """The value that a set must be below to count as better."""
        return self.state.cost - _RELATIVE * max(1.0, abs(self.state.cost))

    def _first(self, members: Indices, outside: Indices, y: Matrix) -> bool:
        """The authors' loop: every pair solved, the first that is lower taken."""
        for i, o in itertools.product(members, range(outside.size)):
            new = np.append(np.delete(self.rows, i), outside[o])
            trial = self.solve(new, np.append(np.delete(self.state.f, i), y[o]))
            if trial.cost < self.limit:
                self.rows, self.state = new, trial
                return True
        return False

    def _replace(self, i: int, outside: Indices, y: Matrix) -> bool:
        """Put an outsider in the place of member i: the best of all, or the first of the paper's few."""
        leaves, others = int(self.rows[i]), np.delete(self.rows, i)
        planes = [np.delete(self.state.f, i)]
        bound, source = np.full(outside.size, -np.inf), np.zeros(outside.size, dtype=np.int64)
        y = y.copy()
        self._cut(others, planes, outside, bound, y, source)
        if leaves in self.planes and (bound < self.limit).any():
            planes.append(self._carried(leaves, others))
            self._cut(others, planes, outside, bound, y, source)
        found = False
        while True:
            alive = bound < self.limit
            if not alive.any():
                break
            outside, bound, y, source = outside[alive], bound[alive], y[alive], source[alive]
            k = 0 if self.candidates else int(bound.argmin())
            new = np.append(others, outside[k])
            trial = self.solve(new, np.append(planes[source[k]], y[k]))
            bound[k] = np.inf
            planes.append(trial.f[:-1])
            if trial.cost < self.limit:
                found, self.rows, self.state = True, new, trial
                if self.candidates is not None:
                    break
            self._cut(others, planes, outside, bound, y, source)
        if len(planes) > 1:
            self.planes[leaves] = others, planes[-1]
        if found:
            # The same others stay, and the best of all has come: no use to look again at once.
            arrived = int(self.rows[-1])
            self.planes[arrived] = self.planes.pop(leaves)
            self.tried.discard(leaves)
            self.tried.add(arrived)
        return found

    def _cut(
        self,
        others: Indices,
        planes: list[Matrix],
        outside: Indices,
        bound: Matrix,
        y: Matrix,
        source: Indices,
    ) -> None:
        """Raise the bounds of outsiders by the last plane, and note where it is the best so far."""
        dual = planes[-1]
        rest = (self.cost[others] - dual[:, None]).min(axis=0)
        before = bound.copy()
        kept = float(dual.sum()) / self.n + float(rest.mean())
        _raise(self.cost, outside, rest[None], kept, self.n, self.rank, self.limit, bound, y)
        source[bound > before] = len(planes) - 1

    def _carried(self, leaves: int, others: Indices) -> Matrix:
        """An earlier plane of a member, brought to the present others: arrivals get their best dual in turn."""
        rows, values = self.planes[leaves]
        at = {int(row): k for k, row in enumerate(rows)}
        old = np.array([at.get(int(row), -1) for row in others])
        dual, known = values[old], old >= 0
        for s in np.flatnonzero(~known):
            rest = (self.cost[others[known]] - dual[known, None]).min(axis=0)
            _, dual[s : s + 1] = estimates(self.cost, others[s : s + 1], rest[None], self.n)
            known[s] = True
        return dual


def refine(
    cost: Matrix, rows: Indices, *, candidates: int | None, max_exchanges: int, official: bool = False
) -> Chosen:
    """Exchange members for outsiders while the exact transport cost falls (Eq. 16).

    The paper looks at the members with the largest and the outsiders with the smallest estimate, as many as
    ``candidates`` of each, and takes the first pair that is lower; the planes only spare solves. With
    ``candidates=None`` all are looked at, so that the result is 1-exchange optimal: members from the worst on,
    those tried in vain after the others, and of the outsiders the best for the member's place.

    Time per exchange: O(T V) for the estimates and for each plane, and a few exact problems of n x V; the
    last one, which shows that nothing is left, takes a few of both for each member.

    Args:
        cost: ``(T, V)``.
        rows: the set to start from, n >= 2.
        candidates: members and outsiders looked at per step, ``None`` for all.
        max_exchanges: stop after as many.
        official: the authors' code: R-th largest, members not excluded from their own rest, least bad member
            first, every pair solved in the order of the estimates.
    """
    search = _Search(cost, rows.copy(), solve_exact(cost[rows]), candidates)
    done = Chosen(search.rows, [search.state.cost])
    while len(done.path) <= max_exchanges:
        if rows.size == cost.shape[0] or not search.step(official):
            done.optimal = True
            break
        done.path.append(search.state.cost)
    done.rows, done.dual, done.solves = search.rows, search.state.f, search.solves
    return done
