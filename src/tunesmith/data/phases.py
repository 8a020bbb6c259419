"""Several sets of rows for one training: all at once, or one after another with a little of what came before.

Pareja et al. 2024 (arXiv 2412.13337, App. A.5.1 for the replay) found all at once better.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tunesmith.core.errors import DataError, ParameterError
from tunesmith.core.seeds import child_seed

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["phased", "stacked"]


def stacked(phases: Sequence[Dataset], *, seed: int = 0, epoch: int = 0) -> Dataset:
    """Return all rows of all phases, each once, shuffled together.

    A trainer that shuffles by itself every epoch needs the order of epoch 0 only. Time and memory O(rows) in indices;
    no row is copied.

    Args:
        phases: datasets with the same columns of the same types, none of them empty.
        seed: determines the order, together with ``epoch``.
        epoch: another epoch is another order.

    Raises:
        ParameterError: ``phases`` is no list of datasets, or a number is outside its set.
        DataError: a phase is empty, or columns differ between phases.
    """
    from datasets import concatenate_datasets

    return _shuffled(concatenate_datasets(_checked(phases, stacked)), seed, epoch, stacked)


def phased(phases: Sequence[Dataset], *, replay: float = 0.0, seed: int = 0, epoch: int = 0) -> list[Dataset]:
    """Return the rows to train on in each phase: the phase's own, and a share of every earlier phase's, shuffled.

    From an earlier phase of n rows ``round(replay * n)`` distinct ones are added, the same in every epoch and others in
    every phase; 1 % of 1,000 are 10. With one phase the result is that of `stacked`. Time and memory O(rows) in
    indices.

    Args:
        phases: datasets in order, as in `stacked`.
        replay: share of each earlier phase, in [0, 1]; the paper's study uses 0.01.
        seed: determines order and replayed rows.
        epoch: another epoch is another order of the same rows.

    Raises:
        ParameterError: as `stacked`, or ``replay`` is outside [0, 1].
        DataError: a phase is empty, or columns differ between phases.
    """
    from datasets import concatenate_datasets

    checked = _checked(phases, phased)
    if isinstance(replay, bool) or not isinstance(replay, (int, float)) or not 0 <= replay <= 1:
        raise ParameterError("replay", phased, "a float in [0, 1]", replay)
    found = []
    for i, phase in enumerate(checked):
        parts = [phase]
        for j, earlier in enumerate(checked[:i]):
            draw = np.random.default_rng(child_seed(seed, "replay", i, j))
            rows = np.sort(draw.permutation(len(earlier))[: round(replay * len(earlier))])
            if len(rows):
                parts.append(earlier.select(rows))
        found.append(_shuffled(concatenate_datasets(parts), seed, epoch, phased))
    return found


def _shuffled(rows: Dataset, seed: int, epoch: int, caller: Any) -> Dataset:
    for name, value in {"seed": seed, "epoch": epoch}.items():
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 0:
            raise ParameterError(name, caller, "an int of at least 0", value)
    order = np.random.default_rng(child_seed(seed, "stacked", epoch)).permutation(len(rows))
    return rows.select(order)


def _checked(phases: Any, caller: Any) -> list[Dataset]:
    """Return the phases with their columns in one order.

    ``concatenate_datasets`` alone would fill a column that a phase lacks with None, without a word.
    """
    from datasets import Dataset

    if not isinstance(phases, (list, tuple)) or not phases or not all(isinstance(p, Dataset) for p in phases):
        raise ParameterError("phases", caller, "a list of at least one datasets.Dataset", phases)
    first = phases[0]
    for i, phase in enumerate(phases, start=1):
        if len(phase) == 0:
            raise DataError(f"phase {i} of {len(phases)} has no rows. Leave it out.")
        only = [
            sorted(set(a.column_names) - set(b.column_names)) for a, b in ((phase, first), (first, phase))
        ]
        if only[0] or only[1]:
            raise DataError(
                f"phases 1 and {i} have different columns: only phase 1 has {_names(only[1])}, only phase {i} has "
                f"{_names(only[0])}. Bring all phases to the same columns, for example with select_columns."
            )
        for name in first.column_names:
            if phase.features[name] != first.features[name]:
                raise DataError(
                    f"the column '{name}' has another type in phase {i} than in phase 1: {phase.features[name]} "
                    f"instead of {first.features[name]}. Bring them to one type with cast."
                )
    return [phase.select_columns(first.column_names) for phase in phases]


def _names(columns: list[str]) -> str:
    return ", ".join(f"'{name}'" for name in columns) or "none"
