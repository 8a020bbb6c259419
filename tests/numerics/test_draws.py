import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tunesmith.numerics import group_softmax, row_gumbel, top_by_group, weighted_draw


def test_noise_is_gumbel_and_seeds_are_unrelated():
    first, second = row_gumbel(np.arange(20_000), 0), row_gumbel(np.arange(20_000), 1)
    assert stats.kstest(first, "gumbel_r").pvalue > 1e-3
    assert abs(stats.spearmanr(first, second).statistic) < 0.03
    assert abs(stats.spearmanr(first[1:], first[:-1]).statistic) < 0.03


def test_noise_belongs_to_ids_not_positions():
    ids = np.random.default_rng(0).permutation(1000)
    assert np.array_equal(row_gumbel(ids, 7), row_gumbel(np.arange(1000), 7)[ids])
    assert np.isfinite(row_gumbel([-(2**63), 2**63 - 1, -1, 0], 2**70)).all()


@given(st.integers(1, 60), st.integers(1, 6), st.integers(0, 2**32))
def test_draw_fills_every_group_with_distinct_rows(n, k, seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, k, n)
    counts = np.array([rng.integers(0, size + 1) for size in np.bincount(labels, minlength=k)])
    picks = weighted_draw(rng.normal(size=n), labels, counts, seed=seed)
    assert len(set(picks)) == counts.sum() == len(picks)
    assert np.array_equal(np.bincount(labels[picks], minlength=k), counts)


def test_permuting_rows_permutes_the_draw():
    rng = np.random.default_rng(3)
    q, labels, counts = rng.normal(size=200), rng.integers(0, 5, 200), [3, 4, 5, 6, 7]
    order = rng.permutation(200)
    straight = weighted_draw(q, labels, counts, seed=1)
    shuffled = weighted_draw(q[order], labels[order], counts, seed=1, ids=order)
    assert np.array_equal(order[shuffled], straight)


def test_adding_a_constant_per_group_changes_nothing():
    rng = np.random.default_rng(4)
    q, labels = rng.integers(0, 8, 300) / 4, rng.integers(0, 3, 300)
    shift = np.array([-1024.0, 0.0, 4096.0])[labels]  # exact in float64, so equality is exact
    counts = [10, 20, 30]
    assert np.array_equal(
        weighted_draw(q, labels, counts, seed=2), weighted_draw(q + shift, labels, counts, seed=2)
    )


def test_single_draw_has_softmax_frequencies():
    q = np.array([0.0, 1.0, 2.0])
    repeats = 20_000
    picks = weighted_draw(
        np.tile(q, repeats), np.repeat(np.arange(repeats), 3), np.ones(repeats, dtype=int), seed=0
    )
    counts = np.bincount(picks % 3, minlength=3)
    assert stats.chisquare(counts, np.exp(q) / np.exp(q).sum() * repeats).pvalue > 1e-3


def test_huge_qualities_neither_overflow_nor_lose_the_best():
    for scale in (800.0, 1e6, 1e300):
        q = np.array([scale, 5.0, 6.0, -scale])
        assert np.array_equal(weighted_draw(q, np.zeros(4, int), [1], seed=5), [0])
        assert np.array_equal(group_softmax(q, np.zeros(4, int)), [1, 0, 0, 0])


def test_top_by_group_orders_by_rank_and_breaks_ties_by_index():
    keys, labels = [5.0, 5.0, 1.0, 9.0, 9.0], [1, 1, 0, 0, 0]
    assert top_by_group(keys, labels, [2, 2]).tolist() == [3, 0, 4, 1]
    assert top_by_group(keys, labels, [0, 1]).tolist() == [0]
    assert top_by_group([], [], []).tolist() == []


def test_group_softmax_sums_to_one():
    labels = np.array([0, 1, 1, 2, 2, 2])
    p = group_softmax(np.random.default_rng(0).normal(size=6), labels)
    assert np.allclose(np.bincount(labels, weights=p), 1)
