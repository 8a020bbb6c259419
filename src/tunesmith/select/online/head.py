"""The output layer as two small matrices, so that scores of logits need no logits."""

from __future__ import annotations

import torch

from tunesmith.select.online.nuclear import nuclear_norm, sum_of_roots
from tunesmith.select.online.sketch import LogitSketch

__all__ = ["OutputLayer"]

_CHUNK = 8192  # words in float64 at once


class OutputLayer:
    """What scores need of a layer that makes logits ``L = H W^T + 1 b^T`` from states ``H``.

    With ``W' = [W, b]`` and ``H' = [H, 1]``, the Gram matrix is ``L L^T = H' (W'^T W') H'^T`` and the sketch over the
    vocabulary ``L G1^T = H' (W'^T G1^T)``. Both inner matrices are d wide, made once and used as long as the layer
    does not change; a score then costs O(N d^2) instead of O(N^2 V) a row, and the forward pass ends before the
    output layer. Made in O(V d^2) time; memory O(d^2).

    Args:
        weight: ``(V, d)``.
        bias: ``(V,)`` or None.
        center: take the mean over the vocabulary off each token's logits.

    Attributes:
        gram: float64 ``(d, d)``, ``W'^T W'``; d counts the bias.
        size: V.
    """

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None = None, *, center: bool = False
    ) -> None:
        self.weight = weight.detach() if bias is None else torch.cat([weight, bias[:, None]], dim=1).detach()
        self.has_bias = bias is not None
        self.size, width = self.weight.shape
        self.gram = torch.zeros(width, width, dtype=torch.float64, device=weight.device)
        self.mean = torch.zeros(width, dtype=torch.float64, device=weight.device)
        if center:
            self.mean += self.weight.mean(0, dtype=torch.float64)
        for begin in range(0, self.size, _CHUNK):
            double = self.weight[begin : begin + _CHUNK].double() - self.mean
            self.gram.addmm_(double.T, double)
        self._sketched: tuple[LogitSketch, torch.Tensor] | None = None

    def nuclear_norms(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return the nuclear norms, float32 ``(b,)``, of the logits of the states ``(b, N, d)`` where ``mask``."""
        found = []
        for row, real in zip(self._extended(states), mask, strict=True):
            h = row[real].double()
            found.append(sum_of_roots(h @ self.gram @ h.T) if len(h) <= len(self.gram) else self._of_many(h))
        return torch.stack(found).float()

    def _of_many(self, h: torch.Tensor) -> torch.Tensor:
        """Return the nuclear norm where there are more tokens than dimensions: ``W' = Q R`` leaves ``H' R^T``."""
        values, vectors = torch.linalg.eigh(self.gram)
        root = vectors * values.clamp(min=0).sqrt()  # root root^T = gram
        return nuclear_norm(h @ root)

    def sketched(self, states: torch.Tensor, sketch: LogitSketch) -> torch.Tensor:
        """Return the logits' sketches over the vocabulary, float32 ``(b, N, d1)``."""
        if self._sketched is None or self._sketched[0] is not sketch:
            columns = (self.weight.float() - self.mean.float()).T
            self._sketched = (sketch, sketch.over_vocabulary(columns))
        return self._extended(states).float() @ self._sketched[1]

    def _extended(self, states: torch.Tensor) -> torch.Tensor:
        if not self.has_bias:
            return states
        return torch.cat([states, states.new_ones(*states.shape[:-1], 1)], dim=-1)
