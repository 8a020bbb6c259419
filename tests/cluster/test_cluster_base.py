"""The clusterers' common base: parameters, callbacks and partial labels."""

from __future__ import annotations

from numbers import Integral
from typing import Any, ClassVar

import numpy as np
import pytest
from sklearn.callback import ProgressBar
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils._param_validation import Interval
from sklearn.utils.validation import validate_data

from tunesmith.cluster._base import Clusterer, check_enough_rows, fitting, partial_labels
from tunesmith.core.errors import DataError, ParameterError

X = np.arange(12.0).reshape(6, 2)


class Parity(Clusterer):
    """Labels rows by their place, in a given number of steps."""

    _parameter_constraints: ClassVar[dict[str, Any]] = {"steps": [Interval(Integral, 1, None, closed="left")]}

    def __init__(self, steps: int = 3):
        self.steps = steps

    @fitting
    def fit(self, X: Any, y: Any = None) -> Parity:
        X = validate_data(self, X)
        done = -1
        for done in self._phase("counting", self.steps, X):
            if done == 7:
                break
        self.n_iter_ = done + 1
        for _ in self._phase("naming", None):
            break
        self.labels_ = np.arange(len(X)) % 2
        return self


class Listener:
    """Writes down what happens; asks to stop at a given step of a phase."""

    def __init__(self, stop_at: int | None = None):
        self.heard: list[str] = []
        self.stop_at = stop_at

    def setup(self, estimator: Any, context: Any) -> None:
        self.heard.append("setup")

    def on_fit_task_begin(self, estimator: Any, context: Any) -> None:
        self.heard.append(f"+{context.task_name}{context.task_id}")

    def on_fit_task_end(self, estimator: Any, context: Any) -> bool:
        self.heard.append(f"-{context.task_name}{context.task_id}")
        return context.task_name == "step" and context.task_id == self.stop_at

    def teardown(self, estimator: Any, context: Any) -> None:
        self.heard.append("teardown")


def test_callbacks_hear_phases_and_steps() -> None:
    listener = Listener()
    Parity(2).set_callbacks(listener).fit(X)
    steps = ["+counting0", "+step0", "-step0", "+step1", "-step1", "-counting0"]
    naming = ["+naming1", "+step0", "-step0", "-naming1"]
    assert listener.heard == ["setup", "+fit0", *steps, *naming, "-fit0", "teardown"]


def test_a_callback_can_end_a_phase() -> None:
    assert Parity(5).set_callbacks(Listener(stop_at=1)).fit(X).n_iter_ == 2
    assert Parity(50).fit(X).n_iter_ == 8


def test_a_failing_fit_still_closes_its_callbacks() -> None:
    listener = Listener()
    with pytest.raises(ValueError, match="NaN"):
        Parity().set_callbacks(listener).fit(X * np.nan)
    assert listener.heard[-1] == "teardown"


def test_progress_bar_alone_and_in_a_pipeline(capsys: pytest.CaptureFixture[str]) -> None:
    Parity().set_callbacks(ProgressBar()).fit(X)
    make_pipeline(StandardScaler(), Parity()).set_callbacks(ProgressBar(max_propagation_depth=None)).fit(X)
    assert "Parity" in capsys.readouterr().out


def test_parameter_errors_have_the_house_form() -> None:
    wanted = r"^The 'steps' parameter of Parity must be an int in the range \[1, inf\). Got 0 instead\.$"
    with pytest.raises(ParameterError, match=wanted) as caught:
        Parity(0).fit(X)
    assert caught.value.parameter == "steps"


def test_more_clusters_than_rows() -> None:
    wanted = (
        r"The 'n_clusters' parameter of Parity must be an int in \[1, 6\], the number of rows. Got 7 instead."
    )
    with pytest.raises(ParameterError, match=wanted):
        check_enough_rows(X, 7, Parity())
    check_enough_rows(X, 6, Parity())


def test_partial_labels() -> None:
    y = partial_labels([0.0, -1.0, 2.0], 3, Parity())
    assert y.dtype == np.int64
    assert y.tolist() == [0, -1, 2]
    assert partial_labels(np.array([0, 1], dtype=np.int32), 2, Parity(), unlabelled=False).dtype == np.int32


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (None, "Parity needs y: known classes, and -1 for the unlabelled rows"),
        ([0, -1], "Parity needs one label per row: X has 3 rows and y has the shape (2,)"),
        ([0, 0.5, -1], "Parity needs whole numbers as labels; y has the type float64"),
        (["a", "b", "c"], "Parity needs whole numbers as labels; y has the type <U1"),
        ([0, 1, 2], "Parity found no row to cluster: no label is -1"),
    ],
)
def test_labels_that_cannot_be_used(y: Any, message: str) -> None:
    with pytest.raises(DataError) as caught:
        partial_labels(y, 3, Parity())
    assert message in str(caught.value)
