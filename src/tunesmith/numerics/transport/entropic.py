"""Entropic optimal transport with both potentials, in the log domain, without an n x m temporary.

Convention: ``pi_ij = a_i b_j exp((f_i + g_j - C_ij) / eps)``, with the updates
``f_i = -eps log sum_j b_j exp((g_j - C_ij) / eps)`` and the same for g. Solvers that write
``pi = exp((f + g - C) / eps)`` return ``f_i + eps log a_i``.

Sources: Cuturi 2013 (Sinkhorn); Schmitzer 2019 (log domain, epsilon scaling); Thibault et al. 2021
(over-relaxation); Walker and Ni 2011 (Anderson mixing); Feydy et al. 2019 (debiasing).
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from tunesmith.core.errors import DataError, ParameterError
from tunesmith.numerics.transport.costs import CostBlocks, check_pair, check_points, check_weights, mean_cost
from tunesmith.numerics.transport.iterate import (
    Momentum,
    Problem,
    Transport,
    Vector,
    anneal_to,
    schedule,
    solve,
)

__all__ = ["Transport", "c_transform", "check_parameters", "self_potential", "sinkhorn"]

# Below this many entries everything runs in float64: a sweep then takes at most some tens of milliseconds.
_SMALL = 1 << 22
_NO_WEIGHTS = np.empty(0)


def sinkhorn(
    X: Any,
    Y: Any = None,
    *,
    a: Any = None,
    b: Any = None,
    cost: str = "sqeuclidean",
    epsilon: float | None = None,
    relative_epsilon: float = 0.02,
    momentum: Momentum = "auto",
    tol: float = 1e-3,
    max_iter: int = 1000,
    anneal: bool = True,
    debias: bool = False,
    finish: bool = True,
    dtype: Literal["auto", "float32", "float64"] = "auto",
    max_bytes: int = 512 << 20,
    random_state: int | None = 0,
) -> Transport:
    """Solve ``max <a, f> + <b, g> - eps <pi - a b, 1>`` and return both potentials.

    Each full sweep reads every cost once: the exponentials that give the row softmin are reused for the
    column marginals. Where the matrix exceeds ``max_bytes`` its blocks are made anew in every sweep, and a
    random subset of the rows that fits is solved first, so that few sweeps over the whole remain.

    Time O(n m) per sweep (O(n m d) where the cost is made anew), memory ``max_bytes`` + O((n + m) d).

    Args:
        X: ``(n, d)`` points, or the ``(n, m)`` cost if ``cost="precomputed"``.
        Y: ``(m, d)`` points.
        a: ``(n,)`` weights >= 0, default uniform; normalised.
        b: ``(m,)`` weights > 0, default uniform; normalised.
        cost: ``"sqeuclidean"``, ``"euclidean"``, ``"cosine"`` or ``"precomputed"``.
        epsilon: regularisation in units of the cost; by default ``relative_epsilon`` times the mean cost.
        relative_epsilon: see ``epsilon``.
        momentum: ``"auto"`` mixes the last iterates (Anderson, with a plain step whenever the error rose, so
            it converges as plain Sinkhorn does); a number in [1, 2) is a fixed over-relaxation, 1 is plain.
        tol: stop when the L1 error of a marginal is at most this.
        max_iter: most sweeps at the final epsilon.
        anneal: come down to ``epsilon`` from the mean cost by factors of 4.
        debias: also solve both sets against themselves, see `self_potential` (O(n^2) per sweep).
        finish: end on an exact f-update. Without it, fixed momentum stops as ott-jax does, on the first
            marginal.
        dtype: of the costs and exponentials; sums are float64. ``"auto"`` takes float64 up to 4 million
            entries or for ``tol`` below 1e-5, else float32.
        max_bytes: largest cost matrix that is kept.
        random_state: of the subset solved first.

    Returns:
        A `Transport`; with a ``ConvergenceWarning`` and ``converged=False``, but usable, if ``tol`` was not
        met.

    Raises:
        ParameterError: a parameter outside its range.
        DataError: bad points, weights or cost.
    """
    check_parameters("sinkhorn", epsilon, relative_epsilon, momentum, tol, max_iter)
    if cost == "precomputed":
        X, Y = check_points(X, "cost", "sinkhorn"), None
        n, m = X.shape
    else:
        X, Y = check_pair(X, Y, cost, "sinkhorn")
        n, m = X.shape[0], Y.shape[0]
    a = check_weights(a, n, "a", "sinkhorn")
    b = check_weights(b, m, "b", "sinkhorn", positive=True)
    mean = float(a @ X @ b) if Y is None else mean_cost(X, Y, cost, a, b)
    if epsilon is None:
        if mean <= 0:
            raise DataError(
                "sinkhorn cannot derive epsilon from costs whose mean is not positive (all points equal?); "
                "give epsilon."
            )
        epsilon = relative_epsilon * mean
    if dtype == "auto":
        dtype = "float64" if n * m <= _SMALL or tol < 1e-5 else "float32"
    problem = Problem(CostBlocks(X, Y, cost, dtype, max_bytes), a, b)
    f, g, sweeps = np.zeros(n), np.zeros(m), 0
    if anneal and problem.blocks.stored is None:
        assert Y is not None
        # Random rows that fit: their g is within sampling error of the whole problem's.
        draw = np.random.default_rng(random_state)
        rows = np.flatnonzero(a)
        fits = max(1024, max_bytes // (m * np.dtype(dtype).itemsize))
        rows = np.sort(draw.choice(rows, min(rows.size, fits), replace=False))
        part = Problem(CostBlocks(X[rows], Y, cost, dtype, max_bytes), a[rows] / a[rows].sum(), b)
        f_part, g, sweeps = anneal_to(part, mean, epsilon, f[rows], g)
        state = solve(part, epsilon, f_part, g, max(tol, 1e-3), max_iter, "auto", True)
        g, sweeps = state.g, sweeps + state.n_iter
        del part
    elif anneal:
        f, g, sweeps = anneal_to(problem, mean, epsilon, f, g)
    result = solve(problem, epsilon, f, g, tol, max_iter, momentum, finish)
    if not result.converged:
        warnings.warn(
            f"sinkhorn stopped after {result.n_iter} sweeps at a marginal error of {result.error:.2g} > tol "
            f"= {tol:.2g}; the potentials are usable, their ranking may still move. Raise max_iter or "
            "epsilon.",
            ConvergenceWarning,
            stacklevel=2,
        )
    if debias:
        if Y is None:
            raise ParameterError("debias", "sinkhorn", "False for a precomputed cost", debias)
        own: dict[str, Any] = {"cost": cost, "epsilon": epsilon, "dtype": dtype, "max_bytes": max_bytes}
        result = replace(result, f_self=self_potential(X, a=a, **own), g_self=self_potential(Y, a=b, **own))
    return replace(result, n_iter=result.n_iter + sweeps)


def c_transform(
    X: Any,
    Y: Any = None,
    g: Any = None,
    *,
    b: Any = None,
    cost: str = "sqeuclidean",
    epsilon: float,
    dtype: Literal["auto", "float32", "float64"] = "auto",
) -> Vector:
    """Return ``f(x) = -eps log sum_j b_j exp((g_j - C(x, y_j)) / eps)`` for each row of ``X``.

    The out-of-sample potential. Time O(n m d), memory one block of costs (64 MiB). The smaller ``epsilon``,
    the nearer this is to ``min_j C(x, y_j) - g_j``.

    Args:
        X: ``(n, d)`` points, or the ``(n, m)`` cost if ``cost="precomputed"``.
        Y: ``(m, d)`` points.
        g: ``(m,)`` potential; zeros by default.
        b: ``(m,)`` weights > 0, default uniform; normalised.
        cost: as in `sinkhorn`.
        epsilon: regularisation > 0.
        dtype: as in `sinkhorn`.

    Raises:
        ParameterError, DataError: as `sinkhorn`.
    """
    check_parameters("c_transform", epsilon, 1.0, "auto", 1.0, 1)
    if cost == "precomputed":
        X, Y = check_points(X, "cost", "c_transform"), None
        n, m = X.shape
    else:
        X, Y = check_pair(X, Y, cost, "c_transform")
        n, m = X.shape[0], Y.shape[0]
    b = check_weights(b, m, "b", "c_transform", positive=True)
    g = np.zeros(m) if g is None else np.asarray(g, dtype=np.float64)
    if g.shape != (m,) or not np.isfinite(g).all():
        raise DataError(f"c_transform needs 'g' to be {m} finite numbers. Its shape is {g.shape}.")
    if dtype == "auto":
        dtype = "float64" if n * m <= _SMALL else "float32"
    problem = Problem(CostBlocks(X, Y, cost, dtype, 0), _NO_WEIGHTS, b)
    log_sum, _ = problem.sweep(np.zeros(n), g, epsilon)
    return -epsilon * log_sum


def self_potential(
    X: Any,
    *,
    a: Any = None,
    cost: str = "sqeuclidean",
    epsilon: float,
    tol: float = 1e-4,
    max_iter: int = 200,
    dtype: Literal["auto", "float32", "float64"] = "auto",
    max_bytes: int = 512 << 20,
) -> Vector:
    """Return the symmetric potential of ``X`` with itself: the fixed point of the c-transform.

    Averaging old and new potential converges in some tens of sweeps. Subtracted from f it removes the density
    bias of entropic potentials (Feydy et al. 2019). Time O(n^2) per sweep, memory ``max_bytes`` + O(n d).

    Args:
        X: ``(n, d)`` points.
        a: ``(n,)`` weights >= 0, default uniform.
        cost: as in `sinkhorn`.
        epsilon: regularisation > 0.
        tol: L1 marginal error.
        max_iter: most sweeps; more needed gives a ``ConvergenceWarning``.
        dtype: as in `sinkhorn`.
        max_bytes: largest cost matrix that is kept.

    Raises:
        ParameterError, DataError: as `sinkhorn`.
    """
    check_parameters("self_potential", epsilon, 1.0, "auto", tol, max_iter)
    X, _ = check_pair(X, X, cost, "self_potential")
    n = X.shape[0]
    a = check_weights(a, n, "a", "self_potential")
    if dtype == "auto":
        dtype = "float64" if n * n <= _SMALL else "float32"
    with np.errstate(divide="ignore"):
        problem = Problem(CostBlocks(X, X, cost, dtype, max_bytes), _NO_WEIGHTS, a)
    f = np.zeros(n)
    mean = mean_cost(X, X, cost, a, a)
    for step in schedule(mean, epsilon):
        last = step == epsilon
        for _ in range(max_iter if last else 5):
            log_sum, _ = problem.sweep(f, f, step)
            error = float(a @ np.abs(np.expm1(np.minimum(log_sum, 60.0))))
            f = f - 0.5 * step * log_sum
            if error <= tol:
                break
    if error > tol:
        warnings.warn(
            f"self_potential stopped after {max_iter} sweeps at a marginal error of {error:.2g} > tol = "
            f"{tol:.2g}.",
            ConvergenceWarning,
            stacklevel=2,
        )
    return f


def check_parameters(
    owner: Any, epsilon: float | None, relative_epsilon: float, momentum: Momentum, tol: float, max_iter: int
) -> None:
    """Check the solver's parameters; messages name ``owner``.

    Raises:
        ParameterError: one is outside its range.
    """
    if epsilon is not None and not (np.isfinite(epsilon) and epsilon > 0):
        raise ParameterError("epsilon", owner, "None or a finite float > 0", epsilon)
    if not 0 < relative_epsilon < np.inf:
        raise ParameterError("relative_epsilon", owner, "a finite float > 0", relative_epsilon)
    if momentum != "auto" and not (isinstance(momentum, (int, float)) and 1 <= momentum < 2):
        raise ParameterError("momentum", owner, "'auto' or a float in [1, 2)", momentum)
    if not 0 < tol < np.inf:
        raise ParameterError("tol", owner, "a finite float > 0", tol)
    if isinstance(max_iter, bool) or not isinstance(max_iter, (int, np.integer)) or max_iter < 1:
        raise ParameterError("max_iter", owner, "an int >= 1", max_iter)
