"""Rank rows of a data set by how new they are to the model before tuning."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.audit.novelty.pair import same_vocabulary
from tunesmith.core.errors import DataError, ParameterError

__all__ = ["contrastive_score"]


def contrastive_score(
    rows: Any,
    finetuned: Any,
    base: Any,
    tokenizer: Any,
    *,
    reduction: str = "mean",
    max_length: int = 256,
    batch_size: int = 32,
) -> NDArray[np.float64]:
    """Return ``s(x) = log p(x; tuned) - log p(x; before)`` of each row; the higher, the newer.

    Args:
        rows: texts, or rows of `tunesmith.data` (``messages``, ``text`` or pairs; read as plain text).
        finetuned: the tuned causal language model; a ``PeftModel`` needs no base.
        base: the model before tuning; None for the one under the adapter.
        tokenizer: of both.
        reduction: ``"mean"`` over tokens, for rows of unequal length, or ``"sum"``.
        max_length: longest row in tokens; the rest is not read.
        batch_size: rows per pass.

    Returns:
        float64 (n,), nats. Two passes per row; memory as `engine.lm.completion_nll`.

    Raises:
        DataError: a row is no text, or has fewer than two tokens.
        ParameterError: another vocabulary, no base, or ``reduction`` is neither.
    """
    from tunesmith.data.rows import row_text
    from tunesmith.engine.lm import completion_nll

    if reduction not in ("mean", "sum"):
        raise ParameterError("reduction", contrastive_score, "'mean' or 'sum'", reduction)
    if base is None and not hasattr(finetuned, "peft_config"):
        raise ParameterError(
            "base", contrastive_score, "a model, or left out where the tuned one is an adapter on it", base
        )
    if base is not None:
        same_vocabulary(finetuned, base, contrastive_score)
    texts: list[str] = []
    for i, row in enumerate(rows):
        if isinstance(row, dict) and any(
            row.get(name) is not None for name in ("messages", "text", "anchor")
        ):
            texts.append(row_text(row))
        elif isinstance(row, str):
            texts.append(row)
        else:
            raise DataError(
                "a row must be a text, or hold 'messages', 'text' or a pair.", row=i, content=repr(row)
            )
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    encoded = [[*bos, *tokenizer(text, add_special_tokens=False)["input_ids"]][:max_length] for text in texts]
    short = next((i for i, ids in enumerate(encoded) if len(ids) < 2), None)
    if short is not None:
        raise DataError("a row needs two tokens to have a likelihood.", row=short, content=texts[short])
    trained = [[True] * len(ids) for ids in encoded]
    pad = tokenizer.pad_token_id or 0
    ours, counts = completion_nll(finetuned.eval(), encoded, trained, pad, batch_size=batch_size)
    if base is None:
        with finetuned.disable_adapter():
            theirs, _ = completion_nll(finetuned, encoded, trained, pad, batch_size=batch_size)
    else:
        theirs, _ = completion_nll(base.eval(), encoded, trained, pad, batch_size=batch_size)
    return (theirs - ours) / (counts if reduction == "mean" else 1)
