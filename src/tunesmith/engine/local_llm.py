"""A transformers model on this machine as a callable on batches of chats."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Self

from tunesmith.core.errors import ParameterError
from tunesmith.core.files import hash_text
from tunesmith.engine.chats import Chat, Failure, Reply
from tunesmith.engine.generate import generate
from tunesmith.engine.prompts import prompt_ids

__all__ = ["LocalLLM"]


class LocalLLM:
    """A causal language model on this machine, asked in batches of similar length.

    The model is loaded when it is first asked, and never changed. At temperature 0 equal chats are answered once.
    Memory: the model, and keys and values of at most 16,384 tokens at once.

    Args:
        model: bundled alias, folder or Hub id; or a transformers model (or a ``PeftModel``) with its ``tokenizer``.
        tokenizer: the tokenizer of a model that is given as an object.
        batch_size: most chats per batch.
        max_prompt_tokens: a longer chat gets a `Failure` and is not cut; by default what the model's positions
            leave beside the new tokens.
        dtype: as in `engine.models.load_model`.
        device: as in `engine.models.load_model`.
        revision: branch, tag or commit on the Hub.
        trust_remote_code: let the model's repository run its own Python code.

    Raises:
        ParameterError: a model object without a tokenizer, or a size below 1.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        *,
        batch_size: int = 64,
        max_prompt_tokens: int | None = None,
        dtype: str = "auto",
        device: str | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        if not isinstance(model, str) and (tokenizer is None or not hasattr(model, "generate")):
            raise ParameterError(
                "model",
                self,
                "a model's id, or a transformers model with its tokenizer",
                type(model).__name__,
            )
        for name, value in (("batch_size", batch_size), ("max_prompt_tokens", max_prompt_tokens)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ParameterError(name, self, "an int >= 1", value)
        self.model, self.tokenizer = model, tokenizer
        self.batch_size, self.max_prompt_tokens = batch_size, max_prompt_tokens
        self.dtype, self.device, self.revision = dtype, device, revision
        self.trust_remote_code = trust_remote_code
        self._loaded: tuple[Any, Any] | None = None if isinstance(model, str) else (model, tokenizer)

    def __call__(
        self,
        chats: Sequence[Chat],
        *,
        temperature: float = 0.0,
        max_new_tokens: int = 256,
        seeds: Sequence[int] | None = None,
    ) -> list[Reply]:
        """Return a reply to each chat; see `tunesmith.engine.ChatModel`.

        Raises:
            MissingModelError: the model cannot be found or reached.
            ParameterError: ``max_new_tokens``, ``temperature`` or ``seeds`` cannot be.
        """
        model, tokenizer = self._parts()
        prompts = [prompt_ids(chat, tokenizer) for chat in chats]
        numbers = list(range(len(chats)) if seeds is None else seeds)
        limit = self._limit(model, max_new_tokens)
        replies: list[Reply] = [""] * len(chats)
        wanted: dict[Any, list[int]] = {}  # what one generation answers -> its chats
        for i, ids in enumerate(prompts):
            if not ids or (limit is not None and len(ids) > limit):
                replies[i] = Failure(
                    f"the chat is longer than the {limit:,} tokens that the model takes"
                    if ids
                    else "the chat is empty"
                )
            else:
                wanted.setdefault(i if temperature > 0 else tuple(ids), []).append(i)
        first = [same[0] for same in wanted.values()]
        texts = generate(
            model,
            tokenizer,
            [prompts[i] for i in first],
            max_new_tokens=max_new_tokens,
            batch_size=self.batch_size,
            temperature=temperature,
            seeds=[numbers[i] for i in first],
        )
        for same, text in zip(wanted.values(), texts, strict=True):
            for i in same:
                replies[i] = text
        return replies

    @property
    def fingerprint(self) -> str:
        """A hash of the model's files, or of the weights of a model given as an object (a second per GB)."""
        from tunesmith.engine.models import model_fingerprint

        if isinstance(self.model, str):
            mark = model_fingerprint(self.model, self.revision)
        else:
            mark = _weights_hash(self.model)
        return hash_text("local", mark, self.dtype)

    def _parts(self) -> tuple[Any, Any]:
        if self._loaded is None:
            from tunesmith.engine.models import load_model, load_tokenizer

            options: dict[str, Any] = {
                "revision": self.revision,
                "trust_remote_code": self.trust_remote_code,
            }
            model = load_model(self.model, dtype=self.dtype, device=self.device, **options)
            self._loaded = model, load_tokenizer(self.model, **options)
        return self._loaded

    def _limit(self, model: Any, new: int) -> int | None:
        if self.max_prompt_tokens is not None:
            return self.max_prompt_tokens
        positions = getattr(model.config, "max_position_embeddings", None)
        return None if positions is None else max(0, int(positions) - new)

    def __deepcopy__(self, memo: Any) -> Self:
        return (
            self  # a loaded model is shared by copies of what holds it (scikit-learn's clone), never doubled
        )

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        if isinstance(self.model, str):
            state["_loaded"] = None
        return state

    def __repr__(self) -> str:
        return f"LocalLLM({self.model if isinstance(self.model, str) else type(self.model).__name__!r})"


def _weights_hash(model: Any) -> str:
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
