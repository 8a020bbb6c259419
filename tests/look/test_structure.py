"""Outliers, tables as vectors, and what tells clusters apart."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from tunesmith.look.findings import findings_of
from tunesmith.look.structure import SAMPLE, find_outliers, structure_of
from tunesmith.look.tables import column_facts, row_hashes, table_vectors, telling_columns


def test_the_distance_is_that_to_the_fifth_other_row() -> None:
    x = np.arange(40.0, dtype=np.float32)[:, None]
    _, distance = find_outliers(x)
    assert distance[0] == 5  # an end: 1 … 5 to the right
    assert distance[20] == 3  # the middle: 1, 1, 2, 2, 3


def test_a_far_row_is_found_and_copies_do_not_hide_it() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 5)).astype(np.float32)
    x[7] = 30
    x[9] = x[8] = 40  # a pair far away: its fifth neighbour is far as well
    far, _ = find_outliers(x)
    assert set(far[:3].tolist()) == {7, 8, 9}


@pytest.mark.parametrize("x", [np.zeros((30, 2)), np.zeros((5, 2)), np.eye(3)])
def test_equal_or_few_rows_have_no_outliers(x: np.ndarray) -> None:
    far, distance = find_outliers(x.astype(np.float32))
    assert len(far) == 0
    assert distance.shape == (len(x),)


def test_rows_outside_the_sample_are_measured_too() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(SAMPLE + 2000, 3)).astype(np.float32)
    x[-1] = 100
    far, distance = find_outliers(x, seed=1)
    assert far[0] == len(x) - 1
    assert (distance > 0).all()


def test_structure_numbers_clusters_from_the_largest() -> None:
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(0, 0.1, (40, 4)), rng.normal(5, 0.1, (12, 4))]).astype(np.float32)
    found = structure_of(x)
    sizes = np.bincount(found.cluster)
    assert (np.diff(sizes) <= 0).all()
    assert set(found.central) == set(range(len(sizes)))
    assert found.xy.shape == (52, 2)


FRAME = pd.DataFrame(
    {
        "n": [1.0, 2.0, 3.0, np.nan, 1e9, np.inf],
        "flag": [True, False, True, False, True, False],
        "level": ["a", "b", "a", None, "b", "a"],
        "list": [[1], [2], [1], [3], [4], [5]],
        "id": [f"x{i}" for i in range(6)],
        "one": 7,
        "none": [None] * 6,
    }
)


def test_columns_are_told_apart() -> None:
    facts = {column["name"]: column for column in column_facts(FRAME)}
    kinds = {name: column["kind"] for name, column in facts.items()}
    assert kinds == {
        "n": "number", "flag": "category", "level": "category", "list": "category", "id": "category",
        "one": "constant", "none": "empty",
    }  # fmt: skip
    assert (facts["n"]["missing"], facts["n"]["infinite"], facts["n"]["max"]) == (
        pytest.approx(1 / 6),
        1,
        1e9,
    )
    assert facts["level"]["common"][0] == ("a", 3)
    assert facts["none"]["missing"] == 1


def test_numbers_enter_by_rank_and_categories_one_hot() -> None:
    frame = FRAME[["n", "level"]]
    x = table_vectors(frame, column_facts(frame))
    # score, missing, and a, b, missing of the level
    assert x.shape == (6, 5)
    assert x[:3, 0].tolist() == sorted(x[:3, 0].tolist())
    assert abs(x[4, 0]) < 2  # the outlier is only the last in order
    assert (x[3, 0], x[5, 0]) == (0, 0)  # missing and infinite
    np.testing.assert_allclose((x[:, 2:] ** 2).sum(axis=1), 0.5, rtol=1e-6)
    assert table_vectors(FRAME[["one"]], column_facts(FRAME[["one"]])).shape == (6, 0)


def test_equal_rows_have_equal_hashes_missing_values_included() -> None:
    twice = pd.concat([FRAME, FRAME], ignore_index=True)
    hashes = row_hashes(twice)
    assert (hashes[:6] == hashes[6:]).all()
    assert len(np.unique(hashes)) == 6


def test_what_tells_a_cluster_of_rows_apart() -> None:
    frame = pd.DataFrame(
        {"size": [1.0, 2, 3, 101, 102, 103], "colour": ["red"] * 3 + ["blue"] * 3, "noise": [1, 9, 4] * 2}
    )
    words = telling_columns(frame, column_facts(frame), np.array([0, 0, 0, 1, 1, 1]))
    assert set(words[0]) == {"size low", "colour = red"}
    assert set(words[1]) == {"size high", "colour = blue"}


def test_findings_of_one_large_cluster_and_several_languages() -> None:
    facts = {
        "kind": "text",
        "rows": 1000,
        "reading": {"n_read": 1000, "n_kept": 1000, "reasons": {}},
        "lengths": {"longest_rows_share_one_length": 40},
        "languages": [{"code": "en", "rows": 700}, {"code": "?", "rows": 100}, {"code": "de", "rows": 200}],
        "clusters": [{"share": 0.6, "name": "big"}, {"share": 0.3, "name": "b"}, {"share": 0.1, "name": "c"}],
        "secrets": [{"kind": "AWS access key", "rows": 1}, {"kind": "e-mail address", "rows": 5}],
        "answers": [{"problem": "perhaps cut off: no end of sentence", "rows": 100}],
        "vectors": {"constant_columns": 0},
        "outliers": {"rows": 3},
    }  # fmt: skip
    found = [(finding["level"], finding["title"]) for finding in findings_of(facts)]
    assert found == [
        ("grave", "Exactly the largest length: 40 rows (4.0 %)"),
        ("grave", "Looks like AWS access key: 1 row (0.1 %)"),
        ("note", "Perhaps cut off: no end of sentence: 100 rows (10 %)"),
        ("note", "Looks like e-mail address: 5 rows (0.5 %)"),
        ("note", "Several languages: en 78 %, de 22 %"),
        ("note", "One cluster holds 60 % of the rows: big"),
        ("note", "Apart from all others: 3 rows (0.3 %)"),
    ]
