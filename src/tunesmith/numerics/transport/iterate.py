"""The iterations of entropic transport: sweeps at one epsilon, epsilon scaling, Anderson mixing."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tunesmith.numerics.transport.costs import CostBlocks
from tunesmith.numerics.transport.kernels import row_sweep, threads

__all__ = ["Momentum", "Problem", "Transport", "Vector", "anneal_to", "schedule", "solve"]

Vector = NDArray[np.float64]
Momentum = float | Literal["auto"]

# A column that gets no mass at all far from convergence: its potential rises by 69 eps per sweep, not by
# infinity.
_FLOOR = 1e-30
_HISTORY = 8


@dataclass(frozen=True)
class Transport:
    """Solution of a transport problem.

    Attributes:
        f: ``(n,)`` potential of the first set.
        g: ``(m,)`` potential of the second set.
        cost: dual value ``<a, f> + <b, g>``; for entropic problems the regularised cost.
        epsilon: regularisation; 0 for the exact problem.
        error: L1 distance of the plan's second marginal from ``b`` (the first is met by construction).
        n_iter: full sweeps, all stages together.
        converged: ``error <= tol``.
        f_self: ``(n,)`` potential of the first set with itself, if debiasing was asked for.
        g_self: the same for the second set.
    """

    f: Vector
    g: Vector
    cost: float
    epsilon: float = 0.0
    error: float = 0.0
    n_iter: int = 0
    converged: bool = True
    f_self: Vector | None = None
    g_self: Vector | None = None


class Problem:
    """Costs and weights; `sweep` is one pass over all costs."""

    def __init__(self, blocks: CostBlocks, a: Vector, b: Vector) -> None:
        self.blocks, self.a, self.b = blocks, a, b
        self.log_b = np.where(b > 0, np.log(np.maximum(b, 1e-300)), -1e30)

    def sweep(self, f: Vector, g: Vector, epsilon: float, omega: float = 1.0) -> tuple[Vector, Vector]:
        """Return ``log sum_j pi_ij / a_i`` at (f, g), and the column sums of the plan after the f-update."""
        n, m = self.blocks.shape
        kind = self.blocks.dtype.type
        h = (g / epsilon + self.log_b).astype(kind)
        u = (f / epsilon).astype(kind)
        log_sum = np.empty(n)
        total = np.zeros(m)
        for start, stop, block in self.blocks.blocks():
            parts = np.zeros((min(threads(), stop - start), m))
            weight = self.a[start:stop] if self.a.size else self.a
            row_sweep(
                block, kind(1 / epsilon), u[start:stop], h, weight, float(omega), log_sum[start:stop], parts
            )
            total += parts.sum(axis=0)
        return log_sum, total


def schedule(mean: float, epsilon: float) -> list[float]:
    steps = [epsilon]
    while steps[-1] * 4 < mean:
        steps.append(steps[-1] * 4)
    return steps[::-1]


def anneal_to(
    problem: Problem, mean: float, epsilon: float, f: Vector, g: Vector
) -> tuple[Vector, Vector, int]:
    """Come down to ``epsilon``; each stage only as exactly as the next one needs."""
    sweeps = 0
    for step in schedule(mean, epsilon)[:-1]:
        state = solve(problem, step, f, g, 0.05, 30, "auto", True)
        f, g, sweeps = state.f, state.g, sweeps + state.n_iter
    return f, g, sweeps


def solve(
    problem: Problem,
    epsilon: float,
    f: Vector,
    g: Vector,
    tol: float,
    max_iter: int,
    momentum: Momentum,
    finish: bool,
) -> Transport:
    """Iterate at one epsilon from (f, g)."""
    a, b = problem.a, problem.b
    omega = 1.0 if momentum == "auto" else float(momentum)
    mixer = _Anderson(b) if momentum == "auto" else None
    best: tuple[float, Vector, Vector] | None = None
    used = 0
    while used < max_iter:
        log_sum, column = problem.sweep(f, g, epsilon, omega)
        used += 1
        if mixer is None and omega != 1.0:
            # Over-relaxed: no marginal is met, so look at the first one of the present plan.
            error = float(a @ np.abs(np.expm1(np.minimum(log_sum, 60.0)))) if used > 1 else np.inf
            if error <= tol and not finish:
                return Transport(f, g, float(a @ f + b @ g), epsilon, error, used - 1, True)
            if error <= tol or used == max_iter:
                log_sum, column = problem.sweep(f, g, epsilon)
                error, f_exact = float(np.abs(column - b).sum()), f - epsilon * log_sum
                if error <= tol or used == max_iter:
                    return Transport(
                        f_exact, g, float(a @ f_exact + b @ g), epsilon, error, used + 1, error <= tol
                    )
            f = f - omega * epsilon * log_sum
            g = g - omega * epsilon * np.log(np.maximum(column / b, _FLOOR))
            continue
        f_exact = f - epsilon * log_sum
        error = float(np.abs(column - b).sum())
        if best is None or error < best[0]:
            best = (error, f_exact, g)
        if error <= tol:
            break
        step = -np.log(np.maximum(column / b, _FLOOR))
        f = f_exact
        g = epsilon * mixer.next(g / epsilon, step, error) if mixer else g + epsilon * step
    assert best is not None
    error, f, g = best
    return Transport(f, g, float(a @ f + b @ g), epsilon, error, used, error <= tol)


class _Anderson:
    """Anderson mixing of ``z -> z + step(z)``; falls back to the plain step whenever the error rose.

    A plain Sinkhorn step never raises the L1 marginal error, so at least every other sweep makes progress.
    Least squares in the norm weighted by ``b``, over the last 8 differences: O(8 m) memory.
    """

    def __init__(self, b: Vector) -> None:
        self.root = np.sqrt(b)
        self.images: deque[Vector] = deque(maxlen=_HISTORY + 1)
        self.steps: deque[Vector] = deque(maxlen=_HISTORY + 1)
        self.error = np.inf
        self.plain: Vector | None = None

    def next(self, z: Vector, step: Vector, error: float) -> Vector:
        """Return the next iterate after ``step`` was measured at ``z``."""
        if self.plain is not None and error > self.error:
            back, self.plain = self.plain, None
            self.images.clear()
            self.steps.clear()
            return back
        self.error = error
        image = z + step
        self.images.append(image)
        self.steps.append(step)
        self.plain = image
        if len(self.steps) < 2:
            return image
        steps = np.diff(np.stack(self.steps), axis=0)
        weighted = steps * self.root
        gram = weighted @ weighted.T
        gram.flat[:: gram.shape[0] + 1] *= 1 + 1e-8
        gamma = np.linalg.lstsq(gram, weighted @ (step * self.root), rcond=1e-12)[0]
        mixed: Vector = image - gamma @ np.diff(np.stack(self.images), axis=0)
        return mixed
