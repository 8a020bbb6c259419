"""From messages to tokens and trained positions, built from the structure and never by searching for a string.

Each assistant turn is rendered twice, without it and with it; what the second rendering adds is the turn. The
pieces are tokenised apart, so the border between prompt and answer is the border the model meets when it
generates. The last trained token is the end-of-turn token, taken from the rendering and not from the padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.core.errors import DataError
from tunesmith.engine.prompts import prompt_ids, render_prompt
from tunesmith.engine.prompts import start_ids as _start
from tunesmith.engine.prompts import text_ids as _ids

__all__ = ["EncodedRow", "encode_messages", "encode_text", "prompt_ids", "render_prompt"]

Message = dict[str, str]


@dataclass(frozen=True)
class EncodedRow:
    """A tokenised row.

    Attributes:
        input_ids: token ids, length L.
        trained: for each position whether its token is learned, length L.
        truncated: whether ``max_length`` cut tokens off the end.
    """

    input_ids: list[int]
    trained: list[bool]
    truncated: bool = False

    @property
    def labels(self) -> list[int]:
        """The ids with -100 where nothing is learned, as transformers' losses want them."""
        return [i if t else -100 for i, t in zip(self.input_ids, self.trained, strict=True)]


def encode_messages(
    messages: Sequence[Message],
    tokenizer: Any,
    *,
    max_length: int | None = None,
    loss: str = "completion",
) -> EncodedRow:
    """Tokenise a conversation and mark what is learned.

    Args:
        messages: at least one assistant turn with text; the last message must be an assistant's.
        tokenizer: any transformers tokenizer; without a chat template a plain one is used
            (prompt, line break, answer, end-of-sequence).
        max_length: longest row in tokens; the end is cut.
        loss: ``"completion"`` learns the last assistant turn, ``"assistant"`` all of them, ``"all"`` every token.

    Raises:
        DataError: there is no assistant turn at the end, or the template renders a turn differently depending on
            what follows it, so that its place cannot be known.
    """
    if not messages or messages[-1].get("role") != "assistant":
        raise DataError("the last message is not an assistant's, so there is nothing to learn.")
    ids: list[int] = []
    trained: list[bool] = []
    done = ""
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = render_prompt(messages[:i], tokenizer)
        after = _render_with(messages[: i + 1], tokenizer)
        if not after.startswith(before) or not before.startswith(done):
            raise DataError(
                "the model's chat template does not keep earlier turns as they are when a turn is added, so the "
                "trained tokens cannot be located. Use a template with this property, or loss: all."
            )
        context = _ids(before[len(done) :], tokenizer)
        answer = _ids(after[len(before) :], tokenizer)
        learn = loss != "completion" or i == len(messages) - 1
        ids += context + answer
        trained += [loss == "all"] * len(context) + _until_end(answer, tokenizer, learn, loss == "all")
        done = after
    start = _start(tokenizer, ids)
    trained = [loss == "all"] * (len(start) - len(ids)) + trained
    while trained and not trained[-1]:  # what the template writes after the end of the last turn
        start, trained = start[:-1], trained[:-1]
    return _cut(start, trained, max_length)


def encode_text(text: str, tokenizer: Any, *, max_length: int | None = None) -> EncodedRow:
    """Tokenise raw text, closed by the end-of-sequence token; every token is learned."""
    ids = _start(tokenizer, _ids(text, tokenizer))
    if tokenizer.eos_token_id is not None:
        ids = [*ids, tokenizer.eos_token_id]
    return _cut(ids, [True] * len(ids), max_length)


def _cut(ids: list[int], trained: list[bool], max_length: int | None) -> EncodedRow:
    if max_length is None or len(ids) <= max_length:
        return EncodedRow(ids, trained)
    return EncodedRow(ids[:max_length], trained[:max_length], truncated=True)


def _render_with(messages: Sequence[Message], tokenizer: Any) -> str:
    if getattr(tokenizer, "chat_template", None):
        return str(tokenizer.apply_chat_template(list(messages), tokenize=False))
    text = "".join(_plain_turn(m) for m in messages[:-1]) + messages[-1]["content"]
    return text + (tokenizer.eos_token or "")


def _plain_turn(message: Message) -> str:
    return message["content"] + "\n"


def _until_end(answer: list[int], tokenizer: Any, learn: bool, everything: bool) -> list[bool]:
    """Mark an answer's tokens up to and with its last end-of-sequence token (all, where there is none)."""
    if everything or not learn:
        return [everything] * len(answer)
    eos = tokenizer.eos_token_id
    end = max((i for i, token in enumerate(answer) if token == eos), default=len(answer) - 1)
    return [i <= end for i in range(len(answer))]
