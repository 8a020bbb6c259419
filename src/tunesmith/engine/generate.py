"""Answers of a causal language model to many prompts, greedy or sampled, in batches of similar length.

A sampled token is drawn by inverting the cumulative distribution at a uniform number that belongs to the prompt's
own seed and the step, so that an answer does not depend on what else is in its batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.core.errors import DataError, ParameterError
from tunesmith.core.events import EventLog
from tunesmith.engine.chats import CutShort
from tunesmith.engine.silence import quiet

__all__ = ["generate"]

TOKEN_BUDGET = 16_384
"""Tokens, prompts and answers together, that one batch may hold: for the 135M demo model 0.8 GB of keys and
values."""


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    batch_size: int = 64,
    temperature: float = 0.0,
    seeds: Sequence[int] | None = None,
    log: EventLog | None = None,
) -> list[str]:
    """Return the answer to each prompt.

    Prompts are sorted by length and padded on the left, with positions counted from each prompt's own start,
    so an answer does not depend on what else is in its batch, but for rounding. Sampling settings that the
    model brings are set aside. An answer ends at any end-of-sequence token of the tokenizer or of the model.

    Args:
        model: a transformers causal language model, or a ``PeftModel`` of one.
        tokenizer: its tokenizer.
        prompts: token ids, not empty (see `engine.prompts.prompt_ids`).
        max_new_tokens: longest answer in tokens, at least 1.
        batch_size: most prompts per batch; fewer where they and their answers exceed 16,384 tokens.
        temperature: 0 takes the likeliest token; above 0 tokens are drawn from ``softmax(logits / temperature)``.
        seeds: one int >= 0 per prompt, for drawing; by default the prompts are numbered from 0.
        log: receives ``progress`` events.

    Returns:
        The answers in the order of the prompts, without special tokens and outer white space; one that reached
        ``max_new_tokens`` without an end is a `CutShort`.

    Raises:
        ParameterError: ``max_new_tokens`` or ``batch_size`` is below 1, ``temperature`` is negative or not
            finite, or there is not one seed >= 0 per prompt.
        DataError: a prompt is empty.
    """
    import torch
    from transformers import GenerationConfig

    for name, value in (("max_new_tokens", max_new_tokens), ("batch_size", batch_size)):
        if value < 1:
            raise ParameterError(name, generate, "an int of at least 1", value)
    for i, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise DataError(
                "the prompt has no tokens, so there is nothing to answer.", source="prompts", row=i
            )
    if not 0 <= temperature < float("inf"):
        raise ParameterError("temperature", generate, "a finite number >= 0", temperature)
    seeds = range(len(prompts)) if seeds is None else seeds
    if len(seeds) != len(prompts) or any(seed < 0 for seed in seeds):
        raise ParameterError("seeds", generate, f"one int >= 0 for each of the {len(prompts)} prompts", seeds)
    ends = _end_ids(model, tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (ends or [0])[0]
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        eos_token_id=ends or None,
        pad_token_id=pad,
    )
    progress = None if log is None else log.progress("answers", len(prompts))
    answers = [""] * len(prompts)
    was_training = model.training
    model.eval()
    try:
        for rows in _batches([len(prompt) for prompt in prompts], max_new_tokens, batch_size):
            width = max(len(prompts[i]) for i in rows)
            ids = torch.full((len(rows), width), pad, dtype=torch.long)
            seen = torch.zeros((len(rows), width), dtype=torch.long)
            for place, i in enumerate(rows):
                ids[place, width - len(prompts[i]) :] = torch.as_tensor(prompts[i], dtype=torch.long)
                seen[place, width - len(prompts[i]) :] = 1
            draw = None
            if temperature > 0:
                uniform = [np.random.default_rng(seeds[i]).random(max_new_tokens) for i in rows]
                draw = [_draw(np.stack(uniform), temperature, width)]
            with torch.inference_mode(), quiet():
                out = model.generate(
                    input_ids=ids.to(model.device),
                    attention_mask=seen.to(model.device),
                    generation_config=config,
                    logits_processor=draw,
                )
            new = out[:, width:].cpu()
            texts = tokenizer.batch_decode(new, skip_special_tokens=True)
            ended = torch.isin(new, torch.tensor(ends, dtype=new.dtype)).any(1).tolist()
            for i, text, whole in zip(rows, texts, ended, strict=True):
                answers[i] = text.strip() if whole else CutShort(text.strip())
            if progress is not None:
                progress.advance(len(rows))
    finally:
        model.train(was_training)
    return answers


def _draw(uniform: NDArray[np.float64], temperature: float, width: int) -> Any:
    """Return a logits processor that leaves one token per row possible, the one drawn at ``uniform[row, step]``."""
    import torch

    def processor(input_ids: Any, scores: Any) -> Any:
        # float32 sums of 50,000 probabilities are off by 1e-5; devices without float64 have to live with it.
        kind = torch.float32 if scores.device.type == "mps" else torch.float64
        heap = (scores.float() / temperature).softmax(-1).to(kind).cumsum(-1)
        at = torch.as_tensor(uniform[:, [input_ids.shape[1] - width]]).to(heap)
        token = torch.searchsorted(heap, at * heap[:, -1:], right=True).clamp_(max=heap.shape[1] - 1)
        return torch.full_like(scores, -torch.inf).scatter_(1, token, 0.0)

    return processor


def _batches(lengths: list[int], new: int, batch_size: int) -> Iterator[list[int]]:
    """Yield rows, the longest first (a lack of memory then shows at once), within the limits."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    while order:
        count = max(1, min(batch_size, TOKEN_BUDGET // (lengths[order[0]] + new)))
        yield order[:count]
        order = order[count:]


def _end_ids(model: Any, tokenizer: Any) -> list[int]:
    found: list[int] = []
    for value in (tokenizer.eos_token_id, getattr(model.generation_config, "eos_token_id", None)):
        found += value if isinstance(value, list) else [] if value is None else [value]
    return sorted(set(found))
