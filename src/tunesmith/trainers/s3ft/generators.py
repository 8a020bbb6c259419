"""What may answer prompts, brought into one form: text, and whether it was cut short, or why there is none."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from tunesmith.core.errors import DataError
from tunesmith.engine.chats import CutShort, Failure, ask, open_llm
from tunesmith.trainers.s3ft.prompts import Prompt, as_chat

__all__ = ["Generator", "name_of"]

CUT = ("length", "max_tokens")
"""Finish reasons of a reply that reached its longest length (vLLM and OpenAI; Anthropic)."""

Answer = tuple[str, bool] | Failure


class Generator:
    """A generator of any kind behind one call.

    Args:
        spec: a model's id, or a mapping for a local model or an endpoint (see `engine.open_llm`); a `ChatModel`, told
            by a parameter ``max_new_tokens`` or ``**anything``; or any other function ``prompts -> replies``, that
            gets the prompts as the rows have them and decodes as it likes.
        owner: whose parameter it is.

    Attributes:
        name: what tells its replies from those of others.

    Raises:
        ParameterError: ``spec`` is none of these.
    """

    def __init__(self, spec: Any, owner: Any) -> None:
        self._call: Callable[..., Any] = open_llm(spec, owner, "generate")
        self._chats = _takes_chats(self._call)

    @cached_property
    def name(self) -> str:
        """See the class."""
        return name_of(self._call)

    def __call__(
        self, prompts: Sequence[Prompt], *, temperature: float, max_new_tokens: int, seeds: Sequence[int]
    ) -> list[Answer]:
        """Return an answer to each prompt.

        Raises:
            DataError: another number of replies came back, or something that is no reply.
        """
        if self._chats:
            chats = [as_chat(prompt) for prompt in prompts]
            replies: Any = ask(
                self._call, chats, temperature=temperature, max_new_tokens=max_new_tokens, seeds=seeds
            )
        else:
            replies = list(self._call(list(prompts)))
            if len(replies) != len(prompts):
                raise DataError(
                    f"the generator returned {len(replies)} replies to {len(prompts)} prompts; it must return one "
                    "for each, in their order."
                )
        return [_answer(reply) for reply in replies]


def _takes_chats(call: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(call).parameters.values()
    except (TypeError, ValueError):  # a built-in function
        return False
    return any(p.name == "max_new_tokens" or p.kind is p.VAR_KEYWORD for p in parameters)


def _answer(reply: Any) -> Answer:
    """Read a text, a `Failure`, an object or mapping with text and finish reason, or a request of vLLM."""
    if isinstance(reply, Failure):
        return reply
    if isinstance(reply, str):
        return _whole(reply), isinstance(reply, CutShort)
    outputs = getattr(reply, "outputs", None)
    if isinstance(outputs, Sequence) and len(outputs) == 1:
        reply = outputs[0]
    if isinstance(reply, Mapping):
        text, finish = reply.get("text"), reply.get("finish_reason")
    else:
        text, finish = getattr(reply, "text", None), getattr(reply, "finish_reason", None)
    if not isinstance(text, str):
        raise DataError(
            "a generator's reply must be a text, a Failure, or something with 'text' and 'finish_reason'. Got "
            f"{type(reply).__name__} instead."
        )
    return _whole(text), finish is not None and finish in CUT


def _whole(text: str) -> str:
    """Put a replacement character for halves of surrogate pairs: no file of texts can hold them."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def name_of(call: Any) -> str:
    """Return the fingerprint of a callable, or its name where it has none."""
    mark = getattr(call, "fingerprint", None)
    if isinstance(mark, str):
        return mark
    kind = call if hasattr(call, "__qualname__") else type(call)
    return f"{kind.__module__}.{kind.__qualname__}"
