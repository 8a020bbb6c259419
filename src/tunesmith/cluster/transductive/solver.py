"""The alternation of prototypes and assignments, and the one-step form known as LaplacianShot.

Ziko et al. 2021 (arXiv 2106.09516), algorithm 1; LaplacianShot: Ziko et al. 2020 (arXiv 2006.15486).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tunesmith.cluster.transductive.bound import BoundResult, bound_update, softmax_rows
from tunesmith.cluster.transductive.prototypes import (
    class_means,
    costs,
    mean_shift,
    soft_means,
    squared_distances,
)
from tunesmith.numerics.neighbors import knn_graph

__all__ = ["Problem", "Solution", "laplacian_shot", "solve"]


@dataclass(frozen=True)
class Problem:
    """What is minimised, and how.

    Attributes:
        X: ``(N, D)`` features, already normalised and shifted.
        known: ``(N,)`` class 0..K-1 of labelled rows, else -1.
        objective: ``"kmeans"`` or ``"kmodes"``.
        W: ``(N, N)`` affinities; None where lam is 0.
        lam: weight of the Laplacian.
        sigma: bandwidth of K-modes.
        modes: ``"mean_shift"``, or ``"assigned"`` (the row that most clearly belongs to a class).
        assignments: ``"hard"`` prototypes from labels, or ``"soft"`` from Z.
        clamp: keep labelled rows at their labels.
        bound_iter: most bound updates per step.
        bound_tol: their relative tolerance.
        n_jobs: threads of the bound updates.
        variant: ``"official"`` monitors the energies of the authors' code.
    """

    X: NDArray[Any]
    known: NDArray[np.int64]
    objective: str = "kmeans"
    W: Any = None
    lam: float = 0.0
    sigma: float | None = None
    modes: str = "mean_shift"
    assignments: str = "hard"
    clamp: bool = True
    bound_iter: int = 600
    bound_tol: float = 1e-7
    n_jobs: int | None = None
    variant: str = "paper"


@dataclass
class Solution:
    """Where the alternation ended.

    Attributes:
        labels: ``(N,)`` row maxima of Z.
        Z: ``(N, K)``.
        M: ``(K, D)`` prototypes that belong to Z.
        energies: one per step.
        bound_energies: those of the bound updates within each step; empty without a Laplacian.
        n_iter: steps.
        converged: the energy settled, or a class lost all its rows and the step before was kept.
        bound_converged: every step's bound updates settled.
        rolled_back: a class lost all its rows.
    """

    labels: NDArray[np.int64]
    Z: NDArray[Any]
    M: NDArray[Any]
    energies: list[float] = field(default_factory=list)
    bound_energies: list[NDArray[np.float64]] = field(default_factory=list)
    n_iter: int = 0
    converged: bool = False
    bound_converged: bool = True
    rolled_back: bool = False


def solve(
    problem: Problem, M: NDArray[Any], *, steps: Iterable[int] = range(100), tol: float = 1e-4
) -> Solution:
    """Alternate prototypes and assignments until the energy settles.

    With ``assignments="hard"`` prototypes come from labels, Z starts afresh from ``softmax(-a)`` in each step, and
    with ``lam = 0`` the steps are Lloyd's. With ``"soft"`` prototypes come from Z, which is carried on, and the relaxed
    energy never rises over the whole run (W symmetric and positive semi-definite).

    Args:
        problem: see `Problem`.
        M: ``(K, D)`` first prototypes.
        steps: counts the steps; leaving off ends the run.
        tol: stop from the third step on when the energy changes by no more than this share.

    Returns:
        A `Solution`. Time O(N K D + updates x (nnz(W) + N) K) per step; memory three ``(N, K)`` arrays.
    """
    p = problem
    sigma = p.sigma if p.objective == "kmodes" else None
    a = costs(p.X, M, sigma)
    lloyd = p.lam == 0 and p.assignments == "hard"
    picks = p.objective == "kmodes" and p.modes == "assigned"
    Z = a if lloyd and not picks else _one_hot_known(softmax_rows(-a), p)  # Lloyd's steps need no Z
    now = Solution(_named(a.argmin(axis=1), p), Z, M)
    for t in steps:
        M_new = _prototypes(p, now)
        a = costs(p.X, M_new, sigma, out=a)
        if lloyd:
            labels = a.argmin(axis=1)
            labels = _named(labels, p) if p.clamp else labels
            energy = float(a[np.arange(len(a)), labels].sum(dtype=np.float64))
            Z = _one_hot_known(softmax_rows(-a), p) if picks else a
        else:
            result = _bound(p, a, now.Z)
            now.bound_converged &= result.converged
            Z, labels = result.Z, result.Z.argmax(axis=1)
            energy = _energy(p, result, a)
        now.n_iter = t + 1
        if p.assignments == "hard" and np.bincount(labels, minlength=len(M)).min() == 0:
            now.rolled_back = now.converged = True
            break
        now.labels, now.Z, now.M = labels, Z, M_new
        if not lloyd:
            now.bound_energies.append(result.energies)
        now.energies.append(energy)
        if t > 1 and abs(energy - now.energies[-2]) <= tol * abs(now.energies[-2]):
            now.converged = True
            break
    if lloyd:
        a = costs(p.X, now.M, sigma, out=a)
        now.Z = softmax_rows(np.negative(a, out=a))
        if p.clamp:
            now.Z = _one_hot_known(now.Z, p)
    return now


def laplacian_shot(
    X: ArrayLike, prototypes: ArrayLike, lam: float = 0.7, n_neighbors: int = 3, *, random_state: int = 0
) -> BoundResult:
    """Label rows by fixed prototypes with a Laplacian over the rows alone (LaplacianShot without rectification).

    One `bound_update` from ``softmax(-unary)``, unary the squared distances to the prototypes, at most 20 steps and a
    tolerance of 1e-6, as the authors run it (arXiv 2006.15486).

    Args:
        X: ``(Q, D)`` rows to label, normalised.
        prototypes: ``(K, D)`` class means of the labelled rows.
        lam: weight of the Laplacian, >= 0.
        n_neighbors: of the binary graph, the row itself counted, as the authors do.
        random_state: seed of the approximate search for neighbours (above 20,000 rows).

    Returns:
        The result; ``Z.argmax(axis=1)`` are the classes. Time and memory: `knn_graph` and `bound_update`.

    Raises:
        ParameterError: a parameter outside its range.
    """
    x = np.asarray(X)
    if x.dtype != np.float32:
        x = x.astype(np.float64, copy=False)
    W, _ = knn_graph(x, n_neighbors - 1, random_state=random_state)
    unary = squared_distances(x, np.asarray(prototypes))
    return bound_update(unary, W, lam, max_iter=20, tol=1e-6)


def _bound(p: Problem, a: NDArray[Any], before: NDArray[Any]) -> BoundResult:
    W = p.W
    if W is None:
        from scipy import sparse

        W = sparse.csr_array((len(a), len(a)), dtype=a.dtype)
    Z0 = before if p.assignments == "soft" else _one_hot_known(softmax_rows(-a), p)
    return bound_update(
        a,
        W,
        p.lam,
        Z0,
        fixed=p.known >= 0 if p.clamp else None,
        max_iter=p.bound_iter,
        tol=p.bound_tol,
        n_jobs=p.n_jobs,
        variant=p.variant,
    )


def _energy(p: Problem, result: BoundResult, a: NDArray[Any]) -> float:
    """Return R(Z); for the authors' code ``sum z a - lam sum_k Z_k' W Z_k``, without the entropy."""
    if p.variant != "official":
        return float(result.energies[-1])
    z = result.Z
    pair = 0.0 if p.W is None else float(np.einsum("ij,ij->", p.W @ z, z))
    return float(np.einsum("ij,ij->", z, a)) - p.lam * pair


def _prototypes(p: Problem, now: Solution) -> NDArray[Any]:
    """Return the next prototypes (K, D)."""
    soft = p.assignments == "soft"
    if p.objective == "kmeans":
        return soft_means(p.X, now.Z) if soft else class_means(p.X, now.labels, now.M)
    if p.modes == "assigned":
        # A labelled row has z = 1 and would hold its class's mode for ever: only free rows compete.
        free = np.flatnonzero(p.known < 0) if p.clamp and (p.known < 0).any() else np.arange(len(p.X))
        return p.X[free[now.Z[free].argmax(axis=0)]]
    assert p.sigma is not None
    M = now.M.astype(p.X.dtype)
    for k in range(len(M)):
        if soft:
            M[k], _ = mean_shift(p.X, M[k], p.sigma, now.Z[:, k])
        elif (members := np.flatnonzero(now.labels == k)).size:
            M[k], _ = mean_shift(p.X[members], M[k], p.sigma)
    return M


def _named(labels: NDArray[np.int64], p: Problem) -> NDArray[np.int64]:
    return np.where(p.known >= 0, p.known, labels)


def _one_hot_known(Z: NDArray[Any], p: Problem) -> NDArray[Any]:
    rows = np.flatnonzero(p.known >= 0)
    Z[rows] = 0
    Z[rows, p.known[rows]] = 1
    return Z
