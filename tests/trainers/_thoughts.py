"""Rows with a prompt and a reasoning, and what a model was fed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def rows(n: int, prompt: int = 4, answer: int = 8, seed: int = 0, low: int = 3, high: int = 400) -> list[Any]:
    """Random rows; lengths of the answer differ by up to three."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for i in range(n):
        size = prompt + answer + i % 4
        ids = torch.randint(low, high, (size,), generator=generator).tolist()
        found.append({"input_ids": ids, "labels": [-100] * prompt + ids[prompt:]})
    return found


@contextmanager
def fed(model: Any, training: bool = True) -> Iterator[list[torch.Tensor]]:
    """Collect the ids that the embedding is given, in training or in evaluation."""
    seen: list[torch.Tensor] = []
    layer = model.get_input_embeddings()

    def look(module: Any, args: Any) -> None:
        if module.training == training:
            seen.append(args[0].detach().clone())

    handle = layer.register_forward_pre_hook(look)
    try:
        yield seen
    finally:
        handle.remove()
