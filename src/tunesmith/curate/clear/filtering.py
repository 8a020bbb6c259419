"""Auto-Filter: keep the rows of whose targets the model is confident (arXiv 2403.12776)."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from tunesmith.core.errors import DataError, ParameterError
from tunesmith.core.events import EventLog
from tunesmith.core.files import hash_json
from tunesmith.core.seeds import child_seed
from tunesmith.curate._base import DETAIL, Curator
from tunesmith.curate.clear.confidence import keep_above, threshold_of
from tunesmith.curate.clear.detector import NLI, BSDetector, unit_interval
from tunesmith.curate.clear.nli import Contradiction
from tunesmith.curate.clear.questions import as_chat
from tunesmith.data.rows import completion_text, iter_rows, prompt_messages

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["AutoFilter", "prompts_and_targets", "with_column"]

BELOW = "the model is not confident of the answer"
TIED = "no more confident than rows that went, and not drawn"
UNJUDGED = "kept, since it could not be judged"
PROTECTED = "kept, since its slice is protected, though the model is not confident of the answer"

Floats = NDArray[np.float64]
Pair = tuple[list[dict[str, str]], str]


class AutoFilter(Curator):
    """Keep the rows whose confidence ``C(prompt, target)`` is above a threshold.

    `fit` judges the rows and settles the threshold, `transform` applies it; rows judged by `fit` are not judged
    again. Rows come out with a column ``clear_confidence``. A row that could not be judged, since the model gave no
    reply, is kept and listed in ``report_.noted``.

    Hard but right rows go first, and on a domain that the model does not know right targets look wrong: look at
    ``slices_``, and score a tenth of a large set first to settle the threshold. At the median half of the rows go
    however many are wrong; a share near the true share of wrong rows loses less.

    Cost: n (k + 2) generations, see `BSDetector`. Memory: 200 bytes a row beside the data.

    Args:
        llm: the model as it is before it is tuned on these rows; see `BSDetector`.
        threshold: ``"median"``, the paper's; a share of rows to drop such as ``"20%"``; or a confidence in [0, 1].
            Rows at the threshold are dropped too.
        nli: see `BSDetector`.
        n_samples: see `BSDetector`.
        temperature: see `BSDetector`.
        alpha: see `BSDetector`.
        beta: see `BSDetector`.
        reflections: see `BSDetector`.
        exact_shortcut: see `BSDetector`.
        max_new_tokens: see `BSDetector`.
        min_keep: fewest rows that the median or a share may leave. Where ties leave fewer, rows are ranked by
            confidence, equal ones by chance, and the best half (or the rest of the share) kept.
        slice_column: column by whose values ``slices_`` counts what went.
        protect: values of that column whose rows are never dropped.
        cache: see `BSDetector`.
        random_state: root of all seeds.

    Attributes:
        threshold_: the confidence that rows must exceed; NaN where none is known.
        confidence_: float64 ``(n,)`` of the rows of `fit`, NaN where unknown; ``observed_`` and ``reflection_`` are
            its parts.
        slices_: value of ``slice_column`` -> ``(rows, dropped)`` of the last `transform`.

    References:
        Chen & Mueller 2024, arXiv 2403.12776, Auto-Filter; the median is inferred from its "about half".

    Example:
        >>> from datasets import Dataset
        >>> from tunesmith.curate import AutoFilter
        >>> def llm(chats, *, temperature=0.0, max_new_tokens=256, seeds=None):
        ...     return ["Answer: 4" if temperature else "(A)" for chat in chats]
        >>> rows = Dataset.from_dict({"prompt": ["2 + 2?", "1 + 3?"], "completion": ["4", "5"]})
        >>> AutoFilter(llm, alpha=0.0).fit_transform(rows)["completion"][:]
        ['4']
    """

    def __init__(
        self,
        llm: Any = None,
        *,
        threshold: str | float = "median",
        nli: str | Contradiction = NLI,
        n_samples: int = 5,
        temperature: float = 1.0,
        alpha: float = 0.8,
        beta: float = 0.7,
        reflections: int = 2,
        exact_shortcut: bool = True,
        max_new_tokens: int = 256,
        min_keep: int = 1,
        slice_column: str | None = None,
        protect: Sequence[Any] = (),
        cache: str | os.PathLike[str] | bool | None = None,
        random_state: int = 0,
    ) -> None:
        self.llm = llm
        self.threshold = threshold
        self.nli = nli
        self.n_samples = n_samples
        self.temperature = temperature
        self.alpha = alpha
        self.beta = beta
        self.reflections = reflections
        self.exact_shortcut = exact_shortcut
        self.max_new_tokens = max_new_tokens
        self.min_keep = min_keep
        self.slice_column = slice_column
        self.protect = protect
        self.cache = cache
        self.random_state = random_state

    log: EventLog | None = None
    """Receives progress; no parameter, so copies are made without it."""

    def fit(self, dataset: Dataset, y: Any = None) -> Self:
        """Judge the rows and settle the threshold.

        Args:
            dataset: rows with ``messages`` whose last is the answer, or with texts ``prompt`` and ``completion``.
            y: ignored.

        Raises:
            ParameterError: a parameter outside its set, or a threshold above which there is no row.
            DataError: other columns, or an empty prompt or target.
        """
        self._detector = detector_of(self)
        self.share_ = self._check()
        self._known: dict[str, tuple[float, float, float, str | None]] = {}
        judged = self._judged(prompts_and_targets(dataset, self))
        self.confidence_, self.observed_, self.reflection_ = (
            np.array([row[i] for row in judged], dtype=np.float64) for i in range(3)
        )
        if self.share_ is None:
            self.threshold_ = float(self.threshold)
            known = self.confidence_[~np.isnan(self.confidence_)]
            if len(known) and known.max() <= self.threshold_:
                expected = f"below the highest confidence, {known.max():.4g}, or no row would be left"
                raise ParameterError("threshold", self, expected, self.threshold)
        else:
            self.threshold_ = threshold_of(self.confidence_, self.share_)
        return super().fit(dataset, y)

    def transform(self, dataset: Dataset) -> Dataset:
        """Return the rows that stay, in their order, with ``clear_confidence``, and fill ``report_``.

        Raises:
            NotFittedError: `fit` was not called.
            DataError: as in `fit`.
        """
        check_is_fitted(self, "n_rows_")
        keep, dropped, noted, c = self._filter(dataset, prompts_and_targets(dataset, self))
        return with_column(self._finish(dataset, dropped, noted=noted), "clear_confidence", c[keep])

    def _filter(
        self, dataset: Dataset, pairs: list[Pair]
    ) -> tuple[NDArray[np.bool_], list[tuple[int, str]], list[tuple[int, str]], Floats]:
        """Return which rows stay, why others go, what is to be said of some that stay, and all confidences."""
        judged = self._judged(pairs)
        c = np.array([row[0] for row in judged], dtype=np.float64)
        ties = [child_seed(int(self.random_state), "tie", hash_json(pair)) for pair in pairs]
        gamma = self.threshold_
        keep = keep_above(c, gamma, self.share_, int(self.min_keep), ties)
        slices = None if self.slice_column is None else dataset[self.slice_column][:]
        values = set(c[keep].tolist())
        dropped, noted = [], []
        for i in range(len(pairs)):
            detail = f"{DETAIL}{c[i]:.3f}, threshold {gamma:.3f}"
            if judged[i][3] is not None:
                noted.append((i, f"{UNJUDGED}{DETAIL}{judged[i][3]}"))
            elif not keep[i] and slices is not None and slices[i] in self.protect:
                keep[i] = True
                noted.append((i, PROTECTED + detail))
            elif not keep[i]:
                dropped.append((i, (TIED if c[i] in values else BELOW) + detail))
        if slices is not None:
            rows, gone = Counter(slices), Counter(slices[i] for i, _ in dropped)
            self.slices_ = {value: (rows[value], gone[value]) for value in rows}
        return keep, dropped, noted, c

    def _judged(self, pairs: list[Pair]) -> list[tuple[float, float, float, str | None]]:
        """Return (C, O, S, why not) of each pair; each is judged once, and again if it could not be."""
        keys = [hash_json(pair) for pair in pairs]
        new: dict[str, int] = {}
        for i, key in enumerate(keys):
            if key not in self._known or self._known[key][3] is not None:
                new.setdefault(key, i)
        if new:
            detector = self._detector
            detector.log = self.log
            detector.score([pairs[i][0] for i in new.values()], [pairs[i][1] for i in new.values()])
            found = detector.judged_
            rows = zip(
                found.confidence.tolist(),
                found.observed.tolist(),
                found.reflection.tolist(),
                found.failed,
                strict=True,
            )
            self._known.update(zip(new, rows, strict=True))
        return [self._known[key] for key in keys]

    def _check(self) -> float | None:
        """Check the filter's parameters; return the quantile that the threshold is, ``None`` for a confidence."""
        whole = self.min_keep
        if isinstance(whole, bool) or not isinstance(whole, Integral) or whole < 1:
            raise ParameterError("min_keep", self, "an int >= 1", whole)
        if self.slice_column is not None and not isinstance(self.slice_column, str):
            raise ParameterError("slice_column", self, "a column's name or None", self.slice_column)
        if isinstance(self.protect, str) or not isinstance(self.protect, Sequence):
            raise ParameterError("protect", self, "a list of values of slice_column", self.protect)
        if len(self.protect) and self.slice_column is None:
            raise ParameterError("protect", self, "empty unless slice_column is given", self.protect)
        rule = self.threshold
        if rule == "median":
            return 0.5
        if isinstance(rule, Real) and not isinstance(rule, bool):
            unit_interval(self, "threshold", rule)
            return None
        try:
            share = float(str(rule).removesuffix("%")) / 100 if str(rule).endswith("%") else float("nan")
        except ValueError:
            share = float("nan")
        if not 0 < share < 1:
            expected = "'median', a share to drop such as '20%', or a number in [0, 1]"
            raise ParameterError("threshold", self, expected, rule)
        return share


def detector_of(method: Any) -> BSDetector:
    """Return the `BSDetector` of a method that has its parameters; errors name the method."""
    detector = BSDetector(**{name: getattr(method, name) for name in BSDetector().get_params(deep=False)})
    detector.check(method)
    return detector


def prompts_and_targets(dataset: Dataset, owner: Any) -> list[Pair]:
    """Return the chat before the last answer, and that answer, of each row.

    Raises:
        DataError: the rows have neither ``messages`` nor texts ``prompt`` and ``completion``, or ``slice_column`` is
            not among their columns.
    """
    has = dataset.column_names
    column = getattr(owner, "slice_column", None)
    if column is not None and column not in has:
        raise DataError(
            f"slice_column names '{column}', which the rows do not have. They have {', '.join(has)}."
        )
    if "messages" in has:
        return [(as_chat(prompt_messages(row)), completion_text(row)) for row in iter_rows(dataset)]
    if {"prompt", "completion"} <= set(has):
        rows = dataset.select_columns(["prompt", "completion"]).with_format(None)
        return [(as_chat(row["prompt"]), str(row["completion"])) for row in rows]
    raise DataError(
        f"{type(owner).__name__} needs rows with 'messages', or with texts 'prompt' and 'completion'; these have "
        f"{', '.join(has) or 'no columns'}."
    )


def with_column(dataset: Dataset, name: str, values: Any) -> Dataset:
    """Return the dataset with a column of numbers or texts, in place of one of that name."""
    import pyarrow as pa

    if name in dataset.column_names:
        dataset = dataset.remove_columns(name)
    array = np.asarray(values) if isinstance(values, np.ndarray) else pa.array(values, type=pa.string())
    return dataset.add_column(name, array)
