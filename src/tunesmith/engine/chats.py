"""A language model as a plain callable on batches of chats: the protocol, and what may stand for one.

A chat is a list of messages, ``{"role": "user", "content": "…"}``, the last one not the assistant's. A model takes
many and returns, in their order, a text for each, or a `Failure` that says why there is none. Any function of that
form will do::

    def shout(chats, *, temperature=0.0, max_new_tokens=256, seeds=None):
        return [chat[-1]["content"].upper() for chat in chats]

A model that has an attribute ``fingerprint`` (a text that changes whenever its replies may) can have its replies
kept on disk by `tunesmith.engine.CachedLLM`. `LocalLLM` and `ChatEndpoint` are the two that come with the package.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tunesmith.core.errors import DataError, ParameterError, nearest

__all__ = ["Chat", "ChatModel", "CutShort", "Failure", "Reply", "ask", "open_llm"]

Chat = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Failure:
    """Why a chat has no reply.

    Attributes:
        reason: in words, without secrets; equal causes give equal words, so that they can be counted.
    """

    reason: str


class CutShort(str):
    """A reply that ended at the longest length permitted and not by itself; in all else a text like any other.

    What is made of it (``strip()`` and so on) is a plain text.
    """

    __slots__ = ()


Reply = str | Failure


class ChatModel(Protocol):
    """What a language model has to offer; see the module for an example."""

    def __call__(
        self,
        chats: Sequence[Chat],
        *,
        temperature: float = 0.0,
        max_new_tokens: int = 256,
        seeds: Sequence[int] | None = None,
    ) -> Sequence[Reply]:
        """Return a reply to each chat, in order.

        Args:
            chats: b chats.
            temperature: 0 for the likeliest reply; above 0 replies are drawn.
            max_new_tokens: longest reply in tokens.
            seeds: b ints >= 0: equal chats with equal seeds get equal replies where the model can promise it.
        """
        ...


def ask(
    llm: ChatModel,
    chats: Sequence[Chat],
    *,
    temperature: float = 0.0,
    max_new_tokens: int = 256,
    seeds: Sequence[int] | None = None,
) -> list[Reply]:
    """Call a model and check what it returns.

    Args:
        llm: any callable of the form of `ChatModel`.
        chats: b chats.
        temperature: see `ChatModel`.
        max_new_tokens: see `ChatModel`.
        seeds: see `ChatModel`.

    Returns:
        b replies. No chats, no call.

    Raises:
        DataError: the model returned another number of replies, or one that is neither text nor `Failure`.
    """
    if not chats:
        return []
    replies = list(llm(chats, temperature=temperature, max_new_tokens=max_new_tokens, seeds=seeds))
    if len(replies) != len(chats):
        raise DataError(f"the language model returned {len(replies)} replies to {len(chats)} chats.")
    for reply in replies:
        if not isinstance(reply, (str, Failure)):
            raise DataError(
                f"a language model's reply must be a text or a Failure. Got {type(reply).__name__} instead."
            )
    return replies


def open_llm(spec: Any, owner: Any = "open_llm", parameter: str = "llm") -> ChatModel:
    """Return the language model that a recipe or a parameter names.

    Args:
        spec: a callable (returned as it is); the id of a local model (bundled alias, folder or Hub id); or a
            mapping with the arguments of `ChatEndpoint` (it has ``url``) or `LocalLLM`.
        owner: whose parameter it is, for messages.
        parameter: its name, for messages.

    Raises:
        ParameterError: it is none of these, or an argument is unknown, missing or not permitted.
    """
    from tunesmith.engine.endpoint import ChatEndpoint
    from tunesmith.engine.local_llm import LocalLLM

    if isinstance(spec, str) and spec:
        return LocalLLM(spec)
    if callable(spec):
        return spec  # type: ignore[no-any-return]
    if isinstance(spec, Mapping):
        kind = ChatEndpoint if "url" in spec else LocalLLM
        known = [name for name in inspect.signature(kind).parameters if name != "tokenizer"]
        for key in spec:
            if key not in known:
                hint = nearest(str(key), known)
                expected = (
                    f"made of arguments of {kind.__name__} ({', '.join(known)}){hint and ';' + hint[:-1]}"
                )
                raise ParameterError(parameter, owner, expected, str(key))
        if "model" in spec:
            return kind(**spec)
    expected = "a callable, a model's id, or a mapping with 'model' (and 'url' for an endpoint)"
    raise ParameterError(parameter, owner, expected, spec)
