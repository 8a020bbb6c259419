"""A collator around any collator for supervised fine-tuning."""

from __future__ import annotations

from typing import Any

from tunesmith.core.errors import ParameterError
from tunesmith.trainers.masked_thought.settings import Corruption, check_batch, check_mode, check_share

__all__ = ["MaskedThoughtCollator"]


class MaskedThoughtCollator:
    """Hide a share of the reasoning's tokens in the input of each batch; labels stay clean.

    Masked thought fine-tuning, Chen et al., ACL 2024, arXiv 2403.02178. A token can be hidden where ``labels != -100``:
    never in the prompt, in a chat template's headers or in padding, if the collator inside leaves those out of the
    labels. Loss, labels and evaluation are those of plain fine-tuning.

    Called, it hides at its current ``rate``, with new draws in each call. In a training give it to a trainer together
    with `MaskRateCallback`, which then does the hiding inside the model at the exact rate of the step and leaves
    evaluation alone::

        collator = MaskedThoughtCollator(DataCollatorForLanguageModeling(tokenizer.pad_token_id), tokenizer)
        SFTTrainer(model, args, data_collator=collator, callbacks=[MaskRateCallback(collator)], ...)

    Time O(B T) beside the collator inside.

    Args:
        collator: makes the clean batch, with ``input_ids`` and ``labels`` (B, T), padded or packed; by default TRL's
            for language modelling, which pads with the tokenizer's padding token.
        tokenizer: of transformers, or a processor that has one; None where ``mask_token`` is an id, or with
            ``vocab_size``.
        rate: share of trained tokens that are hidden, in [0, 1]; the most that `MaskRateCallback` reaches.
        mode: ``"mask"``, ``"random"`` or ``"mixed"``; this and the next ones as in `MaskedThought`.
        replace_rate: share of random tokens with ``"mixed"``.
        mask_token: text or id; by default the tokenizer's.
        vocab_size: random tokens have ids below it; by default the tokenizer's size without added tokens.
        exclude_special: draw no special tokens.
        drop_attention_mask: hide corrupted places from attention too.
        allow_no_prompt: take rows all of whose tokens are trained.
        seed: of the draws.

    Attributes:
        rate: current rate; may be set.
        step: number of the draws; may be set. It counts calls in this process unless a callback drives it.
        driven: whether a callback hides the tokens, so that batches leave here clean.

    Raises:
        ParameterError: a value is outside its set, or there is no mask token.
    """

    def __init__(
        self,
        collator: Any = None,
        tokenizer: Any = None,
        *,
        rate: float = 0.4,
        mode: str = "mask",
        replace_rate: float | None = None,
        mask_token: str | int | None = None,
        vocab_size: int | None = None,
        exclude_special: bool = False,
        drop_attention_mask: bool = False,
        allow_no_prompt: bool = False,
        seed: int = 0,
    ) -> None:
        self.rate = rate
        check_mode(mode, replace_rate, self)
        self.corruption = Corruption.of(
            self,
            tokenizer,
            mode=mode,
            replace_rate=replace_rate,
            mask_token=mask_token,
            exclude_special=exclude_special,
            drop_attention_mask=drop_attention_mask,
            seed=seed,
            vocab_size=vocab_size,
        )
        self.collator = _padding(tokenizer) if collator is None else collator
        self.allow_no_prompt = allow_no_prompt
        self.step = 0
        self.driven = False

    @property
    def rate(self) -> float:
        """Current share of trained tokens that are hidden."""
        return self._rate

    @rate.setter
    def rate(self, value: float) -> None:
        check_share("rate", value, self)
        self._rate = float(value)

    def __call__(self, features: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return the batch of some rows.

        Raises:
            DataError: a row has no trained token, or no other; or ids and labels do not belong together.
        """
        batch: dict[str, Any] = dict(self.collator(features, *args, **kwargs))
        check_batch(batch, allow_no_prompt=self.allow_no_prompt)
        if self.driven:
            return batch
        self.step += 1
        return self.corruption(batch, self.rate, self.step - 1 + _worker_seed())


def _padding(tokenizer: Any) -> Any:
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    pad = getattr(tokenizer, "pad_token_id", None)
    if pad is None:
        expected = "given where no tokenizer with a padding token is"
        raise ParameterError("collator", MaskedThoughtCollator, expected, None)
    return DataCollatorForLanguageModeling(pad)


def _worker_seed() -> int:
    """Return the seed of a loader's worker, which torch draws anew for each epoch: its copy of the collator is the one
    of the first epoch, and would count the same calls again."""
    from torch.utils.data import get_worker_info

    worker = get_worker_info()
    return 0 if worker is None else worker.seed
