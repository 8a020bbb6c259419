"""The same in front of a trainer, whatever it does with the labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tunesmith.core.errors import ParameterError
from tunesmith.trainers.masked_thought.callback import MaskRateCallback, warn_of_all
from tunesmith.trainers.masked_thought.collator import MaskedThoughtCollator
from tunesmith.trainers.masked_thought.rates import mask_rate
from tunesmith.trainers.masked_thought.settings import MaskedThought, check_batch

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer  # what the mixin expects behind it
else:
    _Trainer = object

__all__ = ["MaskedThoughtMixin"]


class MaskedThoughtMixin(_Trainer):
    """Masked thought fine-tuning in any trainer: ``class MFT(MaskedThoughtMixin, SFTTrainer): ...``.

    Chen et al., ACL 2024, arXiv 2403.02178. The input of each training batch is corrupted before the trainer's own
    loss sees it, at the rate of the optimiser step; with any collator, label smoothing, accumulation, workers, DDP
    and after a resume. Evaluation is clean. Put it before mixins that run the model themselves. Logs ``mask_rate``.

    With one seed the same tokens are hidden as by `MaskRateCallback`, and a rate of 0 leaves the training as it is.

    Args:
        masked: a `MaskedThought`, or a mapping of its fields.
        *args: of the trainer.
        **kwargs: of the trainer.

    Raises:
        ParameterError: a setting is outside its set, there is no mask token, or the collator masks too.
    """

    def __init__(self, *args: Any, masked: MaskedThought | Mapping[str, Any], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.masked = MaskedThought.of(masked)
        warn_of_all(self.masked.rate)
        drives = any(isinstance(c, MaskRateCallback) for c in self.callback_handler.callbacks)
        if isinstance(self.data_collator, MaskedThoughtCollator) or drives:
            expected = "the clean one inside: the mixin hides the tokens itself, without MaskRateCallback"
            raise ParameterError("data_collator", type(self), expected, type(self.data_collator).__name__)
        self.corruption = self.masked.corruption(self.processing_class, self.args.seed)
        self.corruption.fits(self.model, self)
        self._first_step: int | None = None

    @property
    def mask_rate(self) -> float:
        """Rate of the current optimiser step."""
        settings, state = self.masked, self.state
        return mask_rate(state.global_step, state.max_steps, settings.rate, settings.warmup, settings.start)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the loss of clean labels, in training after a corrupted input.

        Raises:
            DataError: a row has no trained token, or no other; or ids and labels do not belong together.
        """
        if model.training:
            self._check(inputs)
            inputs = self.corruption(inputs, self.mask_rate, self.state.global_step)
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def _check(self, inputs: Any) -> None:
        """Look at every batch on CPU; on other devices, where looking waits for them, at those of the first step."""
        if self._first_step is None:
            self._first_step = self.state.global_step
        if self.args.device.type == "cpu" or self.state.global_step == self._first_step:
            check_batch(inputs, allow_no_prompt=self.masked.allow_no_prompt)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log, with the rate of the step that has ended."""
        if "loss" in logs:
            settings, state = self.masked, self.state
            logs["mask_rate"] = mask_rate(
                max(0, state.global_step - 1), state.max_steps, settings.rate, settings.warmup, settings.start
            )
        super().log(logs, *args, **kwargs)
