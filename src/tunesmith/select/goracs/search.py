"""The two stages of GORACS on a cost matrix: greedy start, then exchanges pruned by transport duals."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tunesmith.numerics import lazy_greedy
from tunesmith.numerics.transport import Transport, solve_exact
from tunesmith.select.goracs.kernels import ascend, estimate_parallel, estimate_serial

__all__ = ["Chosen", "estimates", "greedy", "refine", "rest_costs"]

Matrix = NDArray[np.float64]
Indices = NDArray[np.int64]

# An exchange must lower the objective by more than this, relatively: rounding must not start a cycle among
# duplicated rows.
_RELATIVE = 1e-12

# Rounds of the dual's rise per pair, and pairs looked at together: few first, as the best-looking one often
# helps.
_ROUNDS = 12
_CHUNKS = (8, 32, 128, 512)


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
    out, y = np.empty(rows.size), np.empty(rows.size)
    # Waking the threads pays from about 10^5 entries on.
    run = estimate_serial if rows.size * V <= 1 << 17 else estimate_parallel
    run(cost, rows, np.atleast_2d(rest), n, V - R if largest else R - 1, out, y)
    return out, y


def refine(
    cost: Matrix, rows: Indices, *, candidates: int, max_exchanges: int, official: bool = False
) -> Chosen:
    """Exchange members for outsiders while the exact transport cost falls (Eq. 16).

    Members with the largest and outsiders with the smallest estimate are candidates. For a pair (i, o) the
    kept duals and y give a lower bound of the exact value after the exchange,
    ``(sum_{s != i} u_s) / n + mean_v rest_v + max_y F_o(y)``, which `ascend` raises further. Pairs whose
    bound is not below the present value are never solved; the others are tried from the lowest bound on, with
    the duals as a warm start.
    With as many candidates as rows the result is therefore 1-exchange optimal.

    Time per exchange: O(T V) for the estimates, O(n V) for each pair whose bound must be raised, and a few
    exact problems of n x V.

    Args:
        cost: ``(T, V)``.
        rows: the set to start from, n >= 2.
        candidates: members and outsiders looked at per step.
        max_exchanges: stop after as many.
        official: the authors' code: R-th largest, members not excluded from their own rest, least bad member
            first, every pair solved in the order of the estimates.
    """
    rows = rows.copy()
    state = solve_exact(cost[rows])
    done = Chosen(rows, [state.cost], solves=1)
    while len(done.path) <= max_exchanges:
        found = _exchange(cost, rows, state, candidates, official, done)
        if found is None:
            done.optimal = True
            break
        rows, state = found
        done.path.append(state.cost)
    done.rows, done.dual = rows, state.f
    return done


def _exchange(
    cost: Matrix, rows: Indices, state: Transport, candidates: int, official: bool, done: Chosen
) -> tuple[Indices, Transport] | None:
    n = rows.size
    value = state.cost
    limit = value - _RELATIVE * max(1.0, abs(value))
    first, second, holder = rest_costs(cost[rows] - state.f[:, None])
    outside = np.setdiff1d(np.arange(cost.shape[0]), rows)
    if not outside.size:
        return None
    own = np.where(holder == np.arange(n)[:, None], second, first)
    est_in, _ = estimates(cost, rows, first[None] if official else own, n, largest=official)
    est_out, start_out = estimates(cost, outside, first[None], n, largest=official)
    worst = np.argsort(-est_in, kind="stable")[:candidates]
    best = np.argsort(est_out, kind="stable")[:candidates]
    pairs: Iterator[tuple[Indices, Matrix]]
    if official:
        pairs = (
            (np.append(np.delete(rows, i), outside[o]), np.append(np.delete(state.f, i), start_out[o]))
            for i in worst[::-1]
            for o in best
        )
    else:
        pairs = _promising(cost, rows, outside[best], est_out[best], worst, own, state.f, limit)
    for new, dual in pairs:
        trial = solve_exact(cost[new], start=(dual, (cost[new] - dual[:, None]).min(axis=0)))
        done.solves += 1
        if trial.cost < limit:
            return new, trial
    return None


def _promising(
    cost: Matrix,
    rows: Indices,
    outside: Indices,
    est_out: Matrix,
    worst: Indices,
    own: Matrix,
    dual: Matrix,
    limit: float,
) -> Iterator[tuple[Indices, Matrix]]:
    """Yield the sets that the bounds allow, with a dual near their own; worst member and lowest bound first."""
    n, V = rows.size, cost.shape[1]
    rank = -(-V // n) - 1
    first = own.min(axis=0)
    for i in worst:
        kept = float(dual.sum() - dual[i]) / n
        # What the others leave only rises when i goes, so the estimate with i still there bounds from below.
        able = np.flatnonzero(kept + float(first.mean()) + est_out < limit)
        est, start = estimates(cost, outside[able], own[i][None], n)
        bound = kept + float(own[i].mean()) + est
        order = np.argsort(bound, kind="stable")
        order = order[bound[order] < limit]
        at = 0
        for size in itertools.chain(_CHUNKS, itertools.repeat(_CHUNKS[-1])):
            if at >= order.size:
                break
            part = order[at : at + size]
            at += size
            reached, duals = np.empty(part.size), np.empty((part.size, n))
            ascend(
                cost, rows, dual, i, outside[able[part]], start[part], rank, limit, _ROUNDS, reached, duals
            )
            for k in np.argsort(reached, kind="stable"):
                if reached[k] >= limit:
                    break
                new = np.append(np.delete(rows, i), outside[able[part[k]]])
                yield new, np.append(np.delete(duals[k], i), duals[k, i])
