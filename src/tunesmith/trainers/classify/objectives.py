"""How a classifier learns, by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import Trainer

from tunesmith.core.errors import ParameterError, UnknownNameError, nearest
from tunesmith.trainers.core_tuning import CoreTuningTrainer
from tunesmith.trainers.dr_tune import DRTuneTrainer
from tunesmith.trainers.pooled import PooledTrainer

__all__ = ["OBJECTIVES", "CrossEntropyTrainer", "OwnLossTrainer", "objective_of"]


class CrossEntropyTrainer(PooledTrainer):
    """The usual loss: mean cross-entropy over the rows of a step."""

    def step_loss(
        self,
        z: torch.Tensor,
        y: torch.Tensor,
        head: Callable[[torch.Tensor], torch.Tensor],
        generator: torch.Generator,
        companions: dict[str, torch.Tensor],
    ) -> torch.Tensor:
        """Return it."""
        return cross_entropy(head(z), y)


class OwnLossTrainer(Trainer):
    """For models whose loss is their own and knows of accumulation: LEVI."""

    def restore(self, checkpoint: Path) -> None:
        """Load the weights of a checkpoint without training on."""
        self._load_from_checkpoint(str(checkpoint))


OBJECTIVES: dict[str, type[PooledTrainer]] = {
    "cross_entropy": CrossEntropyTrainer,
    "core_tuning": CoreTuningTrainer,
    "dr_tune": DRTuneTrainer,
}


def objective_of(objective: str | dict[str, Any], caller: Any) -> tuple[type[PooledTrainer], dict[str, Any]]:
    """Return the trainer of an objective and its parameters.

    Args:
        objective: a name of `OBJECTIVES`, or ``{"type": name, parameter: value}``.
        caller: whose parameter it is.

    Raises:
        UnknownNameError: there is no such objective.
        ParameterError: it is neither, or it has no such parameter.
    """
    if not isinstance(objective, (str, dict)) or (isinstance(objective, dict) and "type" not in objective):
        raise ParameterError("objective", caller, "a name or a dict with 'type'", objective)
    values = {"type": objective} if isinstance(objective, str) else dict(objective)
    name = values.pop("type")
    if name not in OBJECTIVES:
        raise UnknownNameError("objective", str(name), OBJECTIVES)
    kind = OBJECTIVES[name]
    every = inspect.signature(kind.__init__).parameters.values()
    own = [p.name for p in every if p.kind is p.KEYWORD_ONLY and p.name not in ("features", "head")]
    for key, value in values.items():
        if key not in own:
            known = ", ".join(own) or "none"
            expected = f"left out: it has no such parameter.{nearest(key, own)} Its parameters: {known}"
            raise ParameterError(key, f"objective '{name}'", expected, value)
    return kind, values
