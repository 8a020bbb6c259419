"""Masked thought fine-tuning (MFT): some tokens of the reasoning are hidden in the input, never in the labels."""

from typing import TYPE_CHECKING

from tunesmith.core.lazy import lazy_exports

__all__ = [
    "MaskRateCallback",
    "MaskedThought",
    "MaskedThoughtCollator",
    "MaskedThoughtMixin",
    "add_mask_token",
    "cosine_then_linear",
    "draw_noise",
    "mask_inputs",
    "mask_rate",
]

if TYPE_CHECKING:
    from tunesmith.trainers.masked_thought.callback import MaskRateCallback
    from tunesmith.trainers.masked_thought.collator import MaskedThoughtCollator
    from tunesmith.trainers.masked_thought.mixin import MaskedThoughtMixin
    from tunesmith.trainers.masked_thought.noise import draw_noise, mask_inputs
    from tunesmith.trainers.masked_thought.rates import cosine_then_linear, mask_rate
    from tunesmith.trainers.masked_thought.settings import MaskedThought
    from tunesmith.trainers.masked_thought.tokens import add_mask_token
else:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "MaskRateCallback": "callback",
            "MaskedThought": "settings",
            "MaskedThoughtCollator": "collator",
            "MaskedThoughtMixin": "mixin",
            "add_mask_token": "tokens",
            "cosine_then_linear": "rates",
            "draw_noise": "noise",
            "mask_inputs": "noise",
            "mask_rate": "rates",
        },
    )
