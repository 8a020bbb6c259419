"""The concave-convex bound on a Laplacian-regularised assignment and its closed-form, parallel update.

Ziko et al., "Transductive Few-Shot Learning: Clustering is All You Need?" (2021), arXiv 2106.09516; the
bound is that of Ziko, Granger and Ben Ayed, "Scalable Laplacian K-modes" (2018), arXiv 1810.13044.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from joblib import effective_n_jobs
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from tunesmith.core.errors import DataError, ParameterError

__all__ = [
    "BoundResult",
    "bound_update",
    "chunks",
    "log_floor",
    "psd_shift",
    "relaxed_energy",
    "softmax_rows",
]

_CHUNK = 262_144  # entries of Z worked on at a time: 1 MB of float32 stays in a core's cache
_STILL = 1e-2  # mean change of a row in one step, above which a steady energy is a cycle


@dataclass(frozen=True)
class BoundResult:
    """What `bound_update` found.

    Attributes:
        Z: ``(N, K)`` assignments; rows are positive and sum to 1, but for fixed rows.
        energies: R(Z^0), R(Z^1), …, R(Z), float64.
        n_iter: updates behind Z.
        converged: whether energy and rows settled before ``max_iter``.
    """

    Z: NDArray[Any]
    energies: NDArray[np.float64]
    n_iter: int
    converged: bool


def bound_update(
    unary: ArrayLike,
    W: Any,
    lam: float,
    Z0: ArrayLike | None = None,
    *,
    fixed: ArrayLike | None = None,
    max_iter: int = 600,
    tol: float = 1e-7,
    n_jobs: int | None = None,
    variant: str = "paper",
) -> BoundResult:
    """Minimise ``R(Z) = sum_p [z_p log z_p + a_p z_p] - (lam / 2) sum_pq w_pq z_p z_q`` over rows on the simplex.

    Each step is ``z_p <- softmax(-a_p + lam sum_q w_pq z_q)`` for all rows at once. R never rises when W is symmetric
    and positive semi-definite; `psd_shift` makes it so. Otherwise the steps may end in a cycle of two.

    Args:
        unary: ``(N, K)`` costs a; float32 is worked on in float32, all else in float64.
        W: ``(N, N)`` affinities >= 0, an array or a SciPy sparse matrix.
        lam: weight of the Laplacian, >= 0.
        Z0: ``(N, K)`` start; ``softmax(-unary)`` by default.
        fixed: ``(N,)`` bool; these rows keep their ``Z0``.
        max_iter: most steps.
        tol: stop from the third step on when R changes by no more than this share of itself.
        n_jobs: threads, as in scikit-learn.
        variant: ``"official"`` monitors the energy of the authors' code, with ``lam`` for ``lam / 2``; the steps are
            the same.

    Returns:
        Assignments and energies. Time O(nnz(W) K + N K) per step (dense W: O(N^2 K)), memory two ``(N, K)`` arrays.

    Raises:
        ParameterError: shapes do not fit, or a parameter is out of its range.
        DataError: W has a negative or non-finite weight.
    """
    A = np.asarray(unary)
    if A.dtype != np.float32:
        A = A.astype(np.float64, copy=False)
    if A.ndim != 2:
        raise ParameterError("unary", bound_update, "an array of shape (N, K)", A.shape)
    n = len(A)
    if W.shape != (n, n):
        raise ParameterError("W", bound_update, f"of the shape {(n, n)}", W.shape)
    if not (np.isfinite(lam) and lam >= 0):
        raise ParameterError("lam", bound_update, "a finite float >= 0", lam)
    if max_iter < 1:
        raise ParameterError("max_iter", bound_update, "an int >= 1", max_iter)
    if variant not in ("paper", "official"):
        raise ParameterError("variant", bound_update, "'paper' or 'official'", variant)
    W = _checked_weights(W, A.dtype)
    Z = softmax_rows(-A) if Z0 is None else np.array(Z0, dtype=A.dtype, order="C")
    if Z.shape != A.shape:
        raise ParameterError("Z0", bound_update, f"of the shape of unary: {A.shape}", Z.shape)
    held = np.zeros(n, dtype=bool) if fixed is None else np.asarray(fixed, dtype=bool)
    share = lam if variant == "official" else lam / 2

    parts = chunks(n, A.shape[1])
    weights = [
        W[part] for part in parts
    ]  # rows of a CSR matrix are views on its arrays' copies: 1 x its memory
    new = np.empty_like(Z)
    still = _own_terms(Z[held], A[held])  # of the rows that never move
    own = _own_terms(Z, A)
    energies: list[float] = []

    def step(c: int) -> tuple[float, float]:
        """Update the rows of a chunk; returns its part of sum_pq w z z before, and of its own terms after."""
        part, w = parts[c], weights[c]
        vote = w @ Z  # b_p = sum_q w_pq z_q
        pair = np.einsum("ij,ij->i", vote, Z[part]).sum(dtype=np.float64)
        vote *= lam
        out = np.subtract(vote, A[part], out=new[part])
        log_norm = _softmax_inplace(out)
        # z log z + a z = z (s - log_norm) + a z with s + a = lam b, so no logarithm of z is needed.
        terms = np.einsum("ij,ij->i", vote, out) - log_norm
        keep = held[part]
        if keep.any():
            out[keep] = Z[part][keep]
            terms = terms[~keep]
        return float(pair), float(terms.sum(dtype=np.float64))

    def pairs(c: int) -> float:
        return float(np.einsum("ij,ij->i", weights[c] @ Z, Z[parts[c]]).sum(dtype=np.float64))

    with ThreadPoolExecutor(effective_n_jobs(n_jobs)) as pool:
        for i in range(max_iter):
            found = list(pool.map(step, range(len(parts))))
            energies.append(own - share * sum(pair for pair, _ in found))
            if _settled(energies, i, tol):
                # In a cycle of two the energy may stand still while the rows swap.
                moved = sum(float(np.abs(new[part] - Z[part]).max(axis=1).sum()) for part in parts)
                return BoundResult(Z, np.array(energies), i, moved <= _STILL * n)
            own = still + sum(terms for _, terms in found)
            Z, new = new, Z
        energies.append(own - share * sum(pool.map(pairs, range(len(parts)))))
    return BoundResult(Z, np.array(energies), max_iter, _settled(energies, max_iter, tol))


def relaxed_energy(Z: ArrayLike, unary: ArrayLike, W: Any, lam: float) -> float:
    """Return R(Z) of `bound_update`, written out: ``sum z log z + sum a z - (lam / 2) sum_pq w_pq z_p z_q``.

    Args:
        Z: ``(N, K)`` assignments; 0 log 0 counts 0.
        unary: ``(N, K)`` costs.
        W: ``(N, N)`` array or sparse matrix.
        lam: weight of the Laplacian.
    """
    z, a = np.asarray(Z, dtype=np.float64), np.asarray(unary, dtype=np.float64)
    return float(_own_terms(z, a) - lam / 2 * np.einsum("ij,ij->", W @ z, z))


def psd_shift(W: Any) -> Any:
    """Return ``(W + W') / 2`` with each row's sum added to its diagonal.

    The result is positive semi-definite for every W >= 0, and the term added is the same for all hard assignments, so
    their order stays.

    Args:
        W: ``(N, N)`` affinities >= 0, dense or sparse; the result is an array or a CSR array likewise.
    """
    if sparse.issparse(W):
        graph: Any = sparse.csr_array(W)  # type: ignore[call-overload]
        half = (graph + graph.T.tocsr()) * graph.dtype.type(0.5)
        return (half + sparse.dia_array((half.sum(axis=1)[None], [0]), shape=graph.shape)).tocsr()
    half = (np.asarray(W) + np.asarray(W).T) / 2
    return half + np.diag(half.sum(axis=1))


def softmax_rows(scores: NDArray[Any]) -> NDArray[Any]:
    """Return the softmax of each row, computed in place in chunks."""
    for part in chunks(*scores.shape):
        _softmax_inplace(scores[part])
    return scores


def chunks(n: int, width: int) -> list[slice]:
    """Cut n rows of ``width`` numbers into slices that fit into a cache."""
    size = max(1, _CHUNK // max(width, 1))
    return [slice(i, min(i + size, n)) for i in range(0, n, size)]


def log_floor(dtype: Any) -> float:
    """Return the logarithm below which a softmax is cut, so that no entry becomes 0."""
    return float(np.log(np.finfo(dtype).tiny)) + 1


def _softmax_inplace(scores: NDArray[Any]) -> NDArray[Any]:
    """Turn rows into their softmax; returns the logarithms of their normalisers."""
    top = scores.max(axis=1, keepdims=True)
    scores -= top
    # The division below is by at most K, and the result must not be 0.
    np.maximum(scores, log_floor(scores.dtype) + np.log(scores.shape[1]), out=scores)
    np.exp(scores, out=scores)
    total = scores.sum(axis=1, keepdims=True)
    scores /= total
    return (top + np.log(total))[:, 0].astype(np.float64)


def _own_terms(z: NDArray[Any], a: NDArray[Any]) -> float:
    """Return sum z log z + sum a z."""
    total = 0.0
    for part in chunks(*z.shape):
        some = z[part]
        logs = np.log(np.maximum(some, 1e-20))
        logs += a[part]
        total += float(np.einsum("ij,ij->i", some, logs).sum(dtype=np.float64))
    return total


def _settled(energies: list[float], i: int, tol: float) -> bool:
    return i > 2 and abs(energies[-1] - energies[-2]) <= tol * abs(energies[-2])


def _checked_weights(W: Any, dtype: Any) -> Any:
    if sparse.issparse(W):
        graph: Any = sparse.csr_array(W, dtype=dtype)  # type: ignore[call-overload]
        values = graph.data
    else:
        graph = values = np.asarray(W, dtype=dtype)
    if not np.all(values >= 0) or not np.all(np.isfinite(values)):
        raise DataError("an affinity is negative or not finite; the weights of W must be numbers >= 0.")
    return graph
