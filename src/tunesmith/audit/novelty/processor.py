"""The contrast inside any ``generate`` of transformers."""

from __future__ import annotations

from typing import Any

import torch
from transformers import LogitsProcessor

from tunesmith.audit.novelty.core import check_contrast, step_scores
from tunesmith.audit.novelty.pair import same_vocabulary

__all__ = ["ContrastiveLogitsProcessor"]


class ContrastiveLogitsProcessor(LogitsProcessor):
    """Scores tokens by how much likelier the tuned model finds them than the model before tuning.

    Hand it to the *tuned* model: ``tuned.generate(ids, logits_processor=LogitsProcessorList([processor]),
    do_sample=True)``. Isonuma and Titov 2025, arXiv 2410.14765.

    Keys and values of the base model are kept from step to step. Nobody tells a processor how beams were ordered anew,
    so they are used only where the rows are those of the step before with one token more; else the base reads the rows
    again. Cost: one pass of the base per token.

    Args:
        base: the model before tuning, with the same vocabulary.
        alpha: plausibility, in [0, 1]: tokens below alpha times the likeliest one are out.
        gamma: weight of the contrast, at least 0.
        attention_mask: (B, T) of the prompt, where rows are filled up; repeat it for beams as the prompt is.
        model: the tuned model, to check its vocabulary against the base's.

    Raises:
        ParameterError: a number outside its set, or another vocabulary.
    """

    def __init__(
        self,
        base: Any,
        alpha: float = 0.1,
        gamma: float = 1.0,
        *,
        attention_mask: torch.Tensor | None = None,
        model: Any = None,
    ) -> None:
        check_contrast(alpha, gamma, self)
        if model is not None:
            same_vocabulary(model, base, self)
        self.base, self.alpha, self.gamma = base, alpha, gamma
        self.prompt_mask = attention_mask
        self._seen: torch.Tensor | None = None
        self._cache: Any = None

    @torch.no_grad()
    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Return the step's scores (B, V) for rows (B, t) and the tuned model's scores."""
        found: Any = step_scores(scores, self._base_logits(input_ids), alpha=self.alpha, gamma=self.gamma)
        return found

    def _base_logits(self, ids: torch.Tensor) -> torch.Tensor:
        goes_on = self._seen is not None and torch.equal(self._seen, ids[:, :-1])
        mask = torch.ones_like(ids)
        if self.prompt_mask is not None and len(self.prompt_mask) == len(ids):
            mask[:, : self.prompt_mask.shape[1]] = self.prompt_mask.to(ids.device)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        given = ids[:, -1:] if goes_on else ids
        out = self.base(
            input_ids=given,
            attention_mask=mask,
            position_ids=positions[:, -given.shape[1] :],
            past_key_values=self._cache if goes_on else None,
            use_cache=True,
        )
        self._seen, self._cache = ids.clone(), out.past_key_values
        logits: torch.Tensor = out.logits[:, -1]
        return logits
