"""Hidden-class splits, the search over them, and the number of novel classes (Troisemaine et al. 2024, Sec. 4-6)."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pandas as pd
import pytest
from joblib import parallel_config
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import loguniform
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.compose import ColumnTransformer
from sklearn.datasets import make_blobs
from sklearn.impute import SimpleImputer
from sklearn.model_selection import cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from tunesmith.cluster import (
    PBN,
    HiddenClassKFold,
    NCDKMeans,
    NCDSearchCV,
    NCDSpectralClustering,
    estimate_n_novel,
)
from tunesmith.cluster.ncd import _base
from tunesmith.cluster.ncd.counting import dunn_index
from tunesmith.core.errors import DataError, ParameterError
from tunesmith.metrics.clustering import novel_class_accuracy


def table(n: int = 210, seed: int = 0) -> tuple[Any, Any, Any]:
    """Seven clear classes in five columns; four are known."""
    X, true = make_blobs(n, n_features=5, centers=7, cluster_std=0.5, random_state=seed)
    return X, true, np.where(true < 4, true, -1)


@pytest.mark.parametrize("known", [2, 3, 5, 8, 19])
@pytest.mark.parametrize("n_splits", [2, 3, 5])
def test_every_known_class_is_hidden_in_some_split(known: int, n_splits: int) -> None:
    y = np.r_[np.repeat(np.arange(known) * 3, 4), np.full(10, -1)]
    cv = HiddenClassKFold(n_splits, random_state=0)
    splits = cv.hidden_classes(y)
    assert len(splits) == cv.get_n_splits() == n_splits
    assert_array_equal(np.unique(np.concatenate(splits)), np.arange(known) * 3)
    assert all(len(set(hidden)) == len(hidden) < known for hidden in splits)
    assert known == 2 or all(len(hidden) >= 2 for hidden in splits)


def test_hidden_rows_are_unlabelled_and_unlabelled_rows_are_never_scored() -> None:
    X, _, y = table()
    cv = HiddenClassKFold(2, random_state=1)
    for (masked, rows), (train, test), classes in zip(
        cv.hide(y), cv.split(X, y), cv.hidden_classes(y), strict=True
    ):
        assert set(masked[masked >= 0]).isdisjoint(classes)
        assert set(y[rows]) == set(classes)
        assert_array_equal(masked[rows], -1)
        assert_array_equal(np.delete(masked, rows), np.delete(y, rows))
        unlabelled = np.flatnonzero(y < 0)
        assert np.isin(unlabelled, train).all()
        assert not np.isin(unlabelled, test).any()
        assert set(y[train]).isdisjoint(classes)
        assert_array_equal(np.sort(np.r_[train, test]), np.arange(len(y)))


def test_splits_without_shuffling_by_hand() -> None:
    y = np.array([0, 1, 2, 3, 4, -1])
    assert [list(h) for h in HiddenClassKFold(3, shuffle=False).hidden_classes(y)] == [[0, 1], [1, 2], [3, 4]]
    three = HiddenClassKFold(2, n_hidden=3, shuffle=False).hidden_classes(y)
    assert [list(h) for h in three] == [[0, 1, 2], [2, 3, 4]]


def test_it_is_a_cv_object_of_scikit_learn() -> None:
    X, _, y = table()
    found = cross_validate(NCDKMeans(3, random_state=0), X, y, cv=HiddenClassKFold(2), scoring="rand_score")
    assert found["test_score"].shape == (2,)


def test_bad_splits() -> None:
    with pytest.raises(
        ParameterError,
        match=r"^The 'n_splits' parameter of HiddenClassKFold must be an int >= 2\. Got 1 instead\.$",
    ):
        HiddenClassKFold(1)
    with pytest.raises(
        DataError, match=r"^HiddenClassKFold needs at least 2 known classes to hide one of them; y has 1\.$"
    ):
        HiddenClassKFold().hidden_classes([3, 3, -1])
    for n_hidden in (1, 4):  # 1 would leave classes that are never hidden, 4 would hide all
        with pytest.raises(
            ParameterError, match=r"must be an int in \[2, 3\] for 4 known classes and 2 splits\. Got "
        ):
            HiddenClassKFold(2, n_hidden=n_hidden).hidden_classes([0, 1, 2, 3])


def blobs_at_corners(side: float = 20.0) -> np.ndarray:
    corners = side * np.array([[0, 0], [1, 0], [0.5, np.sqrt(3) / 2]])
    return np.repeat(corners, 40, axis=0) + np.random.default_rng(0).standard_normal((120, 2))


@pytest.mark.parametrize("k_max", [3, 5, 30])
def test_three_blobs_at_the_corners_of_an_equilateral_triangle(k_max: int) -> None:
    count, scores = estimate_n_novel(blobs_at_corners(), k_max=k_max, random_state=0)
    assert count == 3
    assert list(scores) == list(range(2, min(k_max, 10) + 1))  # at most sqrt(120)


@pytest.mark.parametrize("index", ["calinski_harabasz", "davies_bouldin", "dunn"])
def test_other_indices(index: str) -> None:
    assert estimate_n_novel(blobs_at_corners(), k_max=5, index=index, random_state=0)[0] == 3


def test_dunn_by_hand() -> None:
    Z = np.array([[0.0], [1], [4], [6]])
    assert dunn_index(Z, np.array([0, 0, 1, 1])) == 3 / 2
    assert dunn_index(Z, np.arange(4)) == np.inf


def test_a_sample_stands_for_many_rows() -> None:
    Z = np.vstack([blobs_at_corners() for _ in range(5)])
    first, again = (estimate_n_novel(Z, k_max=6, sample_size=100, random_state=0) for _ in range(2))
    assert first == again
    assert first[0] == 3


def test_bad_counts() -> None:
    Z = blobs_at_corners()
    with pytest.raises(
        ParameterError, match=r"^The 'k_min' parameter of estimate_n_novel must be an int >= 2"
    ):
        estimate_n_novel(Z, k_min=1)
    with pytest.raises(ParameterError, match=r"'k_max' parameter of estimate_n_novel must be an int >= 4"):
        estimate_n_novel(Z, k_min=4, k_max=3)
    with pytest.raises(ParameterError, match=r"must be one of 'silhouette', 'calinski_harabasz', "):
        estimate_n_novel(Z, index="elbow")
    with pytest.raises(
        DataError, match=r"needs more than k_min=2 distinct rows to compare counts; it got 2\.$"
    ):
        estimate_n_novel(np.repeat([[0.0], [1.0]], 10, axis=0))
    with pytest.raises(ValueError, match="Input Z contains NaN"):
        estimate_n_novel(np.where(Z > 5, np.nan, Z))


GRID = {"s_min": [0.01, 0.5, 0.99], "n_components": [2, 5]}


def test_search_finds_what_tells_known_classes_apart() -> None:
    X, true, y = table()
    search = NCDSearchCV(
        NCDSpectralClustering(3, random_state=0), GRID, n_iter=None, cv=HiddenClassKFold(2, random_state=0)
    ).fit(X, y)
    results = search.cv_results_
    assert len(results["params"]) == 6
    splits = np.column_stack([results["split0_test_score"], results["split1_test_score"]])
    assert_allclose(results["mean_test_score"], splits.mean(axis=1))
    assert (
        search.best_score_
        == results["mean_test_score"].max()
        == results["mean_test_score"][search.best_index_]
    )
    assert results["rank_test_score"][search.best_index_] == 1
    assert search.best_params_ == results["params"][search.best_index_]
    assert results["param_s_min"].tolist() == [p["s_min"] for p in results["params"]]
    assert_allclose(results["mean_count_error"], 0)
    assert novel_class_accuracy(true, search.labels_, known=range(4)) == 1
    assert not hasattr(search, "predict")


def test_score_is_that_of_a_fit_by_hand() -> None:
    """NCD k-means clusters the hidden rows alone, drawn away from the classes still known."""
    X, _, y = table()
    cv = HiddenClassKFold(2, random_state=0)
    search = NCDSearchCV(NCDKMeans(3, n_init=1, random_state=7), {"init_power": [1, 2]}, n_iter=None, cv=cv)
    results = search.fit(X, y).cv_results_
    for split, (masked, rows) in enumerate(cv.hide(y)):
        kept = np.union1d(rows, np.flatnonzero(masked >= 0))
        for place, power in enumerate((1, 2)):
            model = NCDKMeans(2, init_power=power, n_init=1, random_state=7).fit(X[kept], masked[kept])
            accuracy = novel_class_accuracy(y[kept], model.labels_, known=masked[masked >= 0])
            assert results[f"split{split}_test_score"][place] == accuracy


def test_random_search_over_a_pipeline_with_unknown_count() -> None:
    X, _, y = table()
    chain = make_pipeline(StandardScaler(), PBN("auto", epochs=10, batch_size=64, k_max=5, random_state=0))
    search = NCDSearchCV(
        chain,
        {"pbn__learning_rate": loguniform(1e-4, 1e-2), "pbn__w": [0.1, 0.5]},
        n_iter=2,
        cv=HiddenClassKFold(2, random_state=0),
        count="estimate",
        random_state=0,
    ).fit(X, y)
    assert search.n_novel_ == search.best_estimator_[-1].n_novel_
    assert search.transform(X).shape == (210, 4)
    assert_array_equal(search.predict(X[y < 0]), search.labels_[y < 0])
    again = clone(search).fit(X, y)
    assert again.best_params_ == search.best_params_
    assert_array_equal(again.labels_, search.labels_)
    assert_array_equal(pickle.loads(pickle.dumps(search)).predict(X), search.predict(X))


def test_a_pipeline_may_encode_categories_and_fill_gaps() -> None:
    X, true, y = table()
    frame = pd.DataFrame(X, columns=list("abcde"))
    frame.loc[::50, "a"] = np.nan
    frame["colour"] = np.where(np.arange(len(X)) % 2, "red", "green")
    chain = make_pipeline(
        ColumnTransformer(
            [("numbers", SimpleImputer(), list("abcde")), ("words", OneHotEncoder(), ["colour"])]
        ),
        NCDKMeans(3, random_state=0),
    )
    search = NCDSearchCV(chain, {"ncdkmeans__init_power": [1, 2]}, n_iter=None, random_state=0).fit(frame, y)
    assert search.best_score_ > 0.9
    assert novel_class_accuracy(true, search.labels_, known=range(4)) > 0.9


def test_parallel_work_changes_nothing() -> None:
    X, _, y = table()
    with parallel_config("threading"):
        one, two = (
            NCDSearchCV(NCDKMeans(3, random_state=0), {"init_power": [1, 2]}, n_jobs=n, random_state=0).fit(
                X, y
            )
            for n in (1, 2)
        )
    assert_array_equal(one.cv_results_["mean_test_score"], two.cv_results_["mean_test_score"])
    assert_array_equal(one.labels_, two.labels_)


def test_no_true_label_of_a_novel_row_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every label that reaches a space is known and not hidden, or -1; permuting the true ones changes nothing."""
    X, true, _ = table()
    seen: list[np.ndarray] = []
    space = NCDSpectralClustering._space

    def watched(self: Any, X: Any, y: Any, k: Any, rng: Any) -> Any:
        seen.append(y)
        return space(self, X, y, k, rng)

    monkeypatch.setattr(NCDSpectralClustering, "_space", watched)
    found = []
    for seed in (None, 0, 1):
        other = true.copy()
        if seed is not None:
            other[true >= 4] = np.random.default_rng(seed).permutation(true[true >= 4])
        search = NCDSearchCV(NCDSpectralClustering(3, random_state=0), GRID, n_iter=None, random_state=0)
        found.append(search.fit(X, np.where(other < 4, other, -1)))
    assert all(y[true >= 4].max() == -1 for y in seen)
    for search in found[1:]:
        assert_array_equal(search.cv_results_["mean_test_score"], found[0].cv_results_["mean_test_score"])
        assert_array_equal(search.labels_, found[0].labels_)


def test_other_clusterers_are_fitted_on_all_rows() -> None:
    X, _, y = table()
    search = NCDSearchCV(KMeans(n_init=2, random_state=0), {"n_clusters": [2, 7]}, n_iter=None).fit(X, y)
    assert search.best_params_ == {"n_clusters": 7}
    assert search.n_novel_ == 7


def test_a_failing_candidate_is_named() -> None:
    X, _, y = table()
    search = NCDSearchCV(NCDSpectralClustering(3, random_state=0), {"s_min": [0.5, 2.0]}, n_iter=None)
    with pytest.warns(
        UserWarning, match=r"the candidate \{'s_min': 2\.0\} failed and scores nan: The 's_min'"
    ):
        search.fit(X, y)
    assert search.best_params_ == {"s_min": 0.5}
    assert search.cv_results_["rank_test_score"].tolist() == [1, 2]
    with pytest.raises(ParameterError, match="The 's_min' parameter of NCDSpectralClustering must be"):
        search.set_params(error_score="raise").fit(X, y)
    nothing = NCDSearchCV(NCDKMeans(3), {"init_power": [3]}, n_iter=None)
    with (
        pytest.warns(UserWarning, match="failed and scores nan"),
        pytest.raises(DataError, match="no candidate could be scored"),
    ):
        nothing.fit(X, y)


def test_bad_search() -> None:
    X, _, y = table()
    space = {"init_power": [1, 2]}
    with pytest.raises(
        ParameterError, match=r"'count' parameter of NCDSearchCV must be 'given' or 'estimate'"
    ):
        NCDSearchCV(NCDKMeans(3), space, count="guess").fit(X, y)
    with pytest.raises(
        ParameterError, match=r"'cv' parameter of NCDSearchCV must be a HiddenClassKFold or None\. Got 3"
    ):
        NCDSearchCV(NCDKMeans(3), space, cv=3).fit(X, y)
    with pytest.raises(
        ParameterError, match=r"'n_iter' parameter of NCDSearchCV must be an int >= 1 or None"
    ):
        NCDSearchCV(NCDKMeans(3), space, n_iter=0).fit(X, y)
    with pytest.raises(
        ParameterError, match="'param_distributions' parameter of NCDSearchCV must be a dict of"
    ):
        NCDSearchCV(NCDKMeans(3), {}).fit(X, y)
    with pytest.raises(DataError, match=r"^NCDSearchCV found no row to cluster: no label is -1\.$"):
        NCDSearchCV(NCDKMeans(3), space).fit(X, np.abs(y))
    with pytest.warns(
        UserWarning, match="a split hides one class only, which every candidate clusters rightly"
    ):
        NCDSearchCV(NCDKMeans(3, random_state=0), space).fit(X, np.where(y < 2, y, -1))


def test_hidden_rows_are_counted_where_they_are_clustered() -> None:
    X, _, y = table()
    masked, rows = next(HiddenClassKFold(2, random_state=0).hide(y))
    for model in (NCDKMeans(random_state=0), NCDSpectralClustering(n_components=5, random_state=0)):
        labels, k = _base.hidden_labels(model, X, masked, rows, None)
        assert k == 2
        assert novel_class_accuracy(y[rows], labels, known=[]) == 1
