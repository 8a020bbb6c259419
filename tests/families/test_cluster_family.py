"""What every clusterer of the registry promises. A new method adds one row and inherits all of it."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.datasets import make_blobs
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from tunesmith import methods
from tunesmith.core.errors import ParameterError

Data = tuple[np.ndarray, np.ndarray | None]


def blobs(n: int, seed: int) -> Data:
    """Three clear groups in four columns, no labels."""
    X, _ = make_blobs(n, n_features=4, centers=3, cluster_std=0.4, random_state=seed)
    return X, None


def partly_labelled(n: int, seed: int) -> Data:
    """Five clear groups; two are known classes, the rows of the other three are unlabelled."""
    X, y = make_blobs(n, n_features=4, centers=5, cluster_std=0.4, random_state=seed)
    return X, np.where(y < 2, y, -1)


def coarsely_labelled(n: int, seed: int) -> Data:
    """Six clear groups under two parents."""
    X, y = make_blobs(n, n_features=4, centers=6, cluster_std=0.4, random_state=seed)
    return X, y % 2


@dataclass(frozen=True)
class Row:
    """A method with parameters that make it quick, and data of the kind it is for."""

    name: str
    parameters: dict[str, Any] = field(default_factory=dict)
    data: Callable[[int, int], Data] = blobs
    random: bool = True  # has random_state
    changes: dict[str, Any] = field(default_factory=dict)  # a parameter to search over: {name: [values]}
    expected_failures: dict[str, str] = field(
        default_factory=dict
    )  # scikit-learn's check -> why it cannot pass
    phases: bool = True  # reports its steps to callbacks
    unlabelled: bool = False  # refuses complete labels, see `hiding`

    def __str__(self) -> str:
        options = ",".join(f"{k}={v}" for k, v in self.parameters.items())
        return f"{self.name}({options})"

    def create(self, **more: Any) -> Any:
        seeded = {"random_state": 0} if self.random else {}
        return methods.create(self.name, **{**seeded, **self.parameters, **more})

    def checked(self) -> Any:
        """Return the estimator as scikit-learn's own checks get it."""
        model = self.create()
        if self.unlabelled:
            model.__class__ = hiding(type(model))
        return model


@cache
def hiding(base: Any) -> Any:
    """Return a subclass that takes the least label for -1: scikit-learn's checks know complete labels only."""

    class Hiding(base):  # type: ignore[misc]
        def fit(self, X: Any, y: Any = None) -> Any:
            if y is not None:
                y = np.asarray(y)
                y = np.where(y == y.min(), -1, y)
            return super().fit(X, y)

    Hiding.__name__ = Hiding.__qualname__ = f"Hiding{base.__name__}"
    globals()[Hiding.__name__] = Hiding  # where pickle looks for it
    return Hiding


ROWS: list[Row] = [
    Row(
        "cluster.acol",
        {"k": 3, "hidden_layer_sizes": (16,), "max_iter": 8},
        coarsely_labelled,
        changes={"c_alpha": [0.1, 1.0]},
    ),
    Row(
        "cluster.depict",
        {
            "n_clusters": 3,
            "hidden_layer_sizes": (16,),
            "pretrain_epochs": 5,
            "warmup_epochs": 1,
            "max_iter": 3,
            "n_init": 2,
        },
        changes={"n_clusters": [2, 4]},
        expected_failures=dict.fromkeys(
            (
                "check_dont_overwrite_parameters",
                "check_fit2d_1feature",
                "check_fit2d_predict1d",
                "check_methods_subset_invariance",
            ),
            "sets n_clusters=1, of which the paper's objective makes nothing: refused",
        ),
    ),
    Row("cluster.kmeans", {"n_clusters": 3}, changes={"n_clusters": [2, 4]}, phases=False),
    Row("cluster.kmeans_sdp", {"n_clusters": 3, "max_iter": 100}, changes={"n_clusters": [2, 4]}),
    Row(
        "cluster.la_sdp",
        {"n_clusters": 3, "max_iter": 2, "solver_max_iter": 50},
        changes={"covariance_type": ["full", "tied", "diag", "spherical"]},
    ),
    Row("cluster.ncd_kmeans", {"n_novel": 3}, partly_labelled, changes={"n_novel": [2, 4]}, unlabelled=True),
    Row(
        "cluster.ncd_spectral",
        {"n_novel": 3, "s_min": 0.2},
        partly_labelled,
        changes={"s_min": [0.1, 0.5]},
        unlabelled=True,
    ),
    Row(
        "cluster.pbn",
        {"n_novel": 3, "epochs": 5, "batch_size": 32},
        partly_labelled,
        changes={"w": [0.2, 0.8]},
        unlabelled=True,
        expected_failures={
            "check_clustering": "two columns leave two units in the paper's hidden layers, too few for its blobs"
        },
    ),
    Row("cluster.transductive", {"n_clusters": 3}, changes={"lam": [0.0, 0.5]}),
    Row(
        "cluster.transductive",
        {"n_clusters": 5},
        data=partly_labelled,
        changes={"objective": ["kmeans", "kmodes"]},
    ),
    Row(
        "cluster.deep_subspace",
        {
            "n_clusters": 3,
            "hidden": (8,),
            "pretrain_epochs": 5,
            "expression_epochs": 5,
            "quality_epochs": 3,
            "n_init": 2,
            "device": "cpu",
        },
        changes={"ridge": [0.1, 1.0]},
    ),
]
every = pytest.mark.parametrize("row", ROWS, ids=str)


def fit(estimator: Any, X: Any, y: Any) -> Any:
    """Fit without the advice that short schedules bring about."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.simplefilter("ignore", UserWarning)
        return estimator.fit(X) if y is None else estimator.fit(X, y)


def test_every_registered_clusterer_has_a_row() -> None:
    assert {row.name for row in ROWS} == set(methods.names("cluster.*"))


def _expected(estimator: Any) -> dict[str, str]:
    for row in ROWS:
        if type(row.checked()) is type(estimator) and row.create().get_params() == estimator.get_params():
            return row.expected_failures
    return {}


@parametrize_with_checks([row.checked() for row in ROWS], expected_failed_checks=_expected)
def test_scikit_learn_contract(estimator: Any, check: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.simplefilter("ignore", UserWarning)
        check(estimator)


@every
def test_labels_are_one_whole_number_per_row(row: Row) -> None:
    X, y = row.data(90, 0)
    model = fit(row.create(), X, y)
    assert model.labels_.shape == (90,)
    assert model.labels_.dtype == np.int64
    assert isinstance(model.n_iter_, int)
    assert len(np.unique(model.labels_)) > 1


@every
def test_same_seed_same_labels_and_pickling_changes_nothing(row: Row) -> None:
    X, y = row.data(90, 1)
    first, again = (fit(row.create(), X, y) for _ in range(2))
    np.testing.assert_array_equal(first.labels_, again.labels_)
    loaded = pickle.loads(pickle.dumps(first))
    np.testing.assert_array_equal(loaded.labels_, first.labels_)
    assert loaded.get_params().keys() == first.get_params().keys()
    if hasattr(first, "predict"):
        np.testing.assert_array_equal(loaded.predict(X), first.predict(X))


@every
def test_parameters_stay_as_given(row: Row) -> None:
    X, y = row.data(90, 2)
    model = row.create()
    before = {name: repr(value) for name, value in model.get_params().items()}
    fit(model, X, y)
    assert {name: repr(value) for name, value in model.get_params().items()} == before
    assert not hasattr(clone(model), "labels_")


@every
def test_float32_and_pandas(row: Row) -> None:
    X, y = row.data(90, 3)
    reference = fit(row.create(), X, y)
    single = fit(row.create(), X.astype(np.float32), y)
    assert single.labels_.shape == reference.labels_.shape
    frame = pd.DataFrame(X, columns=list("abcd"))
    model = fit(row.create(), frame, None if y is None else pd.Series(y))
    np.testing.assert_array_equal(model.labels_, reference.labels_)
    assert list(model.feature_names_in_) == list("abcd")


@every
def test_pipeline_and_grid_search(row: Row) -> None:
    X, y = row.data(120, 4)
    piped = fit(make_pipeline(StandardScaler(), row.create()), X, y)
    assert piped[-1].labels_.shape == (120,)

    def groups(model: Any, X: Any, y: Any = None) -> float:
        return float(len(np.unique(model.labels_)))

    cv = KFold(2, shuffle=True, random_state=0)
    search = GridSearchCV(row.create(), row.changes, scoring=groups, cv=cv, error_score="raise")
    fit(search, X, y)
    assert len(search.cv_results_["params"]) == np.prod([len(v) for v in row.changes.values()])


@every
def test_callbacks_hear_every_fit(row: Row) -> None:
    if not row.phases:
        pytest.skip("one closed step: nothing to report")
    heard: list[str] = []

    class Listener:
        def setup(self, estimator: Any, context: Any) -> None:
            heard.append("setup")

        def on_fit_task_begin(self, estimator: Any, context: Any) -> None:
            heard.append(context.task_name)

        def on_fit_task_end(self, estimator: Any, context: Any) -> None: ...

        def teardown(self, estimator: Any, context: Any) -> None:
            heard.append("teardown")

    X, y = row.data(90, 5)
    fit(row.create().set_callbacks(Listener()), X, y)
    assert heard[:2] == ["setup", "fit"]
    assert heard[-1] == "teardown"
    assert "step" in heard


@every
def test_duplicates_and_constant_columns_are_survived(row: Row) -> None:
    X, y = row.data(60, 6)
    X = np.repeat(np.column_stack([X, np.ones(len(X))]), 2, axis=0)
    model = fit(row.create(), X, None if y is None else np.repeat(y, 2))
    assert model.labels_.shape == (120,)


@every
def test_nan_is_refused_with_its_name(row: Row) -> None:
    X, y = row.data(90, 7)
    X[3, 1] = np.nan
    with pytest.raises(ValueError, match=r"Input X contains NaN"):
        fit(row.create(), X, y)


@every
def test_parameter_errors_name_class_and_parameter(row: Row) -> None:
    X, y = row.data(90, 8)
    model = row.create()
    for name in model._parameter_constraints:
        with pytest.raises(
            ParameterError, match=rf"The '{name}' parameter of {type(model).__name__} must be "
        ):
            fit(clone(model).set_params(**{name: object()}), X, y)


@every
def test_more_clusters_than_rows_are_refused(row: Row) -> None:
    X, y = row.data(12, 9)
    model = row.create()
    count = next((name for name in ("n_clusters", "n_novel") if name in model.get_params()), None)
    if count is None:
        pytest.skip("the number of groups follows from the labels")
    with pytest.raises(
        ParameterError, match=rf"^The '{count}' parameter of {type(model).__name__} must be .* Got 13"
    ):
        fit(model.set_params(**{count: 13}), X, y)


@every
def test_groups_that_are_worlds_apart(row: Row) -> None:
    """No neighbour links the two halves: graphs fall apart, and scales differ by a million."""
    X, y = row.data(80, 10)
    X = X + 1e6 * (np.arange(80) % 2)[:, None]
    model = fit(row.create(), X, y)
    assert model.labels_.shape == (80,)


@every
def test_a_single_class_of_labels_is_enough(row: Row) -> None:
    X, y = row.data(80, 11)
    if y is None:
        pytest.skip("uses no labels")
    model = fit(row.create(), X, np.where(y < 0, y, 0))
    assert model.labels_.shape == (80,)
    assert len(np.unique(model.labels_)) > 1
