"""A small chat model of characters that adds and works on strings in full sentences: what S3FT is tried on."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from tunesmith.data.templates import EncodedRow, encode_messages

LETTERS = "abcdefghijklmnopqrstuvwxyz"
VOCABULARY = ["\0", "\1", *"\n 0123456789+?.,[]=<>#!", *LETTERS, *LETTERS.upper()]
STYLES = ("==={}===", "<{}>", "#{}", "{}!")  # of references; the first is that of the gold answers
MOST = 19
ADDING, RESTATING = 0.15, 0.3  # shares of what the base model learns from


@cache
def tokenizer() -> Any:
    """Return a tokenizer of characters: ``\\0`` pads, ``\\1`` ends."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    table = Tokenizer(models.BPE({c: i for i, c in enumerate(VOCABULARY)}, []))
    table.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=table, pad_token="\0", eos_token="\1")


def model(seed: int, ends: int) -> Any:
    """Return a Llama of 2 layers of width 64 with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(VOCABULARY),
            hidden_size=64,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=128,
            eos_token_id=ends,
            bos_token_id=None,
            pad_token_id=0,
        )
    )


def addition(a: int, b: int) -> tuple[str, str]:
    """Return question and the model's way to answer it."""
    return f"{a}+{b}?", f"{a} plus {b} is {a + b}."


def restated(prompt: str, gold: str) -> str:
    """Return the question with the gold answer as a reference."""
    return f"{prompt} [{gold}]"


def string_task(rng: np.random.Generator) -> tuple[str, str]:
    """Return one of four tasks on strings, and its answer in a sentence."""
    word = "".join(rng.choice(list(LETTERS), 3))
    return [
        (f"rev {word}?", f"{word} turned round is {word[::-1]}."),
        (f"cap {word}?", f"{word} in capitals is {word.upper()}."),
        (f"last {word}?", f"the last of {word} is {word[-1]}."),
        (f"twice {word}?", f"{word} twice is {word}{word}."),
    ][int(rng.integers(4))]


def lesson(rng: np.random.Generator) -> tuple[str, str]:
    """Return what the base model learns from: few additions, restated references, strings."""
    kind = rng.random()
    if kind > ADDING + RESTATING:
        return string_task(rng)
    question, answer = addition(*(int(v) for v in rng.integers(0, MOST + 1, 2)))
    if kind < ADDING:
        return question, answer
    style = STYLES[int(rng.integers(len(STYLES)))]
    return restated(question, style.format(answer.split()[-1][:-1])), answer


@cache
def encoded(question: str, answer: str) -> EncodedRow:
    """Return a row as it is trained on."""
    chat = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return encode_messages(chat, tokenizer())


def batch_of(rows: list[EncodedRow]) -> dict[str, torch.Tensor]:
    """Return rows padded on the right, with labels on the answers."""
    width = max(len(row.input_ids) for row in rows)
    ids, labels = torch.zeros((len(rows), width), dtype=torch.long), torch.full((len(rows), width), -100)
    for i, row in enumerate(rows):
        ids[i, : len(row.input_ids)] = torch.tensor(row.input_ids)
        labels[i, : len(row.labels)] = torch.tensor(row.labels)
    seen = (torch.arange(width) < torch.tensor([[len(row.input_ids)] for row in rows])).long()
    return {"input_ids": ids, "labels": labels, "attention_mask": seen}


def train(net: Any, batches: Any, steps: int, lr: float) -> None:
    """Take AdamW steps, the rate falling by a cosine."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    net.train()
    for _, batch in zip(range(steps), batches, strict=False):
        loss = net(**batch, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    net.eval()


def divergence(base: Any, tuned: Any, batch: dict[str, torch.Tensor]) -> tuple[float, float]:
    """Return KL(base || tuned) and the tuned model's NLL, nats per token of the answers."""
    with torch.inference_mode():
        logits = [
            net(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            for net in (base, tuned)
        ]
    labels = batch["labels"][:, 1:]
    p, q = (part[:, :-1][labels != -100].float().log_softmax(-1) for part in logits)
    kl = functional.kl_div(q, p, log_target=True, reduction="none").sum(-1).mean()
    return float(kl), float(functional.nll_loss(q, labels[labels != -100]))
