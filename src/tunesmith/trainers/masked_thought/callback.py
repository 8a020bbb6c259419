"""Drives a `MaskedThoughtCollator` from the trainer's steps."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from transformers import TrainerCallback

from tunesmith.core.errors import ParameterError, TrainingError
from tunesmith.trainers.masked_thought.collator import MaskedThoughtCollator
from tunesmith.trainers.masked_thought.rates import mask_rate
from tunesmith.trainers.masked_thought.settings import check_share

__all__ = ["MaskRateCallback", "warn_of_all"]


class MaskRateCallback(TrainerCallback):
    """Hide at the rate of the optimiser step, in training only.

    A collator alone cannot: loaders call it some batches ahead, or in processes of their own, and trainers call it
    for evaluation too. So from the beginning of a training the collator hands out clean batches (it still checks them),
    and the tokens are hidden as they enter the model. The rate is then that of the step also with accumulation, with
    workers and after a resume, and equal steps hide equal tokens however they are cut into micro-batches or processes.

    For trainers that give ``labels`` to the model: `transformers.Trainer` and TRL's ``SFTTrainer`` with their own
    losses. With others (`trainers.train_sft`, label smoothing) use `MaskedThoughtMixin`; this one stops the training
    there instead of hiding nothing. Logs ``mask_rate``.

    Args:
        collator: the trainer's ``data_collator``.
        p_max: rate after the warm-up, in [0, 1]; by default the collator's at this moment.
        warmup: rho, share of the steps in which the rate rises, in [0, 1]; 0 for a fixed rate.
        start: share of the steps before the rise, with rate 0.
        schedule: ``(step, total_steps) -> rate`` in place of `mask_rate` with these.

    Raises:
        ParameterError: a value is outside its set.
    """

    def __init__(
        self,
        collator: MaskedThoughtCollator,
        p_max: float | None = None,
        *,
        warmup: float = 2 / 3,
        start: float = 0.0,
        schedule: Callable[[int, int], float] | None = None,
    ) -> None:
        if not isinstance(collator, MaskedThoughtCollator):
            raise ParameterError(
                "collator", self, "a MaskedThoughtCollator, the trainer's data_collator", collator
            )
        self.collator = collator
        self.p_max = collator.rate if p_max is None else p_max
        for name, value in (("p_max", self.p_max), ("warmup", warmup), ("start", start)):
            check_share(name, value, self)
        if schedule is None:
            warn_of_all(self.p_max)
        self.warmup, self.start, self.schedule = warmup, start, schedule
        self._step = 0
        self._handle: Any = None
        self._hidden = False

    def rate(self, step: int, total_steps: int) -> float:
        """Return the rate of a step."""
        if self.schedule is not None:
            return self.schedule(step, total_steps)
        return mask_rate(step, total_steps, self.p_max, self.warmup, self.start)

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the trainer when it is built: an evaluation before the training is clean too."""
        self.collator.driven = True

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Called by the trainer before the first step.

        Raises:
            ParameterError: the model has no embedding for a token that may be put in.
        """
        self.collator.driven = True
        self._remove()
        if model is not None:
            self.collator.corruption.fits(model, self.collator)
            self._handle = model.register_forward_pre_hook(self._hide, with_kwargs=True)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the trainer before each optimiser step."""
        self._step = self.collator.step = state.global_step
        self.collator.rate = self.rate(self._step, state.max_steps)
        self._hidden = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the trainer after each optimiser step.

        Raises:
            TrainingError: nothing came by to be hidden.
        """
        if self._handle is not None and not self._hidden:
            raise TrainingError(_UNSEEN)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Called by the trainer with what it logs."""
        if logs is not None and "loss" in logs:
            logs["mask_rate"] = self.collator.rate
            if state.log_history and "loss" in state.log_history[-1]:
                state.log_history[-1]["mask_rate"] = self.collator.rate

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the trainer at the end."""
        self._remove()

    def _remove(self) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _hide(self, model: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if not model.training:
            return None
        if kwargs.get("labels") is None or kwargs.get("input_ids") is None:
            if torch.is_grad_enabled():
                raise TrainingError(_UNSEEN)
            return None
        self._hidden = True
        return args, self.collator.corruption(kwargs, self.collator.rate, self._step)


_UNSEEN = (
    "MaskRateCallback hides tokens where it sees labels, and this trainer ran the model without labels or without "
    "input_ids. Use MaskedThoughtMixin with it"
)


def warn_of_all(p_max: float) -> None:
    """Warn where the whole reasoning will be hidden."""
    if p_max == 1:
        warnings.warn(
            "The mask rate rises to 1: all tokens of the reasoning are hidden, and the model learns each from the "
            "question and its position alone. The paper uses 0.1 to 0.4.",
            UserWarning,
            stacklevel=3,
        )
