"""iLA-SDP: memberships by a semidefinite program, covariances in closed form, in turn, on one objective."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.cluster.sdp.likelihood import Covariances, affinities, covariance_step
from tunesmith.cluster.sdp.program import SDPResult, lift
from tunesmith.cluster.sdp.rounding import argmax_rounding
from tunesmith.cluster.sdp.solvers import solve

__all__ = ["Alternation", "alternate", "solve_known"]

_LOOSE = 1e-2  # accuracy of the first program: its covariances are far from the last ones


@dataclass
class Alternation:
    """Where one start of iLA-SDP ended.

    Attributes:
        found: the last program's solution.
        covariances: those of the last program.
        A: (K, n, n), its objective.
        history: l_eps after each program.
        converged: the relative change fell below the tolerance, or a proven partition came again.
    """

    found: SDPResult
    covariances: Covariances
    A: NDArray[np.float64]
    history: list[float] = field(default_factory=list)
    converged: bool = True


def solve_known(X: Any, covariances: NDArray[np.float64], **options: Any) -> Alternation:
    """LA-SDP: one program for covariances (K, p, p) that are known; ``options`` of `solve`.

    Raises:
        numpy.linalg.LinAlgError: a covariance is not positive definite.
    """
    A = affinities(X, covariances)
    found = solve(A, len(covariances), candidate=argmax_rounding, **options)
    none = np.zeros(len(covariances), dtype=bool)
    return Alternation(found, Covariances(covariances, none), A, [found.value], True)


def alternate(
    X: Any,
    labels: NDArray[np.int64],
    n_clusters: int,
    *,
    kind: str = "full",
    eps: float = 0.0,
    outer_iter: int = 30,
    outer_tol: float = 1e-4,
    solver_tol: float = 1e-4,
    exact: bool = False,
    steps: Iterable[int] | None = None,
    **options: Any,
) -> Alternation:
    """Ascend l_eps from the exact memberships of a partition.

    Args:
        X: (n, p).
        labels: (n,) ints in [0, K), each cluster with at least one row.
        n_clusters: K.
        kind: of covariance.
        eps: ridge in squared units of X.
        outer_iter: most programs.
        outer_tol: relative change of l_eps at which to stop.
        solver_tol: ``tol`` of the last programs; before, a tenth of the last change of l, up to 1e-2.
        exact: solve every program to ``solver_tol``.
        steps: consumed one per program in place of ``outer_iter``; the ascent stops when it ends.
        **options: of `solve`: solver, max_iter, joint and so on.

    Raises:
        numpy.linalg.LinAlgError: without a ridge, a group's covariance became singular.
    """
    Z = lift(labels, n_clusters, n_clusters)
    run: Alternation | None = None
    change, accuracy = np.inf, solver_tol
    for _ in range(outer_iter) if steps is None else steps:
        covariances = covariance_step(X, Z, kind, eps)
        A = affinities(X, covariances.full, eps)
        if not exact:
            accuracy = float(np.clip(0.1 * change, solver_tol, max(solver_tol, _LOOSE)))
        found = solve(
            A, n_clusters, tol=accuracy, labels=labels, candidate=argmax_rounding,
            start=None if run is None else run.found.state, **options,
        )  # fmt: skip
        last = None if run is None else run.found
        history = [] if run is None else run.history
        run = Alternation(found, covariances, A, [*history, found.value], False)
        Z = found.Z
        if last is not None:
            change = abs(found.value - last.value) / max(abs(found.value), 1e-300)
            still = _same(found.labels, last.labels) or change <= outer_tol
            run.converged = still and accuracy <= solver_tol
            if still:
                change = 0.0
        if run.converged:
            break
    assert run is not None, "at least one step"
    return run


def _same(one: NDArray[np.int64] | None, other: NDArray[np.int64] | None) -> bool:
    return one is not None and other is not None and np.array_equal(one, other)
