"""NCD k-means: what must hold (Troisemaine et al. 2024, Sec. 3.2), hand-worked numbers, and bad input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.cluster import KMeans, kmeans_plusplus
from sklearn.datasets import make_blobs
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import adjusted_rand_score

from tunesmith.cluster import NCDKMeans
from tunesmith.cluster.ncd.lloyd import class_means, draw_probabilities, draw_rows, open_table
from tunesmith.core.errors import DataError, ParameterError
from tunesmith.metrics.clustering import novel_class_accuracy


def blobs(classes: int = 6, n: int = 180, seed: int = 0, known: int = 3) -> tuple[Any, Any, Any]:
    """Rows, true classes, and labels with the novel classes at -1."""
    X, true = make_blobs(n, n_features=5, centers=classes, cluster_std=0.5, random_state=seed)
    return X, true, np.where(true < known, true, -1)


def test_hand_check_in_one_dimension() -> None:
    """Known centroid 0, unlabelled 10, 11, 1: draws by 100, 121, 1 (or 10, 11, 1), and the mean 22/3."""
    assert_allclose(draw_probabilities(np.array([10.0, 11, 1]), 2), np.array([100, 121, 1]) / 222)
    assert_allclose(draw_probabilities(np.array([10.0, 11, 1]), 1), np.array([10, 11, 1]) / 22)
    X, y = np.array([[-1.0], [1], [10], [11], [1]]), np.array([4, 4, -1, -1, -1])
    for options in ({}, {"init_power": 1}, {"variant": "official"}):
        model = NCDKMeans(1, random_state=0, **options).fit(X, y)
        assert_allclose(model.cluster_centers_, [[22 / 3]])
        assert_array_equal(model.known_centers_, [[0.0]])
        assert_array_equal(model.labels_, [-1, -1, 0, 0, 0])
    squares = np.square(np.array([10, 11, 1]) - 22 / 3)
    assert NCDKMeans(1, random_state=0).fit(X, y).inertia_ == pytest.approx(squares.sum())


@pytest.mark.parametrize("power", [1, 2])
def test_draws_follow_the_probabilities(power: int) -> None:
    X = np.array([[10.0], [11.0], [1.0]])
    table = open_table(X)
    known, rng = 0 - table.shift[None], np.random.RandomState(0)
    drawn = [draw_rows(table, 1, known, power, rng)[0] for _ in range(2000)]
    share = np.bincount(drawn, minlength=3) / 2000
    p = draw_probabilities(np.array([10.0, 11, 1]), power)
    assert np.all(np.abs(share - p) < 4 * np.sqrt(p * (1 - p) / 2000))


def test_a_row_on_a_known_centroid_is_never_drawn() -> None:
    X = np.array([[0.0, 0], [0, 0], [3, 4], [0, 0]])
    table = open_table(X)
    known = 0 - table.shift[None]
    for seed in range(20):
        assert draw_rows(table, 1, known, 2, np.random.RandomState(seed)).tolist() == [2]


def test_without_known_classes_it_is_k_means_plus_plus_and_lloyd() -> None:
    X, _, _ = blobs()
    _, chosen = kmeans_plusplus(X, 4, random_state=np.random.RandomState(5), n_local_trials=1)
    table = open_table(X)
    rng = np.random.RandomState(5)
    first = (chosen[0] + 0.5) / len(X)

    class AfterFirst:
        """scikit-learn's stream after its own draw of the first row."""

        def __init__(self) -> None:
            self.given = [first]
            rng.choice(len(X), p=np.full(len(X), 1 / len(X)))

        def random_sample(self) -> float:
            return self.given.pop() if self.given else float(rng.uniform(size=1)[0])

    assert_array_equal(draw_rows(table, 4, None, 2, AfterFirst()), chosen)
    ours = NCDKMeans(4, n_init=1, tol=0, random_state=3).fit(X)
    start = X[draw_rows(table, 4, None, 2, np.random.RandomState(3))]
    theirs = KMeans(4, init=start, n_init=1, tol=0).fit(X)
    assert_allclose(ours.cluster_centers_, theirs.cluster_centers_, atol=1e-10)
    assert_array_equal(ours.labels_, theirs.labels_)
    assert ours.inertia_ == pytest.approx(theirs.inertia_)


def test_known_centroids_do_not_move() -> None:
    X, _, y = blobs()
    model = NCDKMeans(3, random_state=0).fit(X, y)
    before = class_means(X[y >= 0], y[y >= 0])[1]
    assert model.known_centers_.tobytes() == before.tobytes()
    assert_allclose(before, [X[y == k].mean(axis=0) for k in range(3)])
    assert_array_equal(model.known_classes_, [0, 1, 2])
    # the ablation of App. D: with a class known by one row far off its rows, its centroid walks to them
    X = np.array([[0.0], [10], [11], [12], [30], [31]])
    y = np.array([7, -1, -1, -1, -1, -1])
    moved = NCDKMeans(1, update_known=True, random_state=0).fit(X, y)
    assert sorted([moved.known_centers_.item(), moved.cluster_centers_.item()]) == [11, 30.5]
    assert NCDKMeans(1, random_state=0).fit(X, y).known_centers_.item() == 0


def test_novel_classes_are_found() -> None:
    X, true, y = blobs()
    for n_novel in (3, "auto"):
        model = NCDKMeans(n_novel, random_state=0).fit(X, y)
        assert model.n_novel_ == 3
        assert novel_class_accuracy(true, model.labels_, known=[0, 1, 2]) == 1
        assert_array_equal(model.labels_[y >= 0], -1)
        assert_array_equal(model.predict(X[y < 0]), model.labels_[y < 0])
    assert max(model.novel_scores_, key=model.novel_scores_.get) == 3


def test_true_labels_of_novel_rows_are_never_seen() -> None:
    X, true, y = blobs()
    novel = y < 0
    reference = NCDKMeans(random_state=0).fit(X, y).labels_
    for other in (np.random.default_rng(0).permutation(true[novel]), np.zeros(novel.sum(), int)):
        relabelled = true.copy()
        relabelled[novel] = other + 3
        assert_array_equal(
            NCDKMeans(random_state=0).fit(X, np.where(relabelled < 3, relabelled, -1)).labels_, reference
        )


def test_labels_may_be_any_whole_numbers() -> None:
    X, _, y = blobs()
    reference = NCDKMeans(3, random_state=0).fit(X, y)
    renamed = NCDKMeans(3, random_state=0).fit(X, np.where(y < 0, -1, 100 - 7 * y).astype(float))
    assert_array_equal(renamed.labels_, reference.labels_)
    assert_array_equal(renamed.known_classes_, [86, 93, 100])


def test_an_empty_centroid_keeps_its_place() -> None:
    X = np.array([[0.0], [0.0], [5.0]])
    with pytest.warns(ConvergenceWarning, match="found 2 distinct clusters where n_novel is 3"):
        model = NCDKMeans(3, random_state=0).fit(X)
    assert sorted(set(model.cluster_centers_.ravel().tolist())) == [0.0, 5.0]
    assert adjusted_rand_score(model.labels_, [0, 0, 1]) == 1


def test_not_converged_is_said_and_the_result_is_usable() -> None:
    X, _, y = blobs(n=600)
    with pytest.warns(ConvergenceWarning, match=r"NCDKMeans did not converge in max_iter=1 steps"):
        model = NCDKMeans(5, max_iter=1, tol=0, random_state=0).fit(X, y)
    assert model.n_iter_ == 1
    assert set(np.unique(model.labels_)) == {-1, 0, 1, 2, 3, 4}


def test_fit_predict_hears_the_labels() -> None:
    X, _, y = blobs()
    assert_array_equal(NCDKMeans(3, random_state=0).fit_predict(X, y)[y >= 0], -1)


def test_one_known_class_is_enough() -> None:
    X, true, y = blobs(known=1)
    labels = NCDKMeans(5, random_state=0).fit(X, y).labels_
    assert novel_class_accuracy(true, labels, known=[0]) == 1


def test_bad_labels() -> None:
    X, _, y = blobs()
    with pytest.raises(DataError, match=r"^NCDKMeans found no row to cluster: no label is -1\.$"):
        NCDKMeans(3).fit(X, np.abs(y))
    with pytest.raises(
        DataError, match=r"^NCDKMeans needs one label per row: X has 180 rows and y has the shape \(5,\)\.$"
    ):
        NCDKMeans(3).fit(X, y[:5])
    with pytest.raises(DataError, match="needs whole numbers as labels"):
        NCDKMeans(3).fit(X, y + 0.5)


def test_more_clusters_than_unlabelled_rows() -> None:
    X, _, y = blobs(n=12, known=5)
    with pytest.raises(
        ParameterError,
        match=r"^The 'n_novel' parameter of NCDKMeans must be an int in \[1, 2\], the number of rows\. Got 3 ",
    ):
        NCDKMeans(3).fit(X, y)
    with pytest.raises(
        DataError, match=r"needs more than k_min=2 distinct rows to compare counts; it got 2\.$"
    ):
        NCDKMeans("auto").fit(X, y)
