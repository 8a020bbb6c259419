"""The stages of GORACS on their own: greedy against full scans, the bounds that prune, the search they leave."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.numerics.transport import solve_exact
from tunesmith.select.goracs import objective_cost
from tunesmith.select.goracs.kernels import ascend
from tunesmith.select.goracs.objective import unit_range
from tunesmith.select.goracs.search import estimates, greedy, refine


def problem(T, V, d=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((T, d)), rng.standard_normal((V, d)) + 0.4, rng.random(T)


def naive_greedy(C, n):
    """Eq. 14 by full scans, with the filter of the dossier's step 3."""
    chosen = [int(C.sum(axis=1).argmin())]
    few = np.unique(C.argmin(axis=0)).size <= n
    while True:
        if len(chosen) == len(C) or len(chosen) >= n:
            used = np.unique(C[chosen].argmin(axis=0))
            if few or (len(chosen) == len(C) and used.size < n):
                return chosen[:n]
            if used.size >= n:
                return [chosen[k] for k in used]
        totals = np.minimum(C, C[chosen].min(axis=0)).sum(axis=1)
        totals[chosen] = np.inf
        chosen.append(int(totals.argmin()))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), T=st.integers(2, 30), V=st.integers(1, 30), coarse=st.booleans())
def test_lazy_greedy_equals_full_scans(seed, T, V, coarse):
    rng = np.random.default_rng(seed)
    C = rng.integers(0, 5, (T, V)).astype(float) if coarse else rng.random((T, V))
    n = int(rng.integers(1, T + 1))
    assert greedy(C, n).tolist() == naive_greedy(C, n)


def test_bounds_save_most_problems_and_change_nothing():
    X, Y, _ = problem(200, 61, d=6)
    C = unit_range(objective_cost(X, Y))
    start = greedy(C, 8)
    ours = refine(C, start, candidates=200, max_exchanges=100)
    theirs = refine(C, start, candidates=200, max_exchanges=100, official=True)
    assert ours.optimal
    assert theirs.optimal
    assert ours.solves * 10 < theirs.solves
    assert ours.path[-1] <= theirs.path[-1] * 1.02


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), V=st.sampled_from([7, 30, 33]), n=st.integers(2, 8))
def test_the_risen_bound_lies_between_the_first_bound_and_the_exact_value(seed, V, n):
    rng = np.random.default_rng(seed)
    C = rng.random((30, V))
    rows = rng.choice(30, n, replace=False)
    solved = solve_exact(C[rows])
    i, outside = int(rng.integers(n)), np.setdiff1d(np.arange(30), rows)
    keep = np.delete(np.arange(n), i)
    rest = (C[rows[keep]] - solved.f[keep, None]).min(axis=0)
    est, y = estimates(C, outside, rest[None], n)
    first = solved.f[keep].sum() / n + rest.mean() + est
    risen, duals = np.empty(outside.size), np.empty((outside.size, n))
    ascend(C, rows, solved.f, i, outside, y, -(-V // n) - 1, np.inf, 50, risen, duals)
    exact = [solve_exact(C[np.append(rows[keep], o)]).cost for o in outside]
    assert (risen >= first - 1e-12).all()
    assert (risen <= np.array(exact) + 1e-12).all()
    for k, o in enumerate(outside):
        new = rows.copy()
        new[i] = o
        semi_dual = duals[k].mean() + (C[new] - duals[k][:, None]).min(axis=0).mean()
        assert risen[k] == pytest.approx(semi_dual, abs=1e-12)
