"""Texts as sequences of words, the same for every comparison of texts."""

from __future__ import annotations

import re
import unicodedata

__all__ = ["shingles", "words"]

# Letters, digits and marks of any script; everything else separates words. Signs are kept in runs of their own, so
# that "2 + 3" and "2 - 3" differ.
_WORD = re.compile(r"[^\W_]+|[^\w\s]+", re.UNICODE)


def words(text: str, *, signs: bool = True) -> list[str]:
    """Return the words of a text: Unicode form NFKC, case folded, white space dropped.

    Args:
        text: any text.
        signs: keep runs of punctuation and symbols as words of their own.
    """
    found = _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
    return found if signs else [word for word in found if word[0].isalnum()]


def shingles(text: str, size: int) -> set[str]:
    """Return the different sequences of ``size`` neighbouring words; a shorter text is one sequence as a whole."""
    found = words(text)
    if len(found) <= size:
        return {" ".join(found)}
    return {" ".join(found[i : i + size]) for i in range(len(found) - size + 1)}
