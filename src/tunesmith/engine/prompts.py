"""The text and the tokens that ask a model for its next turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["prompt_ids", "render_prompt", "start_ids", "text_ids"]

Message = Mapping[str, str]


def render_prompt(messages: Sequence[Message], tokenizer: Any) -> str:
    """Return the text that asks the model for the next assistant turn after ``messages``.

    Without a chat template each message becomes its content and a line break.
    """
    if getattr(tokenizer, "chat_template", None):
        return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True))
    return "".join(message["content"] + "\n" for message in messages)


def prompt_ids(messages: Sequence[Message], tokenizer: Any) -> list[int]:
    """Return the token ids of `render_prompt`, with the BOS token where the tokenizer asks for one."""
    return start_ids(tokenizer, text_ids(render_prompt(messages, tokenizer), tokenizer))


def text_ids(text: str, tokenizer: Any) -> list[int]:
    """Return the ids of a text without special tokens around it."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []


def start_ids(tokenizer: Any, ids: list[int]) -> list[int]:
    """Put the BOS token in front when the tokenizer adds one and the template has not already done so."""
    bos = getattr(tokenizer, "bos_token_id", None)
    if bos is None or not getattr(tokenizer, "add_bos_token", False) or (ids and ids[0] == bos):
        return ids
    return [bos, *ids]
