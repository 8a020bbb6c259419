"""A language model as judge, here or behind an endpoint. The wording of its question is ours."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from tunesmith.core.errors import DataError, ParameterError
from tunesmith.core.files import hash_json
from tunesmith.engine.chats import Failure, ask, open_llm
from tunesmith.trainers.s3ft.generators import name_of
from tunesmith.trainers.s3ft.prompts import as_chat

__all__ = ["QUESTION", "LLMJudge"]

QUESTION = """\
Here are a question, a reference answer that is correct, and an answer to be judged.

Question:
{question}

Reference answer:
{gold}

Answer to be judged:
{candidate}

Does the answer to be judged come to the same result as the reference answer, without saying anything wrong? Reply \
with one word, YES or NO."""

_WORD = re.compile(r"\b(yes|no)\b", re.IGNORECASE)


class LLMJudge:
    """Right where a language model, shown question, gold answer and candidate, says YES first and not NO.

    A reply without either word counts as no: a wrong yes puts a wrong target into the data, a wrong no only the gold
    answer. Takes lists; 4 to 8 tokens of reply each. Do not let a small model judge itself.

    Args:
        llm: a model's id, a mapping for a local model or an endpoint, or a callable; see `engine.open_llm`.
        question: text with ``{question}``, ``{gold}`` and ``{candidate}``.
        max_new_tokens: longest reply, at least 1.

    Raises:
        ParameterError: ``llm`` is none of these, or the question lacks a field.
    """

    batched = True

    def __init__(self, llm: Any, question: str = QUESTION, max_new_tokens: int = 8) -> None:
        self.llm = open_llm(llm, self)
        fields = ("{question}", "{gold}", "{candidate}")
        if not isinstance(question, str) or not all(field in question for field in fields):
            raise ParameterError("question", self, f"a text with {', '.join(fields)} in it", question)
        if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int) or max_new_tokens < 1:
            raise ParameterError("max_new_tokens", self, "an int >= 1", max_new_tokens)
        self.question, self.max_new_tokens = question, max_new_tokens

    @property
    def fingerprint(self) -> str:
        """Of the model, the question and the longest reply."""
        return hash_json(["llm", name_of(self.llm), self.question, self.max_new_tokens])

    def __call__(
        self,
        prompts: Sequence[Any],
        candidates: Sequence[str],
        golds: Sequence[str],
        rows: Sequence[Any],
    ) -> list[bool]:
        """Return b verdicts.

        Raises:
            DataError: the model gave no reply; a candidate is not refused for that.
        """
        chats = [
            [{"role": "user", "content": self._asked(*three)}]
            for three in zip(prompts, golds, candidates, strict=True)
        ]
        replies = ask(self.llm, chats, max_new_tokens=self.max_new_tokens)
        for reply in replies:
            if isinstance(reply, Failure):
                raise DataError(f"the judging model gave no reply: {reply.reason}.")
        found = [_WORD.search(str(reply)) for reply in replies]
        return [word is not None and word[1].casefold() == "yes" for word in found]

    def _asked(self, prompt: Any, gold: str, candidate: str) -> str:
        chat = as_chat(prompt)
        text = (
            chat[0]["content"] if len(chat) == 1 else "\n".join(f"{m['role']}: {m['content']}" for m in chat)
        )
        fields = {"{question}": str(text), "{gold}": gold, "{candidate}": candidate}
        # In one pass: what is put in may have such braces itself.
        return re.sub(r"\{(?:question|gold|candidate)\}", lambda match: fields[match[0]], self.question)
