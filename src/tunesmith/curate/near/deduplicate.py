"""Dropping rows that say nearly what an earlier row said."""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from tunesmith.core.errors import DataError, ParameterError
from tunesmith.curate._base import DETAIL, Curator
from tunesmith.curate.near._vectors import column_vectors, thumbnail_vectors
from tunesmith.curate.near.cosine import greedy_cosine
from tunesmith.curate.near.minhash import greedy_minhash
from tunesmith.data import Pool
from tunesmith.data.rows import prompt_text, row_kind, row_text, take_rows

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["NearDeduplicate"]

_BY = ("words", "embedding", "image")
_ON = ("row", "prompt")
_THRESHOLDS = {"words": 0.8, "embedding": 0.95, "image": 0.98}
_PLAIN_ROWS = 20_000  # up to here every pair is compared: a few seconds at 384 dimensions
_REASONS = {
    "words": "nearly the same words as an earlier row",
    "embedding": "nearly the same meaning as an earlier row",
    "image": "nearly the same image as an earlier row",
}


class NearDeduplicate(Curator):
    """Keep the first (or the best) of rows that nearly repeat one another, and say which row each one repeats.

    Three ways to compare. ``"words"``: Jaccard similarity of the sets of word sequences, found by MinHash and
    verified exactly; finds copies with a few words changed. ``"embedding"``: cosine of sentence embeddings, or
    of the column ``embedding``; finds paraphrases too. ``"image"``: cosine of 16 × 16 greyscale thumbnails;
    finds the same picture in another size or quality (for pictures that show the same thing put vectors of an
    image encoder into the column ``embedding``).

    The rule is greedy: in order, a row is dropped if it reaches the threshold against a row that was kept.
    Exact duplicates are found as well; `Deduplicate` finds them for less.

    Time and memory are linear for ``"words"``: see the benchmark for a million rows. For ``"embedding"`` and
    ``"image"`` up to 20,000 rows every pair is compared; beyond, rows are compared inside sqrt(n) k-means groups
    and with the ``probes`` nearest other groups: O(n^1.5 d) time, O(n d) memory. Embeddings of texts are kept in
    the user's cache and go on where they were killed.

    Sources: Broder 1997 (resemblance), Fine-T2I (arXiv 2602.09439, stage 2: greedy rule, groups), SemDeDup (arXiv
    2303.09540: embeddings).

    Args:
        by: ``"words"``, ``"embedding"`` or ``"image"``.
        on: ``"row"`` compares whole conversations, both texts of a pair, or the raw text; ``"prompt"`` what comes
            before the last answer (raw text, which has no prompt, is compared whole). Not for images.
        threshold: similarity from which two rows count as the same: Jaccard in (0, 1], by default 0.8; cosine in
            (0, 1], by default 0.95 for embeddings and 0.98 for images.
        quality: name of a column of numbers: of similar rows the one with the highest number is kept, the first
            among equals. By default the first.
        ngram: words of a sequence; texts that are no longer are compared as a whole.
        num_perm: MinHashes of a signature.
        encoder: as for `tunesmith.data.Pool`; a column ``embedding`` goes before it (where ``on="row"``).
        image: the column of images: PIL images, bytes, paths, or the image feature of ``datasets``.
        groups: k-means groups for embeddings and images; by default 1 up to 20,000 rows, else sqrt(n).
        probes: other groups that each row is compared with; ``None`` for all, which is exact and quadratic.
        random_state: seed of hashes and groups.

    Attributes:
        duplicate_of_: int64 ``(n,)``, for each row of the last `transform` the row that it repeats, or -1. By
            words that row is always kept; by embedding with several groups it may have been dropped in turn.

    Example:
        >>> from datasets import Dataset
        >>> texts = ["the cat sat on the mat today", "a dog", "The cat sat on the mat, today"]
        >>> rows = Dataset.from_dict({"text": texts})
        >>> method = NearDeduplicate(threshold=0.5)
        >>> method.fit(rows).transform(rows)["text"][:]
        ['the cat sat on the mat today', 'a dog']
        >>> method.report_.dropped
        [(2, 'nearly the same words as an earlier row → row 0, similarity 0.57')]
    """

    def __init__(
        self,
        by: str = "words",
        *,
        on: str = "row",
        threshold: float | None = None,
        quality: str | None = None,
        ngram: int = 3,
        num_perm: int = 128,
        encoder: str = "minilm",
        image: str = "image",
        groups: int | None = None,
        probes: int | None = 8,
        random_state: int = 0,
    ) -> None:
        self.by = by
        self.on = on
        self.threshold = threshold
        self.quality = quality
        self.ngram = ngram
        self.num_perm = num_perm
        self.encoder = encoder
        self.image = image
        self.groups = groups
        self.probes = probes
        self.random_state = random_state

    def fit(self, dataset: Dataset, y: Any = None) -> Self:
        """Check the parameters; there is nothing to learn.

        Raises:
            ParameterError: a parameter outside its range.
            DataError: a column that is needed is missing.
        """
        for name, valid in (("by", _BY), ("on", _ON)):
            if getattr(self, name) not in valid:
                expected = " or ".join([", ".join(map(repr, valid[:-1])), repr(valid[-1])])
                raise ParameterError(name, self, expected, getattr(self, name))
        t = self.threshold
        if t is not None and (isinstance(t, bool) or not isinstance(t, Real) or not 0 < t <= 1):
            raise ParameterError("threshold", self, "None or a float in (0, 1]", t)
        for name, least, also in (
            ("ngram", 1, ""),
            ("num_perm", 1, ""),
            ("groups", 1, "None or "),
            ("probes", 0, "None or "),
            ("random_state", 0, ""),
        ):
            value = getattr(self, name)
            if value is None and also:
                continue
            if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
                raise ParameterError(name, self, f"{also}an int >= {least}", value)
        for column in [self.quality, self.image if self.by == "image" else None]:
            if column is not None and column not in dataset.column_names:
                raise DataError(
                    f"NearDeduplicate needs a column '{column}', but the rows have {', '.join(dataset.column_names)}."
                )
        return super().fit(dataset)

    def _reasons(self, dataset: Dataset) -> Iterator[tuple[int, str]]:
        n = len(dataset)
        order = None if self.quality is None else _best_first(dataset, self.quality)
        t = _THRESHOLDS[self.by] if self.threshold is None else float(self.threshold)
        if not n:
            self.duplicate_of_ = np.empty(0, dtype=np.int64)
            return
        if self.by == "words":
            self.duplicate_of_, similarity = greedy_minhash(
                lambda rows: [self._text(row) for row in take_rows(dataset, rows)],
                n,
                t,
                ngram=self.ngram,
                num_perm=self.num_perm,
                order=order,
                random_state=self.random_state,
            )
        else:
            x = self._vectors(dataset)
            groups = self.groups or (1 if n <= _PLAIN_ROWS else round(n**0.5))
            self.duplicate_of_ = greedy_cosine(
                x, t, order=order, groups=groups, probes=self.probes, random_state=self.random_state
            )
            similarity = _cosines(x, self.duplicate_of_)
        word = {"words": "similarity"}.get(self.by, "cosine")
        for i in np.flatnonzero(self.duplicate_of_ >= 0).tolist():
            detail = f"row {self.duplicate_of_[i]}, {word} {similarity[i]:.2f}"
            yield i, f"{_REASONS[self.by]}{DETAIL}{detail}"

    def _text(self, row: dict[str, Any]) -> str:
        if self.on == "prompt":
            return prompt_text(row) or row_text(row)
        rejected = [m["content"] for m in row.get("rejected") or []]
        if row_kind(row) == "pairs":
            return "\n".join([row_text(row), row.get("negative") or ""])
        return "\n".join([row_text(row), *rejected])

    def _vectors(self, dataset: Dataset) -> NDArray[np.float32]:
        if self.by == "image":
            return thumbnail_vectors(dataset, self.image)
        if self.on == "row":
            if "embedding" in dataset.column_names:
                return column_vectors(dataset, "embedding")
            return np.asarray(Pool(dataset, encoder=self.encoder).feature("embedding"))
        from datasets import Dataset as Rows

        texts = [self._text(row) for row in take_rows(dataset, np.arange(len(dataset)))]
        return np.asarray(Pool(Rows.from_dict({"text": texts}), encoder=self.encoder).feature("embedding"))


def _best_first(dataset: Dataset, column: str) -> NDArray[np.int64]:
    try:
        values = np.asarray(dataset[column][:], dtype=np.float64)
    except (TypeError, ValueError):
        values = np.empty(0)
    bad = np.flatnonzero(~np.isfinite(values)) if values.shape == (len(dataset),) else np.arange(1)
    if len(bad):
        raise DataError(f"the column '{column}' must hold one finite number a row.", row=int(bad[0]))
    return np.argsort(-values, kind="stable")


def _cosines(x: NDArray[np.float32], duplicate_of: NDArray[np.int64]) -> NDArray[np.float32]:
    out = np.full(len(x), np.nan, dtype=np.float32)
    dropped = np.flatnonzero(duplicate_of >= 0)
    for begin in range(0, len(dropped), 8192):
        rows = dropped[begin : begin + 8192]
        out[rows] = np.einsum("ij,ij->i", x[rows], x[duplicate_of[rows]])
    return out
