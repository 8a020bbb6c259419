"""One fixed batch, and a language model's logits on it: what savings and merges are compared by."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["fixed_batch", "logits_of"]


def fixed_batch(model: Any) -> torch.Tensor:
    """Return two rows of 16 ids spread over the vocabulary, the same for each model of a vocabulary size."""
    size = model.get_input_embeddings().weight.shape[0]
    return (torch.arange(32) * 7919 % size).reshape(2, 16).to(model.device)


def logits_of(model: Any, batch: torch.Tensor) -> torch.Tensor:
    """Return the logits of a batch of ids in float32, in evaluation mode."""
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=batch, attention_mask=torch.ones_like(batch)).logits.float()
    model.train(was_training)
    return logits
