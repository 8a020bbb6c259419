"""The default solver: ADMM on the dual, exact projections, a proven bound, and a stop at a proven partition.

The scheme is the convergent three-block ADMM with step 1.618 of Sun, Toh & Yang (SIAM J. Optim. 2015) in the
variables that remain when its S-block is eliminated. With Aff the projection on the affine constraints (closed
form), one iteration is::

    W = Z + sigma (N + A - A*(y, s))          P = PSD part of W
    N' = max(0, N - Aff(P) / sigma)           R = P + sigma (N' - N)
    (y, s) += (A A*)^-1 (A(R) - b) / sigma    Z += tau (Aff(R) - Z)

so that Z always meets the affine constraints, and one partial eigendecomposition per block is the main cost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.linalg import eigsh

from tunesmith.cluster.sdp._kernels import advance, reflect, shrink
from tunesmith.cluster.sdp._psd import PositivePart
from tunesmith.cluster.sdp.program import (
    Constraints,
    SDPResult,
    State,
    check_blocks,
    lift,
    partition_value,
    upper_bound,
    value,
)

__all__ = ["solve_admm"]

Matrix = NDArray[np.float64]
Candidate = Callable[[Matrix], "NDArray[np.int64]"]

_ROUND = 25  # iterations between two looks at gap and residuals
_TAU = 1.618  # below the golden ratio: convergence is proven
_SIGMA = 1.0  # penalty at the start, in units of |Z| / |A|
_BAND = 1.2  # residuals may differ by this factor before sigma moves
_STEP = 2.0  # most that sigma changes at once
_DENSE = 600  # rows up to which the exact bound is cheap enough to take at every look


def solve_admm(
    A: Any,
    n_clusters: int,
    *,
    joint: bool = False,
    tol: float = 1e-5,
    max_iter: int = 5000,
    start: State | None = None,
    candidate: Candidate | None = None,
    rounds: Iterable[int] | None = None,
) -> SDPResult:
    """Solve ``max sum_k <A_k, Z_k>`` over the lifted partitions; see `tunesmith.cluster.sdp.program`.

    Stops when |bound - value| / scale and the infeasibility are at most ``tol``, or when a candidate partition's
    value is that near to the bound: then it is a proven optimum of program and partitions, and Z is its exact
    membership. The scale is |value|, or 1 % of its distance from the most even feasible point if that is more.

    Time O(g n^2 r) per iteration for rank r (O(g n^3) while r is large), some hundred iterations; memory 4 g n^2 + n^2
    float64 beside A.

    Args:
        A: (g, n, n) symmetric; g = 1 (K-means SDP) or K (LA-SDP).
        n_clusters: K.
        joint: one constraint on the sum of the traces in place of one per block.
        tol: relative gap and infeasibility.
        max_iter: most iterations, in rounds of 25.
        start: warm start, of the same g and n.
        candidate: from Z (g, n, n) to labels (n,) in [0, K) of a partition that may be optimal.
        rounds: consumed one per round; the solver stops when it ends, however many ``max_iter`` are left.

    Raises:
        ParameterError: A or n_clusters outside of what is described.
    """
    A, constraints = check_blocks(A, n_clusters, "solve_admm")
    g, n = len(A), A.shape[1]
    if joint:
        constraints = Constraints(n, n_clusters, g, joint=True)
    if n_clusters == 1 or (g == 1 and n_clusters == n):
        return _only_point(A, constraints)
    if rounds is None:
        rounds = range(-(-max_iter // _ROUND))
    return _run(_Iteration(A, constraints, start), tol, max_iter, candidate, rounds)


def _only_point(A: Matrix, constraints: Constraints) -> SDPResult:
    """One cluster, or each row its own: a single feasible point."""
    labels = np.zeros(constraints.n, dtype=np.int64)
    if constraints.clusters > 1:
        labels = np.arange(constraints.n)
    Z = lift(labels, constraints.groups)
    only = value(A, Z)
    return SDPResult(Z, only, only, 0.0, labels, True, 0, None)


def _squares(y: Matrix, s: Matrix, n: int) -> float:
    """Return the sum of squares of all entries of A*(y, s)."""
    total = float(y.sum())
    return float(len(s) * 0.5 * (n * (y @ y) + total**2) + 2 * total * s.sum() + n * (s @ s))


def _run(
    it: _Iteration, tol: float, max_iter: int, candidate: Candidate | None, rounds: Iterable[int]
) -> SDPResult:
    A, clusters = it.A, it.constraints.clusters
    bound, n_iter = np.inf, 0
    labels, best, converged = None, -np.inf, False
    for _ in rounds:
        for _ in range(min(_ROUND, max_iter - n_iter)):
            it.step()
            n_iter += 1
        now = value(A, it.Z)
        allowed = tol * it.measure(now)
        if candidate is not None:
            found = candidate(it.Z)
            worth = partition_value(A, found, clusters)
            if worth > best:
                labels, best = found, worth
        solved = max(it.residuals) <= tol
        near = best >= now - 10 * max(allowed, max(it.residuals) * abs(now))
        if solved or (near and (it.constraints.n <= _DENSE or it.estimate() - best <= allowed)):
            bound = min(bound, upper_bound(A, it.N, it.y, it.constraints))
            if labels is not None and bound - best <= allowed:
                Z = lift(labels, len(A), clusters)
                return SDPResult(Z, best, max(bound, best), 0.0, labels, True, n_iter, it.state())
            if solved and abs(bound - now) <= allowed:
                converged = True
                break
        if n_iter >= max_iter:
            break
        it.balance()
    now = value(A, it.Z)
    bound = min(bound, upper_bound(A, it.N, it.y, it.constraints))
    return SDPResult(it.Z, now, bound, it.infeasibility(), None, converged, n_iter, it.state())


class _Iteration:
    """The state of one run; sizes are relative to an exact solution and to A without its affine part."""

    def __init__(self, A: Matrix, constraints: Constraints, start: State | None) -> None:
        self.A, self.constraints = A, constraints
        g, n = len(A), constraints.n
        self.y, self.s = constraints.solve(A.sum(axis=(0, 2)), np.trace(A, axis1=1, axis2=2))
        left = np.sum(A * A) - _squares(self.y, self.s, n)
        self.size = float(np.sqrt(constraints.clusters))
        self.scale = float(np.sqrt(max(left, 0.0))) or 1.0
        interior = constraints.interior()
        self.even = sum(float(np.vdot(a, interior)) for a in A)
        if start is None:
            self.Z = np.repeat(interior[None], g, axis=0)
            self.N = np.zeros_like(A)
            self.sigma = _SIGMA * self.size / self.scale
        else:
            self.Z, self.N = start.Z.copy(), start.N.copy()
            self.y, self.s = start.y.copy(), start.s.copy()
            self.sigma = start.sigma or _SIGMA * self.size / self.scale
        self.P = np.empty_like(A)
        self.parts = [PositivePart(k) for k in range(g)]
        self.residuals = (1.0, 1.0)  # primal, dual

    def step(self) -> None:
        """One iteration."""
        constraints, sigma = self.constraints, self.sigma
        rows, traces = np.zeros(constraints.n), np.empty(constraints.groups)
        accuracy = np.clip(0.01 * min(self.residuals), 1e-10, 1e-3)
        for k, P in enumerate(self.P):
            reflect(self.Z[k], self.N[k], self.A[k], 0.5 * self.y, self.s[k], sigma, P)
            P[...] = self.parts[k](P, accuracy)
            rows += P.sum(axis=1)
            traces[k] = np.trace(P)
        y, s = constraints.solve(*constraints.residual(rows, traces))
        rows[:], outside = 0, _squares(y, s, constraints.n)
        for k, P in enumerate(self.P):
            traces[k], below = shrink(P, self.N[k], 0.5 * y, s[k], sigma, rows)
            outside += below
        y, s = constraints.solve(*constraints.residual(rows, traces))
        moved = sum(advance(Z, P, 0.5 * y, v, _TAU) for Z, P, v in zip(self.Z, self.P, s, strict=True))
        self.y, self.s = self.y + y / sigma, self.s + s / sigma
        primal, dual = np.sqrt(max(outside, 0.0)), np.sqrt(max(moved, 0.0))
        self.residuals = (float(primal) / self.size, float(dual) / (sigma * self.scale))

    def measure(self, now: float) -> float:
        """Return what a gap is relative to; the second term matters where values cancel."""
        return max(abs(now), 0.01 * (now - self.even))

    def balance(self) -> None:
        """Move sigma so that primal and dual residuals fall together."""
        ratio = self.residuals[1] / max(self.residuals[0], 1e-300)
        if not 1 / _BAND < ratio < _BAND:
            self.sigma *= float(np.clip(np.sqrt(ratio), 1 / _STEP, _STEP))
            for part in self.parts:
                part.forget()

    def estimate(self) -> float:
        """Return the upper bound up to the accuracy of a Lanczos run."""
        top = np.empty(len(self.A))
        for k, A in enumerate(self.A):
            M = self.N[k] + A
            M -= 0.5 * self.y[:, None]
            M -= 0.5 * self.y
            v = self.parts[k].top[:, 0]
            top[k] = eigsh(M, k=1, which="LA", v0=v, tol=1e-6, return_eigenvectors=False)[0]
        c = self.constraints
        return float(self.y.sum() + (c.clusters * top.max() if c.joint else c.trace * top.sum()))

    def infeasibility(self) -> float:
        """Return how far Z is from PSD and from non-negative, see `SDPResult`."""
        psd = sum(float(np.sum(np.minimum(np.linalg.eigvalsh(Z), 0) ** 2)) for Z in self.Z)
        signs = sum(float(np.sum(np.minimum(Z, 0) ** 2)) for Z in self.Z)
        return float(np.sqrt(max(psd, signs)) / self.size)

    def state(self) -> State:
        return State(self.Z, self.N, self.y, self.s, self.sigma)
