"""The reference: the same program handed to a conic solver through cvxpy (``pip install 'tunesmith[sdp]'``)."""

from __future__ import annotations

from typing import Any

import numpy as np

from tunesmith.cluster.sdp.program import Constraints, SDPResult, check_blocks, upper_bound, value
from tunesmith.core.errors import TunesmithError

__all__ = ["solve_cvxpy"]


def solve_cvxpy(
    A: Any, n_clusters: int, *, joint: bool = False, conic: str = "SCS", **options: Any
) -> SDPResult:
    """Solve ``max sum_k <A_k, Z_k>`` as `tunesmith.cluster.sdp.admm.solve_admm` does, by a conic solver.

    For n up to about 200: g n^2 / 2 variables. The bound comes from the solver's dual of the row sums and of the
    entries' signs, evaluated by `upper_bound`, so it is valid whatever the solver's accuracy.

    Args:
        A: (g, n, n) symmetric; g = 1 or K.
        n_clusters: K.
        joint: one constraint on the sum of the traces.
        conic: name of the solver, ``"SCS"`` or ``"CLARABEL"``.
        **options: for ``cvxpy.Problem.solve``.

    Raises:
        TunesmithError: cvxpy is not installed, or the conic solver failed.
        ParameterError: A or n_clusters outside of what is described.
    """
    try:
        import cvxpy
    except ImportError:
        raise TunesmithError(
            "The solver 'cvxpy' needs the package cvxpy. Install it with: pip install 'tunesmith[sdp]'"
        ) from None
    cp: Any = cvxpy
    A, constraints = check_blocks(A, n_clusters, "solve_cvxpy")
    g, n = len(A), A.shape[1]
    constraints = Constraints(n, n_clusters, g, joint)
    size = float(np.abs(A).max()) or 1.0
    Z = [cp.Variable((n, n), PSD=True) for _ in range(g)]
    signs = [z >= 0 for z in Z]
    rows = cp.sum(sum(Z[1:], Z[0]), axis=1) == np.ones(n)
    total = sum(cp.trace(z) for z in Z)
    traces = [total == n_clusters] if joint else [cp.trace(z) == constraints.trace for z in Z]
    gain = sum(cp.sum(cp.multiply(a / size, z)) for a, z in zip(A, Z, strict=True))
    problem = cp.Problem(cp.Maximize(gain), [*signs, rows, *traces])
    try:
        problem.solve(solver=conic, **options)
    except cp.error.SolverError as error:
        raise TunesmithError(f"{conic} could not solve the program: {error}") from error
    if any(z.value is None for z in Z):
        raise TunesmithError(f"{conic} could not solve the program: it ended as {problem.status}.")
    found = np.stack([0.5 * (z.value + z.value.T) for z in Z])
    N = np.stack([size * 0.5 * (c.dual_value + c.dual_value.T) for c in signs])
    bound = min(upper_bound(A, N, sign * size * rows.dual_value, constraints) for sign in (1, -1))
    low = max(
        np.linalg.norm(np.minimum(found, 0)),
        np.sqrt(sum(np.sum(np.minimum(np.linalg.eigvalsh(z), 0) ** 2) for z in found)),
        np.linalg.norm(found.sum(axis=(0, 2)) - 1),
    )
    steps = problem.solver_stats.num_iters or 0
    return SDPResult(
        found, value(A, found), bound, float(low / np.sqrt(n_clusters)), None,
        problem.status == cp.OPTIMAL, int(steps), None,
    )  # fmt: skip
