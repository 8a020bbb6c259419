"""What a model is asked, and how its replies are read. The wording is ours; the papers' choices are kept."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

__all__ = [
    "BETTER_1",
    "BETTER_2",
    "TIE",
    "answer_of",
    "as_chat",
    "judge_chat",
    "reflect_again",
    "reflect_chat",
    "reflect_on_verdict",
    "reflection_value",
    "sample_chat",
    "verdict_of",
]

Chat = list[dict[str, str]]
BETTER_1, BETTER_2, TIE = "answer 1 is better", "answer 2 is better", "both are equally good"

_EXPLAIN = (
    "First explain your reasoning step by step in a few sentences. Then, on a new line that begins with 'Answer:', "
    "give the answer itself and nothing after it."
)
_CERTAIN = ("correct", "incorrect", "not sure")
_VERDICTS = (BETTER_1, BETTER_2, TIE)
_ANSWER = re.compile(r"^[\s*_#>-]*(?:final\s+)?answer[\s*_]*:[\s*_]*", re.IGNORECASE | re.MULTILINE)
_MARKED = re.compile(
    r"\(([A-C])\)|^[\s*_#>-]*(?:answer|choice|option)?[\s*_:]*([A-C])[\s*_.):]*$", re.I | re.M
)
# First group that occurs decides; used only where no letter is given.
_WORDS = (
    (0.0, ("incorrect", "not correct", "not right", "wrong")),
    (0.5, ("not sure", "not certain", "unsure", "uncertain")),
    (1.0, ("correct", "right")),
)


def as_chat(prompt: str | Sequence[Mapping[str, str]]) -> Chat:
    """Return a prompt as messages; a text becomes the user's."""
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    return [{"role": m["role"], "content": m["content"]} for m in prompt]


def question_text(chat: Chat) -> str:
    """Return a conversation as one text: the content of a single message, else each with its role."""
    if len(chat) == 1:
        return chat[0]["content"]
    return "\n".join(f"{m['role']}: {m['content']}" for m in chat)


def sample_chat(chat: Chat) -> Chat:
    """Return the chat that asks for an explanation and then the answer, so that samples differ."""
    if chat and chat[-1]["role"] == "user":
        return [*chat[:-1], {"role": "user", "content": f"{chat[-1]['content']}\n\n{_EXPLAIN}"}]
    return [*chat, {"role": "user", "content": _EXPLAIN}]


def answer_of(reply: str) -> str:
    """Return what stands after the last ``Answer:`` that begins a line; the whole reply where none does."""
    found = list(_ANSWER.finditer(reply))
    return (reply[found[-1].end() :] if found else reply).strip().strip("*_").strip()


def reflect_chat(chat: Chat, answer: str) -> Chat:
    """Return the first question of the reflection: is the proposed answer correct?"""
    text = (
        f"Question:\n{question_text(chat)}\n\nProposed answer:\n{answer}\n\n"
        f"Is the proposed answer correct? {_choices(_CERTAIN)}"
    )
    return [{"role": "user", "content": text}]


def reflect_again(asked: Chat, reply: str, what: str = "the proposed answer is correct") -> Chat:
    """Return the next question of the reflection, after the reply to the one before."""
    text = f"Are you really sure whether {what}? Think again and choose anew. {_choices(_CERTAIN)}"
    return [*asked, {"role": "assistant", "content": reply}, {"role": "user", "content": text}]


def judge_chat(chat: Chat, first: str, second: str) -> Chat:
    """Return the chat that asks which of two answers is better."""
    text = (
        f"Question:\n{question_text(chat)}\n\nAnswer 1:\n{first}\n\nAnswer 2:\n{second}\n\n"
        f"Which answer is better? {_choices(_VERDICTS)}"
    )
    return [{"role": "user", "content": text}]


def reflect_on_verdict(asked: Chat, reply: str, verdict: str) -> Chat:
    """Return the first question of the reflection on a verdict."""
    text = f"Your verdict: {verdict}. Is that verdict correct? {_choices(_CERTAIN)}"
    return [*asked, {"role": "assistant", "content": reply}, {"role": "user", "content": text}]


def reflection_value(reply: str) -> float:
    """Return 1 for (A) correct, 0 for (B) incorrect, 0.5 for (C) not sure; NaN for a reply without a choice.

    The last letter in brackets, or alone on a line, is the choice; without one the words are looked at.
    """
    letter = _letter(reply, _CERTAIN)
    if letter is not None:
        return (1.0, 0.0, 0.5)[letter]
    low = _without_menu(reply, _CERTAIN).lower()
    return next((value for value, words in _WORDS if any(word in low for word in words)), float("nan"))


def verdict_of(reply: str) -> str | None:
    """Return `BETTER_1`, `BETTER_2` or `TIE`; ``None`` for a reply without a choice."""
    letter = _letter(reply, _VERDICTS)
    return None if letter is None else _VERDICTS[letter]


def _choices(options: Sequence[str]) -> str:
    menu = "\n".join(f"({letter}) {text}" for letter, text in zip("ABC", options, strict=True))
    return f"Explain briefly, then end with a line that holds nothing but the letter of your choice.\n{menu}"


def _letter(reply: str, options: Sequence[str]) -> int | None:
    found = list(_MARKED.finditer(_without_menu(reply, options)))
    return "ABC".index((found[-1][1] or found[-1][2]).upper()) if found else None


def _without_menu(reply: str, options: Sequence[str]) -> str:
    """Take the list of choices out of a reply that repeats it: its last letter is no choice."""
    menu = r"\s*".join(
        rf"\({letter}\)\s*{re.escape(text)}\W*" for letter, text in zip("ABC", options, strict=True)
    )
    return re.sub(menu, "\n", reply, flags=re.IGNORECASE)
