"""How much of an evaluation set a pool of training rows gives away: shared word sequences, or near meanings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.core.errors import DataError, ParameterError
from tunesmith.curate.near._words import words

__all__ = ["Match", "NgramIndex", "embedding_matches"]

_BLOCK = 4096


@dataclass(frozen=True)
class Match:
    """The evaluation row that a training row gives away.

    Attributes:
        row: of the evaluation set.
        score: share of its word sequences found in the training row, or cosine.
        example: a shared sequence; empty for a match by meaning.
    """

    row: int
    score: float
    example: str = ""


class NgramIndex:
    """The word sequences of an evaluation set, to look training texts up in.

    A text is words alone: Unicode form NFKC, case folded, punctuation and white space dropped. A training text
    matches an evaluation text if it holds at least ``share`` of its different sequences of ``ngram`` neighbouring
    words. Sequences that occur in more than ``common`` evaluation texts are form, not content (a system prompt, the
    wording of a template), and count for none; `leave_out` takes further ones out, which the paper on GPT-3 does with
    those that are frequent among the training documents.

    An evaluation text shorter than a sequence, or of common sequences alone, is matched only by an equal text.

    Sources: Brown et al. 2020 (GPT-3, appendix C: 13-grams, down to 8), Lambert et al. 2024 (Tülu 3:
    8-grams that cover half of a test row).

    Args:
        texts: m evaluation texts.
        ngram: words of a sequence, 8 to 13 in use.
        share: in [0, 1]; 0 means that one sequence is enough.
        common: most evaluation texts that a sequence may occur in.

    Attributes:
        ngram: as given.
        share: as given.
        common: as given.

        Building takes O(words) time and memory, about 100 bytes a word; a look-up O(words of the text).

    Raises:
        ParameterError: a parameter outside its range.
    """

    def __init__(self, texts: Iterable[str], *, ngram: int = 8, share: float = 0.5, common: int = 2) -> None:
        for name, value in (("ngram", ngram), ("common", common)):
            if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
                raise ParameterError(name, self, "an int >= 1", value)
        if isinstance(share, bool) or not isinstance(share, Real) or not 0 <= share <= 1:
            raise ParameterError("share", self, "a float in [0, 1]", share)
        self.ngram: int = int(ngram)
        self.share: float = float(share)
        self.common: int = int(common)
        self._whole: dict[str, int] = {}
        rows: dict[int, set[str]] = {}
        for i, text in enumerate(texts):
            found = words(text, signs=False)
            if found:
                self._whole.setdefault(" ".join(found), i)
            rows[i] = set(self._sequences(found))
        self._rows_of: dict[str, list[int]] = {}
        self._sizes: NDArray[np.int64] = np.zeros(len(rows), dtype=np.int64)
        for i, own in rows.items():
            self._sizes[i] = len(own)
            for sequence in own:
                self._rows_of.setdefault(sequence, []).append(i)
        self.leave_out([s for s, of in self._rows_of.items() if len(of) > self.common])

    @property
    def n_whole(self) -> int:
        """Evaluation texts that can only be matched by an equal text."""
        return int((self._sizes == 0).sum())

    def leave_out(self, sequences: Iterable[str]) -> None:
        """Count these sequences for none from now on."""
        for sequence in sequences:
            for row in self._rows_of.pop(sequence, ()):
                self._sizes[row] -= 1

    def shared(self, *texts: str) -> set[str]:
        """Return the sequences of the evaluation set that a row holds; its texts as for `match`."""
        return {
            sequence
            for text in texts
            for sequence in self._sequences(words(text, signs=False))
            if sequence in self._rows_of
        }

    def match(self, *texts: str) -> Match | None:
        """Return what a training row gives away most of, the first among equals, or ``None``.

        Args:
            *texts: the row in parts (prompt and answer, for example); sequences do not run across parts.
        """
        hits: Counter[int] = Counter()
        example: dict[int, str] = {}
        seen: set[str] = set()
        best: Match | None = None
        for text in texts:
            found = words(text, signs=False)
            whole = self._whole.get(" ".join(found)) if found else None
            if whole is not None and (best is None or whole < best.row):
                best = Match(whole, 1.0, " ".join(found))
            for sequence in self._sequences(found):
                if sequence in self._rows_of and sequence not in seen:
                    seen.add(sequence)
                    for row in self._rows_of[sequence]:
                        hits[row] += 1
                        example.setdefault(row, sequence)
        if best is not None:
            return best
        for row in sorted(hits):
            score = hits[row] / int(self._sizes[row])
            if score >= self.share and (best is None or score > best.score):
                best = Match(row, score, example[row])
        return best

    def _sequences(self, found: Sequence[str]) -> list[str]:
        n = self.ngram
        return [" ".join(found[i : i + n]) for i in range(len(found) - n + 1)]


def embedding_matches(
    pool: Any, target: Any, threshold: float
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return for each training row the nearest evaluation row whose cosine reaches the threshold, or -1.

    Args:
        pool: ``(n, d)`` rows of length 1, may be a memory map.
        target: ``(m, d)`` likewise.
        threshold: a cosine.

    Returns:
        int64 ``(n,)`` rows of ``target`` (the first among equals), and float32 ``(n,)`` cosines to the nearest.
        Time O(n m d) by FAISS's exact search, memory O(n + m d).

    Raises:
        DataError: the two differ in width.
    """
    import faiss

    x, y = pool, np.ascontiguousarray(target, dtype=np.float32)
    if x.shape[1] != y.shape[1]:
        raise DataError(
            f"the pool's embeddings have {x.shape[1]} columns, the evaluation set's {y.shape[1]}."
        )
    index = faiss.IndexFlatIP(y.shape[1])
    index.add(y)
    row = np.full(len(x), -1, dtype=np.int64)
    cosine = np.zeros(len(x), dtype=np.float32)
    for begin in range(0, len(x), _BLOCK):
        scores, found = index.search(np.ascontiguousarray(x[begin : begin + _BLOCK], dtype=np.float32), 1)
        part = slice(begin, begin + len(found))
        cosine[part] = scores[:, 0]
        row[part] = np.where(scores[:, 0] >= threshold, found[:, 0], -1)
    return row, cosine
