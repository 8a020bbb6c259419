"""One pass over text rows: lengths, languages, missing and broken answers, secrets."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.core.events import EventLog
from tunesmith.data.rows import completion_text, iter_rows, last_answer, prompt_text, row_kind, row_text
from tunesmith.look.secrets import find_secrets

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["SURE", "TextFacts", "answer_problem", "language_of", "read_texts"]

SURE = 0.5  # probability below which no language is named
_LETTERS = 20  # letters that a language can be told from
_LOOKED_AT = 1_000  # characters of a row that the language is told from
_CUT_FROM = 200  # characters from which an answer without an end is suspicious; short ones often have none
_SENTENCE = re.compile(r"[.!?。！？][\"')\]]?\s")
_LETTER = re.compile(r"[^\W\d_]")


@dataclass
class TextFacts:
    """What the pass found; arrays have one entry per row.

    Attributes:
        characters: of the whole row.
        answer_characters: of the last answer; 0 where there is none.
        turns: messages of the row, 1 for raw text, 2 for pairs.
        languages: language code, ``"?"`` where it cannot be told.
        problems: row -> what is wrong with its answer.
        secrets: row -> (kind, masked text) of each find.
    """

    characters: NDArray[np.int64]
    answer_characters: NDArray[np.int64]
    turns: NDArray[np.int64]
    languages: list[str] = field(default_factory=list)
    problems: dict[int, str] = field(default_factory=dict)
    secrets: dict[int, list[tuple[str, str]]] = field(default_factory=dict)

    def problem_counts(self) -> Counter[str]:
        """Rows per problem."""
        return Counter(self.problems.values())


def read_texts(dataset: Dataset, log: EventLog) -> TextFacts:
    """Pass over canonical rows once; about 3,000 rows of 170 characters a second on one core, most of it for
    the language.

    Memory: a few numbers per row.
    """
    n = len(dataset)
    facts = TextFacts(np.zeros(n, np.int64), np.zeros(n, np.int64), np.zeros(n, np.int64))
    for i, row in enumerate(iter_rows(dataset)):
        text = row_text(row)
        facts.characters[i] = len(text)
        facts.turns[i] = (
            len(row["messages"]) if row_kind(row) == "messages" else 2 - (row_kind(row) == "text")
        )
        facts.answer_characters[i] = len(_answer(row))
        facts.languages.append(language_of(text))
        problem = row_problem(row)
        if problem is not None:
            facts.problems[i] = problem
        found = [(secret.kind, secret.masked) for secret in find_secrets(text)]
        if found:
            facts.secrets[i] = found
        if i % 1000 == 999 or i == n - 1:
            log.emit("progress", what="looking at the rows", done=i + 1, total=n)
    return facts


def _answer(row: dict[str, Any]) -> str:
    return "" if row_kind(row) == "text" else completion_text(row)


def row_problem(row: dict[str, Any]) -> str | None:
    """Say what keeps a row from being learned from well, or None.

    A row of messages needs a question and an answer; a pair two texts; raw text some text.
    """
    kind = row_kind(row)
    if kind == "text":
        return None if row["text"].strip() else "empty"
    if kind == "messages" and last_answer(row["messages"]) is None:
        return "no answer"
    answer = completion_text(row)
    if not answer.strip():
        return "empty answer"
    if not prompt_text(row).strip():
        return "empty question"
    if kind == "messages" and row["messages"][-1]["role"] == "user":
        return "ends with a question"
    if " ".join(answer.split()).casefold() == " ".join(prompt_text(row).split()).casefold():
        return "the answer repeats the question"
    return answer_problem(answer)


def answer_problem(answer: str) -> str | None:
    """Say whether an answer looks cut off: an open code block, open JSON, or a long text that stops mid-sentence.

    The last is a guess. It asks for 200 characters, a finished sentence before the end, and an end in a letter, a
    comma or an opening sign; a list of words is not suspected.

    Example:
        >>> answer_problem('{"name": "sum", "arguments": {"a": 1')
        'cut off: open JSON'
    """
    text = answer.rstrip()
    if text.count("```") % 2:
        return "cut off: open code block"
    if text[:1] in "{[" and not _balanced(text):
        return "cut off: open JSON"
    last_line = text.rsplit("\n", 1)[-1]
    if len(text) >= _CUT_FROM and (text[-1].isalpha() or text[-1] in ",;:(-") and _SENTENCE.search(last_line):
        return "perhaps cut off: no end of sentence"
    return None


def _balanced(text: str) -> bool:
    """Say whether text that begins like JSON closes what it opens."""
    try:
        json.loads(text)
    except ValueError:
        plain = re.sub(r'"(?:[^"\\]|\\.)*"', "", text)
        return (
            plain.count("{") <= plain.count("}") and plain.count("[") <= plain.count("]") and '"' not in plain
        )
    return True


@lru_cache(maxsize=1)
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def language_of(text: str) -> str:
    """Return the ISO 639-1 code of the language, or ``"?"`` where the text is too short or the guess is unsure.

    py3langid on the first 1,000 characters: 97 languages, no network.
    """
    sample = text[:_LOOKED_AT]
    if len(_LETTER.findall(sample)) < _LETTERS and not any(ord(c) > 0x2E7F for c in sample):
        return "?"
    code, probability = _identifier().classify(sample)
    return str(code) if probability >= SURE else "?"
