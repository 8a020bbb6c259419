"""The policies that any other is compared with: chance, and the largest loss."""

from __future__ import annotations

from typing import ClassVar

import torch

from tunesmith.core.errors import ParameterError
from tunesmith.core.seeds import child_seed
from tunesmith.select.online._base import Candidates, OnlinePolicy

__all__ = ["MaxLossPolicy", "RandomPolicy"]


class RandomPolicy(OnlinePolicy):
    """Keep rows at random; the scores are uniform numbers. No forward pass, time and memory O(B).

    Equals training on a random part of each batch: the control for the cost of a backward pass.

    Args:
        random_state: seed; the n-th decision depends on it and on the number of rows seen before, and on nothing
            else.
    """

    def __init__(self, *, random_state: int = 0) -> None:
        self.random_state = random_state

    def score(self, count: int, measures: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return uniform numbers."""
        seed = child_seed(self.random_state, "online.random", self.seen_)
        return torch.rand(count, generator=torch.Generator().manual_seed(seed))


class MaxLossPolicy(OnlinePolicy):
    """Keep the rows of largest mean loss per trained token (online hard examples; Loshchilov and Hutter 2015,
    arXiv 1511.06343; Jiang et al. 2019, arXiv 1910.00762). One forward pass; memory O(B).

    Label noise has a high loss for good, so it is kept again and again.

    Args:
        reduction: ``"mean"`` or ``"sum"`` over a row's trained tokens; the sum prefers long answers.

    Raises:
        ParameterError: ``reduction`` is neither.
    """

    needs: ClassVar[str | None] = "losses"

    def __init__(self, *, reduction: str = "mean") -> None:
        if reduction not in ("mean", "sum"):
            raise ParameterError("reduction", self, "'mean' or 'sum'", reduction)
        self.reduction = reduction

    def measure(self, rows: Candidates) -> dict[str, torch.Tensor]:
        """Return the loss of each row."""
        assert rows.losses is not None
        if self.reduction == "mean":
            return {"loss": rows.losses}
        assert rows.labels is not None
        return {"loss": rows.losses * (rows.labels[:, 1:] != -100).sum(1)}

    def score(self, count: int, measures: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the losses."""
        return measures["loss"].float().cpu()
