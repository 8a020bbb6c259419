"""The order of rows, and what is silenced."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.trainers._trl_compat import LengthGroups


@given(st.lists(st.integers(1, 300), min_size=1, max_size=200), st.integers(1, 16), st.integers(0, 5))
def test_every_row_once_and_the_same_again(lengths, rows_per_step, epoch):
    first, second = (LengthGroups(lengths, rows_per_step, seed=3) for _ in range(2))
    first.epoch = second.epoch = epoch
    order = list(first)
    assert sorted(order) == list(range(len(lengths)))
    assert order == list(second) == list(first)
    assert len(first) == len(lengths)


def test_epochs_and_seeds_differ():
    lengths = list(range(1, 65))
    orders = []
    for seed, epoch in [(0, 0), (0, 1), (1, 0)]:
        sampler = LengthGroups(lengths, 8, seed)
        sampler.epoch = epoch
        orders.append(tuple(sampler))
    assert len(set(orders)) == 3


def test_rows_of_a_step_are_alike_and_length_does_not_drift():
    rng = np.random.default_rng(0)
    lengths = rng.integers(10, 400, 4_000)
    order = np.array(list(LengthGroups(lengths, 8, seed=0)))
    steps = lengths[order].reshape(-1, 8)
    padded = steps.max(axis=1).sum() * 8 / lengths.sum()
    shuffled = lengths[rng.permutation(4_000)].reshape(-1, 8).max(axis=1).sum() * 8 / lengths.sum()
    assert padded < 1.05 < 1.5 < shuffled
    assert abs(np.corrcoef(np.arange(len(steps)), steps.mean(axis=1))[0, 1]) < 0.15


def test_a_short_last_step_stays_last():
    lengths = [5] * 20
    order = list(LengthGroups(lengths, 8, seed=0))
    assert len(order[16:]) == 4
