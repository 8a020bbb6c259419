"""Dropping rows that say again what an earlier row said."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Self

from tunesmith.core.errors import ParameterError
from tunesmith.curate._base import Curator
from tunesmith.data.rows import iter_rows, prompt_text, row_kind, row_text

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["Deduplicate"]

_ON = ("row", "prompt")


class Deduplicate(Curator):
    """Keep the first of rows whose texts are the same but for case and white space.

    Time is linear; memory is 16 bytes of hash a row and its place in a set (about 100 MB for a million rows).
    Two different texts share a 128-bit hash with a chance below 10⁻²⁶ for a million rows.

    Args:
        on: ``"row"`` compares roles and contents of the whole conversation (and the rejected answer), both
            texts of a pair, or the raw text. ``"prompt"`` compares what comes before the last answer, so that
            one answer stays for each question; raw text, which has no prompt, is compared whole.
    """

    def __init__(self, on: str = "row") -> None:
        self.on = on

    def fit(self, dataset: Dataset, y: Any = None) -> Self:
        """Check the parameters; there is nothing to learn.

        Raises:
            ParameterError: ``on`` is neither ``"row"`` nor ``"prompt"``.
        """
        if self.on not in _ON:
            raise ParameterError("on", self, "'row' or 'prompt'", self.on)
        return super().fit(dataset)

    def _reasons(self, dataset: Dataset) -> Iterator[tuple[int, str]]:
        reason = (
            "the same text as an earlier row" if self.on == "row" else "the same prompt as an earlier row"
        )
        seen: set[bytes] = set()
        for i, row in enumerate(iter_rows(dataset)):
            key = self._key(row)
            if key in seen:
                yield i, reason
            seen.add(key)

    def _key(self, row: dict[str, Any]) -> bytes:
        if self.on == "prompt":
            parts = [prompt_text(row) or row_text(row)]
        elif row_kind(row) == "messages":
            turns = [*row["messages"], {"role": "rejected", "content": ""}, *(row.get("rejected") or [])]
            parts = [f"{m['role']}\n{m['content']}" for m in turns]
        else:
            parts = [row.get(name) or "" for name in ("text", "anchor", "positive", "negative")]
        # The separator cannot occur in a part: white space has become single blanks.
        normal = "\n".join(" ".join(part.casefold().split()) for part in parts)
        return blake2b(normal.encode("utf-8", "surrogatepass"), digest_size=16).digest()
