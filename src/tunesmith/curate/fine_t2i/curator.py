"""Fine-T2I as a pipeline: controlled diversity first, strict filters second, and a count for every stage.

"Fine-T2I: An Open, Large-Scale, and Diverse Dataset for High-Quality T2I Fine-Tuning" (Ma, Zhang, Dong and Fu 2026,
arXiv 2602.09439). No code was released; which models and thresholds the stages have is confirmed by the abstract only
in kind, so the defaults are those that the reported counts are consistent with.

Deviations: MinHash is not used for prompts (as in the paper: prompts that share syntax but not things would be lost),
and the second pass of the deduplication compares with the nearest groups by default, all of them with
``probes=None``. Judges, writers and image generators are whatever you pass in.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from tunesmith.core.errors import DataError
from tunesmith.curate._base import DETAIL, Curator
from tunesmith.curate.fine_t2i import rules
from tunesmith.curate.fine_t2i._checks import check_parameters
from tunesmith.curate.fine_t2i._rows import PromptRows
from tunesmith.curate.fine_t2i.grid import Taxonomy
from tunesmith.curate.fine_t2i.scorers import CLIPAlignment, Sharpness
from tunesmith.curate.fine_t2i.scoring import score, units
from tunesmith.curate.fine_t2i.stages import Funnel, Stage
from tunesmith.curate.near.cosine import greedy_cosine

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["TextToImageCurator"]

Removed = dict[int, str]
_PLAIN_ROWS = 20_000


class TextToImageCurator(Curator):
    """Filter rows of prompts and images stage by stage, cheap stages first, or make such rows from a grid.

    `transform` takes rows with a prompt (``text``, a pair's anchor, or the user's turns of a conversation) and runs
    the stages that have what they need: *words* (length), *duplicates* (greedy rule on prompt embeddings), *safety*,
    *attributes* (does the prompt fit its labels), *image* (can it be read), *aesthetic*, *alignment*, *balance*. Each
    dropped row carries the first reason that ruled it out. Without images it filters a set of instructions.

    `generate` draws prompts from the grid (`Taxonomy`), has them written, filtered, enhanced and drawn, keeps the
    best of some candidates of each image, and filters strictly.

    Filters but the deduplication do not depend on one another, so their order decides only which reason a row gets
    and what is paid for; the deduplication does, and comes after *words* and before every judge. All filters are
    idempotent: running on the output removes nothing (for the deduplication with ``probes=None`` or one group).

    Time: O(n d k) for k kept prompts up to 20,000 (beyond, in sqrt(n) groups, see `greedy_cosine`), then one call of
    each scorer on the rows that are left. Memory O(n d), and images one batch at a time.

    Source: arXiv 2602.09439 (2026), stages 1 to 6.

    Args:
        min_words: fewest words of a prompt.
        max_words: most words of a prompt.
        dedup_threshold: cosine from which two prompts are the same; ``None`` turns the stage off.
        embedder: sentence encoder as for `tunesmith.data.Pool`, or a callable from texts to unit vectors.
        groups: k-means groups of the deduplication; by default 1 up to 20,000 rows, else sqrt(n). The paper has 128.
        probes: other groups that a prompt is compared with; ``None`` for all.
        safety: callable on prompts, or ``None``.
        attributes: callable on rows (dictionaries with ``text`` and the labels there are), or ``None``.
        aesthetic: callable on images, ``"sharpness"``, or ``None`` for the column ``aesthetic`` where there is one.
        aesthetic_threshold: made images must score *more* than this.
        real_aesthetic_threshold: rows with a true column ``real`` must score at least this.
        alignment: callable on prompts and images, or the folder of a CLIP-type model, or ``None`` for the column
            ``alignment`` where there is one.
        alignment_threshold: least similarity for a graded scorer; binary judges ignore it.
        image: the column of images: PIL images, bytes, paths, or the image feature of ``datasets``.
        taxonomy: `Taxonomy` or the path of one; with it, unknown labels are an error. By default the one shipped is
            used by `generate` and ``balanced``.
        balanced: at the end, drop rows of categories that have more than their share.
        writer: callable on cells; by default `TemplateWriter`.
        enhancer: callable on prompts that returns longer ones, or ``None``; both versions are kept.
        generator: callable on prompts, sizes and seeds that returns images, or ``None`` for prompts alone.
        shapes: of the images made for each prompt version: ``"square"``, ``"random"`` or both.
        n_candidates: images made for each; the one with the best aesthetic score stays, the first among equals.
        random_state: seed of grid, sizes, images and groups.

    Attributes:
        funnel_: what each stage of the last `transform` or `generate` let through.
        shares_: category -> (share before, share after), where the rows have categories.
        rejected_: after `generate`, ``(id, reason)`` of everything that was dropped.

    Example:
        >>> from datasets import Dataset
        >>> rows = Dataset.from_dict({"text": ["a cat", "a red cat on a blue mat"], "aesthetic": [7.0, 5.5]})
        >>> method = TextToImageCurator(dedup_threshold=None)
        >>> len(method.fit(rows).transform(rows))
        0
        >>> method.report_.dropped
        [(0, 'prompt of fewer than 5 words → 2'), (1, 'aesthetic score not above 5.5 → 5.5')]
    """

    def __init__(
        self,
        *,
        min_words: int = 5,
        max_words: int = 150,
        dedup_threshold: float | None = 0.8,
        embedder: Any = "minilm",
        groups: int | None = None,
        probes: int | None = 8,
        safety: Any = None,
        attributes: Any = None,
        aesthetic: Any = None,
        aesthetic_threshold: float = 5.5,
        real_aesthetic_threshold: float = 6.5,
        alignment: Any = None,
        alignment_threshold: float = 0.25,
        image: str = "image",
        taxonomy: Any = None,
        balanced: bool = False,
        writer: Any = None,
        enhancer: Any = None,
        generator: Any = None,
        shapes: Sequence[str] = ("square", "random"),
        n_candidates: int = 1,
        random_state: int = 0,
    ) -> None:
        self.min_words = min_words
        self.max_words = max_words
        self.dedup_threshold = dedup_threshold
        self.embedder = embedder
        self.groups = groups
        self.probes = probes
        self.safety = safety
        self.attributes = attributes
        self.aesthetic = aesthetic
        self.aesthetic_threshold = aesthetic_threshold
        self.real_aesthetic_threshold = real_aesthetic_threshold
        self.alignment = alignment
        self.alignment_threshold = alignment_threshold
        self.image = image
        self.taxonomy = taxonomy
        self.balanced = balanced
        self.writer = writer
        self.enhancer = enhancer
        self.generator = generator
        self.shapes = shapes
        self.n_candidates = n_candidates
        self.random_state = random_state

    def fit(self, dataset: Dataset, y: Any = None) -> Self:
        """Check parameters and labels; there is nothing to learn.

        Raises:
            ParameterError: a parameter outside its range, also a threshold outside its scorer's.
            DataError: a label is not in the taxonomy, or a scorer needs images and the rows have none.
        """
        self._check()
        if self.taxonomy is not None:
            for column, axis in (("category", "categories"), ("style", "styles"), ("template", "templates")):
                if column in dataset.column_names:
                    self._taxonomy().check_labels(dataset[column][:], axis)
        needs = [name for name in ("aesthetic", "alignment") if getattr(self, name) is not None]
        if needs and self.image not in dataset.column_names:
            raise DataError(
                f"TextToImageCurator needs a column '{self.image}' for {' and '.join(needs)}, but the rows have "
                f"{', '.join(dataset.column_names) or 'no columns'}."
            )
        return super().fit(dataset)

    def transform(self, dataset: Dataset) -> Dataset:
        """Return the rows that pass every stage, in their order.

        Raises:
            NotFittedError: `fit` was not called.
            DataError: a scorer returned what is no score, or an embedder vectors that are not of length 1.
        """
        check_is_fitted(self, "n_rows_")
        removed, self.funnel_ = self._run(PromptRows(dataset, self.image), self._stages(dataset))
        out = self._finish(dataset, removed.items())
        self.shares_ = _shares(dataset, out)
        return out

    def generate(self, n: int, folder: str | os.PathLike[str] | None = None, *, shard: int = 256) -> Dataset:
        """Make rows from the grid; see `tunesmith.curate.fine_t2i.making.make`.

        Args:
            n: prompts to draw.
            folder: where finished shards are kept; a killed call goes on from there. By default nothing is kept.
            shard: prompt versions drawn between two marks on disk.

        Returns:
            A row for each image kept (for each prompt version without a generator): ``text``, ``concept``,
            ``version``, ``category``, ``style``, ``tasks``, ``template``, and for images ``shape``, ``width``,
            ``height``, ``image`` (PNG bytes), ``image_generator``, ``aesthetic``. ``funnel_`` and ``rejected_``
            tell the rest.

        Raises:
            ParameterError: a parameter outside its range.
        """
        from tunesmith.curate.fine_t2i.making import make

        self._check()
        dataset, self.funnel_, self.rejected_ = make(self, n, folder, shard)
        return dataset

    def _check(self) -> None:
        check_parameters(self)

    def _taxonomy(self) -> Taxonomy:
        return self.taxonomy if isinstance(self.taxonomy, Taxonomy) else Taxonomy.load(self.taxonomy)

    def _aesthetic(self) -> Any:
        return Sharpness() if self.aesthetic == "sharpness" else self.aesthetic

    def _alignment(self) -> Any:
        return CLIPAlignment(self.alignment) if isinstance(self.alignment, str) else self.alignment

    def _stages(self, dataset: Dataset) -> list[tuple[str, Callable[[PromptRows, list[int]], Removed]]]:
        """Return name and function of each stage that has what it needs; cheap ones first."""
        stages: list[tuple[str, Callable[[PromptRows, list[int]], Removed]]] = [("words", self._words)]
        columns = set(dataset.column_names)
        if self.dedup_threshold is not None:
            stages.append(("duplicates", self._duplicates))
        if self.safety is not None:
            stages.append(("safety", self._safe))
        if self.attributes is not None:
            stages.append(("attributes", self._fits))
        if self.image in columns:
            stages.append(("image", _readable))
        if self.aesthetic is not None or "aesthetic" in columns:
            stages.append(("aesthetic", self._beautiful))
        if self.alignment is not None or "alignment" in columns:
            stages.append(("alignment", self._aligned))
        if self.balanced and "category" in columns:
            stages.append(("balance", self._balance))
        return stages

    @staticmethod
    def _run(
        rows: PromptRows, stages: Sequence[tuple[str, Callable[[PromptRows, list[int]], Removed]]]
    ) -> tuple[Removed, Funnel]:
        alive = list(range(len(rows)))
        removed: Removed = {}
        funnel = Funnel()
        for name, stage in stages:
            found = stage(rows, alive) if alive else {}
            counts: dict[str, int] = {}
            for reason in found.values():
                kind = reason.partition(DETAIL)[0]
                counts[kind] = counts.get(kind, 0) + 1
            funnel.append(Stage(name, len(alive), len(alive) - len(found), counts))
            removed |= found
            alive = [i for i in alive if i not in found]
        funnel.check()
        return removed, funnel

    def _words(self, rows: PromptRows, alive: list[int]) -> Removed:
        reasons = ((i, rules.word_reason(rows.texts[i], self.min_words, self.max_words)) for i in alive)
        return {i: reason for i, reason in reasons if reason is not None}

    def _duplicates(self, rows: PromptRows, alive: list[int]) -> Removed:
        assert self.dedup_threshold is not None
        x = units(self.embedder, [rows.texts[i] for i in alive])
        groups = self.groups or (1 if len(alive) <= _PLAIN_ROWS else round(len(alive) ** 0.5))
        duplicate_of = greedy_cosine(
            x, self.dedup_threshold, groups=groups, probes=self.probes, random_state=self.random_state
        )
        return {
            alive[
                i
            ]: f"nearly the same prompt as an earlier row{DETAIL}row {alive[j]}, cosine {x[i] @ x[j]:.2f}"
            for i, j in enumerate(duplicate_of.tolist())
            if j >= 0
        }

    def _safe(self, rows: PromptRows, alive: list[int]) -> Removed:
        verdicts, _ = score(
            self.safety, alive, lambda some: ([rows.texts[i] for i in some],), rows.text_key, "safety"
        )
        return _judged(alive, verdicts, "prompt judged unsafe", "the verdict on safety could not be read")

    def _fits(self, rows: PromptRows, alive: list[int]) -> Removed:
        verdicts, _ = score(
            self.attributes, alive, lambda some: (rows.labelled(some),), rows.label_key, "attributes"
        )
        no = "prompt does not fit its category, style or tasks"
        return _judged(alive, verdicts, no, "the verdict on category, style and tasks could not be read")

    def _beautiful(self, rows: PromptRows, alive: list[int]) -> Removed:
        if self.aesthetic is None:
            scores = rows.numbers("aesthetic", alive)
        else:
            scorer = self._aesthetic()
            scores, _ = score(scorer, alive, lambda some: (rows.images(some),), rows.image_key, "aesthetic")
        real = rows.flags("real", alive)
        found = {}
        for i, value, is_real in zip(alive, scores, real, strict=True):
            reason = rules.aesthetic_reason(
                float(value),
                self.aesthetic_threshold,
                real=is_real,
                real_threshold=self.real_aesthetic_threshold,
            )
            if reason is not None:
                found[i] = reason
        return found

    def _aligned(self, rows: PromptRows, alive: list[int]) -> Removed:
        if self.alignment is None:
            verdicts, graded = rows.verdicts("alignment", alive)
        else:
            verdicts, graded = score(
                self._alignment(),
                alive,
                lambda some: ([rows.texts[i] for i in some], rows.images(some)),
                lambda i: rows.text_key(i) + rows.image_key(i),
                "alignment",
            )
        reasons = (
            (i, rules.verdict_reason(float(v), self.alignment_threshold, graded=graded))
            for i, v in zip(alive, verdicts, strict=True)
        )
        return {i: reason for i, reason in reasons if reason is not None}

    def _balance(self, rows: PromptRows, alive: list[int]) -> Removed:
        labels = [rows.dataset[i]["category"] for i in alive]
        keep = rules.balance(labels, self._taxonomy().categories)
        return {
            i: f"more rows than the share of its category{DETAIL}{label}"
            for i, label, kept in zip(alive, labels, keep, strict=True)
            if not kept
        }


def _readable(rows: PromptRows, alive: list[int]) -> Removed:
    found = {}
    for i in alive:
        try:
            rows.images([i])
        except DataError as error:
            found[i] = f"image cannot be read{DETAIL}{str(error).partition(': ')[2]}"
    return found


def _judged(alive: list[int], verdicts: NDArray[np.float64], no: str, unread: str) -> Removed:
    """Return the rows whose verdict is not a clear yes; a graded judge says yes from 0.5 on."""
    return {i: unread if np.isnan(v) else no for i, v in zip(alive, verdicts, strict=True) if not v >= 0.5}


def _shares(before: Dataset, after: Dataset) -> dict[str, tuple[float, float]]:
    if "category" not in before.column_names:
        return {}

    def of(dataset: Dataset) -> Iterator[Any]:
        return iter(dataset["category"][:])

    old, new = list(of(before)), list(of(after))
    return {
        name: (old.count(name) / len(old), new.count(name) / max(1, len(new)))
        for name in sorted({name for name in old if name is not None})
    }
