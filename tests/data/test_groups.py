"""Words that tell groups apart, and the most typical rows of each."""

from __future__ import annotations

import numpy as np

from tunesmith.data.groups import central_rows, group_names, telling_words

TEXTS = [
    "red apple pie",
    "green apple tart",
    "sour apple",
    "fast red car",
    "slow car",
    "old car",
    "the moon",
    "the sun",
]
LABELS = np.array([0, 0, 0, 1, 1, 1, -1, -1])


def texts(rows: np.ndarray) -> list[str]:
    return [TEXTS[i] for i in rows]


def test_words_are_those_of_the_group_alone() -> None:
    words = telling_words(texts, LABELS)
    assert words[0][0] == "apple"
    assert words[1][0] == "car"
    assert set(words) == {0, 1}
    assert "red" not in words[0] + words[1]  # once in each


def test_names_differ_even_without_words() -> None:
    assert group_names({0: ["a", "b"], 1: ["a", "b"], 2: []}) == {
        0: "a, b (1)",
        1: "a, b (2)",
        2: "cluster 3",
    }


def test_central_rows_are_nearest_to_the_mean_first() -> None:
    X = np.array([[0.0], [1.0], [5.0], [10.0], [11.0], [100.0]])
    found = central_rows(X, np.array([0, 0, 0, 1, 1, -1]), per_group=2)
    assert found[0].tolist() == [1, 0]  # mean 2
    assert found[1].tolist() == [3, 4]
    assert set(found) == {0, 1}


def test_large_pools_are_sampled_evenly() -> None:
    asked: list[int] = []

    def count(rows: np.ndarray) -> list[str]:
        asked.append(len(rows))
        return ["word"] * len(rows)

    telling_words(count, np.zeros(20_000, dtype=np.int64))
    assert asked == [5_000]
