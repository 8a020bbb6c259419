"""The sketch of a gradient that is spread over many parameters."""

from __future__ import annotations

from typing import Any

import torch

from tunesmith.core.seeds import child_seed
from tunesmith.numerics.gradients.capture import Use
from tunesmith.numerics.sketches import SignSketch, SparseSketch

__all__ = ["GradientSketch"]


class GradientSketch:
    """Sum over parameters of ``A_p G_p B_p^T`` (matrices) or of a sparse sketch (everything else).

    Args:
        parameters: name -> parameter.
        dim: k1 x k2, split as evenly as its divisors allow.
        seed: with a parameter's name and shape it determines the signs.

    Attributes:
        sides: (k1, k2).
    """

    def __init__(self, parameters: dict[str, Any], dim: int, seed: int) -> None:
        self.parameters, self.dim, self.seed = parameters, dim, seed
        k1 = next(k for k in range(int(dim**0.5), 0, -1) if dim % k == 0)
        self.sides = (k1, dim // k1)
        self._pairs: dict[str, tuple[SignSketch, SignSketch]] = {}
        self._sparse: dict[str, SparseSketch] = {}

    def add(self, total: torch.Tensor, name: str, use: Use) -> None:
        """Add the sketches of one use to ``total``, float32 ``(B, k1, k2)``."""
        if use.whole is not None:
            total.add_(self.explicit(name, use.whole))
            return
        assert use.left is not None
        assert use.right is not None
        a, b = self._pair(name)
        # in the parameter's own type, in which signs are exact; the sum over tokens is in float32
        left, right = a.unscaled(use.left).float(), b.unscaled(use.right).float()
        total.baddbmm_(left.transpose(1, 2), right, alpha=a.scale * b.scale)

    def explicit(self, name: str, gradients: torch.Tensor) -> torch.Tensor:
        """Return the sketches, float32 ``(b, k1, k2)``, of gradients that are at hand, ``(b, *shape)``."""
        gradients = gradients.float()
        if gradients.ndim == 3:
            a, b = self._pair(name)
            inner = gradients @ b.signs.float().T
            return (a.signs.float() @ inner) * (a.scale * b.scale)
        if name not in self._sparse:
            parameter = self.parameters[name]
            self._sparse[name] = SparseSketch(
                parameter.numel(), self.dim, child_seed(self.seed, name), device=parameter.device
            )
        sketched: torch.Tensor = self._sparse[name](gradients.flatten(1))
        return sketched.view(-1, *self.sides)

    def _pair(self, name: str) -> tuple[SignSketch, SignSketch]:
        if name not in self._pairs:
            parameter = self.parameters[name]
            a, b = (
                SignSketch(
                    size, k, child_seed(self.seed, name, side), device=parameter.device, dtype=parameter.dtype
                )
                for size, k, side in zip(parameter.shape, self.sides, ("left", "right"), strict=True)
            )
            self._pairs[name] = (a, b)
        return self._pairs[name]
