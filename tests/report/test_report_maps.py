"""The map of a pool: shapes, determinism, neighbours stay neighbours, degenerate pools."""

from __future__ import annotations

import numpy as np
import pytest

from tunesmith.recipe.report import maps, pool_map


def blobs(n: int, groups: int = 4, width: int = 16) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(groups, width))
    label = rng.integers(0, groups, n)
    return (centres[label] + 0.1 * rng.normal(size=(n, width))).astype(np.float32), label


def purity(xy: np.ndarray, label: np.ndarray) -> float:
    """Share of rows whose nearest other row on the map is of their group."""
    distance = ((xy[:, None] - xy[None]) ** 2).sum(-1)
    np.fill_diagonal(distance, np.inf)
    return float((label[distance.argmin(1)] == label).mean())


def test_groups_stay_together_and_the_map_repeats() -> None:
    rows, label = blobs(120)
    xy, cluster = pool_map(rows, 3)
    assert (xy.shape, xy.dtype, cluster.shape, cluster.dtype) == ((120, 2), np.float32, (120,), np.int32)
    assert np.abs(xy).max() == pytest.approx(1.0)
    assert purity(xy, label) > 0.95
    again = pool_map(rows, 3)
    assert np.array_equal(xy, again[0])
    assert np.array_equal(cluster, again[1])


def test_clusters_are_numbered_from_the_largest() -> None:
    counts = np.bincount(pool_map(blobs(120)[0])[1])
    assert (np.diff(counts) <= 0).all()


def test_rows_beyond_the_sample_stand_among_their_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maps, "EXACT_ROWS", 60)
    rows, label = blobs(200)
    xy, _ = pool_map(rows)
    assert np.isfinite(xy).all()
    assert purity(xy, label) > 0.95


@pytest.mark.parametrize("n", [0, 1, 2, 4])
def test_a_pool_too_small_to_lay_out(n: int) -> None:
    xy, cluster = pool_map(np.ones((n, 3)))
    assert xy.shape == (n, 2)
    assert cluster.tolist() == [0] * n


def test_identical_rows_give_one_point() -> None:
    xy, cluster = pool_map(np.ones((20, 8)))
    assert np.array_equal(xy, np.zeros((20, 2)))
    assert set(cluster.tolist()) == {0}
