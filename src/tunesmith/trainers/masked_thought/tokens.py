"""A mask token for models that have none."""

from __future__ import annotations

from typing import Any

import torch

from tunesmith.core.errors import ParameterError

__all__ = ["add_mask_token"]


def add_mask_token(model: Any, tokenizer: Any, token: str = "<mask>") -> int:
    """Give tokenizer and model a mask token, and return its id.

    Its row of the input embedding, and of an output layer of its own, is the mean of all rows of tokens (computed in
    float32), as in the authors' code up to the rows that this leaves out; ``resize_token_embeddings`` alone draws
    around the mean. It depends on nothing else: the same call on a fresh copy of the base makes the same model, which
    is how an adapter that was trained beside it is loaded again.

    A row is added unless the embedding has an unused one (padded vocabularies). Nothing changes if the tokenizer has a
    mask token already, and the model a row for it.

    With LoRA, call it before ``get_peft_model`` and train the row by ``trainable_token_indices=[mask_id]``, or by
    ``modules_to_save`` with the names of both embeddings; otherwise it stays the constant that it is, which the paper
    did not try.

    Args:
        model: a causal language model of transformers; changed in place.
        tokenizer: its tokenizer; changed in place.
        token: text of the token.

    Raises:
        ParameterError: the model carries adapters already.

    Time and memory O(vocabulary x d): the embedding is copied if it grows.
    """
    if hasattr(model, "peft_config"):
        expected = "without adapters: add the token first, then the adapters"
        raise ParameterError("model", add_mask_token, expected, type(model).__name__)
    new = tokenizer.mask_token_id is None
    known = len(tokenizer)
    if new:
        tokenizer.add_special_tokens({"mask_token": token})
    mask_id = int(tokenizer.mask_token_id)
    rows = model.get_input_embeddings().weight.shape[0]
    if mask_id < rows and (mask_id < known or not new):
        return mask_id
    tables = _tables(model)
    means = [table[:known].float().mean(0) for table in tables]
    if mask_id >= rows:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        for table, mean in zip(_tables(model), means, strict=True):
            table[mask_id] = mean.to(table.dtype)
    return mask_id


def _tables(model: Any) -> list[torch.Tensor]:
    """Return what has a row per token: the input embedding, an untied output layer's weight, an output layer's bias."""
    found = [model.get_input_embeddings().weight]
    head = model.get_output_embeddings()
    if head is not None:
        if head.weight is not found[0]:
            found.append(head.weight)
        if getattr(head, "bias", None) is not None:
            found.append(head.bias)
    return [table.detach() for table in found]
