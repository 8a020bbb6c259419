"""Burer-Monteiro: Z_k = U_k U_k' with U_k >= 0 of few columns, by an augmented Lagrangian.

The form of Zhuang, Chen, Yang & Zhang (arXiv 2305.18436) for the K-means SDP, carried over to one factor per group
(inferred). It searches completely positive matrices of low rank: never above the program's value, equal to it
where the relaxation is tight, and lower where it is not. Iterations cost O(g n^2 r) without any eigenvalue.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.cluster.sdp.admm import solve_admm
from tunesmith.cluster.sdp.program import Constraints, SDPResult, State, check_blocks, value

__all__ = ["low_rank_factors", "solve_burer_monteiro"]

Matrix = NDArray[np.float64]

_INNER = 20  # gradient steps between two updates of the multipliers
_NEAR = 0.1  # error of the row sums up to which the factors are a start for ADMM
_STIFF = 100.0  # most of the penalty, in units of |A| / n: beyond it steps get too short to move
_CERTIFY = 300  # iterations of ADMM for the bound


def low_rank_factors(
    A: Any,
    n_clusters: int,
    *,
    rank: int | None = None,
    joint: bool = False,
    tol: float = 1e-5,
    max_iter: int = 5000,
    labels: Any = None,
    random_state: int = 0,
    rounds: Iterable[int] | None = None,
) -> tuple[Matrix, Matrix, int]:
    """Maximise sum_k <A_k, U_k U_k'> over U_k >= 0 with (sum_k U_k U_k') 1 = 1 and ||U_k||^2 = K/g.

    Projected gradient steps (clip, rescale) whose length adapts, on the augmented Lagrangian of the row sums.

    Args:
        A: (g, n, n) symmetric, g = 1 or K.
        n_clusters: K.
        rank: columns r of each factor; 2 per group, and 2 K for a single block.
        joint: one norm for all factors together.
        tol: largest error of a row sum, and relative movement, at which to stop.
        max_iter: most gradient steps.
        labels: (n,) starting partition; None starts from |N(0, 1)|.
        random_state: of the start.
        rounds: consumed one per 20 steps; the search stops when it ends.

    Returns:
        U (g, n, r), the multipliers y (n,) of the row sums, and the number of steps.
    """
    A, constraints = check_blocks(A, n_clusters, "low_rank_factors")
    g, n = len(A), constraints.n
    rank = rank or (2 * n_clusters if g == 1 else 2)
    y0, s0 = constraints.solve(A.sum(axis=(0, 2)), np.trace(A, axis1=1, axis2=2))
    C = A - constraints.adjoint(y0, s0)
    scale = float(np.linalg.norm(C)) or 1.0
    C /= scale
    rng = np.random.default_rng(random_state)
    U = np.abs(rng.standard_normal((g, n, rank)))
    if labels is not None:
        U *= 0.01 / np.sqrt(n)
        counts = np.bincount(labels, minlength=n_clusters)
        for k in range(n_clusters):
            rows = np.flatnonzero(np.asarray(labels) == k)
            U[min(k, g - 1), rows, k if g == 1 else 0] += 1 / np.sqrt(max(counts[k], 1))
    U = _onto(U, constraints, joint)
    y, beta, length = np.zeros(n), 1.0 / n, 0.1
    now, gradient, error = _lagrangian(C, U, y, beta)
    n_iter, worst = 0, np.inf
    for _ in range(-(-max_iter // _INNER)) if rounds is None else rounds:
        before = U
        for _ in range(min(_INNER, max_iter - n_iter)):
            n_iter += 1
            trial = _onto(U - length * gradient, constraints, joint)
            tried = _lagrangian(C, trial, y, beta)
            if tried[0] > now + 1e-15 * abs(now):
                length *= 0.5
                continue
            U, (now, gradient, error), length = trial, tried, length * 1.1
        moved = float(np.linalg.norm(U - before) / np.sqrt(n_clusters))
        off = float(np.abs(error).max())
        if off <= tol and moved <= tol:
            break
        if moved < max(1e-2 * off, tol) or moved < 1e-3:
            y = y + beta * error
            if off > 0.5 * worst:
                beta = min(2 * beta, _STIFF / n)
            worst = off
            now, gradient, error = _lagrangian(C, U, y, beta)
        if n_iter >= max_iter:
            break
    return U, scale * y + y0, n_iter


def _lagrangian(C: Matrix, U: Matrix, y: Matrix, beta: float) -> tuple[float, Matrix, Matrix]:
    """Return minus the augmented Lagrangian, its gradient in U, and the error of the row sums."""
    CU = C @ U
    columns = U.sum(axis=1)  # (g, r)
    error = np.einsum("gir,gr->i", U, columns) - 1
    v = y + beta * error
    gradient = -2 * CU + v[None, :, None] * columns[:, None, :] + np.einsum("gir,i->gr", U, v)[:, None, :]
    return float(-np.vdot(CU, U) + y @ error + 0.5 * beta * (error @ error)), gradient, error


def _onto(U: Matrix, constraints: Constraints, joint: bool) -> Matrix:
    """Clip at zero and rescale; a factor that is nowhere positive keeps its largest entry."""
    V = np.maximum(U, 0)
    for k in range(len(V)):
        if not V[k].any():
            V[k].flat[U[k].argmax()] = 1.0
    if joint:
        return V * np.sqrt(constraints.clusters / np.vdot(V, V))
    return V * np.sqrt(constraints.trace / np.einsum("gir,gir->g", V, V))[:, None, None]


def solve_burer_monteiro(
    A: Any,
    n_clusters: int,
    *,
    joint: bool = False,
    tol: float = 1e-5,
    max_iter: int = 5000,
    rank: int | None = None,
    labels: Any = None,
    candidate: Any = None,
    random_state: int = 0,
    rounds: Iterable[int] | None = None,
) -> SDPResult:
    """Return the low-rank solution and, from a short run of ADMM started there, an upper bound.

    Where the bound proves a partition optimal that partition's exact membership is returned. Otherwise ``value`` may
    stay below the program's by up to ``bound - value``; `solve_admm` closes that gap, this does not try.

    Args as in `low_rank_factors`, ``candidate`` as in `solve_admm`. Time O(g n^2 r) per step; memory O(g n^2).
    """
    A, constraints = check_blocks(A, n_clusters, "solve_burer_monteiro")
    g = len(A)
    if n_clusters == 1 or (g == 1 and n_clusters == constraints.n):
        return solve_admm(A, n_clusters)
    U, y, n_iter = low_rank_factors(
        A, n_clusters, rank=rank, joint=joint, tol=tol, max_iter=max_iter, labels=labels,
        random_state=random_state, rounds=rounds,
    )  # fmt: skip
    Z = U @ U.transpose(0, 2, 1)
    now = value(A, Z)
    error = float(np.linalg.norm(Z.sum(axis=(0, 2)) - 1) / np.sqrt(n_clusters))
    start = None
    if error <= _NEAR:
        start = State(constraints.project(Z), np.zeros_like(A), y, np.zeros(g), 0.0)
    checked = solve_admm(
        A, n_clusters, joint=joint, tol=tol, max_iter=_CERTIFY, start=start, candidate=candidate
    )
    if checked.labels is not None:
        return checked
    return SDPResult(Z, now, checked.bound, error, None, error <= 10 * tol, n_iter, None)
