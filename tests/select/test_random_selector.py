import numpy as np
import pytest
from scipy import stats

from tunesmith.core.errors import DataError
from tunesmith.select import RandomSelector


def test_every_row_is_as_likely():
    counts = np.zeros(20)
    for seed in range(2000):
        counts[RandomSelector(random_state=seed).fit(range(20)).select(5)] += 1
    assert stats.chisquare(counts).pvalue > 1e-3


def test_rows_may_come_as_anything_with_a_length():
    picks = RandomSelector(random_state=0).fit(np.zeros((30, 2))).select(10)
    assert np.array_equal(RandomSelector(random_state=0).fit(["a"] * 30).select(10), picks)
    assert np.array_equal(RandomSelector(random_state=0).fit(quality=np.ones(30)).select(10), picks)


def test_shuffled_rows_with_their_ids_give_the_same_rows():
    order = np.random.default_rng(0).permutation(50)
    straight = RandomSelector(random_state=3).fit(range(50)).select(12)
    shuffled = RandomSelector(random_state=3).fit(range(50), ids=order).select(12)
    assert np.array_equal(order[shuffled], straight)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "RandomSelector needs X, or any other feature, to know the number of rows."),
        ({"X": []}, "RandomSelector has nothing to choose from: the pool holds no rows."),
        (
            {"X": [1, 2], "ids": [1]},
            "'ids' must have one entry per row, but RandomSelector got 1 entries for 2 rows.",
        ),
        ({"X": [1, 2], "ids": [0.5, 1]}, "'ids' must be one distinct integer per row for RandomSelector."),
    ],
)
def test_messages(given, message):
    with pytest.raises(DataError) as caught:
        RandomSelector().fit(**given)
    assert str(caught.value) == message
