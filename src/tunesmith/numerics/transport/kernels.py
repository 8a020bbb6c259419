"""The one loop of entropic transport: a fused softmin over rows that also gathers the column marginals.

One entry of the cost is read once and exponentiated once per full Sinkhorn sweep. The usual implementation
makes two logsumexp reductions, each with several passes over an n x m temporary; here the exponentials of a
row stay in a buffer of m numbers, which fits in the second-level cache up to m of about 10^5.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
from numba import njit, prange
from numba.extending import overload
from numpy.typing import NDArray

__all__ = ["row_sweep", "threads"]

# Reassociation lets the compiler sum in vector lanes; nothing here may be assumed finite.
_FAST = {"contract", "reassoc", "nsz"}

# A row sum outside these bounds is computed again relative to the row's maximum. Below 1e-20 the terms cut
# off by the clamp of the exponential (e^-87 = 1.6e-38 each) could weigh; above 1e30 float32 is close to
# overflow.
_LOW, _HIGH = 1e-20, 1e30

# Up to this many entries (about 0.1 ms) waking the threads costs more than they save.
_SERIAL = 1 << 16


def _exp(x: Any) -> Any:
    raise NotImplementedError


@overload(_exp, jit_options={"fastmath": {"contract"}})
def _exp_overload(x: Any) -> Any:
    """Branch-free exponentials that the compiler turns into vector code (relative error < 1.5e-7 and 4e-16).

    Cody-Waite reduction and polynomials after Moshier's Cephes (``expf``) and, in double precision, the
    Taylor series to degree 13 on |r| <= ln 2 / 2. The argument is clamped, so there is neither overflow nor
    denormals.
    """
    if x == nb.float32:

        def exp32(x: Any) -> Any:
            x = min(max(x, np.float32(-87.0)), np.float32(88.0))
            t = x * np.float32(1.4426950408889634) + np.float32(12582912.0)
            k = t - np.float32(12582912.0)
            r = x - k * np.float32(0.693359375)
            r = r - k * np.float32(-2.12194440e-4)
            p = np.float32(1.9875691500e-4)
            p = p * r + np.float32(1.3981999507e-3)
            p = p * r + np.float32(8.3334519073e-3)
            p = p * r + np.float32(4.1665795894e-2)
            p = p * r + np.float32(1.6666665459e-1)
            p = p * r + np.float32(5.0000001201e-1)
            p = p * r * r + r + np.float32(1.0)
            bits = (np.float32(t).view(np.int32) << np.int32(23)) + np.float32(p).view(np.int32)
            return np.int32(bits).view(np.float32)

        return exp32
    if x == nb.float64:

        def exp64(x: Any) -> Any:
            x = min(max(x, -700.0), 700.0)
            t = x * 1.4426950408889634 + 6755399441055744.0
            k = t - 6755399441055744.0
            r = x - k * 6.93145751953125e-1
            r = r - k * 1.42860682030941723212e-6
            p = 1.0 / 6227020800.0
            p = p * r + 1.0 / 479001600.0
            p = p * r + 1.0 / 39916800.0
            p = p * r + 1.0 / 3628800.0
            p = p * r + 1.0 / 362880.0
            p = p * r + 1.0 / 40320.0
            p = p * r + 1.0 / 5040.0
            p = p * r + 1.0 / 720.0
            p = p * r + 1.0 / 120.0
            p = p * r + 1.0 / 24.0
            p = p * r + 1.0 / 6.0
            p = p * r + 0.5
            p = p * r * r + r + 1.0
            bits = (np.float64(t).view(np.int64) << np.int64(52)) + np.float64(p).view(np.int64)
            return np.int64(bits).view(np.float64)

        return exp64
    return None


def threads() -> int:
    """Return the number of threads that `row_sweep` uses."""
    return int(nb.get_num_threads())


def row_sweep(
    cost: NDArray[Any],
    inverse: Any,
    u: NDArray[Any],
    h: NDArray[Any],
    weight: NDArray[np.float64],
    omega: float,
    log_sum: NDArray[np.float64],
    column: NDArray[np.float64],
) -> None:
    """Log row sums of ``p_ij = exp(u_i + h_j - inverse * cost_ij)``, and column sums of ``w_i p_ij``.

    ``w_i = weight_i * exp((1 - omega) * log_sum_i) / rowsum_i``: with omega = 1 the rows are normalised
    exactly, otherwise they are the rows of the over-relaxed potential. Sums run in the type of ``cost`` over
    pieces of 1024 columns and 256 rows and are collected in float64.

    Args:
        cost: ``(n, m)`` float32 or float64, C order.
        inverse: 1 / epsilon, same type.
        u: ``(n,)`` row potentials over epsilon, same type.
        h: ``(m,)`` column potentials over epsilon plus log weights, same type.
        weight: ``(n,)`` row weights; an empty array leaves ``column`` alone (half the work).
        omega: over-relaxation.
        log_sum: ``(n,)`` output.
        column: ``(chunks, m)`` output, to be summed over its first axis; its height sets the parallelism.
    """
    if cost.size <= _SERIAL:
        for c in range(column.shape[0]):
            _chunk(c, cost, inverse, u, h, weight, omega, log_sum, column)
    else:
        _parallel(column, cost, inverse, u, h, weight, omega, log_sum)


@njit(parallel=True, cache=True, nogil=True)
def _parallel(column: NDArray[np.float64], *arguments: Any) -> None:
    for c in prange(column.shape[0]):
        _chunk(c, *arguments, column)


@njit(fastmath=_FAST, cache=True, nogil=True)
def _chunk(
    c: int,
    cost: NDArray[Any],
    inverse: Any,
    u: NDArray[Any],
    h: NDArray[Any],
    weight: NDArray[np.float64],
    omega: float,
    log_sum: NDArray[np.float64],
    column: NDArray[np.float64],
) -> None:
    n, m = cost.shape
    chunks = column.shape[0]
    wide = weight.size > 0
    p = np.empty(m, cost.dtype)
    part = np.zeros(m if wide else 0, cost.dtype)
    total = column[c]
    total[:] = 0.0
    lo, hi = c * n // chunks, (c + 1) * n // chunks
    for i in range(lo, hi):
        shift = u[i]
        s = 0.0
        for start in range(0, m, 1024):
            t = cost.dtype.type(0)
            for j in range(start, min(m, start + 1024)):
                e = _exp(shift + (h[j] - inverse * cost[i, j]))
                p[j] = e
                t += e
            s += t
        log_s = np.log(s)
        if not (_LOW < s < _HIGH):
            top = h[0] - inverse * cost[i, 0]
            for j in range(m):
                v = h[j] - inverse * cost[i, j]
                p[j] = v
                top = max(top, v)
            s = 0.0
            for j in range(m):
                e = _exp(p[j] - top)
                p[j] = e
                s += e
            log_s = np.log(s) + top + shift
        log_sum[i] = log_s
        if wide:
            w = cost.dtype.type(weight[i] * np.exp(min(max((1.0 - omega) * log_s, -60.0), 60.0)) / s)
            for j in range(m):
                part[j] += w * p[j]
            if (i - lo) % 256 == 255:
                for j in range(m):
                    total[j] += part[j]
                    part[j] = 0
    if wide:
        for j in range(m):
            total[j] += part[j]
