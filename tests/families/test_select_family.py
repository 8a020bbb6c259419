"""What every offline selector of the registry promises. A new method adds one row and inherits all of it."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from tunesmith import methods
from tunesmith.core.errors import DataError, ParameterError

Features = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """A method with parameters, and how its features look for n rows."""

    name: str
    features: Callable[[int, np.random.Generator], Features]
    parameters: dict[str, Any] = field(default_factory=dict)
    prefix: bool = False  # promises that a smaller budget is a prefix of a larger one
    random: bool = False  # has random_state
    changes: dict[str, Any] = field(default_factory=dict)  # a parameter to set by set_params
    least: int = 1  # rows below which the method is undefined

    def __str__(self) -> str:
        options = ",".join(f"{k}={v}" for k, v in self.parameters.items() if k != "random_state")
        return f"{self.name}({options})"

    def create(self, **more: Any) -> Any:
        seeded = {"random_state": 0} if self.random else {}
        return methods.create(self.name, **{**seeded, **self.parameters, **more})

    def fit(self, n: int = 60, seed: int = 0, **more: Any) -> Any:
        return quiet(self.create(**more).fit, **self.features(n, np.random.default_rng(seed)))


def embedding(n: int, rng: np.random.Generator) -> Features:
    return {"X": rng.normal(size=(n, 6)).astype(np.float32)}


def embedding_and_quality(n: int, rng: np.random.Generator) -> Features:
    return {**embedding(n, rng), "quality": rng.integers(0, 64, n) / np.float32(8)}


def tags(n: int, rng: np.random.Generator) -> Features:
    return {
        "X": np.empty((n, 0), dtype=np.float32),
        "tags": [[f"t{j}" for j in rng.integers(0, 9, rng.integers(1, 4))] for _ in range(n)],
        "quality": (1 + rng.integers(0, 64, n)) / np.float32(8),
        "label_embeddings": {f"t{j}": v for j, v in enumerate(rng.normal(size=(9, 3)).astype(np.float32))},
    }


def perplexities(n: int, rng: np.random.Generator) -> Features:
    return {"perplexity": (1 + rng.integers(0, 999, n)) / np.float32(8)}


def embedding_and_scores(n: int, rng: np.random.Generator) -> Features:
    ifd = (1 + rng.integers(0, 64, n)) / np.float32(32)
    return {**embedding(n, rng), **perplexities(n, rng), "ifd": ifd}


def embedding_and_target(n: int, rng: np.random.Generator) -> Features:
    return {**embedding(n, rng), "target_embedding": rng.normal(0.5, 1.0, size=(23, 6)).astype(np.float32)}


ROWS = [
    Row("select.goracs", embedding_and_target, changes={"cost": "sqeuclidean"}),
    Row(
        "select.gotd",
        embedding_and_target,
        {"n_candidates": 30},
        prefix=True,
        random=True,
        changes={"relative_epsilon": 0.1},
        least=2,
    ),
    Row(
        "select.iterative_kmeans",
        embedding_and_quality,
        random=True,
        changes={"n_rounds": 2},
    ),
    Row(
        "select.iterative_kmeans",
        embedding,
        {"sampling": "random", "w0": "size", "n_rounds": 4},
        random=True,
        changes={"w0": "uniform"},
    ),
    Row(
        "select.lifelong",
        embedding_and_scores,
        {"n_clusters": 1},
        random=True,
        changes={"strata": 5},
    ),
    Row("select.perplexity", perplexities, prefix=True, changes={"band": "high"}),
    Row("select.perplexity", perplexities, {"band": "mid"}, prefix=True, changes={"min_perplexity": 2.0}),
    Row("select.random", embedding, prefix=True, random=True, changes={"random_state": 5}),
    Row("select.kmeans", embedding_and_quality, random=True, changes={"temperature": 2.0}),
    Row(
        "select.kmeans",
        embedding,
        {"sampling": "random", "n_clusters": 1},
        random=True,
        changes={"n_init": 2},
    ),
    Row("select.kmeans", embedding, {"sampling": "closest"}, random=True, changes={"allocation": "equal"}),
    Row(
        "select.kmeans",
        embedding_and_quality,
        {"allocation": "equal", "n_clusters": 1, "normalise": False},
        random=True,
        changes={"max_iter": 3},
    ),
    Row("select.mig", tags, {"threshold": 0.5}, prefix=True, changes={"beta": 0.5}),
    Row("select.mig", tags, {"threshold": 0.5, "gain": "exact"}, prefix=True, changes={"alpha": 0.0}),
    Row(
        "select.mig",
        tags,
        {"threshold": 0.5, "phi": "exponential", "norm": True},
        prefix=True,
        changes={"gamma": 0.1},
    ),
]
every = pytest.mark.parametrize("row", ROWS, ids=str)


def quiet(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call without the advice that tiny pools bring about."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return function(*args, **kwargs)


def select(selector: Any, budget: float) -> np.ndarray:
    return quiet(selector.select, budget)


def test_every_registered_selector_has_a_row():
    from tunesmith.select import Selector

    offline = {
        n
        for n in methods.names("select.*")
        if isinstance(c := methods.get(n), type) and issubclass(c, Selector)
    }
    assert offline == {row.name for row in ROWS}


@every
@pytest.mark.parametrize("budget", [1, 7, 59, 60])
def test_int_budget_gives_that_many_distinct_rows(row, budget):
    picks = select(row.fit(), budget)
    assert picks.dtype == np.int64
    assert picks.shape == (budget,)
    assert len(set(picks.tolist())) == budget
    assert picks.min() >= 0
    assert picks.max() < 60


@every
@pytest.mark.parametrize(
    ("budget", "rows"), [(1.0, 60), (0.5, 30), (0.1, 6), (0.001, 1), (0.025, 2), (0.075, 4)]
)
def test_float_budget_is_a_share(row, budget, rows):
    assert len(select(row.fit(), budget)) == rows  # 1.5 and 4.5 rows round half to even


@every
def test_numpy_budgets_are_taken(row):
    selector = row.fit()
    assert np.array_equal(select(selector, np.int32(12)), select(selector, 12))
    assert np.array_equal(select(selector, np.float64(0.2)), select(selector, 12))


@every
@pytest.mark.parametrize("budget", [0, -3, 61, 0.0, 1.5, -0.1, True, False, "10%", None, float("nan")])
def test_bad_budget_message(row, budget):
    selector = row.fit()
    with pytest.raises(ParameterError) as caught:
        selector.select(budget)
    assert str(caught.value) == (
        f"The 'budget' parameter of {type(selector).__name__} must be an int in [1, 60] or a float "
        f"in (0, 1]. "
        f"Got {budget!r} instead."
    )


@every
def test_select_before_fit(row):
    with pytest.raises(NotFittedError, match="is not fitted yet"):
        row.create().select(1)


@every
def test_fit_returns_self_and_chains(row):
    selector = row.create()
    assert quiet(selector.fit, **row.features(60, np.random.default_rng(0))) is selector
    assert selector.n_rows_ == 60


@every
def test_equal_inputs_give_equal_picks(row):
    assert np.array_equal(select(row.fit(), 20), select(row.fit(), 20))


@every
def test_selecting_again_gives_the_same(row):
    selector = row.fit()
    first = select(selector, 20).copy()
    select(selector, 3)
    assert np.array_equal(select(selector, 20), first)


@every
def test_seeds_matter_where_there_is_randomness(row):
    if not row.random:
        assert "random_state" not in row.create().get_params()
    elif row.parameters.get("sampling") != "closest":  # there the seed only starts k-means
        assert any(
            not np.array_equal(select(row.fit(), 20), select(row.fit(random_state=s), 20)) for s in (1, 2, 3)
        )


@every
def test_no_seed_still_selects_and_repeats_after_one_fit(row):
    if not row.random:
        pytest.skip("no randomness")
    selector = row.fit(random_state=None)
    assert np.array_equal(select(selector, 20), select(selector, 20))


@every
def test_global_random_state_is_left_alone(row):
    np.random.seed(7)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    select(row.fit(), 20)
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002


@every
def test_prefix_where_promised(row):
    selector = row.fit()
    large, small = select(selector, 30).copy(), select(selector, 11)
    if row.prefix:
        assert np.array_equal(large[:11], small)
    else:
        # Counts per cluster, round and stratum are rounded anew for each budget; GORACS judges whole sets.
        assert row.name in ("select.kmeans", "select.iterative_kmeans", "select.lifelong", "select.goracs")


@every
def test_clone_and_parameters(row):
    selector = row.create()
    parameters = selector.get_params()
    twin = clone(selector)
    assert twin.get_params() == parameters
    assert not hasattr(clone(row.fit()), "n_rows_")
    assert type(selector)(**parameters).get_params() == parameters


@every
def test_set_params_is_seen_by_the_next_fit(row):
    selector = row.create()
    selector.set_params(**row.changes)
    for name, value in row.changes.items():
        assert selector.get_params()[name] == value
    quiet(selector.fit, **row.features(60, np.random.default_rng(0)))
    assert np.array_equal(select(selector, 20), select(row.fit(**row.changes), 20))


@every
def test_parameters_are_stored_untouched_by_fit(row):
    selector = row.create()
    before = deepcopy(selector.get_params())
    quiet(selector.fit, **row.features(60, np.random.default_rng(0)))
    select(selector, 9)
    assert selector.get_params() == before


@every
def test_pickle_of_a_fitted_selector(row):
    selector = row.fit()
    again = pickle.loads(pickle.dumps(selector))
    assert np.array_equal(select(again, 20), select(selector, 20))


@every
def test_inputs_are_not_modified(row):
    features = row.features(60, np.random.default_rng(0))
    before = deepcopy(features)
    select(quiet(row.create().fit, **features), 20)
    for name, value in before.items():
        np.testing.assert_equal(features[name], value)


@every
def test_read_only_inputs(row):
    features = row.features(60, np.random.default_rng(0))
    for value in features.values():
        if isinstance(value, np.ndarray):
            value.setflags(write=False)
    assert len(select(quiet(row.create().fit, **features), 20)) == 20


@every
def test_float32_and_float64_give_equal_picks(row):
    features = row.features(60, np.random.default_rng(0))
    wide = {
        k: v.astype(np.float64) if isinstance(v, np.ndarray) and v.dtype == np.float32 else v
        for k, v in features.items()
    }
    a, b = (quiet(row.create().fit, **f) for f in (features, wide))
    assert np.array_equal(select(a, 20), select(b, 20))


@every
def test_scores_and_indices_after_select(row):
    selector = row.fit()
    picks = select(selector, 20)
    assert np.array_equal(selector.indices_, picks)
    assert selector.scores_.shape == (60,)
    assert selector.scores_.dtype == np.float64
    assert np.isfinite(selector.scores_[picks]).all()


@every
def test_one_row(row):
    if row.least > 1:
        with pytest.raises(DataError, match=f"needs at least {row.least} rows"):
            row.fit(n=1)
        return
    selector = row.fit(n=1)
    assert select(selector, 1).tolist() == [0]
    assert select(selector, 1.0).tolist() == [0]
    with pytest.raises(ParameterError, match=r"an int in \[1, 1\]"):
        selector.select(2)


@every
@pytest.mark.parametrize("n", [2, 3, 5])
def test_tiny_pools(row, n):
    assert sorted(select(row.fit(n=n), n)) == list(range(n))


@every
def test_duplicate_rows(row):
    features = row.features(1, np.random.default_rng(0))
    copies = {}
    for name, value in features.items():
        if isinstance(value, np.ndarray):
            copies[name] = np.repeat(value, 25, axis=0)
        else:
            copies[name] = value * 25 if isinstance(value, list) else value
    picks = select(quiet(row.create().fit, **copies), 10)
    assert len(set(picks.tolist())) == 10


@every
def test_refit_forgets_the_pool_before(row):
    selector = row.fit(n=60)
    select(selector, 60)
    quiet(selector.fit, **row.features(25, np.random.default_rng(1)))
    assert selector.n_rows_ == 25
    picks = select(selector, 10)
    assert np.array_equal(picks, select(row.fit(n=25, seed=1), 10))
    assert selector.scores_.shape == (25,)


@every
def test_required_features_are_keywords_of_fit(row):
    features = row.features(60, np.random.default_rng(0))
    needed = row.create().required_features()
    given = {"X" if name == "embedding" else name for name in needed}
    assert given <= set(features)
    X = features.get("X", np.empty((60, 0), dtype=np.float32))
    selector = row.create()
    quiet(selector.fit, X, **{name: features[name] for name in given - {"X"}})
    assert len(select(selector, 5)) == 5


@every
def test_other_features_of_wrong_length_are_refused(row):
    features = row.features(60, np.random.default_rng(0))
    for name in set(features) & {"quality", "tags"}:
        with pytest.raises(ValueError, match=r"must have one entry per row, but \w+ got"):
            quiet(row.create().fit, **{**features, name: features[name][:-1]})


@every
def test_repr_names_the_class_and_changed_parameters(row):
    text = repr(row.create())
    assert text.startswith(type(row.create()).__name__ + "(")
    for name in row.parameters:
        assert name in text or row.create().get_params()[name] == row.parameters[name]


@every
def test_docstring_tells_shapes_source_cost_and_runs(row):
    import doctest

    cls = methods.get(row.name)
    text = cls.__doc__
    for part in ("Args:", "Attributes:", "Example:", "(n,)"):
        assert part in text
    assert "O(" in text
    assert "20" in text  # the year of its source
    finder, runner = doctest.DocTestFinder(recurse=False), doctest.DocTestRunner(verbose=False)
    for test in finder.find(cls, cls.__name__, globs={}):
        assert test.examples
        runner.run(test, out=lambda _: None)
    assert runner.failures == 0
