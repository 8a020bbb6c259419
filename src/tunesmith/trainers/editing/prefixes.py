"""Prefix augmentation (appendix A.4 of arXiv 2509.22072): each edit also behind sentences that the model makes up."""

from __future__ import annotations

from typing import Any

from tunesmith.core.seeds import child_seed
from tunesmith.engine.generate import generate

__all__ = ["sample_prefixes", "with_prefixes"]

PREFIX_TOKENS = 10


def sample_prefixes(model: Any, tokenizer: Any, count: int, seed: int) -> list[str]:
    """Let the model write short texts from a random first word, at temperature 1.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        count: texts.
        seed: with a text's number, determines it.

    Returns:
        Texts of about ten tokens, in one line, without a last full stop.
    """
    size = len(tokenizer)
    special = set(tokenizer.all_special_ids)
    starts = []
    for i in range(count):
        draw = child_seed(seed, "prefix", i)
        while draw % size in special:
            draw = child_seed(seed, "prefix", i, draw)
        starts.append([draw % size])
    seeds = [child_seed(seed, "prefix text", i) for i in range(count)]
    texts = generate(model, tokenizer, starts, max_new_tokens=PREFIX_TOKENS, temperature=1.0, seeds=seeds)
    heads = [tokenizer.decode(ids, skip_special_tokens=True) for ids in starts]
    return [" ".join(f"{head} {text}".split()).rstrip(" .") for head, text in zip(heads, texts, strict=True)]


def with_prefixes(
    model: Any, tokenizer: Any, edits: list[dict[str, str]], n_prefixes: int, seed: int
) -> list[dict[str, str]]:
    """Return the edits, each followed by ``n_prefixes`` copies with the prompt ``"<made-up text>. <prompt>"``."""
    if n_prefixes == 0:
        return edits
    texts = iter(sample_prefixes(model, tokenizer, n_prefixes * len(edits), seed))
    grown = []
    for row in edits:
        grown.append(row)
        grown += [{**row, "prompt": f"{next(texts)}. {row['prompt']}"} for _ in range(n_prefixes)]
    return grown
