"""One call for the three solvers, and what the estimators do with rows that are too many."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.cluster.sdp.admm import solve_admm
from tunesmith.cluster.sdp.conic import solve_cvxpy
from tunesmith.cluster.sdp.low_rank import solve_burer_monteiro
from tunesmith.cluster.sdp.program import SDPResult, State
from tunesmith.core.errors import DataError

__all__ = ["SOLVERS", "sketch", "solve"]

SOLVERS = ("admm", "burer-monteiro", "cvxpy")


def solve(
    A: NDArray[np.float64],
    n_clusters: int,
    solver: str,
    *,
    joint: bool = False,
    tol: float,
    max_iter: int,
    start: State | None = None,
    labels: Any = None,
    candidate: Callable[[Any], NDArray[np.int64]] | None = None,
    rounds: Iterable[int] | None = None,
    random_state: int = 0,
) -> SDPResult:
    """Dispatch; each solver takes what it can use."""
    if solver == "admm":
        return solve_admm(
            A, n_clusters, joint=joint, tol=tol, max_iter=max_iter, start=start, candidate=candidate, rounds=rounds
        )  # fmt: skip
    if solver == "burer-monteiro":
        return solve_burer_monteiro(
            A, n_clusters, joint=joint, tol=tol, max_iter=max_iter, labels=labels, candidate=candidate,
            random_state=random_state, rounds=rounds,
        )  # fmt: skip
    return solve_cvxpy(A, n_clusters, joint=joint)


def sketch(
    n: int, use: bool, size: int, limit: int, n_clusters: int, random: np.random.RandomState, owner: Any
) -> NDArray[np.int64] | None:
    """Return the rows to solve on (sketch-and-lift, arXiv 2201.08226), or None for all.

    Raises:
        DataError: more rows than ``limit`` and no sketch allowed.
    """
    if n > limit and not use:
        raise DataError(
            f"{type(owner).__name__} got {n:,} rows; memory grows as their square and time as their cube. Pass "
            f"sketch=True to solve on {size:,} of them, or raise max_rows (now {limit:,})."
        )
    size = max(size, n_clusters)
    if not use or n <= size:
        return None
    return np.sort(random.choice(n, size, replace=False)).astype(np.int64)
