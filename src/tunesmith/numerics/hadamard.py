"""The fast Walsh-Hadamard transform, and random rotations made of it.

``H_n`` has entries +-1 and ``H_n H_n = n I`` (Sylvester's order: ``H_2n = [[H_n, H_n], [H_n, -H_n]]``). Divided by
``sqrt(n)`` it is a symmetric rotation. With random signs in front it spreads any vector: with a probability of at
least ``1 - delta`` no entry of ``H diag(r) x`` exceeds ``|x| sqrt(2 log(2 d / delta) / d)`` (Ailon and Chazelle 2009,
SIAM J. Comput. 39(1)). A width that is no power of two is rotated in blocks of its largest power of two.

On today's processors log2(n) passes of additions are slower than a few products with small Hadamard matrices, whose
entries are exact in every type, so the transform runs in radix 16 or 32: ``H_ab = H_a (x) H_b``.
"""

from __future__ import annotations

from functools import lru_cache

import torch

from tunesmith.core.errors import ParameterError
from tunesmith.core.seeds import child_seed

__all__ = ["RandomHadamard", "hadamard_block", "walsh_hadamard"]

RADIX = 32


def hadamard_block(width: int) -> int:
    """Return the largest power of two that divides ``width``."""
    return width & -width


def walsh_hadamard(x: torch.Tensor, block: int | None = None) -> torch.Tensor:
    """Return the orthonormal Walsh-Hadamard transform along the last dimension; its own inverse.

    Args:
        x: floating-point ``(..., d)``; differentiable.
        block: a power of two that divides d: each stretch of that length is transformed on its own. By default the
            largest there is.

    Returns:
        As ``x``. Time O(d log d) a vector, memory one copy per factor of 32 in ``block``.

    Raises:
        ParameterError: ``block`` is no power of two or does not divide d.
    """
    width = x.shape[-1]
    block = hadamard_block(width) if block is None else block
    if block < 1 or block & (block - 1) or width % block:
        raise ParameterError("block", walsh_hadamard, f"a power of two that divides the width {width}", block)
    if block == 1:
        return x
    return _transform(x * block**-0.5, block)


def _transform(x: torch.Tensor, block: int) -> torch.Tensor:
    """The transform without its scale: digits of radix 32 from the last to the first."""
    if torch.is_autocast_enabled(x.device.type):  # would multiply in half precision
        with torch.autocast(x.device.type, enabled=False):
            return _transform(x, block)
    shape, trailing, left = x.shape, 1, block
    while left > 1:
        radix = _factor(left)
        matrix = _matrix(radix, x.dtype, x.device)
        # The last digit is one tall product; the others multiply from the left, each on its own stretch.
        x = (
            x.reshape(-1, radix) @ matrix
            if trailing == 1
            else torch.matmul(matrix, x.view(-1, radix, trailing))
        )
        trailing *= radix
        left //= radix
    return x.view(shape)


def _factor(n: int) -> int:
    """The next digit: 32, but never leaving a digit of 2 or 4, which would be a pass for nothing."""
    if n <= 2 * RADIX:
        return n
    return RADIX if n >= RADIX * 8 else RADIX // 2


@lru_cache(maxsize=64)
def _matrix(n: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    with torch.inference_mode(False):  # kept, and perhaps saved for a gradient later
        matrix = torch.ones(1, 1)
        while matrix.shape[0] < n:
            matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
        return matrix.to(dtype=dtype, device=device)


class RandomHadamard:
    """A randomised Hadamard rotation of row vectors, ``x R = H (r * x)``, with signs r.

    The signs come first: behind the transform they would only flip entries, and spread nothing.

    Args:
        signs: ``(d,)`` of +-1.
        block: as in `walsh_hadamard`; the largest by default.

    Attributes:
        signs: float32 on the CPU.
        block: length of the stretches.
    """

    def __init__(self, signs: torch.Tensor, block: int | None = None) -> None:
        self.signs = signs.detach().float().cpu()
        self.block = hadamard_block(len(self.signs)) if block is None else block
        self._copies: dict[tuple[torch.dtype, torch.device], torch.Tensor] = {}

    @classmethod
    def drawn(cls, width: int, seed: int, block: int | None = None) -> RandomHadamard:
        """Return the rotation of ``width`` that belongs to ``seed``; drawn on the CPU, equal on every device."""
        generator = torch.Generator().manual_seed(child_seed(seed, "hadamard", width))
        return cls(torch.randint(0, 2, (width,), generator=generator) * 2 - 1, block)

    def repeated(self, times: int) -> RandomHadamard:
        """Return the rotation of ``times`` vectors one behind the other, each rotated by this one."""
        return RandomHadamard(self.signs.repeat(times), self.block)

    def __len__(self) -> int:
        return len(self.signs)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x R`` of rows ``(..., d)``; at least in float32. Time O(d log d) a row."""
        return _transform(x * self._scaled(x), self.block)

    def inverse(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x R^T``, which undoes ``x R``."""
        signs = self._scaled(x)
        return _transform(x.to(signs.dtype), self.block) * signs

    def matrix(self, dtype: torch.dtype = torch.float64) -> torch.Tensor:
        """Return R ``(d, d)`` itself."""
        return self(torch.eye(len(self), dtype=dtype))

    def _scaled(self, x: torch.Tensor) -> torch.Tensor:
        """The signs times the transform's scale, in float32 or the wider type of ``x``."""
        key = (torch.promote_types(x.dtype, torch.float32), x.device)
        if key not in self._copies:
            with torch.inference_mode(False):
                self._copies[key] = (self.signs.to(key[0]) * self.block**-0.5).to(x.device)
        return self._copies[key]
