"""Seeded random sketches: linear maps to few dimensions that keep lengths and inner products in expectation.

For every sketch here ``E ||S x||^2 = ||x||^2``. What is stated with each is the variance of ``||S x||^2`` for
``||x|| = 1``: by Chebyshev's inequality the squared length is off by more than ``eps`` with a probability of at most
``variance / eps^2``; random signs and sub-Gaussian tails give the Johnson-Lindenstrauss form, which falls
exponentially in ``k eps^2``. Applied to a difference it is the error of a squared distance.

All randomness is drawn on the CPU from the seed, so a sketch is the same on every device and in every process.
"""

from __future__ import annotations

from typing import Any

import torch

from tunesmith.core.errors import ParameterError
from tunesmith.core.seeds import child_seed

__all__ = ["HartleySketch", "SignSketch", "SparseSketch", "hartley"]


def _checked(owner: Any, n: int, k: int) -> None:
    for name, value in (("n", n), ("k", k)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ParameterError(name, owner, "an int >= 1", value)


def _generator(seed: int, name: str) -> torch.Generator:
    return torch.Generator().manual_seed(child_seed(seed, "sketch", name))


def _signs(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    return torch.randint(0, 2, shape, generator=generator, dtype=torch.int8).mul_(2).sub_(1)


class SignSketch:
    """Dense random signs, ``S = R / sqrt(k)`` with R of independent +-1 (Achlioptas 2003, JCSS 66(4)).

    Variance of the squared length: ``(2 / k) (1 - sum_i x_i^4) <= 2 / k``; outside ``1 +- eps`` with a
    probability of at most ``2 exp(-k (eps^2 / 4 - eps^3 / 6))``. Time O(k) per number read, memory k n.

    Args:
        n: length of a vector.
        k: length of its sketch.
        seed: of the signs.
        device: where they are kept.
        dtype: in which they are kept and multiplied; +-1 is exact in each. The scale is applied afterwards.

    Attributes:
        signs: ``(k, n)``, +-1.
        scale: ``1 / sqrt(k)``.

    Raises:
        ParameterError: ``n`` or ``k`` is below 1.
    """

    def __init__(
        self, n: int, k: int, seed: int = 0, *, device: Any = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        _checked(self, n, k)
        self.signs = _signs((k, n), _generator(seed, "signs")).to(device=device, dtype=dtype)
        self.scale = k**-0.5

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return the sketches ``(..., k)`` of the vectors ``(..., n)``, in the type of the signs."""
        return self.unscaled(x) * self.scale

    def unscaled(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``R x`` without the scale; ``x`` may hold int64 positions of one-hot vectors, ``(...)``."""
        if x.dtype == torch.int64:
            return self.signs.T[x]
        return x.to(self.signs.dtype) @ self.signs.T


class SparseSketch:
    """One random sign per column (count sketch; Charikar, Chen and Farach-Colton 2002; Weinberger et al. 2009).

    Variance of the squared length: at most ``2 / k``, as for dense signs, but with heavier tails for vectors
    that have few large entries. Time O(1) per number read, memory 2 n; the choice for long vectors.

    Args:
        n: length of a vector.
        k: length of its sketch.
        seed: of places and signs.
        device: where they are kept.

    Raises:
        ParameterError: ``n`` or ``k`` is below 1.
    """

    def __init__(self, n: int, k: int, seed: int = 0, *, device: Any = "cpu") -> None:
        _checked(self, n, k)
        generator = _generator(seed, "sparse")
        self.k = k
        self.places = torch.randint(0, k, (n,), generator=generator).to(device)
        self.signs = _signs((n,), generator).to(device=device, dtype=torch.float32)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return the float32 sketches ``(..., k)`` of the vectors ``(..., n)``."""
        out = torch.zeros((*x.shape[:-1], self.k), dtype=torch.float32, device=x.device)
        return out.index_add_(-1, self.places, x.float() * self.signs)


class HartleySketch:
    """Random signs, an orthonormal Hartley transform, k of its n frequencies, times ``sqrt(n / k)``.

    A subsampled randomised Fourier transform (Ailon and Chazelle 2009, SIAM J. Comput. 39(1)) in real numbers.
    The Hartley kernel ``cos + sin`` has mean square 1 over the frequencies at *every* place, so the squared
    length is kept exactly in expectation; the real part of the Fourier transform alone would count place 0
    twice. Variance of the squared length: at most ``3.5 / k`` (mean of the kernel's fourth power 1.5, three
    pairings of the signs), for frequencies drawn with replacement; here each is drawn once where ``k <= n``.
    Time O(n log n) a vector, memory n + k.

    Args:
        n: length of a vector.
        k: length of its sketch.
        seed: of signs and frequencies.
        device: where they are kept.

    Attributes:
        signs: float32 ``(n,)``, +-1.
        frequencies: int64 ``(k,)``.
        scale: ``sqrt(n / k)``.

    Raises:
        ParameterError: ``n`` or ``k`` is below 1.
    """

    def __init__(self, n: int, k: int, seed: int = 0, *, device: Any = "cpu") -> None:
        _checked(self, n, k)
        generator = _generator(seed, "hartley")
        self.signs = _signs((n,), generator).to(device=device, dtype=torch.float32)
        drawn = (
            torch.randperm(n, generator=generator)[:k]
            if k <= n
            else torch.randint(0, n, (k,), generator=generator)
        )
        self.frequencies = drawn.to(device)
        self.scale = (n / k) ** 0.5

    def __call__(self, x: torch.Tensor, dim: int = -1) -> torch.Tensor:
        """Return the float32 sketches of the vectors along ``dim``, of length n there and k afterwards."""
        shape = [1] * x.ndim
        shape[dim] = -1
        return hartley(x.float() * self.signs.view(shape), self.frequencies, dim).mul_(self.scale)


def hartley(x: torch.Tensor, frequencies: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """Return some frequencies of the orthonormal Hartley transform along ``dim``.

    ``y_f = n^{-1/2} sum_j x_j (cos(2 pi j f / n) + sin(2 pi j f / n))``. From the Fourier transform of a real
    vector, of which the upper half is the conjugate of the lower: ``Re - Im``.

    Args:
        x: real, length n along ``dim``.
        frequencies: int64 ``(k,)`` in [0, n).
        dim: axis of the transform.

    Returns:
        As ``x`` with length k along ``dim``. Time O(n log n).
    """
    n = x.shape[dim]
    half = torch.fft.rfft(x, dim=dim, norm="ortho")
    upper = frequencies > n // 2
    picked = half.index_select(dim, torch.where(upper, n - frequencies, frequencies))
    shape = [1] * x.ndim
    shape[dim] = -1
    sign = torch.where(upper, 1.0, -1.0).to(picked.real.dtype).view(shape)
    return picked.real + sign * picked.imag
