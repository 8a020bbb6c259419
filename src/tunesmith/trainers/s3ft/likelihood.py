"""How far targets are from what the base model would say: their likelihood under it (arXiv 2502.08130, Figure 2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.core.errors import DataError
from tunesmith.data.templates import encode_messages
from tunesmith.engine.lm import completion_nll
from tunesmith.trainers.s3ft.prompts import as_chat

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["target_nll"]


def target_nll(
    dataset: Dataset, model: Any, tokenizer: Any, *, batch_size: int = 16, source_column: str = "source"
) -> dict[str, Any]:
    """Return the base model's negative log-likelihood per token of targets and gold answers of a build.

    The prompt is in the training template; the token that ends an answer counts. Time: a forward pass over the rows,
    and one more over those whose target is not the gold answer.

    Args:
        dataset: what `selective_self_targets` returned.
        model: the base model, in evaluation mode.
        tokenizer: its tokenizer.
        batch_size: rows per forward pass.
        source_column: as it was called there.

    Returns:
        ``target`` and ``gold``: float64 ``(n,)``, nats per token; ``mean_target`` and ``mean_gold``: over all tokens;
        ``below_gold``: share of the rows of source ``"model"`` whose target is likelier per token than the gold answer,
        ``None`` without any. Greedy answers are not the likeliest, so it is below 1 now and then.

    Raises:
        DataError: the rows are not from such a build.
    """
    if "s3ft_gold" not in dataset.column_names or source_column not in dataset.column_names:
        raise DataError("the rows are not those of selective_self_targets: they have no 's3ft_gold'.")
    rows = list(dataset.with_format(None))
    chats = [_chat(row) for row in rows]
    golds = [
        [*chat[:-1], {"role": "assistant", "content": row["s3ft_gold"]}]
        for chat, row in zip(chats, rows, strict=True)
    ]
    target, t_sums, t_counts = _nll(chats, model, tokenizer, batch_size)
    other = [i for i, (a, b) in enumerate(zip(chats, golds, strict=True)) if a != b]
    gold, g_sums, g_counts = target.copy(), t_sums.copy(), t_counts.copy()
    gold[other], g_sums[other], g_counts[other] = _nll(
        [golds[i] for i in other], model, tokenizer, batch_size
    )
    own = np.array([row[source_column] == "model" for row in rows], dtype=bool)
    return {
        "target": target,
        "gold": gold,
        "mean_target": float(t_sums.sum() / max(1, t_counts.sum())),
        "mean_gold": float(g_sums.sum() / max(1, g_counts.sum())),
        "below_gold": float((target[own] < gold[own]).mean()) if own.any() else None,
    }


def _chat(row: Any) -> list[dict[str, Any]]:
    if "messages" in row:
        turns = [dict(turn) for turn in row["messages"]]
        while turns[-1]["role"] != "assistant":
            turns.pop()
        return turns
    given = row["completion"]
    answer = given if isinstance(given, str) else given[0]["content"]
    return [*as_chat(row["prompt"]), {"role": "assistant", "content": answer}]


def _nll(
    chats: list[list[dict[str, Any]]], model: Any, tokenizer: Any, batch_size: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    encoded = [encode_messages(chat, tokenizer, loss="completion") for chat in chats]
    sums, counts = completion_nll(
        model,
        [row.input_ids for row in encoded],
        [row.trained for row in encoded],
        tokenizer.pad_token_id or 0,
        batch_size=batch_size,
    )
    return sums / np.maximum(1, counts), sums, counts
