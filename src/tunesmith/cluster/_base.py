"""What every clusterer shares: scikit-learn's contract, its callbacks, and errors in the package's form.

A subclass stores its parameters untouched, declares ``_parameter_constraints`` as scikit-learn's own estimators
do, and decorates ``fit`` with `fitting`. The private names of scikit-learn are used in this file alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClusterMixin
from sklearn.callback import CallbackSupportMixin
from sklearn.callback._callback_support import callback_management_context
from sklearn.utils._param_validation import InvalidParameterError, validate_parameter_constraints
from sklearn.utils.validation import check_array

from tunesmith.core.errors import DataError, ParameterError

__all__ = ["UNLABELLED", "Clusterer", "check_enough_rows", "fitting", "partial_labels"]

UNLABELLED = -1  # as in sklearn.semi_supervised

Fit = TypeVar("Fit", bound=Callable[..., Any])


class Clusterer(CallbackSupportMixin, ClusterMixin, BaseEstimator):
    """Base of the clusterers: ``fit(X, y=None)`` sets ``labels_`` (n,) int64 and ``n_iter_``.

    Progress: ``set_callbacks(sklearn.callback.ProgressBar())`` draws one bar per phase of the fit; a callback whose
    ``on_fit_task_end`` returns true ends the phase it watches.
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {}

    def _phase(self, name: str, total: int | None, X: Any = None) -> Iterator[int]:
        """Yield 0, 1, … (``total`` of them; without end for None) and tell the callbacks of each.

        Leaving the loop early ends the phase properly. Outside of a decorated ``fit`` nobody is told.
        """
        root = getattr(self, "_callback_fit_ctx", None)
        if root is None:
            yield from range(total) if total is not None else _forever()
            return
        phase = root.subcontext(task_name=name, max_subtasks=total)
        phase.call_on_fit_task_begin(estimator=self, X=X)
        try:
            for i in range(total) if total is not None else _forever():
                with _task(self, phase, X) as asked:
                    yield i
                if asked:
                    break
        finally:
            phase.call_on_fit_task_end(estimator=self, X=X)


def _forever() -> Iterator[int]:
    i = 0
    while True:
        yield i
        i += 1


@contextmanager
def _task(estimator: Clusterer, phase: Any, X: Any) -> Iterator[list[bool]]:
    """One step of a phase; the list is not empty afterwards if a callback asked to stop."""
    asked: list[bool] = []
    step = phase.subcontext(task_name="step")
    step.call_on_fit_task_begin(estimator=estimator, X=X)
    try:
        yield asked
    finally:
        if step.call_on_fit_task_end(estimator=estimator, X=X):
            asked.append(True)


def fitting(fit: Fit) -> Fit:
    """Decorate ``fit``: check the parameters, open and close the callbacks.

    Raises:
        ParameterError: a parameter outside ``_parameter_constraints``.
    """

    @functools.wraps(fit)
    def checked(self: Clusterer, X: Any, *args: Any, **kwargs: Any) -> Any:
        check_parameters(self)
        with callback_management_context(self):
            root = self._init_callback_context(max_subtasks=None)
            root.call_on_fit_task_begin(estimator=self, X=X)
            fitted = fit(self, X, *args, **kwargs)
            root.call_on_fit_task_end(estimator=self, X=X)
        return fitted

    return checked  # type: ignore[return-value]


def check_parameters(estimator: BaseEstimator) -> None:
    """Check the parameters of ``estimator`` against its ``_parameter_constraints``.

    Raises:
        ParameterError: one is outside its set; the message is scikit-learn's, which ours is modelled on.
    """
    parameters = estimator.get_params(deep=False)
    try:
        validate_parameter_constraints(
            estimator._parameter_constraints, parameters, caller_name=type(estimator).__name__
        )
    except InvalidParameterError as error:
        raise ParameterError.worded(str(error)) from None


def check_enough_rows(X: Any, n_clusters: int, owner: Any, name: str = "n_clusters") -> None:
    """Refuse more clusters than rows.

    Raises:
        ParameterError: ``n_clusters`` > rows of X.
    """
    if n_clusters > X.shape[0]:
        raise ParameterError(name, owner, f"an int in [1, {X.shape[0]}], the number of rows", n_clusters)


def partial_labels(y: Any, n: int, owner: Any, *, unlabelled: bool = True) -> NDArray[Any]:
    """Check labels in which ``-1`` marks the unlabelled rows.

    Args:
        y: (n,) labels.
        n: rows of X.
        owner: for the message.
        unlabelled: demand at least one row that is unlabelled.

    Raises:
        DataError: y is missing, not one integer per row, or (``unlabelled``) has no -1.
    """
    name = type(owner).__name__
    if y is None:
        raise DataError(f"{name} needs y: known classes, and {UNLABELLED} for the unlabelled rows.")
    y = np.asarray(check_array(y, ensure_2d=False, dtype=None, input_name="y"))
    if y.shape != (n,):
        raise DataError(f"{name} needs one label per row: X has {n} rows and y has the shape {y.shape}.")
    if not np.issubdtype(y.dtype, np.integer):
        whole = np.issubdtype(y.dtype, np.floating) and bool(np.all(np.mod(y, 1) == 0))
        if not whole:
            # scikit-learn's checks look for its own first words.
            raise DataError(
                f"Unknown label type: {name} needs whole numbers as labels; y has the type {y.dtype}."
            )
        y = y.astype(np.int64)
    if unlabelled and not np.any(y == UNLABELLED):
        raise DataError(f"{name} found no row to cluster: no label is {UNLABELLED}.")
    return y
