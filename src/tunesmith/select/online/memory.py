"""A memory of the last M sketches, first in, first out."""

from __future__ import annotations

import torch

from tunesmith.core.errors import ParameterError

__all__ = ["SketchMemory"]


class SketchMemory:
    """Ring of the last M vectors.

    Args:
        size: M.

    Attributes:
        rows: float32 ``(count, d)`` in the order of their places in the ring, not of their age.
        pointer: place that the next vector takes, in [0, M).
        count: vectors held, at most M.

    Raises:
        ParameterError: ``size`` is below 1.
    """

    def __init__(self, size: int = 1024) -> None:
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ParameterError("size", self, "an int >= 1", size)
        self.size = size
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.rows = torch.empty(0, 0)
        self.pointer = 0

    @property
    def count(self) -> int:
        """Vectors held."""
        return len(self.rows)

    def push(self, vectors: torch.Tensor) -> None:
        """Put vectors ``(k, d)`` in, one after another; each overwrites the oldest where the ring is full."""
        vectors = vectors.detach().float()
        if not self.count:
            self.rows = vectors.new_empty(0, vectors.shape[1])
        for vector in vectors:
            if self.count < self.size:
                self.rows = torch.cat([self.rows, vector.unsqueeze(0)])
            else:
                self.rows[self.pointer] = vector
            self.pointer = (self.pointer + 1) % self.size

    def mean_distance(self, vectors: torch.Tensor) -> torch.Tensor:
        """Return the mean Euclidean distance of each vector ``(b, d)`` to all that are held; 0 while there are none.

        Differences are formed directly, so that the distance of equal vectors is exactly 0; time O(b M d).
        """
        if not self.count:
            return vectors.new_zeros(len(vectors), dtype=torch.float32)
        rows = self.rows.to(vectors.device)
        exact = "donot_use_mm_for_euclid_dist"
        return torch.cdist(vectors.float(), rows, compute_mode=exact).mean(1)
