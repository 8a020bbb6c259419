"""Chains of sums modulo 10, and a small decoder that learns them: what the claim of masked thought is tried on.

A question lists numbers by letter and names three of them: ``a 3 b 7 c 1 d 9 | b d a =``. The chain restates each
number and the running sum, then the answer: ``b 7 7 d 9 6 a 3 9 # 9 .``
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

BAR, IS, ANSWER, END, PAD, LETTER = 10, 11, 12, 13, 14, 15  # 0 to 9 are digits
TERMS, MOST = 3, 6
VOCAB, CHAIN = LETTER + MOST, 3 * TERMS + 3
LENGTH = 2 * MOST + TERMS + 2 + CHAIN


def question(rng: np.random.Generator, numbers: int) -> tuple[list[int], list[int]]:
    """Return a question's tokens, and those of its chain."""
    digits = rng.integers(0, 10, numbers)
    letters = rng.permutation(MOST)[:numbers]
    used = rng.permutation(numbers)[:TERMS]
    ids = [t for letter, digit in zip(letters, digits, strict=True) for t in (LETTER + letter, digit)]
    ids += [BAR, *(LETTER + letters[u] for u in used), IS]
    chain, total = [], 0
    for u in used:
        total = (total + digits[u]) % 10
        chain += [LETTER + letters[u], digits[u], total]
    return [int(t) for t in ids], [int(t) for t in [*chain, ANSWER, total, END]]


def batch_of(rows: list[tuple[list[int], list[int]]]) -> dict[str, torch.Tensor]:
    """Return rows padded on the right."""
    length = max(len(q) + len(c) for q, c in rows)
    ids, labels = torch.full((len(rows), length), PAD), torch.full((len(rows), length), -100)
    for i, (q, c) in enumerate(rows):
        ids[i, : len(q) + len(c)] = torch.tensor(q + c)
        labels[i, len(q) : len(q) + len(c)] = torch.tensor(c)
    return {"input_ids": ids, "labels": labels, "attention_mask": (ids != PAD).long()}


class Decoder(nn.Module):
    """A decoder with learned positions, before-normalised."""

    def __init__(self, width: int = 64, heads: int = 4, layers: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.tokens, self.places = nn.Embedding(VOCAB, width), nn.Embedding(LENGTH, width)
        for table in (self.tokens, self.places):
            nn.init.normal_(table.weight, std=0.1)
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm": nn.LayerNorm(width),
                    "qkv": nn.Linear(width, 3 * width),
                    "out": nn.Linear(width, width),
                    "mlp": nn.Sequential(
                        nn.LayerNorm(width),
                        nn.Linear(width, 4 * width),
                        nn.ReLU(),
                        nn.Linear(4 * width, width),
                    ),
                }
            )
            for _ in range(layers)
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, VOCAB, bias=False)

    def forward(self, ids: torch.Tensor, noise: float = 0.0) -> torch.Tensor:
        """(B, T) -> logits (B, T, vocabulary); ``noise`` is NEFTune's alpha."""
        B, T = ids.shape
        h = self.tokens(ids)
        if noise:
            h = h + torch.empty_like(h).uniform_(-1, 1) * noise / (T * h.shape[-1]) ** 0.5
        h = h + self.places.weight[:T]
        for layer in self.layers:
            q, k, v = layer["qkv"](layer["norm"](h)).view(B, T, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            seen = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            h = h + layer["out"](seen.transpose(1, 2).reshape(B, T, -1))
            h = h + layer["mlp"](h)
        return self.head(self.norm(h))


@torch.no_grad()
def measure(model: Any, seed: int, count: int = 400) -> dict[str, float]:
    """Exact answers, with 4 or 5 numbers and with 6; what follows a wrongly copied number; loss on clean chains."""
    rng = np.random.default_rng([seed, 2])
    found = {"answers": 0.0, "first recovered": 0.0, "second recovered": 0.0, "clean loss": 0.0}
    for numbers in (4, 5):
        rows = [question(rng, numbers) for _ in range(count // 2)]
        found["answers"] += _answers(model, rows) / 2
        batch = batch_of(rows)
        logits, labels = model(batch["input_ids"])[:, :-1], batch["labels"][:, 1:]
        loss = functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        found["clean loss"] += float(loss) / 2
        wrong = torch.tensor(rng.integers(1, 10, len(rows)))
        for name, step in (("first recovered", 0), ("second recovered", 1)):
            ids = batch["input_ids"].clone()
            place = len(rows[0][0]) + 3 * step + 1
            ids[:, place] = (ids[:, place] + wrong) % 10
            told = model(ids[:, : place + 1])[:, -1].argmax(-1)
            found[name] += float((told == batch["input_ids"][:, place + 1]).float().mean()) / 2
    found["answers, one number more"] = _answers(model, [question(rng, 6) for _ in range(count // 2)])
    return found


def _answers(model: Any, rows: list[tuple[list[int], list[int]]]) -> float:
    """Return the share of right answers, told greedily."""
    ids = torch.tensor([q for q, _ in rows])
    for _ in range(CHAIN):
        ids = torch.cat([ids, model(ids)[:, -1:].argmax(-1)], 1)
    right = torch.tensor([[ANSWER, c[-2], END] for _, c in rows])
    return float((ids[:, -3:] == right).all(1).float().mean())
