"""The stages of GORACS on their own: greedy against full scans, the bounds that prune, the search they leave."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from tunesmith.numerics.transport import solve_exact
from tunesmith.select.goracs import objective_cost
from tunesmith.select.goracs.kernels import raise_parallel, raise_serial
from tunesmith.select.goracs.objective import unit_range
from tunesmith.select.goracs.search import estimates, greedy, refine, rest_costs


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


def exact(C, rows, i, o):
    return solve_exact(C[np.append(np.delete(rows, i), o)])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), V=st.sampled_from([7, 30, 33]), n=st.integers(2, 8))
def test_the_dual_of_one_pair_bounds_every_other_newcomer(seed, V, n):
    rng = np.random.default_rng(seed)
    C = rng.random((30, V))
    rows = rng.choice(30, n, replace=False)
    i, outside = int(rng.integers(n)), np.setdiff1d(np.arange(30), rows)
    others, rank = np.delete(rows, i), -(-V // n) - 1
    values = np.array([exact(C, rows, i, o).cost for o in outside])
    for own, solved in ((3, exact(C, rows, i, outside[3])), (None, exact(C, rows, i, rows[i]))):
        u = solved.f[:-1]
        rest = (C[others] - u[:, None]).min(axis=0)
        kept = u.sum() / n + rest.mean()
        bound, y = np.full(outside.size, -np.inf), np.full(outside.size, solved.f[-1])
        raise_serial(C, outside, rest[None], kept, n, rank, np.inf, bound, y)
        assert (bound <= values + 1e-12).all()
        # Without a limit it is the estimate; the pair that was solved meets its own value.
        assert_allclose(bound, kept + estimates(C, outside, rest[None], n)[0], atol=1e-12)
        if own is not None:
            assert bound[own] == pytest.approx(values[own], abs=1e-12)
        both = bound.copy()
        raise_parallel(C, outside, rest[None], kept, n, rank, np.inf, both, y.copy())
        assert_array_equal(both, bound)
        # A limit within reach: nobody below it is called above it, nobody is raised beyond the best.
        limit, short = float(np.median(bound)), np.full(outside.size, -np.inf)
        raise_serial(C, outside, rest[None], kept, n, rank, limit, short, np.full(outside.size, solved.f[-1]))
        assert_array_equal(short >= limit, bound >= limit)
        assert (short <= bound + 1e-12).all()


def plain(C, rows, c):
    """The paper's loop: worst members, most attractive outsiders, every pair solved, the first lower taken."""
    state, n, path = solve_exact(C[rows]), rows.size, []
    while state is not None:
        path.append(state.cost)
        first, second, holder = rest_costs(C[rows] - state.f[:, None])
        own = np.where(holder == np.arange(n)[:, None], second, first)
        outside = np.setdiff1d(np.arange(len(C)), rows)
        inner = np.argsort(-estimates(C, rows, own, n)[0], kind="stable")[:c]
        outer = outside[np.argsort(estimates(C, outside, first[None], n)[0], kind="stable")[:c]]
        state = None
        for i, o in itertools.product(inner, outer):
            trial = exact(C, rows, i, o)
            if trial.cost < path[-1] - 1e-12:
                rows, state = np.append(np.delete(rows, i), o), trial
                break
    return rows, path


@pytest.mark.parametrize("seed", range(3))
def test_few_candidates_are_the_papers_loop_with_fewer_solves(seed):
    X, Y, _ = problem(60, 37, d=4, seed=seed)
    C = unit_range(objective_cost(X, Y))
    rows, path = plain(C, greedy(C, 6), 5)
    found = refine(C, greedy(C, 6), candidates=5, max_exchanges=1000)
    assert found.rows.tolist() == rows.tolist()
    assert_allclose(found.path, path, atol=1e-12)
    assert found.optimal


@pytest.mark.parametrize("seed", range(4))
def test_all_candidates_end_no_higher_than_few_and_nothing_is_left(seed):
    X, Y, _ = problem(70, 29, d=5, seed=seed)
    C = unit_range(objective_cost(X, Y))
    start = greedy(C, 5)
    found = refine(C, start, candidates=None, max_exchanges=1000)
    outside = np.setdiff1d(np.arange(70), found.rows)
    left = min(exact(C, found.rows, i, o).cost for i, o in itertools.product(range(5), outside))
    assert left >= found.path[-1] - 1e-12
    assert found.optimal
    assert found.path[-1] == pytest.approx(solve_exact(C[found.rows]).cost, abs=1e-12)
    # From where the paper's few candidates end, all of them go on (or there was nothing left).
    few = refine(C, start, candidates=3, max_exchanges=1000)
    more = refine(C, few.rows, candidates=None, max_exchanges=1000)
    assert more.path[-1] <= few.path[-1] + 1e-12
    # Solving what is left pair by pair takes 5 x 65 problems for the last step alone.
    assert found.solves < 5 * 65


def test_equal_rows_and_a_cap_on_exchanges():
    X, Y, _ = problem(30, 17)
    C = unit_range(objective_cost(np.vstack([X, X]), Y))
    found = refine(C, greedy(C, 4), candidates=None, max_exchanges=1000)
    assert np.unique(found.rows).size == 4
    assert found.optimal
    short = refine(C, greedy(C, 4), candidates=None, max_exchanges=1)
    assert len(short.path) == 2
    assert not short.optimal
    everything = refine(C, np.arange(60), candidates=None, max_exchanges=1000)
    assert everything.optimal
    assert everything.solves == 1
