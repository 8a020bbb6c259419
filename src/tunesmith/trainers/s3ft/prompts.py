"""Prompts in the two forms that rows have, and the question for a paraphrase. The wording is ours."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tunesmith.core.errors import DataError, ParameterError

__all__ = ["PARAPHRASE", "Prompt", "as_chat", "paraphraser", "with_question"]

Prompt = str | list[dict[str, Any]]

PARAPHRASE = """\
{prompt}

A correct response to this reads:

{gold}

Write a complete response of your own to the task above, in your own words and in the style in which you usually \
answer, that comes to the same result. Do not mention that you were shown a response."""
"""What asks for ``y_tilde``: the task, the gold answer, and the wish for the model's own words."""


def as_chat(prompt: str | Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a prompt as messages; a text becomes the user's."""
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    return [dict(message) for message in prompt]


def with_question(prompt: Prompt, template: str, gold: str) -> Prompt:
    """Return the prompt, in its form, with what the user said last put into a template.

    Args:
        prompt: text or messages.
        template: text with ``{prompt}`` and ``{gold}``; no other braces mean anything.
        gold: the gold answer.

    Raises:
        DataError: messages without one from the user.
    """
    if isinstance(prompt, str):
        return _filled(template, prompt, gold)
    turns = [dict(message) for message in prompt]
    for turn in reversed(turns):
        if turn["role"] == "user":
            turn["content"] = _filled(template, str(turn["content"]), gold)
            return turns
    raise DataError("the prompt has no message of the user that a paraphrase could be asked in.")


def _filled(template: str, prompt: str, gold: str) -> str:
    fields = {"{prompt}": prompt, "{gold}": gold}
    # In one pass: what is put in may have such braces itself.
    return re.sub(r"\{(?:prompt|gold)\}", lambda match: fields[match[0]], template)


def paraphraser(wish: Any, owner: Any) -> Callable[[Prompt, str], Prompt] | None:
    """Return ``(prompt, gold) -> prompt`` for a function, a template, True (ours) or False (none).

    Raises:
        ParameterError: it is none of these, or the template has no ``{gold}``.
    """
    if wish is False:
        return None
    template = PARAPHRASE if wish is True else wish
    if isinstance(template, str) and "{gold}" in template:
        return lambda prompt, gold: with_question(prompt, template, gold)
    if callable(wish):
        return wish  # type: ignore[no-any-return]
    raise ParameterError(
        "paraphrase",
        owner,
        "True, False, a text with {gold} (and {prompt}) in it, or a callable (prompt, gold) -> prompt",
        wish,
    )
