"""What a policy is given, and what it must do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from tunesmith.core.errors import DataError, ParameterError

if TYPE_CHECKING:
    from tunesmith.select.online.head import OutputLayer

__all__ = ["Candidates", "OnlinePolicy", "top"]


@dataclass
class Candidates:
    """Some rows of a candidate batch as the model sees them now; b rows of T positions.

    Attributes:
        mask: bool ``(b, T)``, false where a position is padding.
        logits: raw logits ``(b, T, V)``, in any float type; None where ``states`` are given.
        states: last hidden states ``(b, T, d)``, whose product with the output layer are the logits.
        layer: that output layer, prepared.
        losses: float32 ``(b,)`` mean nll of each row's trained tokens; only for policies that need it.
        labels: int64 ``(b, T)``, -100 where nothing is learned.
    """

    mask: torch.Tensor
    logits: torch.Tensor | None = None
    states: torch.Tensor | None = None
    layer: OutputLayer | None = None
    losses: torch.Tensor | None = None
    labels: torch.Tensor | None = None


class OnlinePolicy:
    """Decides which rows of a candidate batch are trained on.

    `measure` looks at rows and may be called for a batch in several parts; `choose` then sees all their measures and
    decides, and is the only one that changes the policy's state.

    Attributes:
        needs: ``"logits"``, ``"losses"``, or None for a policy that need not look at the rows at all.
        scores_: float ``(B,)`` of the last decision; the largest are kept.
        seen_: candidates so far.
        kept_: those that were kept.
    """

    needs: ClassVar[str | None] = None

    seen_: int = 0
    kept_: int = 0
    scores_: torch.Tensor

    def measure(self, rows: Candidates) -> dict[str, torch.Tensor]:
        """Return what the decision needs of each row, tensors with a leading axis of b."""
        return {}

    def score(self, count: int, measures: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the scores ``(B,)`` of a whole batch of ``count`` rows; large is good."""
        raise NotImplementedError

    def keep(self, indices: torch.Tensor, measures: dict[str, torch.Tensor]) -> None:
        """Take note of the rows that were kept."""

    def choose(self, k: int, count: int, measures: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the positions of the ``k`` best of ``count`` rows, int64, ascending, and remember them.

        Args:
            k: rows to keep, 1 <= k <= count.
            count: B, rows of the batch.
            measures: of `measure`, the parts joined; each with a leading axis of B.

        Raises:
            ParameterError: ``k`` is outside its range.
            DataError: a score is not finite.
        """
        if not 1 <= k <= count:
            raise ParameterError("k", self, f"an int in [1, {count}]", k)
        self.scores_ = self.score(count, measures)
        if not bool(torch.isfinite(self.scores_).all()):
            bad = int((~torch.isfinite(self.scores_)).nonzero()[0])
            raise DataError(
                f"{type(self).__name__}'s score of row {bad} of the batch is {self.scores_[bad].item()}: the model's "
                "logits are not finite."
            )
        indices = top(self.scores_, k)
        self.keep(indices, measures)
        self.seen_ += count
        self.kept_ += k
        return indices.sort().values

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return everything a later decision depends on, as tensors."""
        return {"counts": torch.tensor([self.seen_, self.kept_])}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Go on from a state of `state_dict`."""
        self.seen_, self.kept_ = (int(x) for x in state["counts"])

    def reset(self) -> None:
        """Forget everything."""
        self.seen_ = self.kept_ = 0

    def report(self, indices: torch.Tensor, measures: dict[str, torch.Tensor]) -> dict[str, Any]:
        """Return numbers for the log: the mean of each one-dimensional measure over kept and over dropped rows."""
        kept = torch.zeros(len(self.scores_), dtype=torch.bool, device=self.scores_.device)
        kept[indices] = True
        found = {}
        for name, values in {**measures, "score": self.scores_}.items():
            if values.ndim == 1:
                found[f"{name}_kept"] = float(values[kept].double().mean())
                if not bool(kept.all()):
                    found[f"{name}_dropped"] = float(values[~kept].double().mean())
        return found


def top(scores: torch.Tensor, k: int) -> torch.Tensor:
    """Return the positions of the k largest, best first; among equals the first."""
    return torch.argsort(scores, descending=True, stable=True)[:k]
