"""A language model that adds: right when asked plainly, wrong in three of ten samples, and sure of what is right."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Adder:
    """Answers "What is a plus b?" with "It is c."; of anything else it knows nothing."""

    errs: float = 0.3

    def __call__(self, chats: Any, *, temperature: float, max_new_tokens: int, seeds: Any) -> list[str]:
        return [self.reply(chat, temperature, seed) for chat, seed in zip(chats, seeds, strict=True)]

    def reply(self, chat: Any, temperature: float, seed: int) -> str:
        text = chat[0]["content"]
        found = re.search(r"What is (\d+) plus (\d+)\?", text)
        right = f"It is {int(found[1]) + int(found[2])}." if found else "I do not know."
        if "Which answer is better?" in chat[-1]["content"]:
            first, second = re.findall(r"Answer [12]:\n(.*)", text)[:2]
            return "(A)" if first == right else "(B)" if second == right else "(C)"
        if len(chat) > 1 and "Your verdict" in chat[2]["content"]:
            return "(A)"
        if "Proposed answer:" in text:
            return "(A)" if f"Proposed answer:\n{right}" in text else "(B)"
        slips = temperature > 0 and np.random.default_rng(seed).random() < self.errs
        return f"Answer: {right if not slips else 'It is -1.'}" if temperature else right


def differ(premises: list[str], hypotheses: list[str]) -> list[float]:
    """Call two texts contradictory if they differ."""
    return [float(a != b) for a, b in zip(premises, hypotheses, strict=True)]
