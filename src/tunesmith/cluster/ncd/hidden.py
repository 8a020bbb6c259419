"""Splits that hide known classes: tuning without a label of a novel row (Troisemaine et al. 2024, Sec. 4)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import BaseCrossValidator
from sklearn.utils import check_random_state, indexable

from tunesmith.cluster._base import UNLABELLED, partial_labels
from tunesmith.core.errors import DataError, ParameterError

__all__ = ["HiddenClassKFold"]


class HiddenClassKFold(BaseCrossValidator):  # type: ignore[misc]
    """Hide some known classes in each split, and every known class in at least one (arXiv 2311.05440, Sec. 4).

    `hide` is what tuning needs: labels in which the hidden classes are -1, so that their rows stay in training as
    unlabelled ones, and the rows to score. `split` gives the index pairs of a scikit-learn ``cv`` object: there the
    hidden rows are left out of training, since plain indices cannot take their labels away. Unlabelled rows are in
    every training fold and in no scoring fold. How many classes to hide is not stated in the paper.

    Args:
        n_splits: 2 or more.
        n_hidden: classes to hide in each split, below the number of known ones; by default as few as hide every class
            once, but at least 2: a single hidden class is one cluster, right under every hyperparameter.
        shuffle: draw the order of the classes; otherwise they are hidden in sorted order.
        random_state: seed of that draw.
    """

    def __init__(
        self,
        n_splits: int = 3,
        *,
        n_hidden: int | None = None,
        shuffle: bool = True,
        random_state: Any = None,
    ):
        if isinstance(n_splits, bool) or not isinstance(n_splits, (int, np.integer)) or n_splits < 2:
            raise ParameterError("n_splits", self, "an int >= 2", n_splits)
        self.n_splits = int(n_splits)
        self.n_hidden = n_hidden
        self.shuffle = shuffle
        self.random_state = random_state

    def get_n_splits(self, X: Any = None, y: Any = None, groups: Any = None) -> int:
        """Return the number of splits; the arguments are not looked at."""
        return self.n_splits

    def hidden_classes(self, y: Any) -> list[NDArray[Any]]:
        """Return the classes that each split hides.

        Args:
            y: ``(n,)`` whole numbers, -1 for unlabelled rows.

        Raises:
            DataError: fewer than 2 known classes, or y is not of whole numbers.
            ParameterError: n_hidden outside [C^l / n_splits, C^l - 1].
        """
        y = partial_labels(y, np.size(y), self, unlabelled=False)
        classes = np.unique(y[y != UNLABELLED])
        known = len(classes)
        if known < 2:
            raise DataError(
                f"HiddenClassKFold needs at least 2 known classes to hide one of them; y has {known}."
            )
        least = -(-known // self.n_splits)
        size = min(max(2, least), known - 1) if self.n_hidden is None else self.n_hidden
        if not isinstance(size, (int, np.integer)) or not least <= size < known:
            raise ParameterError(
                "n_hidden",
                self,
                f"an int in [{least}, {known - 1}] for {known} known classes and {self.n_splits} splits",
                self.n_hidden,
            )
        if self.shuffle:
            classes = check_random_state(self.random_state).permutation(classes)
        starts = [i * known // self.n_splits for i in range(self.n_splits)]
        return [np.sort(np.take(classes, range(start, start + size), mode="wrap")) for start in starts]

    def hide(self, y: Any) -> Iterator[tuple[NDArray[Any], NDArray[np.int64]]]:
        """Yield, per split, labels ``(n,)`` with the hidden classes set to -1, and the hidden rows' places, sorted."""
        y = partial_labels(y, np.size(y), self, unlabelled=False)
        for classes in self.hidden_classes(y):
            hidden = np.isin(y, classes)
            yield np.where(hidden, UNLABELLED, y), np.flatnonzero(hidden)

    def split(self, X: Any, y: Any = None, groups: Any = None) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        """Yield training rows (known classes not hidden, and all unlabelled rows) and the hidden rows.

        Args:
            X: ``(n, …)``; only its length is used.
            y: ``(n,)`` with -1 for unlabelled rows.
            groups: not used.
        """
        X, y = indexable(X, y)
        for masked, hidden in self.hide(y):
            yield np.setdiff1d(np.arange(len(masked)), hidden), hidden
