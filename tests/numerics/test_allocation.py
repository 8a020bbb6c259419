import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.core.errors import ParameterError
from tunesmith.numerics import allocate


@pytest.mark.parametrize(
    ("weights", "budget", "capacity", "counts"),
    [
        ((60, 30, 10), 20, (60, 30, 10), (12, 6, 2)),
        ((50, 30, 21), 10, (50, 30, 21), (5, 3, 2)),  # quotas 4.950, 2.970, 2.079
        ((1, 1, 1), 9, (1, 2, 50), (1, 2, 6)),
        ((1, 1, 1, 1), 2, (9, 9, 9, 9), (1, 1, 0, 0)),  # ties of remainders: lowest index
        ((1, 3), 2, (9, 9), (1, 1)),  # remainders .5 and .5
        ((0, 0, 5), 4, (3, 3, 1), (2, 1, 1)),  # only weights 0 have room left: equal shares
        ((0, 2), 1, (5, 5), (0, 1)),
        ((0.1, 0.2, 0.7), 10, (10, 10, 10), (1, 2, 7)),  # 0.1 * 10 / 1.0 is a whole number despite rounding
    ],
)
def test_hand_worked(weights, budget, capacity, counts):
    result = allocate(weights, budget, capacity)
    assert result.dtype == np.int64
    assert tuple(result) == counts


@given(
    st.lists(st.tuples(st.floats(0, 1e6), st.integers(0, 40)), min_size=1, max_size=30),
    st.floats(0, 1),
)
def test_spends_the_budget_within_capacity(groups, share):
    weights, capacity = zip(*groups, strict=True)
    budget = int(share * sum(capacity))
    counts = allocate(weights, budget, capacity)
    assert counts.sum() == budget
    assert (counts >= 0).all()
    assert (counts <= np.array(capacity)).all()


@given(st.lists(st.integers(1, 10_000), min_size=1, max_size=50), st.floats(0, 1))
def test_proportional_shares_stay_within_one_of_their_quota(sizes, share):
    budget = int(share * sum(sizes))
    quota = np.array(sizes) * budget / sum(sizes)
    assert (abs(allocate(sizes, budget, sizes) - quota) < 1 + 1e-6).all()


def test_scale_of_weights_is_irrelevant():
    weights, capacity = np.array([3.0, 1.0, 7.0, 0.5]), [4, 9, 2, 8]
    for scale in (1e-300, 1.0, 1e300):
        assert tuple(allocate(weights * scale, 12, capacity)) == tuple(allocate(weights, 12, capacity))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ([1, -1], 1, [1, 1]),
            "The 'weights' parameter of allocate must be a vector of finite numbers >= 0. "
            "Got [1, -1] instead.",
        ),
        (
            ([1, float("nan")], 1, [1, 1]),
            "The 'weights' parameter of allocate must be a vector of finite numbers >= 0. "
            "Got [1, nan] instead.",
        ),
        (
            ([1, 1], 1, [1]),
            "The 'capacity' parameter of allocate must be 2 whole numbers >= 0, one per weight. "
            "Got [1] instead.",
        ),
        (
            ([1, 1], 3, [1, 1]),
            "The 'budget' parameter of allocate must be in [0, 2], the sum of the capacities. Got 3 instead.",
        ),
    ],
)
def test_messages(arguments, message):
    with pytest.raises(ParameterError) as caught:
        allocate(*arguments)
    assert str(caught.value) == message
