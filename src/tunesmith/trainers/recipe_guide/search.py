"""A search for one setting at a time: a step up, a step down, on from the better, until none is better.

Pareja et al. 2024 (arXiv 2412.13337), App. A.5.8.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tunesmith.core.errors import ParameterError

__all__ = ["GridSearch", "grid_search_1d"]


@dataclass(frozen=True)
class GridSearch:
    """What a search found.

    Attributes:
        best: the best value of the setting.
        score: the objective there.
        evaluated: value -> objective, in the order of evaluation; no value twice.
        finished: False if ``max_evaluations`` ended the search before a best value was certain.
    """

    best: float
    score: float
    evaluated: dict[float, float]
    finished: bool


def grid_search_1d(
    objective: Callable[[float], float],
    start: float = 2e-5,
    *,
    factor: float = 2.0,
    low: float = 0.0,
    high: float = math.inf,
    known: Mapping[float, float] | None = None,
    max_evaluations: int = 32,
) -> GridSearch:
    """Climb ``objective`` over the grid ``start * factor^k``, evaluating no point twice.

    From the best point so far both neighbours are tried and the better one taken, until neither is better; on a tie the
    search stays. On a strictly unimodal objective this is the maximum over the grid; else a local one. One setting at a
    time, for example the learning rate first and then the batch. Source: arXiv 2412.13337, App. A.5.8, which gives no
    step; a factor of 2 is ours. Time: one evaluation per grid point between start and maximum, and two more.

    Args:
        objective: a value of the setting -> score, larger is better. NaN (a run that diverged) is worse than any
            number.
        start: a low baseline, > 0.
        factor: step of the grid, > 1.
        low: grid points below are not tried.
        high: grid points above are not tried.
        known: scores of earlier searches, value -> score; such points count as evaluated.
        max_evaluations: ends a search on an objective that rises for ever.

    Returns:
        The best value with everything that was evaluated.

    Raises:
        ParameterError: a parameter is outside its set.
    """
    if not 0 < start < math.inf:
        raise ParameterError("start", grid_search_1d, "a float above 0", start)
    if not 1 < factor < math.inf:
        raise ParameterError("factor", grid_search_1d, "a float above 1", factor)
    if not low <= start <= high:
        raise ParameterError("start", grid_search_1d, f"in [low, high] = [{low:g}, {high:g}]", start)
    if isinstance(max_evaluations, bool) or not isinstance(max_evaluations, int) or max_evaluations < 1:
        raise ParameterError("max_evaluations", grid_search_1d, "an int of at least 1", max_evaluations)
    scores: dict[int, float] = {}
    evaluated: dict[float, float] = {}
    for value, score in (known or {}).items():
        k = round(math.log(value / start) / math.log(factor)) if value > 0 else 0
        if math.isclose(start * factor**k, value, rel_tol=1e-6):
            scores[k] = _number(score)

    def score_of(k: int) -> float | None:
        """The objective at grid point k; None where it may not be evaluated."""
        value = start * factor**k
        if not low <= value <= high:
            return -math.inf
        if k not in scores:
            if len(evaluated) >= max_evaluations:
                return None
            evaluated[value] = float(objective(value))
            scores[k] = _number(evaluated[value])
        return scores[k]

    best, finished = 0, True
    score_of(0)
    while True:
        neighbours = [(score_of(k), k) for k in (best + 1, best - 1)]
        tried = [(score, k) for score, k in neighbours if score is not None]
        finished = len(tried) == len(neighbours)
        better = [pair for pair in tried if pair[0] > scores[best]]
        if not better:
            break
        best = max(better, key=lambda pair: pair[0])[1]
    return GridSearch(start * factor**best, scores[best], evaluated, finished)


def _number(score: float) -> float:
    return -math.inf if math.isnan(score) else float(score)
