"""Batches with several rows of each of a few classes, so that every row has a positive."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from tunesmith.core.errors import DataError, ParameterError
from tunesmith.core.seeds import child_seed

__all__ = ["ClassBalancedSampler"]


class ClassBalancedSampler(Sampler[int]):
    """Row numbers of which each P x M in sequence are M rows of each of P classes: for batches of P x M.

    Classes come in turn and in random order; the rows of a class come without repetition until fewer than M are left.
    A class with fewer than M rows repeats them within a batch, and a warning says so. Rare classes are seen as often as
    frequent ones: an epoch of n // (P M) batches shows some rows several times and others not at all.

    Args:
        labels: class of each row, (n,) integers.
        classes_per_batch: P, at least 2 and at most the number of classes.
        rows_per_class: M, at least 2.
        seed: of the order, with the number of the epoch.

    Raises:
        ParameterError: P or M outside its set.
        DataError: labels that are no integers (n,).
    """

    def __init__(
        self,
        labels: Sequence[int] | Any,
        classes_per_batch: int,
        rows_per_class: int,
        *,
        seed: int = 0,
    ) -> None:
        y = np.asarray(labels)
        if y.ndim != 1 or y.dtype.kind not in "iu":
            raise DataError(
                f"Class-balanced batches need one integer class per row. Got {y.dtype} of shape {y.shape}."
            )
        classes, sizes = np.unique(y, return_counts=True)
        if not 2 <= classes_per_batch <= len(classes):
            raise ParameterError(
                "classes_per_batch",
                self,
                f"an int in [2, {len(classes)}], the number of classes in the data",
                classes_per_batch,
            )
        if rows_per_class < 2:
            raise ParameterError("rows_per_class", self, "an int of at least 2", rows_per_class)
        few = sizes < rows_per_class
        if few.any():
            c, size = int(classes[few][0]), int(sizes[few][0])
            warnings.warn(
                f"{int(few.sum())} of {len(classes)} classes have fewer than rows_per_class={rows_per_class} rows, "
                f"first class {c} with {size}: their rows repeat within a batch, and a row is then its own positive.",
                stacklevel=2,
            )
        self.rows = [np.flatnonzero(y == c) for c in classes]
        self.P, self.M, self.seed, self.epoch = classes_per_batch, rows_per_class, seed, 0
        self.batches = max(1, len(y) // (self.P * self.M))

    def __len__(self) -> int:
        return self.batches * self.P * self.M

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch; data loaders of torch and accelerate call it."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng(child_seed(self.seed, "classes", self.epoch))
        left: list[np.ndarray] = [np.empty(0, dtype=np.int64) for _ in self.rows]
        turn: list[int] = []
        for _ in range(self.batches):
            drawn: list[int] = []
            while len(drawn) < self.P:
                if not turn:
                    turn = rng.permutation(len(self.rows)).tolist()
                # one that is in this batch already waits for the next
                place = next((i for i, c in enumerate(turn) if c not in drawn), None)
                if place is None:
                    turn += rng.permutation(len(self.rows)).tolist()
                    continue
                drawn.append(turn.pop(place))
            for c in drawn:
                if len(left[c]) < self.M:
                    some = rng.permutation(self.rows[c])
                    left[c] = np.resize(some, max(len(some), self.M))
                yield from left[c][: self.M].tolist()
                left[c] = left[c][self.M :]
