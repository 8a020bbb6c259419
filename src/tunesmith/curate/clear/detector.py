"""BSDetector: how confident a language model is of an answer that somebody gives it (arXiv 2308.16175, Sec. 3)."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator

from tunesmith.core.errors import DataError, ParameterError
from tunesmith.core.events import EventLog
from tunesmith.core.files import hash_json
from tunesmith.core.seeds import child_seed
from tunesmith.curate.clear import questions as ask_for
from tunesmith.curate.clear.confidence import (
    confidence,
    contradiction_similarity,
    normal_form,
    observed_consistency,
)
from tunesmith.curate.clear.judging import judge
from tunesmith.curate.clear.nli import Contradiction, open_nli
from tunesmith.engine.chats import ChatModel, Failure, Reply, ask, open_llm

__all__ = ["NLI", "BSDetector", "Judged"]

NLI = "microsoft/deberta-large-mnli"
Prompt = str | Sequence[Mapping[str, str]]
Floats = NDArray[np.float64]

_ROWS = 128  # rows asked about at a time: what a model without kept replies can lose


@dataclass
class Judged:
    """What was found of n answers.

    Attributes:
        confidence: ``(n,)`` C; NaN where a reply was not to be had.
        observed: ``(n,)`` O; NaN where it was not asked for.
        reflection: ``(n,)`` S; NaN where it was not asked for.
        failed: why a row has no confidence, ``None`` where it has one.
        unread: replies of the reflection without a choice, which count 0.5.
    """

    confidence: Floats
    observed: Floats
    reflection: Floats
    failed: list[str | None] = field(default_factory=list)
    unread: int = 0


class BSDetector(BaseEstimator):
    """Confidence ``C = beta O + (1 - beta) S`` of a language model in given answers.

    O, observed consistency: the model answers the prompt k times with an explanation first, and each sample is
    compared with the *given* answer: ``alpha (1 - mean contradiction in both orders) + (1 - alpha) [equal]``. S,
    self-reflection: asked twice whether the given answer is correct, the model's choices count 1, 0 or, for "not
    sure" and for a reply without a choice, 0.5.

    Time per answer: k sampled generations, 2 short ones at temperature 0 (that read the ones before), and up to 2k
    pairs for the inference model; an equal sample needs none, and equal prompts share their samples. Memory: the
    replies of 128 rows at a time. The model is only asked, never changed.

    Args:
        llm: who is asked: a callable (see `tunesmith.engine.ChatModel`), a model's id, or a mapping with ``url`` and
            ``model`` of an endpoint. It should be the model as it is before it is tuned on these rows.
        nli: who judges contradiction: folder or Hub id of an inference model; ``"embedding"`` or
            ``"embedding:ENCODER"`` for sentence embeddings in its place; or a callable ``(premises, hypotheses) ->
            (b,)`` probabilities. Loaded when it is first needed.
        n_samples: k, at least 1.
        temperature: of the samples, above 0.
        alpha: weight of the inference model against the exact match, in [0, 1]; at 0 it is not called.
        beta: weight of O against S, in [0, 1]; at 1 nothing is reflected on, at 0 nothing is sampled.
        reflections: questions of the reflection, at least 1.
        exact_shortcut: an equal sample counts 1 without the inference model, which would find equal texts to
            contradict a little.
        max_new_tokens: longest reply.
        cache: folder for the replies; ``None`` keeps them in the user's cache if the model has a fingerprint;
            ``False`` keeps nothing.
        random_state: root of the samples' seeds; a prompt's samples depend on it and on the prompt alone.

    Attributes:
        judged_: `Judged`, of the last `score`.

    References:
        Chen & Mueller 2023, arXiv 2308.16175, Sec. 3; the weights are those of its public re-implementation.

    Example:
        >>> from tunesmith.curate import BSDetector
        >>> def llm(chats, *, temperature=0.0, max_new_tokens=256, seeds=None):
        ...     return ["Answer: 4" if temperature else "(A)" for chat in chats]
        >>> BSDetector(llm, alpha=0.0).score(["What is 2 + 2?", "What is 2 + 3?"], ["4", "5"]).round(2).tolist()
        [1.0, 0.3]
    """

    def __init__(
        self,
        llm: Any = None,
        *,
        nli: str | Contradiction = NLI,
        n_samples: int = 5,
        temperature: float = 1.0,
        alpha: float = 0.8,
        beta: float = 0.7,
        reflections: int = 2,
        exact_shortcut: bool = True,
        max_new_tokens: int = 256,
        cache: str | os.PathLike[str] | bool | None = None,
        random_state: int = 0,
    ) -> None:
        self.llm = llm
        self.nli = nli
        self.n_samples = n_samples
        self.temperature = temperature
        self.alpha = alpha
        self.beta = beta
        self.reflections = reflections
        self.exact_shortcut = exact_shortcut
        self.max_new_tokens = max_new_tokens
        self.cache = cache
        self.random_state = random_state

    log: EventLog | None = None
    """Receives progress; no parameter, so copies are made without it."""
    _opened: tuple[Any, Contradiction] | None = None
    _asked: tuple[tuple[Any, Any], ChatModel] | None = None

    def score(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> Floats:
        """Return the confidence in each answer.

        Args:
            prompts: n texts or chats, not empty.
            answers: n texts, not empty.

        Returns:
            float64 ``(n,)`` in [0, 1]; NaN where a reply that it needs was not to be had (``judged_.failed`` says
            why). Asking again with kept replies asks for those only.

        Raises:
            ParameterError: a parameter outside its set.
            DataError: other numbers of prompts and answers, an empty one, or a judge of contradiction that returns
                no probabilities.
        """
        self.check()
        if len(prompts) != len(answers):
            raise DataError(f"there are {len(prompts)} prompts and {len(answers)} answers.")
        chats = [ask_for.as_chat(prompt) for prompt in prompts]
        for i, (chat, answer) in enumerate(zip(chats, answers, strict=True)):
            for what, text in (("prompt", "".join(m["content"] for m in chat)), ("answer", answer)):
                if not text.strip():
                    raise DataError(f"the {what} is empty, so there is nothing to judge.", row=i)
        llm, progress = self.model(), None
        if self.log is not None and chats:
            progress = self.log.progress("answers judged", len(chats))
        parts = []
        for begin in range(0, len(chats), _ROWS):
            rows = slice(begin, begin + _ROWS)
            parts.append(self._judge(llm, chats[rows], list(answers[rows])))
            if progress is not None:
                progress.advance(len(chats[rows]))
        c, observed, reflection = (
            np.concatenate([np.empty(0), *(getattr(part, name) for part in parts)])
            for name in ("confidence", "observed", "reflection")
        )
        failed = [reason for part in parts for reason in part.failed]
        self.judged_ = Judged(c, observed, reflection, failed, sum(part.unread for part in parts))
        return self.judged_.confidence

    def prefers(
        self,
        prompts: Sequence[Prompt],
        better: Sequence[str],
        worse: Sequence[str],
        *,
        both_orders: bool = True,
    ) -> tuple[Floats, list[str | None]]:
        """Return how confident the model is that ``better`` is the better answer than ``worse``.

        The model is asked at temperature 0, with the answers in this order and, with ``both_orders``, in the other
        one too. Unless each verdict is for ``better`` the result is 0. Otherwise it is the mean over the orders of
        ``beta O + (1 - beta) S`` of the verdict: of k sampled verdicts an equal one counts 1, a tie ``alpha / 2``,
        the opposite 0 (what an inference model says of these three sentences is settled beforehand); S reflects on
        the verdict. Answers that are equal but for case and white space are not compared.

        Args:
            prompts: n texts or chats.
            better: n answers.
            worse: n answers.
            both_orders: ask in both orders, since a model favours a position.

        Returns:
            float64 ``(n,)`` in [0, 1], NaN where a reply was not to be had; and why, else ``None``.
        """
        self.check()
        llm, progress = self.model(), None
        rows = [i for i in range(len(prompts)) if normal_form(better[i]) != normal_form(worse[i])]
        if self.log is not None and rows:
            progress = self.log.progress("candidates judged", len(rows))
        p = np.zeros(len(prompts))
        failed: list[str | None] = [None] * len(prompts)
        for begin in range(0, len(rows), _ROWS):
            part = rows[begin : begin + _ROWS]
            triples = [(ask_for.as_chat(prompts[i]), better[i], worse[i]) for i in part]
            p[part], reasons = judge(self, llm, triples, (True, False) if both_orders else (True,))
            for i, reason in zip(part, reasons, strict=True):
                failed[i] = reason
            if progress is not None:
                progress.advance(len(part))
        return p, failed

    def check(self, owner: Any = None) -> None:
        """Check the parameters.

        Args:
            owner: whose parameters the message should call them.

        Raises:
            ParameterError: one is outside its set.
        """
        owner = self if owner is None else owner
        if self.llm is None:
            raise ParameterError(
                "llm", owner, "given: a model's id, a mapping with 'url' and 'model', or a callable", None
            )
        for name in ("n_samples", "reflections", "max_new_tokens"):
            _whole(owner, name, getattr(self, name), 1)
        _whole(owner, "random_state", self.random_state, 0)
        for name in ("alpha", "beta"):
            unit_interval(owner, name, getattr(self, name))
        t = self.temperature
        if isinstance(t, bool) or not isinstance(t, Real) or not 0 < float(t) < float("inf"):
            raise ParameterError("temperature", owner, "a finite number > 0", t)
        if self.cache is True or not isinstance(self.cache, (str, os.PathLike, bool, type(None))):
            raise ParameterError("cache", owner, "a folder, None or False", self.cache)

    def model(self, spec: Any = None) -> ChatModel:
        """Return the language model, or the one that ``spec`` names, with its replies kept as ``cache`` says."""
        if spec is None:  # opened once: a model given by its id is loaded only once
            settings = (self.llm, self.cache)
            if self._asked is None or any(a is not b for a, b in zip(self._asked[0], settings, strict=True)):
                self._asked = settings, self._keeping(open_llm(self.llm, self))
            return self._asked[1]
        return self._keeping(open_llm(spec, self))

    def _keeping(self, llm: ChatModel) -> ChatModel:
        from tunesmith.engine.replies import CachedLLM

        if self.cache is False or isinstance(llm, CachedLLM):
            return llm
        if self.cache is None and not isinstance(getattr(llm, "fingerprint", None), str):
            return llm
        return CachedLLM(llm, None if self.cache is None else self.cache)  # type: ignore[arg-type]

    def ask(self, llm: ChatModel, chats: list[Any], seeds: list[int] | None = None) -> list[Reply]:
        """Ask at temperature 0, or, with seeds, at that of the samples."""
        heat = 0.0 if seeds is None else float(self.temperature)
        return ask(
            llm, chats, temperature=heat, max_new_tokens=self.max_new_tokens, seeds=seeds or [0] * len(chats)
        )

    def seeds(self, *names: str) -> list[int]:
        """Return the seeds of the k samples of what ``names`` says."""
        key = hash_json(names)
        return [child_seed(int(self.random_state), key, j) for j in range(self.n_samples)]

    def _judge(self, llm: ChatModel, chats: list[Any], answers: list[str]) -> Judged:
        n = len(chats)
        failed: list[str | None] = [None] * n
        observed = reflection = np.full(n, np.nan)
        unread = 0
        if self.beta > 0:
            observed = self._observed(llm, chats, answers, failed)
        if self.beta < 1:
            first = [ask_for.reflect_chat(chat, answer) for chat, answer in zip(chats, answers, strict=True)]
            reflection, unread = self.reflect(llm, first, failed)
        c = confidence(observed, reflection, float(self.beta))
        c[[reason is not None for reason in failed]] = np.nan
        return Judged(c, observed, reflection, failed, unread)

    def _observed(
        self, llm: ChatModel, chats: list[Any], answers: list[str], failed: list[str | None]
    ) -> Floats:
        """Return O; rows without all of their samples are NaN and get their reason in ``failed``."""
        keys = [hash_json(chat) for chat in chats]
        first: dict[str, int] = {}  # equal prompts share their samples
        for i, key in enumerate(keys):
            first.setdefault(key, i)
        asked = [ask_for.sample_chat(chats[i]) for i in first.values() for _ in range(self.n_samples)]
        replies = self.ask(llm, asked, [seed for key in first for seed in self.seeds("sample", key)])
        of = {key: replies[j * self.n_samples : (j + 1) * self.n_samples] for j, key in enumerate(first)}
        samples: list[list[str]] = []
        for i, key in enumerate(keys):
            failed[i] = next((r.reason for r in of[key] if isinstance(r, Failure)), failed[i])
            samples.append([ask_for.answer_of(r) for r in of[key] if isinstance(r, str)])
        known = [i for i, texts in enumerate(samples) if len(texts) == self.n_samples]
        observed = np.full(len(chats), np.nan)
        if known:
            r = np.array([[normal_form(t) == normal_form(answers[i]) for t in samples[i]] for i in known])
            s = self._similarity([answers[i] for i in known], [samples[i] for i in known], r)
            observed[known] = observed_consistency(
                s, r, float(self.alpha), exact_shortcut=bool(self.exact_shortcut)
            )
        return observed

    def _similarity(self, answers: list[str], samples: list[list[str]], r: NDArray[np.bool_]) -> Floats:
        """Return s ``(m, k)``; only pairs that count are judged, each once."""
        s = np.full(r.shape, np.nan)
        places = (
            [] if self.alpha == 0 else np.argwhere(~r if self.exact_shortcut else np.ones_like(r)).tolist()
        )
        if not places:
            return s
        ordered = [(answers[i], samples[i][j]) for i, j in places]
        pairs = list(dict.fromkeys([*ordered, *((b, a) for a, b in ordered)]))
        p = np.asarray(self._contradiction()([a for a, _ in pairs], [b for _, b in pairs]), dtype=np.float64)
        if p.shape != (len(pairs),) or not ((p >= 0) & (p <= 1)).all():
            raise DataError(
                f"the judge of contradiction must return one probability for each of {len(pairs)} pairs; got shape "
                f"{p.shape}{'' if p.shape != (len(pairs),) else ' with values outside [0, 1]'}."
            )
        of = dict(zip(pairs, p.tolist(), strict=True))
        for (i, j), (a, b) in zip(places, ordered, strict=True):
            s[i, j] = contradiction_similarity(of[a, b], of[b, a])
        return s

    def reflect(
        self,
        llm: ChatModel,
        chats: list[Any],
        failed: list[str | None],
        what: Callable[[int], str] = lambda row: "the proposed answer is correct",
    ) -> tuple[Floats, int]:
        """Return S of the rows, and how many replies had no choice; failures go into ``failed``.

        Args:
            llm: who is asked.
            chats: the first question of each row.
            failed: reasons so far; rows with one are not asked, and are NaN.
            what: what the model is asked again about, by row.
        """
        values = np.full((len(chats), self.reflections), np.nan)
        unread, asked = 0, list(chats)
        for turn in range(self.reflections):
            rows = [i for i, reason in enumerate(failed) if reason is None]
            for i, reply in zip(rows, self.ask(llm, [asked[i] for i in rows]), strict=True):
                if isinstance(reply, Failure):
                    failed[i] = reply.reason
                    continue
                values[i, turn] = ask_for.reflection_value(reply)
                if np.isnan(values[i, turn]):
                    values[i, turn], unread = 0.5, unread + 1
                asked[i] = ask_for.reflect_again(asked[i], reply, what(i))
        values[[reason is not None for reason in failed]] = np.nan
        return values.mean(axis=1), unread

    def _contradiction(self) -> Contradiction:
        if self._opened is None or self._opened[0] is not self.nli:
            self._opened = self.nli, open_nli(self.nli, self)
        return self._opened[1]

    def __getstate__(self) -> dict[str, Any]:
        state = dict(super().__getstate__())
        return {name: value for name, value in state.items() if name not in ("_opened", "_asked", "log")}


def _whole(owner: Any, name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ParameterError(name, owner, f"an int >= {least}", value)


def unit_interval(owner: Any, name: str, value: Any) -> None:
    """Refuse what is no number in [0, 1]."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) <= 1:
        raise ParameterError(name, owner, "a number in [0, 1]", value)
