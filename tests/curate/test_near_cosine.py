"""The greedy rule on cosines: hand-worked angles, exactness with groups, independence of blocks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.core.errors import DataError, ParameterError
from tunesmith.curate.near import greedy_cosine


def at(*degrees: float) -> np.ndarray:
    angles = np.deg2rad(degrees)
    return np.column_stack([np.cos(angles), np.sin(angles)])


def random_units(n: int, d: int, seed: int) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=(n, d))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def plain(x: np.ndarray, t: float) -> list[int]:
    """The rule as it is stated, pair by pair in float64."""
    kept: list[int] = []
    for i in range(len(x)):
        if all(float((x[i].astype(float) * x[j]).sum()) < t for j in kept):
            kept.append(i)
    return kept


def largest_between_kept(x: np.ndarray, duplicate_of: np.ndarray) -> float:
    kept = x[duplicate_of < 0].astype(np.float64)
    cosines = kept @ kept.T
    np.fill_diagonal(cosines, -1)
    return float(cosines.max())


def test_angles_by_hand_and_no_chaining() -> None:
    # cos 30° = 0.866 >= 0.8 > cos 60° = 0.5; connected components would keep only the first.
    assert greedy_cosine(at(0, 30, 60, 90), 0.8).tolist() == [-1, 0, -1, 2]


def test_groups_can_drop_what_the_plain_rule_keeps() -> None:
    x = at(0, 30, 60)
    assert greedy_cosine(x, 0.8).tolist() == [-1, 0, -1]
    # Inside {30°, 60°} the second falls to the first, which then falls to 0°.
    assert greedy_cosine(x, 0.8, groups=[0, 1, 1]).tolist() == [-1, 0, 1]


def test_not_monotone_in_the_threshold() -> None:
    x = at(0, 40, 75)
    assert np.flatnonzero(greedy_cosine(x, 0.7) < 0).tolist() == [0, 2]
    assert np.flatnonzero(greedy_cosine(x, 0.8) < 0).tolist() == [0, 1]


def test_order_decides_which_row_stays() -> None:
    assert greedy_cosine(at(0, 30, 60), 0.8, order=[1, 0, 2]).tolist() == [1, -1, 1]


@pytest.mark.parametrize("groups", [1, 2, 7, 40])
def test_no_kept_pair_reaches_the_threshold_with_any_groups(groups: int) -> None:
    x = random_units(400, 5, 0)
    found = greedy_cosine(x, 0.8, groups=groups)
    assert (found >= 0).any()
    assert largest_between_kept(x, found) < 0.8


def test_one_group_is_the_plain_rule_and_names_a_kept_earlier_row() -> None:
    x = random_units(400, 5, 1)
    found = greedy_cosine(x, 0.75)
    assert np.flatnonzero(found < 0).tolist() == plain(x, 0.75)
    for i in np.flatnonzero(found >= 0):
        j = found[i]
        assert j < i
        assert found[j] < 0
        assert float(x[i].astype(float) @ x[j]) >= 0.75


def test_limited_probes_find_most_and_all_probes_find_all() -> None:
    x = random_units(600, 5, 2)
    exact = greedy_cosine(x, 0.9, groups=25, probes=None)
    near = greedy_cosine(x, 0.9, groups=25, probes=6)
    none = greedy_cosine(x, 0.9, groups=25, probes=0)
    assert np.array_equal(greedy_cosine(x, 0.9, groups=25, probes=24), exact)
    assert (none >= 0).sum() < (near >= 0).sum() <= (exact >= 0).sum()
    assert (near >= 0).sum() >= 0.95 * (exact >= 0).sum()


@pytest.mark.parametrize("block", [1, 3, 17, 5000])
@pytest.mark.parametrize("groups", [1, 9])
def test_blocks_do_not_matter(block: int, groups: int) -> None:
    # Differences of few bits decide here: many cosines are the threshold itself up to rounding.
    base = random_units(40, 48, 3)
    x = np.concatenate([base, 0.8 * base + 0.6 * _orthogonal(base)]).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    expected = greedy_cosine(x, 0.8, groups=groups)
    assert np.array_equal(greedy_cosine(x, 0.8, groups=groups, block=block), expected)
    if groups == 1:
        assert np.flatnonzero(expected < 0).tolist() == plain(x, 0.8)


def _orthogonal(x: np.ndarray) -> np.ndarray:
    y = np.random.default_rng(9).normal(size=x.shape)
    y -= (y * x).sum(axis=1, keepdims=True) * x
    return y / np.linalg.norm(y, axis=1, keepdims=True)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.3, 0.999), st.integers(1, 6))
def test_running_on_the_kept_rows_drops_nothing(seed: int, t: float, groups: int) -> None:
    x = random_units(60, 3, seed)
    kept = x[greedy_cosine(x, t, groups=groups) < 0]
    assert (greedy_cosine(kept, t, groups=groups) < 0).all()


def test_identical_rows_and_a_threshold_above_one() -> None:
    x = np.repeat(random_units(3, 8, 4), 5, axis=0)
    assert (greedy_cosine(x, 0.999) < 0).sum() == 3
    assert (greedy_cosine(x, 1.01) < 0).all()


def test_a_zero_row_resembles_nothing_and_float64_and_no_rows_are_taken() -> None:
    x = np.array([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    assert greedy_cosine(x, 0.5).tolist() == [-1, -1, -1, 2]
    assert greedy_cosine(x.astype(np.int64), 0.5).tolist() == [-1, -1, -1, 2]
    assert greedy_cosine(np.empty((0, 4)), 0.5).tolist() == []
    assert greedy_cosine(np.empty((0, 4)), 0.5, groups=8).tolist() == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"threshold": float("nan")},
            "'threshold' parameter of greedy_cosine must be a finite number. Got nan",
        ),
        ({"threshold": True}, "'threshold' parameter of greedy_cosine must be a finite number. Got True"),
        ({"probes": -1}, "'probes' parameter of greedy_cosine must be None or an int >= 0. Got -1"),
        ({"block": 0}, "'block' parameter of greedy_cosine must be an int >= 1. Got 0"),
        (
            {"groups": 0},
            "'groups' parameter of greedy_cosine must be an int >= 1 or labels of shape (n,). Got 0",
        ),
        ({"groups": [0]}, "must be an int >= 1 or labels of shape (n,). Got (1,)"),
        ({"order": [0, 0]}, "'order' parameter of greedy_cosine must be a permutation of 0 … 1. Got [0, 0]"),
        ({"X": np.ones(3)}, "'X' parameter of greedy_cosine must be an array of shape (n, d). Got (3,)"),
    ],
)
def test_bad_parameters(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ParameterError) as caught:
        greedy_cosine(**{"X": at(0, 30), "threshold": 0.8, **arguments})
    assert message in str(caught.value)


@pytest.mark.parametrize(("bad", "length"), [(2.0, "2"), (np.nan, "nan"), (np.inf, "inf")])
def test_vectors_that_are_not_of_length_one(bad: float, length: str) -> None:
    x = at(0, 30, 60)
    x[1] = [0, bad]
    with pytest.raises(DataError) as caught:
        greedy_cosine(x, 0.8)
    assert (
        str(caught.value)
        == f"row 1: the embedding has length {length}; each must be finite and of length 1 (or 0)."
    )
