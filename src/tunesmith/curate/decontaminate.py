"""Rows of a pool that give away rows of an evaluation set: dropped, or only marked."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from hashlib import blake2b
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from sklearn.utils.validation import check_is_fitted

from tunesmith.core.errors import DataError, ParameterError
from tunesmith.curate._base import DETAIL, Curator
from tunesmith.curate.near._vectors import column_vectors
from tunesmith.curate.near._words import words
from tunesmith.curate.overlap import Match, NgramIndex, embedding_matches
from tunesmith.data import Pool, read
from tunesmith.data.rows import iter_rows, prompt_text, row_kind, row_text

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["ContaminationFilter", "contamination"]

_BY = ("words", "embedding", "both")
_ON = ("prompt", "row")
_ACTIONS = ("drop", "flag")
_COLUMN = "contamination"


class ContaminationFilter(Curator):
    """Drop or mark the rows of a pool that hold rows of evaluation sets.

    By words, a training row (prompt, answer, rejected answer, raw text) is contaminated if it holds at least
    ``share`` of the word sequences of an evaluation row that are its own and not a template's (see `NgramIndex`).
    By embedding, if the cosine of the two reaches ``threshold``; this finds paraphrases, and with a low threshold
    also rows that are merely about the same.

    Time O(words of both sets) by words, with memory for the evaluation set's words alone; by embedding one
    forward pass a row (kept in the user's cache) and O(n m d), memory O((n + m) d).

    Sources: Brown et al. 2020 (GPT-3, appendix C), Lambert et al. 2024 (Tülu 3).

    Args:
        against: the evaluation sets: a path, Hub id or ``demo:NAME`` as `tunesmith.data.read` takes it, a dataset,
            or a list of these.
        by: ``"words"``, ``"embedding"`` or ``"both"`` (either is enough).
        on: what of an evaluation row counts: its ``"prompt"`` (raw text, which has none, as a whole) or the whole
            ``"row"``.
        ngram: words of a sequence, 8 to 13 in use. Evaluation rows with fewer are matched only by an equal prompt,
            answer or text.
        share: share of an evaluation row's sequences that a training row must hold; 0 for a single one.
        common: sequences that occur in more evaluation rows than this are form and count for none.
        common_rows: sequences that occur in more *different* rows of the pool of `fit` than this are form too;
            ``None`` for no such limit. Equal rows count once, so that a test row that was copied often is found;
            one that stands in the pool in many variants is not: remove near-duplicates first.
        threshold: cosine in (0, 1] from which two rows mean the same.
        encoder: as for `tunesmith.data.Pool`. Columns ``embedding`` of both sets go before it where ``on="row"``.
        action: ``"drop"``, or ``"flag"`` to keep every row and say in the column ``contamination`` what it gives
            away (``None`` for clean rows); flagged rows stand in the report's ``noted``.

    Attributes:
        matches_: for each row of the last `transform` a `Match` or ``None``.
        evaluation_hit_: bool ``(m,)``, the evaluation rows that some row of the pool gives away.
        n_evaluation_: m, rows of the evaluation sets together.

    Example:
        >>> from datasets import Dataset
        >>> pool = Dataset.from_dict({"text": ["Q: name the largest moon of the planet Saturn! A: Titan", "b"]})
        >>> test = Dataset.from_dict({"text": ["name the largest moon of the planet Saturn"]})
        >>> method = ContaminationFilter(test)
        >>> method.fit(pool).transform(pool)["text"][:]
        ['b']
        >>> method.report_.reasons
        {'holds an evaluation row': 1}
    """

    def __init__(
        self,
        against: Any,
        *,
        by: str = "words",
        on: str = "prompt",
        ngram: int = 8,
        share: float = 0.5,
        common: int = 2,
        common_rows: int | None = 10,
        threshold: float = 0.9,
        encoder: str = "minilm",
        action: str = "drop",
    ) -> None:
        self.against = against
        self.by = by
        self.on = on
        self.ngram = ngram
        self.share = share
        self.common = common
        self.common_rows = common_rows
        self.threshold = threshold
        self.encoder = encoder
        self.action = action

    def fit(self, dataset: Dataset, y: Any = None) -> Self:
        """Read the evaluation sets, and find what of them is the wording of many rows of the pool.

        Raises:
            ParameterError: a parameter outside its range.
            DataError: an evaluation set cannot be read, or has no rows.
        """
        self._check()
        self._sets = [_evaluation_set(source) for source in _sources(self.against)]
        texts = [self._evaluation_text(row) for _, rows in self._sets for row in iter_rows(rows)]
        if not texts:
            raise DataError("the evaluation set has no rows, so nothing can be compared with it.")
        self._places = [f"{name}, row {i}" for name, rows in self._sets for i in range(len(rows))]
        self._index = NgramIndex(texts, ngram=self.ngram, share=self.share, common=self.common)
        self.n_evaluation_ = len(texts)
        if self.by != "embedding" and self.common_rows is not None:
            self._index.leave_out(self._wording(dataset, self.common_rows))
        return super().fit(dataset)

    def transform(self, dataset: Dataset) -> Dataset:
        """Return the clean rows, or with ``action="flag"`` all of them with the column ``contamination``.

        Raises:
            NotFittedError: `fit` was not called.
            DataError: the rows have a column ``contamination`` already.
        """
        check_is_fitted(self, "n_rows_")
        found = list(self._reasons(dataset))
        if self.action == "drop":
            return self._finish(dataset, found)
        if _COLUMN in dataset.column_names:
            raise DataError(f"the rows have a column '{_COLUMN}' already; rename it.")
        from datasets import Value

        reasons: list[str | None] = [None] * len(dataset)
        for row, reason in found:
            reasons[row] = reason
        kept = self._finish(dataset, (), noted=found)
        return kept.add_column(_COLUMN, reasons, feature=Value("string"))

    def _check(self) -> None:
        for name, valid in (("by", _BY), ("on", _ON), ("action", _ACTIONS)):
            if getattr(self, name) not in valid:
                expected = " or ".join([", ".join(map(repr, valid[:-1])), repr(valid[-1])])
                raise ParameterError(name, self, expected, getattr(self, name))
        for name, also in (("ngram", ""), ("common", ""), ("common_rows", "None or ")):
            value = getattr(self, name)
            if value is None and also:
                continue
            if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
                raise ParameterError(name, self, f"{also}an int >= 1", value)
        s, t = self.share, self.threshold
        if isinstance(s, bool) or not isinstance(s, Real) or not 0 <= s <= 1:
            raise ParameterError("share", self, "a float in [0, 1]", s)
        if isinstance(t, bool) or not isinstance(t, Real) or not 0 < t <= 1:
            raise ParameterError("threshold", self, "a float in (0, 1]", t)

    def _reasons(self, dataset: Dataset) -> Iterator[tuple[int, str]]:
        matches: list[Match | None] = [None] * len(dataset)
        if self.by != "embedding":
            for i, row in enumerate(iter_rows(dataset)):
                matches[i] = self._index.match(*self._parts(row))
        by_words = [match is not None for match in matches]
        if self.by != "words" and len(dataset):
            rows, cosines = embedding_matches(self._vectors(dataset), self._target(), self.threshold)
            for i in np.flatnonzero(rows >= 0).tolist():
                if matches[i] is None:
                    matches[i] = Match(int(rows[i]), float(cosines[i]))
        self.matches_ = matches
        self.evaluation_hit_ = np.zeros(self.n_evaluation_, dtype=bool)
        self.evaluation_hit_[[match.row for match in matches if match is not None]] = True
        for i, match in enumerate(matches):
            if match is None:
                continue
            place = self._places[match.row]
            if by_words[i]:
                shown = match.example if len(match.example) <= 80 else f"{match.example[:79]}…"
                yield (
                    i,
                    f"holds an evaluation row{DETAIL}{place}: {match.score:.0%} of its word sequences, such as "
                    f"“{shown}”",
                )
            else:
                yield i, f"means the same as an evaluation row{DETAIL}{place}: cosine {match.score:.2f}"

    def _parts(self, row: dict[str, Any]) -> list[str]:
        return _parts(row) + ([row_text(row)] if self.on == "row" else [])

    def _wording(self, dataset: Dataset, most: int) -> list[str]:
        """Return the evaluation set's sequences that more than ``most`` different rows hold."""
        counts: Counter[str] = Counter()
        seen: set[bytes] = set()
        for row in iter_rows(dataset):
            parts = self._parts(row)
            found = self._index.shared(*parts)
            if not found:
                continue
            normal = " ".join(word for part in parts for word in words(part, signs=False))
            key = blake2b(normal.encode("utf-8", "surrogatepass"), digest_size=16).digest()
            if key not in seen:
                seen.add(key)
                counts.update(found)
        return [sequence for sequence, count in counts.items() if count > most]

    def _evaluation_text(self, row: dict[str, Any]) -> str:
        return (prompt_text(row) or row_text(row)) if self.on == "prompt" else row_text(row)

    def _vectors(self, dataset: Dataset) -> Any:
        if self.on == "row" and "embedding" in dataset.column_names:
            return column_vectors(dataset, "embedding")
        from datasets import Dataset as Rows

        texts = [self._evaluation_text(row) for row in iter_rows(dataset)]
        return Pool(Rows.from_dict({"text": texts}), encoder=self.encoder).feature("embedding")

    def _target(self) -> Any:
        return np.concatenate([self._vectors(rows) for _, rows in self._sets if len(rows)])


def contamination(pool: Any, against: Any, **parameters: Any) -> dict[str, Any]:
    """Tell how much of evaluation sets a pool gives away, without changing it.

    Args:
        pool: a dataset, or what `tunesmith.data.read` takes.
        against: as for `ContaminationFilter`.
        **parameters: as for `ContaminationFilter`.

    Returns:
        ``rows`` and ``contaminated`` of the pool, ``evaluation_rows`` and ``evaluation_hit`` (how many of them some
        row of the pool gives away), ``only_whole`` (evaluation rows so short, or so much of a template, that only
        an equal text can match them), ``reasons``, and ``found``: ``(row, reason)`` of each contaminated row.
    """
    rows = _evaluation_set(pool)[1]
    method = ContaminationFilter(against, **{**parameters, "action": "flag"})
    method.fit(rows).transform(rows)
    return {
        "rows": len(rows),
        "contaminated": len(method.report_.noted),
        "evaluation_rows": method.n_evaluation_,
        "evaluation_hit": int(method.evaluation_hit_.sum()),
        "only_whole": method._index.n_whole,
        "reasons": {reason: count for _, reason, count in method.report_.table()},
        "found": method.report_.noted,
    }


def _sources(against: Any) -> list[Any]:
    return list(against) if isinstance(against, (list, tuple)) else [against]


def _evaluation_set(source: Any) -> tuple[str, Dataset]:
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source), read(source).dataset
    if not hasattr(source, "column_names"):
        raise ParameterError("against", ContaminationFilter, "paths, ids or datasets", source)
    return "evaluation set", source


def _parts(row: dict[str, Any]) -> list[str]:
    """Return the texts of a row that are looked up one by one; also its whole prompt, for short questions."""
    if row_kind(row) == "messages":
        turns = [*row["messages"], *(row.get("rejected") or [])]
        return list(dict.fromkeys([prompt_text(row), *(m["content"] for m in turns)]))
    if row_kind(row) == "text":
        return [row["text"]]
    return [part for part in (row["anchor"], row["positive"], row.get("negative")) if part]
