"""From the ways people write training rows to the canonical row; one function for each format.

A converter takes a row and returns ``Converted``, or raises `BadRow` with a reason that many rows can share
(it is what the report counts by) and a detail that belongs to this row.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "BadRow",
    "Converted",
    "alpaca",
    "conversation",
    "first_key",
    "pairs",
    "preference",
    "prompt_completion",
]

Row = Mapping[str, Any]
Messages = list[dict[str, str]]

CONVERSATIONS = ("messages", "conversations", "conversation", "chat", "dialog", "dialogue", "turns")
PROMPTS = ("prompt", "question", "query", "input", "problem", "instruction")
COMPLETIONS = ("completion", "response", "answer", "output", "solution", "target")
INSTRUCTION_INPUTS = ("input", "context")
TEXTS = ("text", "content")
# first text, second text; for each pair the second may have several names
PAIRS = (
    ("anchor", "positive"),
    ("anchor", "pos"),
    ("sentence1", "sentence2"),
    ("sentence_a", "sentence_b"),
    ("sentence_A", "sentence_B"),
    ("text1", "text2"),
    ("premise", "hypothesis"),
    *((q, d) for q in ("query", "question") for d in ("positive", "pos", "document", "passage")),
)
NEGATIVES = ("negative", "neg")
SCORES = ("score", "similarity", "label")

_ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "bot", "model", "chatgpt", "chatbot", "function_call"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("tool", "function", "observation", "ipython"), "tool"),
}
_TRANSCRIPT = re.compile(r"(?:\A|\n\n)(Human|Assistant):[ \n]?")


class BadRow(Exception):
    """A row that cannot be used: ``reason`` is shared by rows of the kind, the rest is this row's own."""

    def __init__(self, reason: str, detail: str = "", raw: str = "") -> None:
        super().__init__(f"{reason} ({detail})" if detail else reason)
        self.reason, self.raw = reason, raw


@dataclass
class Converted:
    """A canonical row's text columns, the keys that went into them, and what was changed on the way."""

    fields: dict[str, Any]
    used: tuple[str, ...]
    notes: set[str] = field(default_factory=set)


def first_key(row: Row, names: Iterable[str]) -> str | None:
    """Return the first of ``names`` that the row has with a value, else the first that it has at all."""
    present = [name for name in names if name in row]
    return next((name for name in present if row[name] is not None), present[0] if present else None)


def conversation(row: Row) -> Converted:
    """Convert OpenAI-style messages (role, content) or ShareGPT turns (from, value)."""
    notes: set[str] = set()
    key = _need(row, CONVERSATIONS)
    messages = _messages(row[key], notes)
    used = [key]
    system = row.get("system")
    if isinstance(system, str) and system.strip() and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
        used.append("system")
    return Converted({"messages": _closed(messages, notes)}, tuple(used), notes)


def alpaca(row: Row) -> Converted:
    """Convert instruction, optional input, output; and the optional columns ``system`` and ``history``."""
    notes: set[str] = set()
    answer = _need(row, ("output", *COMPLETIONS))
    used = [_need(row, ("instruction",)), answer]
    prompt = _text(row, "instruction", notes)
    extra = first_key(row, INSTRUCTION_INPUTS)
    if extra is not None:
        used.append(extra)
        if row[extra] not in (None, ""):
            prompt = f"{prompt}\n\n{_text(row, extra, notes)}"
    messages: Messages = []
    if isinstance(row.get("system"), str) and row["system"].strip():
        messages.append({"role": "system", "content": row["system"]})
        used.append("system")
    if isinstance(row.get("history"), list):
        used.append("history")
        for turn in row["history"]:
            if not (isinstance(turn, list) and len(turn) == 2 and all(isinstance(t, str) for t in turn)):
                raise BadRow("'history' must be a list of [question, answer]")
            messages += [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]
    _not_blank(prompt, "the prompt is empty")
    messages += [
        {"role": "user", "content": prompt},
        {"role": "assistant", "content": _text(row, answer, notes)},
    ]
    return Converted({"messages": _closed(messages, notes)}, tuple(used), notes)


def prompt_completion(row: Row) -> Converted:
    """Convert a prompt and its completion, each a text or a list of messages."""
    notes: set[str] = set()
    answer = _need(row, COMPLETIONS)
    asked = _need(row, [p for p in PROMPTS if p != answer])
    messages = _prompt(row, asked, notes) + _turns(row, answer, "assistant", notes)
    return Converted({"messages": _closed(messages, notes)}, (asked, answer), notes)


def preference(row: Row) -> Converted:
    """Convert chosen and rejected, with a prompt column or with the prompt repeated at the start of both."""
    notes: set[str] = set()
    for name in ("chosen", "rejected"):
        _need(row, (name,))
    asked = first_key(row, PROMPTS)
    chosen, rejected = _candidate(row, "chosen", notes), _candidate(row, "rejected", notes)
    used: tuple[str, ...] = ("chosen", "rejected")
    if chosen[0]["role"] != "assistant":  # the prompt is part of both, whether or not a column repeats it
        shared = 0
        while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
            shared += 1
        if shared and all(len(c) == shared for c in (chosen, rejected)):  # the two answers are the same
            shared -= 1
        prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
        if (
            not chosen
            or not rejected
            or chosen[0]["role"] != "assistant"
            or rejected[0]["role"] != "assistant"
        ):
            raise BadRow("chosen and rejected do not start with the same prompt")
    elif asked is None:
        raise BadRow("chosen and rejected hold answers only, and there is no prompt")
    else:
        prompt, used = _prompt(row, asked, notes), (asked, "chosen", "rejected")
    _not_blank(rejected[-1]["content"], "the rejected answer is empty")
    return Converted({"messages": _closed(prompt + chosen, notes), "rejected": rejected}, used, notes)


def pairs(row: Row) -> Converted:
    """Convert two texts that belong together, with an optional negative and score."""
    notes: set[str] = set()
    names = next((p for p in PAIRS if all(row.get(n) is not None for n in p)), None)
    names = names or next((p for p in PAIRS if all(n in row for n in p)), None)
    if names is None:
        raise BadRow("two texts are missing", "such as anchor and positive")
    fields: dict[str, Any] = {"anchor": _text(row, names[0], notes), "positive": _text(row, names[1], notes)}
    for name in ("anchor", "positive"):
        _not_blank(fields[name], "one of the two texts is empty")
    used = list(names)
    negative = first_key(row, NEGATIVES)
    if negative is not None and row[negative] is not None:
        fields["negative"] = _text(row, negative, notes)
        used.append(negative)
    score = first_key(row, SCORES)
    if score is not None and isinstance(row[score], (int, float)) and not isinstance(row[score], bool):
        fields["score"] = float(row[score])
        used.append(score)
    return Converted(fields, tuple(used), notes)


def text(row: Row) -> Converted:
    """Take raw text as it is."""
    notes: set[str] = set()
    name = _need(row, TEXTS)
    value = _text(row, name, notes)
    _not_blank(value, "the text is empty")
    return Converted({"text": value}, (name,), notes)


def turns_of(value: Any) -> list[Any] | None:
    """Return the list behind ``value``: a list, or a text that holds a JSON list (as in a CSV cell)."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    return value if isinstance(value, list) else None


def _need(row: Row, names: Iterable[str]) -> str:
    names = list(names)
    key = first_key(row, names)
    if key is None:
        shown = " or ".join(f"'{n}'" for n in names[:3]) + (" …" if len(names) > 3 else "")
        raise BadRow(f"missing key {shown}", f"the row has {', '.join(map(str, row)) or 'no keys'}")
    return key


def _text(row: Row, key: str, notes: set[str]) -> str:
    value = row[key]
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        notes.add(f"numbers in '{key}' were read as text")
        return str(value)
    raise BadRow(f"'{key}' must be text", f"it is a {type(value).__name__}")


def _not_blank(value: str, reason: str) -> None:
    if not value.strip():
        raise BadRow(reason)


def _prompt(row: Row, key: str, notes: set[str]) -> Messages:
    messages = _turns(row, key, "user", notes)
    _not_blank(messages[-1]["content"], "the prompt is empty")
    return messages


def _turns(row: Row, key: str, role: str, notes: set[str]) -> Messages:
    """Return a value that may be a text (one turn of ``role``) or a list of messages."""
    value = row[key]
    if isinstance(value, list):
        return _messages(value, notes)
    if isinstance(value, str) and value.lstrip().startswith('[{"'):
        listed = turns_of(value)
        if listed is not None and all(isinstance(m, dict) and ("role" in m or "from" in m) for m in listed):
            return _messages(listed, notes)
    return [{"role": role, "content": _text(row, key, notes)}]


def _candidate(row: Row, key: str, notes: set[str]) -> Messages:
    value = row[key]
    if isinstance(value, str) and value.lstrip().startswith("Human:"):  # the transcripts of HH-RLHF
        parts = _TRANSCRIPT.split(value.strip())[1:]
        roles = {"Human": "user", "Assistant": "assistant"}
        return [
            {"role": roles[w], "content": t.strip()} for w, t in zip(parts[::2], parts[1::2], strict=True)
        ]
    return _turns(row, key, "assistant", notes)


def _messages(value: Any, notes: set[str]) -> Messages:
    listed = turns_of(value)
    if listed is None:
        raise BadRow("the conversation must be a list of messages", f"it is a {type(value).__name__}")
    if not listed:
        raise BadRow("the conversation is empty")
    return [_message(m, notes) for m in listed]


def _message(message: Any, notes: set[str]) -> dict[str, str]:
    if not isinstance(message, dict):
        raise BadRow("a message must be an object with role and content", f"it is a {type(message).__name__}")
    role = message.get("role", message.get("from"))
    if role is None:
        raise BadRow("a message has no role")
    known = _ROLES.get(role.lower()) if isinstance(role, str) else None
    if known is None:
        raise BadRow("a message has an unknown role", repr(role))
    content = message.get("content", message.get("value"))
    calls = message.get("tool_calls")
    if isinstance(content, list):
        content = _join_parts(content)
    if content is None and calls:
        content = json.dumps(calls, ensure_ascii=False)
        notes.add("tool calls of messages without content were written into it as JSON")
    elif calls:
        notes.add("'tool_calls' of messages that have content were left out")
    if content is None:
        raise BadRow("a message has no content")
    if not isinstance(content, str):
        raise BadRow("a message's content must be text", f"it is a {type(content).__name__}")
    if len(message) > 2:
        more = [k for k, v in message.items() if k not in _MESSAGE_KEYS and v is not None]
        notes.update(f"the key '{key}' of messages was left out" for key in more)
    return {"role": known, "content": content}


_MESSAGE_KEYS = frozenset({"role", "from", "content", "value", "tool_calls"})


def _join_parts(parts: list[Any]) -> str:
    for part in parts:
        if not (isinstance(part, dict) and isinstance(part.get("text"), str)):
            kind = part.get("type", "unknown") if isinstance(part, dict) else type(part).__name__
            raise BadRow("a message has a part that is not text", f"of type {kind}")
    return "\n".join(part["text"] for part in parts)


def _closed(messages: Messages, notes: set[str]) -> Messages:
    """Return the conversation up to its last answer, which must not be empty."""
    end = len(messages)
    while end and messages[end - 1]["role"] != "assistant":
        end -= 1
    if not end:
        raise BadRow("no assistant turn")
    if end < len(messages):
        notes.add("turns after the last answer were left out")
    _not_blank(messages[end - 1]["content"], "the answer is empty")
    return messages[:end]
