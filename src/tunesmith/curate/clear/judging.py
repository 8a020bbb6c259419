"""The verdict between two answers, and the confidence in it (arXiv 2403.12776, Auto-Correct)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.core.files import hash_json
from tunesmith.curate.clear import questions as ask_for
from tunesmith.curate.clear.confidence import confidence, observed_consistency
from tunesmith.engine.chats import ChatModel, Failure

if TYPE_CHECKING:
    from tunesmith.curate.clear.detector import BSDetector

__all__ = ["judge"]

Triple = tuple[Any, str, str]  # chat, answer that may be better, answer that may be worse


def judge(
    detector: BSDetector, llm: ChatModel, rows: list[Triple], orders: tuple[bool, ...]
) -> tuple[NDArray[np.float64], list[str | None]]:
    """Return for each row the confidence that its first answer is better, 0 where that is not the verdict.

    Args:
        detector: its settings and how it asks.
        llm: the judge.
        rows: m chats, each with two answers that differ.
        orders: whether the first answer stands first, for each order to ask in; all must agree.

    Returns:
        float64 ``(m,)``, NaN where a reply was not to be had; and why, else ``None``.
    """
    failed: list[str | None] = [None] * len(rows)
    questions = {
        first: [
            ask_for.judge_chat(chat, *((better, worse) if first else (worse, better)))
            for chat, better, worse in rows
        ]
        for first in orders
    }
    verdicts: dict[bool, list[str]] = {}
    agreed = np.ones(len(rows), dtype=bool)
    for first in orders:  # verdicts of all orders first: most rows need nothing more
        alive = np.flatnonzero(agreed).tolist()
        verdicts[first] = [""] * len(rows)
        for i, reply in zip(alive, detector.ask(llm, [questions[first][i] for i in alive]), strict=True):
            if isinstance(reply, Failure):
                failed[i] = reply.reason
            else:
                verdicts[first][i] = reply
            wanted = ask_for.BETTER_1 if first else ask_for.BETTER_2
            agreed[i] = isinstance(reply, str) and ask_for.verdict_of(reply) == wanted
    p = np.zeros(len(rows))
    alive = np.flatnonzero(agreed).tolist()
    if alive:
        reasons: list[str | None] = [None] * len(alive)
        parts = [
            _confidence(
                detector,
                llm,
                [questions[first][i] for i in alive],
                [verdicts[first][i] for i in alive],
                ask_for.BETTER_1 if first else ask_for.BETTER_2,
                reasons,
            )
            for first in orders
        ]
        p[alive] = np.mean(parts, axis=0)
        for i, reason in zip(alive, reasons, strict=True):
            failed[i] = reason
    p[[reason is not None for reason in failed]] = np.nan
    return p, failed


def _confidence(
    detector: BSDetector,
    llm: ChatModel,
    asked: list[Any],
    replies: list[str],
    verdict: str,
    failed: list[str | None],
) -> NDArray[np.float64]:
    """Return ``beta O + (1 - beta) S`` of one verdict that was given to all rows; NaN where one failed before."""
    n, k = len(asked), detector.n_samples
    observed = reflection = np.full(n, np.nan)
    if detector.beta > 0:
        seeds = [seed for chat in asked for seed in detector.seeds("verdict", hash_json(chat))]
        sampled = detector.ask(llm, [chat for chat in asked for _ in range(k)], seeds)
        s, r = np.zeros((n, k)), np.zeros((n, k))
        for at, reply in enumerate(sampled):
            i, j = divmod(at, k)
            if isinstance(reply, Failure):
                failed[i] = failed[i] or reply.reason
                continue
            given = ask_for.verdict_of(reply)
            # No choice is no agreement, but contradicts no more than a tie does.
            r[i, j] = given == verdict
            s[i, j] = 1.0 if given == verdict else 0.5 if given in (ask_for.TIE, None) else 0.0
        observed = observed_consistency(s, r, float(detector.alpha))
    if detector.beta < 1:
        chats = [
            ask_for.reflect_on_verdict(chat, reply, verdict)
            for chat, reply in zip(asked, replies, strict=True)
        ]
        reflection, _ = detector.reflect(llm, chats, failed, lambda row: verdict)
    c = confidence(observed, reflection, float(detector.beta))
    c[[reason is not None for reason in failed]] = np.nan
    return c
