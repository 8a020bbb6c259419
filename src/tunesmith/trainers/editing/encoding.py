"""Edits as token ids, and batches of them padded on the left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tunesmith.core.errors import DataError, ParameterError

__all__ = ["Batch", "EncodedEdit", "collate", "encode_edits", "encode_text"]


@dataclass(frozen=True)
class EncodedEdit:
    """One edit as ids.

    Attributes:
        prompt: ids of the prompt.
        target: ids that are learned, the end of the sequence included.
    """

    prompt: tuple[int, ...]
    target: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.target)


@dataclass(frozen=True)
class Batch:
    """A batch padded on the left.

    Attributes:
        ids: (b, t).
        mask: (b, t), 0 on padding. Made from lengths, so a padding id that is a real token hides nothing.
        positions: (b, t), counted from each edit's own first token.
        labels: (b, t), -100 on prompt and padding.
        longest_target: tokens of the longest target.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    positions: torch.Tensor
    labels: torch.Tensor
    longest_target: int


def encode_text(tokenizer: Any, prompt: str, target: str, append_eos: bool = True) -> EncodedEdit:
    """Return ids of a prompt and its target, in which the space between them belongs to the target.

    Prompt and target are tokenized as one string if the prompt's own ids begin it, so that training sees what free
    running will see; else their ids are joined.
    """
    target = target if target[:1].isspace() else f" {target}"
    before = list(tokenizer(prompt)["input_ids"])
    joint = list(tokenizer(prompt + target)["input_ids"])
    if len(before) < len(joint) and joint[: len(before)] == before:
        after = joint[len(before) :]
    else:
        after = list(tokenizer(target, add_special_tokens=False)["input_ids"])
    end = [tokenizer.eos_token_id] if append_eos and after[-1:] != [tokenizer.eos_token_id] else []
    return EncodedEdit(tuple(before), tuple(after + end))


def encode_edits(
    tokenizer: Any, edits: Sequence[Mapping[str, str]], append_eos: bool = True
) -> list[EncodedEdit]:
    """Encode edits.

    Raises:
        ParameterError: the end of a sequence is to be learned, and the tokenizer has no token for it.
        DataError: a prompt or target has no token; names the row.
    """
    if append_eos and tokenizer.eos_token_id is None:
        raise ParameterError(
            "tokenizer",
            encode_edits,
            "one with an end-of-sequence token, or append_eos=False",
            type(tokenizer).__name__,
        )
    encoded = []
    for i, row in enumerate(edits):
        one = encode_text(tokenizer, row["prompt"], row["target_new"], append_eos)
        if not one.prompt or len(one.target) <= append_eos:
            raise DataError("the prompt or the target has no token.", row=i, content=dict(row))
        encoded.append(one)
    return encoded


def collate(edits: Sequence[EncodedEdit], pad_id: int = 0, device: Any = "cpu") -> Batch:
    """Pad edits on the left."""
    shape = (len(edits), max(map(len, edits)))
    ids = torch.full(shape, pad_id)
    mask = torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, -100)
    for i, one in enumerate(edits):
        ids[i, shape[1] - len(one) :] = torch.tensor(one.prompt + one.target)
        mask[i, shape[1] - len(one) :] = 1
        labels[i, shape[1] - len(one.target) :] = torch.tensor(one.target)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    longest = max(len(one.target) for one in edits)
    return Batch(ids.to(device), mask.to(device), positions.to(device), labels.to(device), longest)
