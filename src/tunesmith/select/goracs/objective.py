"""What GORACS minimises: exact transport distance to validation rows less the mean gradient norm."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.core.errors import DataError, ParameterError
from tunesmith.numerics.transport import cost_matrix, solve_exact
from tunesmith.numerics.transport.costs import check_pair

__all__ = ["check_gradient_norms", "objective_cost", "poo_score", "scales", "unit_range"]

Matrix = NDArray[np.float64]


def check_gradient_norms(gradient_norm: Any, n: int, lam: float, owner: Any) -> Matrix:
    """Return ``(n,)`` norms; zeros where none are given and ``lam`` is 0.

    Raises:
        ParameterError: ``lam`` is negative or not finite.
        DataError: norms are missing although ``lam`` > 0, or of the wrong length, negative or not finite.
    """
    if not (isinstance(lam, (int, float)) and 0 <= lam < np.inf):
        raise ParameterError("lam", owner, "a finite float >= 0", lam)
    name = owner if isinstance(owner, str) else type(owner).__name__
    if gradient_norm is None:
        if lam > 0:
            raise DataError(f"{name} with lam > 0 needs 'gradient_norm', one number per row.")
        return np.zeros(n)
    norms = np.asarray(gradient_norm, dtype=np.float64)
    if norms.shape != (n,):
        raise DataError(f"{name} needs 'gradient_norm' to be {n} numbers. Its shape is {norms.shape}.")
    bad = np.flatnonzero(~(np.isfinite(norms) & (norms >= 0)))
    if bad.size:
        raise DataError(
            f"{name} needs finite gradient norms >= 0, and {bad.size} of {n} are not.",
            source="gradient_norm",
            row=int(bad[0]),
            content=str(norms[bad[0]]),
        )
    return norms


def scales(distances: list[Matrix], norms: Matrix, owner: Any) -> tuple[float, float]:
    """Return the largest distance and the largest gradient norm (1 if there is none above 0).

    Raises:
        DataError: all distances are zero.
    """
    top = max(float(part.max()) for part in distances)
    if top <= 0:
        name = owner if isinstance(owner, str) else type(owner).__name__
        raise DataError(f"{name} cannot compare rows: all distances to the validation rows are zero.")
    return top, float(norms.max()) or 1.0


def unit_range(cost: Matrix) -> Matrix:
    """Shift and scale a cost to [0, 1], which changes no choice; a constant cost becomes zero."""
    low, high = float(cost.min()), float(cost.max())
    return (cost - low) / (high - low) if high > low else np.zeros_like(cost)


def objective_cost(
    X: Any,
    target_embedding: Any,
    *,
    gradient_norm: Any = None,
    lam: float = 0.0,
    cost: str = "euclidean",
    scale: bool = True,
    owner: Any = "objective_cost",
) -> Matrix:
    """Return ``C_sv = d(s, v) - lam g_s``; its transport cost from any set is the objective of that set (Eq.
    10).

    Time O(T V d), memory 8 T V bytes, at most 1 GiB.

    Args:
        X: ``(T, d)`` embeddings to choose from.
        target_embedding: ``(V, d)`` embeddings of validation rows.
        gradient_norm: ``(T,)`` norms >= 0.
        lam: weight of the gradient norms.
        cost: ``"euclidean"`` (the paper's), ``"sqeuclidean"`` or ``"cosine"``.
        scale: divide d and g by their maxima first.
        owner: for messages.

    Raises:
        ParameterError: ``lam`` or ``cost`` outside its range.
        DataError: bad embeddings or norms, or all distances zero.
    """
    X, target = check_pair(X, target_embedding, cost, owner)
    norms = check_gradient_norms(gradient_norm, X.shape[0], lam, owner)
    distance = cost_matrix(X, target, cost)
    if scale:
        top, peak = scales([distance], norms, owner)
        distance, norms = distance / top, norms / peak
    return distance - lam * norms[:, None]


def poo_score(
    indices: Any,
    X: Any,
    target_embedding: Any,
    *,
    gradient_norm: Any = None,
    lam: float = 0.0,
    cost: str = "euclidean",
    scale: bool = True,
) -> float:
    """Return the proxy optimisation objective ``OT(S) - lam mean g_S`` of a set (Eq. 10); lower is better.

    ``OT`` is the exact transport cost between S and the validation rows, both uniform. Comparable between
    sets of one pool only.

    Args:
        indices: distinct rows of ``X``, at least one.
        X, target_embedding, gradient_norm, lam, cost, scale: as in `objective_cost`.

    Raises:
        ParameterError, DataError: as `objective_cost`, or indices that are not distinct rows.
    """
    matrix = objective_cost(
        X, target_embedding, gradient_norm=gradient_norm, lam=lam, cost=cost, scale=scale, owner="poo_score"
    )
    rows = np.asarray(indices)
    n = matrix.shape[0]
    valid = rows.ndim == 1 and rows.size > 0 and np.issubdtype(rows.dtype, np.integer)
    if not valid or rows.min() < 0 or rows.max() >= n or np.unique(rows).size != rows.size:
        raise ParameterError("indices", "poo_score", f"distinct ints in [0, {n - 1}]", indices)
    return solve_exact(matrix[rows]).cost
