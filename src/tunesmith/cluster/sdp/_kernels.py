"""The passes over n x n blocks of one ADMM iteration, fused: memory traffic is what they cost.

The diagonal is set right after each row, so that the inner loops have no branch and use vector instructions;
``reassoc`` lets sums do so too.
"""

from __future__ import annotations

from typing import Any

import numba

__all__ = ["advance", "reflect", "shrink"]

_FLAGS = {"reassoc", "contract", "nsz"}


@numba.njit(cache=True, fastmath=_FLAGS)
def reflect(Z: Any, N: Any, C: Any, half: Any, s: float, sigma: float, W: Any) -> None:
    """W <- Z + sigma (N + C - A*(y, s)), half = y / 2."""
    n = Z.shape[0]
    for i in range(n):
        for j in range(n):
            W[i, j] = Z[i, j] + sigma * (N[i, j] + C[i, j] - half[i] - half[j])
        W[i, i] -= sigma * s


@numba.njit(cache=True, fastmath=_FLAGS)
def shrink(P: Any, N: Any, half: Any, s: float, sigma: float, rows: Any) -> tuple[float, float]:
    """N <- max(0, N - Aff(P) / sigma) with Aff(P) = P - A*(2 half, s), and P <- P + sigma (change of N).

    Adds the new P's row sums to ``rows``; returns its trace and the sum of squares of min(Aff(P), 0).
    """
    n = P.shape[0]
    trace, below = 0.0, 0.0
    inverse = 1.0 / sigma
    for i in range(n):
        p_ii, n_ii = P[i, i], N[i, i]
        for j in range(n):
            q = P[i, j] - half[i] - half[j]
            low = min(q, 0.0)
            below += low * low
            old = N[i, j]
            new = max(old - q * inverse, 0.0)
            N[i, j] = new
            P[i, j] += sigma * (new - old)
        q = p_ii - 2 * half[i]
        below += min(q - s, 0.0) ** 2 - min(q, 0.0) ** 2
        N[i, i] = max(n_ii - (q - s) * inverse, 0.0)
        P[i, i] = p_ii + sigma * (N[i, i] - n_ii)
        total = 0.0
        for j in range(n):
            total += P[i, j]
        rows[i] += total
        trace += P[i, i]
    return trace, below


@numba.njit(cache=True, fastmath=_FLAGS)
def advance(Z: Any, R: Any, half: Any, s: float, tau: float) -> float:
    """Z <- Z + tau (R - A*(2 half, s) - Z); returns the sum of squares of the bracket."""
    n = Z.shape[0]
    moved = 0.0
    for i in range(n):
        d_ii = R[i, i] - 2 * half[i] - Z[i, i]
        for j in range(n):
            d = R[i, j] - half[i] - half[j] - Z[i, j]
            moved += d * d
            Z[i, j] += tau * d
        moved += (d_ii - s) ** 2 - d_ii * d_ii
        Z[i, i] -= tau * s
    return moved
