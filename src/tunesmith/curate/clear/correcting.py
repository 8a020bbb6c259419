"""Auto-Correct: filter, tune, and replace a target where the candidate is confidently better (arXiv 2403.12776)."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from tunesmith.core.errors import ParameterError
from tunesmith.core.files import hash_json
from tunesmith.curate._base import DETAIL
from tunesmith.curate.clear.confidence import decide
from tunesmith.curate.clear.detector import NLI, unit_interval
from tunesmith.curate.clear.filtering import UNJUDGED, AutoFilter, Pair, prompts_and_targets, with_column
from tunesmith.curate.clear.nli import Contradiction
from tunesmith.data.rows import last_answer
from tunesmith.engine.chats import ChatModel, Failure, ask

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["AutoCorrect"]

BETTER = "the candidate is confidently better"


class AutoCorrect(AutoFilter):
    """The whole of CLEAR: judge every row, write candidates, and keep, replace or drop each row.

    `fit` judges the targets as `AutoFilter` does and gets the model M1 that writes candidates: ``candidate``, or what
    ``finetune`` makes of the rows that the filter keeps, or else ``llm`` itself, whose candidates are weaker.
    `transform` lets M1 answer every prompt, also those of rows to be dropped, and asks ``llm`` whether the answer is
    better than the target. A row is replaced where the confidence in that verdict exceeds ``correction_threshold``;
    otherwise it is kept or dropped as the filter says. Prompts never change. The set is then for training ``llm``
    anew, not M1 further.

    Rows come out with ``clear_confidence``, ``clear_action`` (``"keep"`` or ``"replace"``),
    ``clear_better_confidence`` (0 where the verdict is not "better"), and ``clear_original``, the old target of a
    replaced row. ``report_.changed`` lists every change. A row of which a reply was not to be had is kept as it is,
    and listed in ``report_.noted``.

    Cost per row, beside the filter's: 1 generation of M1, and 2 (1 + k + 2) of ``llm`` where the verdict is for the
    candidate, 1 or 2 where it is not. Memory: 400 bytes a row beside the data and the candidates.

    Args:
        llm: the model as it is before it is tuned on these rows, who judges; see `BSDetector`.
        candidate: M1, in any form that ``llm`` may have.
        finetune: callable that takes the rows that the filter keeps and returns M1, in any form that ``llm`` may
            have. In a recipe with a ``train`` stage it is that stage, on these rows.
        threshold: see `AutoFilter`.
        correction_threshold: confidence in [0, 1] above which a target is replaced; 1 replaces nothing.
        both_orders: a verdict counts only if it is the same in both orders of the answers.
        max_replaced: largest share of rows that may be replaced, the most confident first: a model favours answers
            like its own.
        candidate_tokens: longest candidate.
        nli: see `BSDetector`.
        n_samples: see `BSDetector`.
        temperature: see `BSDetector`.
        alpha: see `BSDetector`.
        beta: see `BSDetector`.
        reflections: see `BSDetector`.
        exact_shortcut: see `BSDetector`.
        max_new_tokens: see `BSDetector`.
        min_keep: see `AutoFilter`.
        slice_column: see `AutoFilter`.
        protect: values of that column whose rows are neither dropped nor changed.
        cache: see `BSDetector`.
        random_state: root of all seeds.

    Attributes:
        candidate_: M1.
        actions_: ``(n,)`` of the last `transform`: ``"keep"``, ``"replace"`` or ``"remove"``.
        better_confidence_: float64 ``(n,)`` of the last `transform`, NaN where unknown.
        candidates_: n texts of the last `transform`, ``None`` where M1 gave none.

    References:
        Chen & Mueller 2024, arXiv 2403.12776, Auto-Correct; the value 0.8 and the two orders are inferred.

    Example:
        >>> from datasets import Dataset
        >>> from tunesmith.curate import AutoCorrect
        >>> def llm(chats, *, temperature=0.0, max_new_tokens=256, seeds=None):
        ...     texts = [chat[0]["content"] for chat in chats]  # finds the 4 wherever it stands
        ...     return ["(B)" if "Answer 2:\\n4" in t else "(A)" if "Answer 1" in t or len(chats[0]) > 2
        ...             else "Answer: 4" for t in texts]
        >>> rows = Dataset.from_dict({"prompt": ["2 + 2?", "1 + 3?"], "completion": ["4", "5"]})
        >>> method = AutoCorrect(llm, candidate=lambda chats, **options: ["4"] * len(chats), beta=1.0, alpha=0.0)
        >>> method.fit_transform(rows)["completion"][:], method.report_.table()[0][1]
        (['4', '4'], 'the candidate is confidently better')
    """

    def __init__(
        self,
        llm: Any = None,
        *,
        candidate: Any = None,
        finetune: Callable[[Dataset], Any] | None = None,
        threshold: str | float = "median",
        correction_threshold: float = 0.8,
        both_orders: bool = True,
        max_replaced: float = 1.0,
        candidate_tokens: int = 512,
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
        super().__init__(
            llm,
            threshold=threshold,
            nli=nli,
            n_samples=n_samples,
            temperature=temperature,
            alpha=alpha,
            beta=beta,
            reflections=reflections,
            exact_shortcut=exact_shortcut,
            max_new_tokens=max_new_tokens,
            min_keep=min_keep,
            slice_column=slice_column,
            protect=protect,
            cache=cache,
            random_state=random_state,
        )
        self.candidate = candidate
        self.finetune = finetune
        self.correction_threshold = correction_threshold
        self.both_orders = both_orders
        self.max_replaced = max_replaced
        self.candidate_tokens = candidate_tokens

    def fit(self, dataset: Dataset, y: Any = None) -> Self:
        """Judge the rows, settle the threshold and get the model that writes candidates.

        Raises:
            ParameterError: a parameter outside its set, or a threshold above which there is no row.
            DataError: other columns, or an empty prompt or target.
        """
        self._check_correction()
        self._preferred: dict[str, tuple[float, str | None]] = {}
        super().fit(dataset, y)
        spec = self.candidate
        if spec is None and self.finetune is not None and len(dataset):
            keep, *_ = self._filter(dataset, prompts_and_targets(dataset, self))
            spec = self.finetune(dataset.select(np.flatnonzero(keep)))
        self.candidate_: ChatModel = self._detector.model(spec)
        return self

    def transform(self, dataset: Dataset) -> Dataset:
        """Return the rows that stay, some with another target, in their order, and fill ``report_``.

        Raises:
            NotFittedError: `fit` was not called.
            DataError: as in `fit`.
        """
        check_is_fitted(self, "candidate_")
        pairs = prompts_and_targets(dataset, self)
        keep, dropped, noted, c = self._filter(dataset, pairs)
        replies = ask(
            self.candidate_,
            [chat for chat, _ in pairs],
            max_new_tokens=self.candidate_tokens,
            seeds=[0] * len(pairs),
        )
        why: list[str | None] = [r.reason if isinstance(r, Failure) else None for r in replies]
        self.candidates_ = [r.strip() if isinstance(r, str) else None for r in replies]
        p = self._better(dataset, pairs, why)
        cap = None if self.max_replaced == 1 else int(self.max_replaced * len(pairs))
        self.better_confidence_ = p
        self.actions_ = decide(keep, p, float(self.correction_threshold), cap)
        # Of a row that would go something is missing: it stays, as it is.
        held = [i for i, reason in enumerate(why) if reason is not None and self.actions_[i] == "remove"]
        self.actions_[held] = "keep"
        noted += [(i, f"{UNJUDGED}{DETAIL}{why[i]}") for i in held]
        gone = [(i, reason) for i, reason in dropped if self.actions_[i] == "remove"]
        new = {i: str(self.candidates_[i]) for i in np.flatnonzero(self.actions_ == "replace").tolist()}
        eta = f"{DETAIL}%.3f, threshold {self.correction_threshold:g}"
        changed = [(i, BETTER + eta % p[i], pairs[i][1], text) for i, text in new.items()]
        noted = [(i, reason) for i, reason in noted if i not in new]
        out = self._finish(dataset, gone, changed, noted)
        stay = np.flatnonzero(self.actions_ != "remove")
        out = _with_answers(out, {at: new[i] for at, i in enumerate(stay.tolist()) if i in new})
        out = with_column(out, "clear_confidence", c[stay])
        out = with_column(out, "clear_action", self.actions_[stay].tolist())
        out = with_column(out, "clear_better_confidence", p[stay])
        return with_column(out, "clear_original", [pairs[i][1] if i in new else None for i in stay.tolist()])

    def _better(self, dataset: Dataset, pairs: list[Pair], why: list[str | None]) -> NDArray[np.float64]:
        """Return the confidence that each candidate is better; reasons why it is not known go into ``why``."""
        guarded = [False] * len(pairs)
        if len(self.protect):
            guarded = [value in self.protect for value in dataset[self.slice_column][:]]
        p = np.array([np.nan if reason is not None else 0.0 for reason in why])
        keys = {
            i: hash_json([*pairs[i], text])
            for i, text in enumerate(self.candidates_)
            if text and not guarded[i] and why[i] is None
        }
        new: dict[str, int] = {}
        for i, key in keys.items():
            if key not in self._preferred or self._preferred[key][1] is not None:
                new.setdefault(key, i)
        if new:
            rows = list(new.values())
            self._detector.log = self.log
            found, reasons = self._detector.prefers(
                [pairs[i][0] for i in rows],
                [str(self.candidates_[i]) for i in rows],
                [pairs[i][1] for i in rows],
                both_orders=bool(self.both_orders),
            )
            self._preferred.update(zip(new, zip(found.tolist(), reasons, strict=True), strict=True))
        for i, key in keys.items():
            p[i], why[i] = self._preferred[key]
        return p

    def _check_correction(self) -> None:
        for name in ("correction_threshold", "max_replaced"):
            unit_interval(self, name, getattr(self, name))
        if isinstance(self.candidate_tokens, bool) or not isinstance(self.candidate_tokens, int):
            raise ParameterError("candidate_tokens", self, "an int >= 1", self.candidate_tokens)
        if self.candidate_tokens < 1:
            raise ParameterError("candidate_tokens", self, "an int >= 1", self.candidate_tokens)
        if self.finetune is not None and not callable(self.finetune):
            raise ParameterError("finetune", self, "a callable or None", self.finetune)
        if self.finetune is not None and self.candidate is not None:
            raise ParameterError("finetune", self, "None where candidate is given", self.finetune)


def _with_answers(dataset: Dataset, new: dict[int, str]) -> Dataset:
    """Return the dataset with the last answer of some rows replaced."""
    if not new:
        return dataset
    column = "messages" if "messages" in dataset.column_names else "completion"

    def change(value: Any, row: int) -> dict[str, Any]:
        if row not in new:
            return {column: value}
        if column == "completion":
            return {column: new[row]}
        turns = [dict(turn) for turn in value]
        turns[last_answer(turns)]["content"] = new[row]  # type: ignore[index]
        return {column: turns}

    mark = hash_json([dataset._fingerprint, "answers", sorted(new.items())])[:16]
    return dataset.map(
        change,
        with_indices=True,
        input_columns=column,
        features=dataset.features,
        keep_in_memory=True,
        load_from_cache_file=False,
        new_fingerprint=mark,
    )
