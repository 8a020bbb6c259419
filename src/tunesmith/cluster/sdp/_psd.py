"""The positive part of a symmetric matrix that has few positive eigenvalues and changes little between calls."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh, qr

__all__ = ["PositivePart"]

Matrix = NDArray[np.float64]

_SMALL = 160  # rows up to which LAPACK's whole decomposition is as quick
_SHARE = 0.1  # of the rows: with more vectors than that in the basis LAPACK is quicker
_DEGREES = (5, 14)  # of the Chebyshev filter: it falls while one pass is enough, and rises where not
_PASSES = 3  # filters tried before LAPACK is called
_FRESH = 10  # calls for which a lower bound of the spectrum, with a margin, is trusted
_NEAR = 0.02  # of the spectrum's lower end: eigenvalues that near below 0 belong to the basis
_REST = 20  # calls of LAPACK after a filter that failed


class PositivePart:
    """Project on the PSD matrices, with the eigenvectors of the last call as a start.

    Chebyshev-filtered subspace iteration (Zhou, Saad, Tiago & Chelikowsky 2006): a polynomial that is small on the
    unwanted part of the spectrum is applied to last time's vectors and a few more, then Rayleigh-Ritz. The basis
    reaches some way below zero, so that the filter separates what is positive, and the residuals are checked: every
    positive pair's against ``tolerance``, and of those just below zero that their eigenvalue cannot be positive. Where
    that fails, or the basis would be wide, LAPACK decides. Cost O(n^2 r) for r vectors, O(n^3) at worst.
    """

    def __init__(self, seed: int = 0) -> None:
        self.basis: Matrix | None = None
        self.rank = 0
        self.top: Matrix = np.empty(0)
        self._random = np.random.default_rng(seed)
        self._degree, self._age, self._low, self._edge, self._rest = 8, 0, 0.0, 0.0, 0

    def forget(self) -> None:
        """Call after W changed much: the spectrum's lower end is measured anew."""
        self._age = 0

    def __call__(self, W: Matrix, tolerance: float) -> Matrix:
        """Return the PSD part of W (n, n); ``tolerance``: of an eigenpair's residual norm."""
        pairs = None
        if len(W) > _SMALL:
            if self._age % _FRESH == 0:
                self._low = 1.1 * self._lowest(W)
            self._age += 1
            if self._rest > 0:
                self._rest -= 1
            elif self.basis is not None:
                pairs = self._filtered(W, tolerance)
                self._rest = _REST if pairs is None else 0
        if pairs is None:
            pairs = self._whole(W)
        values, vectors = pairs
        self.rank = values.size
        self.top = vectors[:, ::-1]
        half = vectors * np.sqrt(values)
        return np.asarray(half @ half.T)

    def _whole(self, W: Matrix) -> tuple[Matrix, Matrix]:
        if len(W) <= _SMALL:
            values, vectors = np.linalg.eigh(W)
        else:
            above = (min(2 * _NEAR * self._low, 0.0), np.inf)
            try:
                values, vectors = eigh(W, subset_by_value=above, check_finite=False)
            except (
                np.linalg.LinAlgError
            ):  # MRRR gives up on some clustered spectra; divide and conquer does not
                values, vectors = np.linalg.eigh(W)
        first = int(np.searchsorted(values, 0, side="right"))
        if self._rest <= 1:
            self._keep(values, vectors)
        return values[first:], vectors[:, first:]

    def _keep(self, values: Matrix, vectors: Matrix) -> None:
        """Remember the eigenvectors above the margin, four below it, and two at random: what is new needs a way in."""
        n = len(vectors)
        wanted = int(np.sum(values > _NEAR * self._low)) + 4
        kept = vectors[:, -wanted:]
        fresh = self._random.standard_normal((n, wanted + 2 - kept.shape[1]))
        self.basis = np.hstack([fresh, kept]) if wanted + 2 < _SHARE * n else None
        self._edge = min(0.0, float(values[-kept.shape[1]])) if kept.size else 0.0

    def _filtered(self, W: Matrix, tolerance: float) -> tuple[Matrix, Matrix] | None:
        assert self.basis is not None
        Q: Any = self.basis
        edge = self._edge
        for attempt in range(_PASSES):
            edge = min(edge, _NEAR * self._low)
            V = _chebyshev(W, Q, self._low, edge, self._degree)
            Q = qr(V, mode="economic", overwrite_a=True, check_finite=False)[0]
            WQ = W @ Q
            values, small = np.linalg.eigh(Q.T @ WQ)
            vectors = Q @ small
            if values[0] > _NEAR * self._low:
                return None  # the basis is too narrow
            error = np.linalg.norm(WQ @ small - vectors * values, axis=0)
            first = int(np.searchsorted(values, 0, side="right"))
            close = values[:first] > 0.5 * _NEAR * self._low
            surely = np.all(values[:first][close] + error[:first][close] <= tolerance)
            if surely and (first == values.size or error[first:].max() <= tolerance):
                self._degree = max(self._degree - 1, _DEGREES[0]) if attempt == 0 else self._degree
                self._keep(values, vectors)
                return values[first:], vectors[:, first:]
            self._degree = min(self._degree + 1, _DEGREES[1])
            Q = vectors
        return None

    def _lowest(self, W: Matrix, steps: int = 6) -> float:
        """Return a safe lower bound of the spectrum: a short Lanczos run and its residual (Zhou & Li 2011)."""
        v = self._random.standard_normal(len(W))
        v /= np.linalg.norm(v)
        alpha, beta = np.zeros(steps), np.zeros(steps)
        previous, b = np.zeros_like(v), 0.0
        for k in range(steps):
            w = W @ v - b * previous
            alpha[k] = w @ v
            w -= alpha[k] * v
            b = beta[k] = float(np.linalg.norm(w))
            if b == 0:
                steps = k + 1
                break
            previous, v = v, w / b
        T = np.diag(alpha[:steps]) + np.diag(beta[: steps - 1], 1) + np.diag(beta[: steps - 1], -1)
        return float(np.linalg.eigvalsh(T)[0] - b)


def _chebyshev(W: Matrix, V: Matrix, low: float, edge: float, degree: int) -> Matrix:
    """Return T_m(W) V, the Chebyshev polynomial of [low, edge], scaled against overflow."""
    centre, radius = 0.5 * (low + edge), 0.5 * (edge - low)
    before, now = V, (W @ V - centre * V) / radius
    for _ in range(degree - 1):
        before, now = now, (2 / radius) * (W @ now - centre * now) - before
        size = float(np.abs(now).max())
        if size > 1e100:
            before, now = before / size, now / size
    return now
