"""The lifted programs: their affine constraints, exact memberships, and what bounds them from above.

One form covers both estimators. With g blocks Z_k of (n, n) and K clusters::

    max sum_k <A_k, Z_k>   s.t.  Z_k PSD,  Z_k >= 0 entrywise,  (sum_k Z_k) 1 = 1,  tr Z_k = K / g for each k

g = 1 is the K-means SDP of Peng & Wei (2007), g = K is LA-SDP (Zhuang, Chen & Yang, ICML 2023, arXiv 2209.15097);
``joint`` asks only that the traces add up to K.

Dual, with y for the rows and N_k >= 0 for the entries: for *any* such pair

    sum_i y_i + sum_k (K / g) lambda_max(A_k + N_k - (y 1' + 1 y') / 2)

is an upper bound on the program, hence on every partition (with ``joint``: K times the largest of the
eigenvalues). It costs one eigenvalue per block and needs no trust in the solver that proposed y and N.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh

from tunesmith.core.errors import ParameterError

__all__ = [
    "Constraints",
    "SDPResult",
    "State",
    "check_blocks",
    "lift",
    "partition_value",
    "upper_bound",
    "value",
]

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class State:
    """Where a solver stopped, in the units of A: a start for the next, similar program."""

    Z: Matrix  # (g, n, n)
    N: Matrix  # (g, n, n), >= 0
    y: Matrix  # (n,)
    s: Matrix  # (g,)
    sigma: float  # 0: let the solver choose


@dataclass(frozen=True)
class SDPResult:
    """A solution of the program above and how far it can be trusted.

    Attributes:
        Z: (g, n, n) symmetric; rows and traces meet their constraints to machine precision.
        value: sum_k <A_k, Z_k>.
        bound: proven upper bound on the program's value and on the value of every partition.
        infeasibility: distance of Z from the PSD and from the non-negative matrices, Frobenius norm over that of
            an exact solution, the larger of the two.
        labels: (n,) if Z is the exact membership of a partition whose value meets the bound, else None.
        converged: gap and infeasibility are within the tolerance.
        n_iter: iterations of the solver.
        state: for a warm start; None where the solver has none.
    """

    Z: Matrix
    value: float
    bound: float
    infeasibility: float
    labels: NDArray[np.int64] | None
    converged: bool
    n_iter: int
    state: State | None


@dataclass(frozen=True)
class Constraints:
    """The affine constraints of a program of n rows, K clusters and g blocks, and the maps they need."""

    n: int
    clusters: int
    groups: int
    joint: bool = False

    @property
    def trace(self) -> float:
        """Trace of one block (on average, with ``joint``)."""
        return self.clusters / self.groups

    def residual(self, rows: Matrix, traces: Matrix) -> tuple[Matrix, Matrix]:
        """Return ``rows - 1`` and ``traces - K/g``, given (sum_k Z_k) 1 and the (g,) traces."""
        return rows - 1.0, traces - self.trace

    def solve(self, r: Matrix, t: Matrix) -> tuple[Matrix, Matrix]:
        """Return (y, s) with A A*(y, s) = (r, t), where A*(y, s)_k = (y 1' + 1 y') / 2 + s_k I; O(n + g)."""
        n, g = self.n, self.groups
        if self.joint:
            t = np.full(g, t.mean())
        total = (r.sum() - t.sum()) / (g * max(n - 1, 1))  # sum of y
        s = (t - total) / n
        y = (2.0 / (g * n)) * (r - s.sum() - 0.5 * g * total)
        return y, s

    def project(self, Z: Matrix) -> Matrix:
        """Return the nearest blocks that meet all row sums and traces; Z (g, n, n) symmetric. O(g n^2)."""
        traces = np.trace(Z, axis1=1, axis2=2)
        y, s = self.solve(*self.residual(Z.sum(axis=(0, 2)), traces))
        return Z - self.adjoint(y, s)

    def adjoint(self, y: Matrix, s: Matrix) -> Matrix:
        """Return A*(y, s), (g, n, n)."""
        half = 0.5 * (y[:, None] + y[None, :])
        return half[None] + s[:, None, None] * np.eye(self.n)[None]

    def interior(self) -> Matrix:
        """Return one block of the most even feasible point, a I + b 11'/n in every block."""
        a = (self.clusters - 1) / (self.groups * max(self.n - 1, 1))
        return a * np.eye(self.n) + (1 / self.groups - a) / self.n


def lift(labels: Any, groups: int, n_clusters: int | None = None) -> Matrix:
    """Return the exact memberships of a partition.

    Args:
        labels: (n,) ints in [0, K), each cluster with at least one row.
        groups: K for one block 1_G 1_G' / |G| per cluster, 1 for their sum.
        n_clusters: K, by default the largest label + 1.

    Raises:
        ParameterError: a cluster without rows.
    """
    labels = np.asarray(labels)
    k = int(labels.max()) + 1 if n_clusters is None else n_clusters
    counts = np.bincount(labels, minlength=k)
    if counts.size > k or not counts.all():
        raise ParameterError("labels", "lift", f"labels 0 to {k - 1}, each at least once", np.unique(labels))
    H = np.zeros((labels.size, k))
    H[np.arange(labels.size), labels] = 1 / np.sqrt(counts[labels])
    if groups == 1:
        return (H @ H.T)[None]
    return np.einsum("ik,jk->kij", H, H)


def value(A: Matrix, Z: Matrix) -> float:
    """Return sum_k <A_k, Z_k>."""
    return float(sum(np.vdot(a, z) for a, z in zip(A, Z, strict=True)))


def partition_value(A: Matrix, labels: NDArray[np.int64], n_clusters: int) -> float:
    """Return sum_k <A_k, 1_G 1_G'> / |G| without building the blocks; -inf if a cluster is empty. O(n^2)."""
    total = 0.0
    for k in range(n_clusters):
        rows = np.flatnonzero(labels == k)
        if rows.size == 0:
            return -np.inf
        total += float(A[min(k, len(A) - 1)][np.ix_(rows, rows)].sum()) / rows.size
    return total


def upper_bound(A: Matrix, N: Matrix, y: Matrix, constraints: Constraints) -> float:
    """Return the bound of the module's docstring; O(g n^3), one eigenvalue per block.

    Args:
        A: (g, n, n).
        N: (g, n, n); negative entries count as zero.
        y: (n,).
        constraints: of the program.
    """
    top = np.empty(len(A))
    half = 0.5 * y
    for k in range(len(A)):
        M = np.maximum(N[k], 0)
        M += A[k]
        M -= half[:, None]
        M -= half
        last = len(M) - 1
        top[k] = eigh(
            M, eigvals_only=True, subset_by_index=(last, last), overwrite_a=True, check_finite=False
        )[0]
    share = constraints.clusters * top.max() if constraints.joint else constraints.trace * top.sum()
    return float(y.sum() + share)


def check_blocks(A: Any, n_clusters: int, owner: str) -> tuple[Matrix, Constraints]:
    """Check A (g, n, n) with g = 1 or K, and return it as float64 with its (per-group) constraints.

    Raises:
        ParameterError: another shape, more clusters than rows, or values that are not finite or not symmetric.
    """
    A = np.asarray(A, dtype=np.float64)
    if A.ndim != 3 or A.shape[1] != A.shape[2] or A.shape[0] not in (1, n_clusters):
        raise ParameterError("A", owner, f"an array of shape (1 or {n_clusters}, n, n)", A.shape)
    if not 1 <= n_clusters <= A.shape[1]:
        raise ParameterError("n_clusters", owner, f"an int in [1, {A.shape[1]}]", n_clusters)
    if not all(np.isfinite(a).all() and np.allclose(a, a.T) for a in A):
        raise ParameterError("A", owner, "finite and symmetric", "an array that is not")
    return A, Constraints(A.shape[1], n_clusters, A.shape[0])
