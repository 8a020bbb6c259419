"""Three skills on characters, a text to forget, and a small transformer: what the claim of the recipe guide trains."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from sklearn import datasets as sklearn_sets
from torch import nn
from torch.nn import functional

ALPHABET = " abcdefghijklmnopqrstuvwxyz0123456789.,+=<>:"
PAD, LENGTH, ROWS, HELD = 0, 22, 1000, 300
SKILLS = ("reverse", "addition", "look-up")
WIDTH, HEADS, LAYERS = 64, 4, 2


def row_of(skill: str, draw: random.Random) -> tuple[str, str]:
    """Return a prompt and its answer."""
    if skill == "addition":
        a, b = draw.randrange(10, 50), draw.randrange(10, 50)
        return f"{a}+{b}=", str(a + b)
    letters = draw.sample("abcdefghijklmnopqrstuvwxyz", 8)
    if skill == "reverse":
        word = "".join(letters[:4])
        return f"<{word}>", word[::-1]
    if skill == "copy":
        word = "".join(letters[:4])
        return f":{word}>", word
    pairs = list(zip(letters[:4], draw.sample("0123456789", 4), strict=True))
    key, value = draw.choice(pairs)
    return "".join(k + v for k, v in pairs) + f":{key}=", value


def encoded(prompt: str, answer: str) -> dict[str, list[int]]:
    """Return ids and labels of one row, padded; the answer and the dot after it are learned."""
    ids = [ALPHABET.index(c) + 1 for c in prompt + answer + "."]
    labels = [-100] * len(prompt) + ids[len(prompt) :]
    pad = LENGTH - len(ids)
    return {"input_ids": ids + [PAD] * pad, "labels": labels + [-100] * pad}


def skill_rows(
    skill: str, n: int, seed: int, without: frozenset[str] = frozenset()
) -> tuple[Dataset, frozenset[str]]:
    """Return n rows with distinct prompts, none of them among ``without``, and their prompts."""
    draw, rows = random.Random(f"{skill} {seed}"), {}
    while len(rows) < n:
        prompt, answer = row_of(skill, draw)
        if prompt not in without:
            rows[prompt] = encoded(prompt, answer)
    return Dataset.from_list(list(rows.values())), frozenset(rows)


def texts() -> tuple[torch.Tensor, torch.Tensor]:
    """Return windows of English prose, to pre-train on and held out; (n, LENGTH) each."""
    names = ("iris", "wine", "breast_cancer", "diabetes", "digits")
    text = " ".join(getattr(sklearn_sets, f"load_{name}")().DESCR for name in names).lower()
    text = " ".join("".join(c if c in ALPHABET else " " for c in text).split())
    ids = torch.tensor([ALPHABET.index(c) + 1 for c in text])
    cut = int(0.85 * len(ids))
    return ids[:cut].unfold(0, LENGTH, 3), ids[cut:].unfold(0, LENGTH, LENGTH)


def tensors(rows: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and labels (n, LENGTH) of a dataset."""
    return torch.tensor(rows["input_ids"][:]), torch.tensor(rows["labels"][:])


class GPT(nn.Module):
    """A decoder of two blocks, normalised before each part, with learned positions and tied embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Embedding(len(ALPHABET) + 1, WIDTH)
        self.place = nn.Embedding(LENGTH, WIDTH)
        self.attend = nn.ModuleList(nn.Linear(WIDTH, 3 * WIDTH) for _ in range(LAYERS))
        self.join = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS))
        self.up = nn.ModuleList(nn.Linear(WIDTH, 4 * WIDTH) for _ in range(LAYERS))
        self.down = nn.ModuleList(nn.Linear(4 * WIDTH, WIDTH) for _ in range(LAYERS))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2 * LAYERS + 1))
        for table in (self.token, self.place):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """(B, T) -> logits (B, T, V)."""
        B, T = ids.shape
        h = self.token(ids) + self.place.weight[:T]
        for i in range(LAYERS):
            q, k, v = self.attend[i](self.norms[2 * i](h)).view(B, T, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
            mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            h = h + self.join[i](mixed.transpose(1, 2).reshape(B, T, WIDTH))
            h = h + self.down[i](functional.gelu(self.up[i](self.norms[2 * i + 1](h))))
        return self.norms[-1](h) @ self.token.weight.T


def loss_of(net: GPT, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the mean loss of the labelled tokens."""
    logits = net(ids[:, :-1])
    return functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)


def optimiser(net: GPT, lr: float) -> torch.optim.AdamW:
    """Return the guide's optimiser."""
    return torch.optim.AdamW(net.parameters(), lr=lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)


def accuracy(net: GPT, rows: tuple[torch.Tensor, torch.Tensor]) -> float:
    """Return the share of rows whose whole answer is the most probable one."""
    ids, labels = rows
    with torch.no_grad():
        right = (net(ids[:, :-1]).argmax(-1) == labels[:, 1:]) | (labels[:, 1:] == -100)
    return float(right.all(1).float().mean())


def text_loss(net: GPT, held: torch.Tensor) -> float:
    """Return nats per character of the held-out text."""
    with torch.no_grad():
        return float(loss_of(net, held, held))


def pretrained(seed: int, text: torch.Tensor) -> GPT:
    """Return a network that has seen the text, and strings to copy."""
    torch.manual_seed(seed)
    net = GPT()
    copies = tensors(skill_rows("copy", 2000, seed)[0])
    draw = np.random.default_rng(seed)
    step, steps = optimiser(net, 3e-3), 500
    for i in range(steps):
        for group in step.param_groups:
            group["lr"] = 3e-3 * 0.5 * (1 + math.cos(math.pi * i / steps))
        rows = torch.from_numpy(draw.integers(len(text), size=48))
        some = torch.from_numpy(draw.integers(len(copies[0]), size=16))
        ids = torch.cat([text[rows], copies[0][some]])
        labels = torch.cat([text[rows], copies[1][some]])
        loss = loss_of(net, ids, labels)
        step.zero_grad()
        loss.backward()
        step.step()
    return net
