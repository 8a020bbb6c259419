"""Feedback for `IterativeKMeansSelector`: how much better the gold answers are than the model's own.

A scorer is any callable ``(prompts, gold, generated) -> (m,)`` floats; "Diversify and Conquer" (arXiv
2409.11378) compares a reward model (best), an LLM as judge, and perplexity (Eq. 7). Perplexity has the
opposite flavour: it is large where gold text surprises the model, noise included.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.core.errors import DataError, ParameterError

__all__ = ["answer_and_score", "perplexity_feedback", "reward_feedback"]

Prompt = list[dict[str, str]]
Scorer = Callable[[Sequence[Prompt], Sequence[str], Sequence[str]], NDArray[np.float64]]


def perplexity_feedback(
    model: Any, tokenizer: Any, *, over: str = "answer", max_length: int = 1024, batch_size: int = 16
) -> Scorer:
    """Return the scorer ``log PPL(x + gold) - log PPL(x + generated)`` (Eq. 7).

    Args:
        model: a transformers causal language model in evaluation mode.
        tokenizer: its tokenizer.
        over: ``"answer"`` averages over the answer's tokens given the prompt, ``"all"`` over the prompt's
            too.
        max_length: longest conversation in tokens; the end is cut.
        batch_size: rows per forward pass.

    Returns:
        A callable on prompts (lists of messages), gold and generated answers. It raises `DataError`, naming
        the row, when nothing of an answer fits in ``max_length``.

    Raises:
        ParameterError: ``over`` is neither.
    """
    if over not in ("answer", "all"):
        raise ParameterError("over", perplexity_feedback, "'answer' or 'all'", over)
    loss = {"answer": "completion", "all": "all"}[over]

    def mean_nll(prompts: Sequence[Prompt], answers: Sequence[str]) -> NDArray[np.float64]:
        from tunesmith.data.templates import encode_messages
        from tunesmith.engine.lm import completion_nll

        rows = [
            encode_messages(
                [*prompt, {"role": "assistant", "content": text}], tokenizer, max_length=max_length, loss=loss
            )
            for prompt, text in zip(prompts, answers, strict=True)
        ]
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        ids, trained = [row.input_ids for row in rows], [row.trained for row in rows]
        nll, tokens = completion_nll(model, ids, trained, pad, batch_size=batch_size)
        if (tokens == 0).any():
            at = int(np.argmax(tokens == 0))
            raise DataError(
                f"nothing of the answer fits in max_length={max_length}, so it has no perplexity.",
                row=at,
                content=answers[at],
            )
        return nll / tokens

    return lambda prompts, gold, generated: mean_nll(prompts, gold) - mean_nll(prompts, generated)


def reward_feedback(
    model: Any, tokenizer: Any, *, label: int = 0, max_length: int = 1024, batch_size: int = 16
) -> Scorer:
    """Return the scorer ``reward(x + gold) - reward(x + generated)`` (Eq. 4) of a reward model.

    Args:
        model: a transformers sequence classifier in evaluation mode, on any device.
        tokenizer: its tokenizer, with a padding token; its chat template is used where it has one, and else
            turns are joined by line breaks.
        label: which of the model's outputs is the reward.
        max_length: longest conversation in tokens; its *start* is cut, so that the answer is seen.
        batch_size: rows per forward pass.

    Returns:
        A callable on prompts (lists of messages), gold and generated answers.

    Raises:
        ParameterError: the model has no output ``label``.
    """
    if not 0 <= label < model.config.num_labels:
        raise ParameterError("label", reward_feedback, f"an int in [0, {model.config.num_labels - 1}]", label)

    def rewards(prompts: Sequence[Prompt], answers: Sequence[str]) -> NDArray[np.float64]:
        import torch

        from tunesmith.data.templates import encode_messages

        rows = [
            encode_messages([*prompt, {"role": "assistant", "content": text}], tokenizer).input_ids[
                -max_length:
            ]
            for prompt, text in zip(prompts, answers, strict=True)
        ]
        out = np.zeros(len(rows))
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
        with torch.inference_mode():
            for begin in range(0, len(order), batch_size):
                at = order[begin : begin + batch_size]
                batch = tokenizer.pad({"input_ids": [rows[i] for i in at]}, return_tensors="pt")
                out[at] = model(**batch.to(model.device)).logits[:, label].float().cpu().numpy()
        return out

    return lambda prompts, gold, generated: rewards(prompts, gold) - rewards(prompts, generated)


def answer_and_score(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Mapping[str, Any]],
    scorer: Scorer,
    *,
    max_new_tokens: int = 512,
    batch_size: int = 16,
) -> NDArray[np.float64]:
    """Let the model answer each row's prompt greedily and score gold against generated (Algorithm 1, steps c,
    d).

    Args:
        model: the causal language model that was just tuned (one epoch: after several it only recalls).
        tokenizer: its tokenizer.
        rows: canonical rows with messages that end in an assistant turn.
        scorer: as `perplexity_feedback` and `reward_feedback` return.
        max_new_tokens: longest answer.
        batch_size: most prompts per batch.

    Returns:
        float64 ``(len(rows),)`` for `IterativeKMeansSelector.update`.

    Raises:
        DataError: a row without an answer or with an empty one; the scorer gives another number of scores.
    """
    from tunesmith.data.rows import completion_text, prompt_messages
    from tunesmith.data.templates import prompt_ids
    from tunesmith.engine.generate import generate

    gold = [completion_text(row) if row.get("messages") else "" for row in rows]
    if not all(gold):
        at = gold.index("")
        raise DataError("feedback needs messages that end in an answer.", row=at, content=dict(rows[at]))
    prompts = [prompt_messages(row) for row in rows]
    ids = [prompt_ids(prompt, tokenizer) for prompt in prompts]
    answers = generate(model, tokenizer, ids, max_new_tokens=max_new_tokens, batch_size=batch_size)
    scores = np.asarray(scorer(prompts, gold, answers), dtype=np.float64)
    if scores.shape != (len(rows),):
        raise DataError(
            f"the scorer returned shape {scores.shape} for {len(rows)} rows; one score each is needed."
        )
    return scores
