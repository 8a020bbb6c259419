"""The statistics of drift by hand, by brute force and by their properties."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp

from tunesmith.audit.drift import (
    kernel_two_sample,
    kolmogorov_smirnov,
    mmd2_unbiased,
    population_stability_index,
    psi,
)
from tunesmith.audit.drift.replays import (
    KernelPart,
    ks_statistics,
    memberships,
    p_value,
    psi_statistics,
    standardise,
    threshold_rank,
)
from tunesmith.audit.drift.statistics import ALERT, WARN, bin_edges, median_distance
from tunesmith.core.errors import DataError, ParameterError

COUNTS = st.lists(st.integers(0, 50), min_size=2, max_size=8).filter(any)


def test_the_index_of_the_dossier() -> None:
    assert psi([0.5, 0.5], [0.5, 0.5]) == 0
    by_hand = 0.3 * math.log(1.6) - 0.3 * math.log(0.4)
    assert by_hand == pytest.approx(0.1410 + 0.2749, abs=1e-4)
    assert psi([0.5, 0.5], [0.8, 0.2]) == pytest.approx(by_hand, rel=1e-12)
    assert psi([500, 500], [40, 10]) == pytest.approx(by_hand, rel=1e-12)
    assert population_stability_index([0, 1] * 50, [0] * 80 + [1] * 20) == pytest.approx(by_hand, rel=1e-12)
    assert WARN < ALERT < by_hand


def test_an_empty_bin_is_floored() -> None:
    low, high = 1e-4 / 1.0001, 1 / 1.0001  # (1, 0) floored at 1e-4 and renormalised
    by_hand = (high - 0.5) * math.log(high / 0.5) + (low - 0.5) * math.log(low / 0.5)
    assert psi([1, 1], [3, 0]) == pytest.approx(by_hand, rel=1e-12)
    assert psi([1, 1, 0], [3, 0, 0]) == pytest.approx(by_hand, rel=1e-12)  # empty in both: no part


@given(COUNTS, st.data())
@settings(max_examples=60, deadline=None)
def test_the_index_is_zero_for_equal_shares_alone_and_knows_no_order(
    counts: list[int], data: st.DataObject
) -> None:
    other = data.draw(st.lists(st.integers(0, 50), min_size=len(counts), max_size=len(counts)).filter(any))
    a, b = np.array(counts), np.array(other)
    found = psi(a, b)
    assert psi(a, 3 * a) == pytest.approx(0, abs=1e-12)
    same = np.array_equal(a * b.sum(), b * a.sum())
    assert found == pytest.approx(0, abs=1e-12) if same else found > 1e-7
    order = data.draw(st.permutations(range(len(counts))))
    assert psi(a[order], b[order]) == pytest.approx(found, rel=1e-9, abs=1e-12)
    assert psi(b, a) == pytest.approx(found, rel=1e-9, abs=1e-12)


def test_the_index_of_samples_knows_no_order_and_no_scale() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=400), rng.normal(0.5, size=250)
    found = population_stability_index(x, y)
    assert found == population_stability_index(rng.permutation(x), rng.permutation(y))
    assert found == pytest.approx(population_stability_index(np.exp(x), np.exp(y)))
    assert population_stability_index(x, x) == 0


def test_edges_are_deciles_and_few_values_get_a_bin_each() -> None:
    assert bin_edges(np.arange(101), 10).tolist() == pytest.approx(range(10, 100, 10))
    assert np.searchsorted(bin_edges([0, 1, 1, 3]), [-9, 0, 1, 3, 9]).tolist() == [0, 1, 2, 3, 4]
    assert np.searchsorted(bin_edges([7, 7]), [6.9, 0, 7, 99]).tolist() == [1, 0, 1, 2]
    tied = bin_edges([0] * 90 + list(range(1, 31)))  # deciles that fall together count once
    assert len(tied) == len(set(tied.tolist())) == 3


def test_without_drift_the_index_is_about_what_the_dossier_says() -> None:
    rng = np.random.default_rng(0)
    reference = rng.normal(size=2000)
    mean = np.mean([population_stability_index(reference, rng.normal(size=200)) for _ in range(200)])
    assert mean == pytest.approx(9 * (1 / 200 + 1 / 2000), rel=0.15)


def test_kolmogorov_smirnov_by_hand() -> None:
    distance, p = kolmogorov_smirnov([1, 2, 3, 4], [3, 4, 5, 6])
    assert distance == 0.5
    assert p == pytest.approx(ks_2samp([1, 2, 3, 4], [3, 4, 5, 6]).pvalue)


def test_the_kernel_statistic_by_hand() -> None:
    within = math.exp(-0.5) + math.exp(-2)  # one pair each: distance 1 and distance 2
    across = (1 + math.exp(-2) + 2 * math.exp(-0.5)) / 4
    assert mmd2_unbiased([0, 1], [0, 2], 1.0) == pytest.approx(within - 2 * across, rel=1e-12)
    assert within - 2 * across == pytest.approx(0.5 * (math.exp(-2) - 1))
    assert median_distance(np.array([[0.0], [1], [3]])) == 2
    assert median_distance(np.ones((4, 2))) == 1


def test_replayed_statistics_equal_those_of_each_subset() -> None:
    rng = np.random.default_rng(0)
    members = memberships(12, 7, 5, seed=3)
    assert members.shape == (6, 19)
    assert (members.sum(axis=1) == 7).all()
    assert np.flatnonzero(members[0]).tolist() == list(range(12, 19))
    vectors = rng.normal(size=(19, 3))
    values = rng.integers(0, 5, 19).astype(float)
    kernel = KernelPart(vectors[:12], 1.3, members).statistics(vectors[12:])
    index = psi_statistics(values.astype(np.int64), 5, members)
    distance = ks_statistics(values, members)
    for b in range(6):
        inside = members[b] == 1
        assert kernel[b] == pytest.approx(mmd2_unbiased(vectors[~inside], vectors[inside], 1.3), abs=1e-5)
        counts = [np.bincount(values[part].astype(int), minlength=5) for part in (~inside, inside)]
        assert index[b] == pytest.approx(psi(*counts), rel=1e-9)
        assert distance[b] == pytest.approx(ks_2samp(values[~inside], values[inside]).statistic, abs=1e-12)


def test_ranks_and_p_values() -> None:
    assert threshold_rank(399, 0.025) == 10  # 10 of 400 subsets: P = 0.025
    assert threshold_rank(38, 0.025) == 0
    assert p_value(np.array([3.0, 1, 2, 3, 4])) == 3 / 5
    z, mean, spread = standardise(np.array([1.0, 3]))
    assert (z.tolist(), mean, spread) == ([-1, 1], 2, 1)
    assert standardise(np.full(3, 0.2))[0].tolist() == [0, 0, 0]


def test_the_kernel_test_finds_a_shift_and_reads_a_large_reference_in_part() -> None:
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(100_000, 8)).astype(np.float32)
    clean = kernel_two_sample(reference, rng.normal(size=(60, 8)), n_permutations=99, max_reference=300)
    moved = kernel_two_sample(reference, rng.normal(0.6, size=(60, 8)), n_permutations=99, max_reference=300)
    assert clean.n_reference == 300
    assert clean.p_value > 0.05
    assert moved.p_value == 0.01
    assert moved.statistic > 0.01
    again = kernel_two_sample(
        reference, rng.normal(0.6, size=(60, 8)), bandwidth=2, n_permutations=99, max_reference=300
    )
    assert again.bandwidth == 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: psi([1, 2], [1, 2, 3]),
            "The 'actual' parameter of psi must be of the shape of expected, (2,)",
        ),
        (lambda: psi([1, -2], [1, 2]), "The 'expected' parameter of psi must be finite and >= 0 in each bin"),
        (lambda: psi([1, 2], [0, 0]), "The 'actual' parameter of psi must be finite and >= 0 in each bin"),
        (
            lambda: population_stability_index([1, 2], [1], bins=1),
            "The 'bins' parameter of population_stability_index must be an int >= 2. Got 1 instead.",
        ),
        (
            lambda: kernel_two_sample([1, 2], [1, 2], n_permutations=0),
            "The 'n_permutations' parameter of kernel_two_sample must be an int >= 1. Got 0 instead.",
        ),
        (
            lambda: mmd2_unbiased([1, 2], [1, 2], 0),
            "The 'bandwidth' parameter of mmd2_unbiased must be a finite number",
        ),
    ],
)
def test_parameters_that_make_no_sense(call: object, message: str) -> None:
    with pytest.raises(ParameterError) as error:
        call()  # type: ignore[operator]
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: population_stability_index([], [1]), "the reference must be a row of at least one number"),
        (
            lambda: population_stability_index([1, 2], [1, math.nan]),
            "row 1: the window has a value that is not finite.",
        ),
        (
            lambda: kolmogorov_smirnov([1, math.inf], [1]),
            "row 1: the reference has a value that is not finite.",
        ),
        (
            lambda: mmd2_unbiased([1], [1, 2], 1),
            "the X must have at least two rows of numbers; its shape is (1, 1).",
        ),
        (lambda: mmd2_unbiased([1, 2], [[1, 2], [3, 4]], 1), "Y has rows of 2 numbers, X of 1."),
        (
            lambda: kernel_two_sample([[1], [2]], [[1, 2], [3, 4]]),
            "the window has rows of 2 numbers, the reference of 1.",
        ),
        (
            lambda: kernel_two_sample([1, 2], [math.nan, 2]),
            "row 0: the window has a value that is not finite.",
        ),
    ],
)
def test_data_that_cannot_be_compared(call: object, message: str) -> None:
    with pytest.raises(DataError) as error:
        call()  # type: ignore[operator]
    assert str(error.value).startswith(message)
