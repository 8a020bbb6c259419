"""Paired bootstrap: known cases, symmetry, and coverage."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tunesmith.core.errors import ParameterError
from tunesmith.metrics import paired_bootstrap

SCORES = arrays(np.float64, st.integers(1, 30), elements=st.floats(0, 1, width=16))


def test_equal_scores_show_no_difference():
    result = paired_bootstrap([0.1, 0.5, 0.9], [0.1, 0.5, 0.9])
    assert (result["delta"], result["low"], result["high"], result["p_value"]) == (0, 0, 0, 1)
    assert (result["n"], result["n_seeds"]) == (3, 1)


def test_a_constant_difference_has_no_spread():
    a = np.random.default_rng(0).random(50)
    result = paired_bootstrap(a + 0.25, a, n_resamples=999)
    assert result["delta"] == pytest.approx(0.25)
    assert (result["low"], result["high"]) == (pytest.approx(0.25), pytest.approx(0.25))


def test_interval_of_a_mean_agrees_with_theory():
    a = np.random.default_rng(1).normal(0.3, 1.0, 400)
    result = paired_bootstrap(a, np.zeros(400))
    half = 1.96 * a.std() / 20
    assert result["low"] == pytest.approx(a.mean() - half, abs=0.01)
    assert result["high"] == pytest.approx(a.mean() + half, abs=0.01)
    assert result["p_value"] < 0.001


def test_coverage_on_normal_data():
    rng = np.random.default_rng(2)
    hits = 0
    for i in range(400):
        a, b = rng.normal(0.2, 1, 60), rng.normal(0, 1, 60)
        result = paired_bootstrap(a, b, n_resamples=400, seed=i)
        hits += result["low"] <= 0.2 <= result["high"]
    # 95 % less about 1 % for the percentile interval at 60 items; 3 standard errors of 400 trials are 3.3 %.
    assert 0.905 <= hits / 400 <= 0.98


def test_p_values_under_no_difference_are_uniform_enough():
    rng = np.random.default_rng(3)
    ps = [
        paired_bootstrap(rng.normal(size=80), rng.normal(size=80), n_resamples=300, seed=i)["p_value"]
        for i in range(400)
    ]
    assert 0.02 <= np.mean(np.array(ps) <= 0.05) <= 0.09
    assert 0.42 <= np.mean(np.array(ps) <= 0.5) <= 0.58


def test_spread_between_seeds_widens_the_interval():
    rng = np.random.default_rng(4)
    items = rng.normal(0, 0.1, 100)
    a = np.stack([items + shift for shift in (-1.0, 0.0, 1.0)])
    alone = paired_bootstrap(items, np.zeros(100))
    nested = paired_bootstrap(a, np.zeros((3, 100)))
    assert nested["n_seeds"] == 3
    assert nested["high"] - nested["low"] > 10 * (alone["high"] - alone["low"])


def test_equal_seeds_change_nothing_beyond_noise():
    a = np.random.default_rng(5).normal(0.1, 1, 200)
    one, three = paired_bootstrap(a, np.zeros(200)), paired_bootstrap(np.stack([a] * 3), np.zeros((3, 200)))
    assert three["delta"] == pytest.approx(one["delta"])
    assert three["low"] == pytest.approx(one["low"], abs=0.02)


@settings(max_examples=30, deadline=None)
@given(SCORES, st.integers(0, 2**31 - 1))
def test_swapping_the_sides_mirrors_the_result(a, seed):
    b = np.roll(a, 1)
    left, right = (paired_bootstrap(x, y, n_resamples=200, seed=seed) for x, y in ((a, b), (b, a)))
    assert left["delta"] == pytest.approx(-right["delta"], abs=1e-12)
    assert left["low"] == pytest.approx(-right["high"], abs=1e-12)
    assert left["p_value"] == pytest.approx(right["p_value"], abs=0.02)


@settings(max_examples=30, deadline=None)
@given(SCORES)
def test_equal_seed_equal_result_and_ordered_bounds(a):
    b = np.zeros_like(a)
    result = paired_bootstrap(a, b, n_resamples=200)
    assert result == paired_bootstrap(a, b, n_resamples=200)
    assert result["low"] - 1e-12 <= result["high"]
    assert 0 < result["p_value"] <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ([1.0], [1.0, 2.0]),
            r"'b' parameter of paired_bootstrap must be of the shape of a, .*: \(1,\)\. Got \(2,\)",
        ),
        (([], []), "must be of the shape of a"),
        (
            ([float("nan")], [1.0]),
            "'a' parameter of paired_bootstrap must be finite in each score, as must b",
        ),
        (
            ([1.0], [1.0], 10),
            "'n_resamples' parameter of paired_bootstrap must be an int of at least 100. Got 10",
        ),
        (
            ([1.0], [1.0], 100, 0, 1.5),
            r"'alpha' parameter of paired_bootstrap must be a float in \(0, 1\)\. Got 1.5",
        ),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ParameterError, match=message):
        paired_bootstrap(*arguments)
