"""The arithmetic of CLEAR on arrays: consistency, confidence, thresholds, decisions."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "confidence",
    "contradiction_similarity",
    "decide",
    "keep_above",
    "normal_form",
    "observed_consistency",
    "threshold_of",
]

Floats = NDArray[np.float64]


def normal_form(text: str) -> str:
    """Return the text with white space collapsed and case folded, as exact matches are judged."""
    return " ".join(text.split()).casefold()


def contradiction_similarity(forward: ArrayLike, backward: ArrayLike) -> Floats:
    """Return ``s = 1 - (p_contra(y, y_i) + p_contra(y_i, y)) / 2``, both orders since inference models heed it."""
    return 1.0 - (np.asarray(forward, dtype=np.float64) + np.asarray(backward, dtype=np.float64)) / 2


def observed_consistency(s: ArrayLike, r: ArrayLike, alpha: float, *, exact_shortcut: bool = True) -> Floats:
    """Return ``O``, the mean over k samples of ``o_i = alpha s_i + (1 - alpha) r_i``.

    Args:
        s: ``(…, k)`` similarities of the samples to the answer, in [0, 1]; where ``r`` is 1 and the shortcut is on
            they are not looked at and may be NaN. Unused at ``alpha`` 0.
        r: ``(…, k)`` 1 where a sample equals the answer, else 0.
        alpha: weight of the similarity, in [0, 1].
        exact_shortcut: count an equal sample as similarity 1: an inference model gives two equal texts a
            probability of contradiction slightly above 0.

    Returns:
        float64 ``(…)``, in [0, 1].
    """
    same = np.asarray(r, dtype=np.float64)
    similar = np.asarray(s, dtype=np.float64)
    if exact_shortcut:
        similar = np.where(same == 1, 1.0, similar)
    if alpha == 0:
        similar = np.zeros_like(same)
    return np.asarray((alpha * similar + (1 - alpha) * same).mean(axis=-1), dtype=np.float64)


def confidence(observed: ArrayLike, reflection: ArrayLike, beta: float) -> Floats:
    """Return ``C = beta O + (1 - beta) S``; a part of weight 0 may be NaN."""
    c: Any = 0.0
    for weight, part in ((beta, observed), (1 - beta, reflection)):
        if weight != 0:
            c = c + weight * np.asarray(part, dtype=np.float64)
    return np.clip(np.asarray(c, dtype=np.float64), 0.0, 1.0)  # rounding may leave 1 + 2e-16


def threshold_of(c: Floats, share: float) -> float:
    """Return the ``share`` quantile of the known confidences (0.5: their median); NaN if none is known."""
    known = c[~np.isnan(c)]
    return float(np.quantile(known, share)) if len(known) else float("nan")


def keep_above(
    c: Floats, gamma: float, share: float | None, min_keep: int, ties: ArrayLike
) -> NDArray[np.bool_]:
    """Return which rows stay: those with ``c > gamma``, strictly, and those whose confidence is not known.

    Confidences take few values, so many rows may tie at a quantile and fall with it. Where a threshold given as a
    ``share`` leaves fewer than ``min_keep`` rows, the rows are ranked by confidence, ties by ``ties``, and the best
    ``1 - share`` of them kept (rounded down, ``min_keep`` at least).

    Args:
        c: ``(n,)`` confidences, NaN where unknown.
        gamma: the threshold.
        share: the quantile that ``gamma`` is; ``None`` for an absolute threshold, which is never softened.
        min_keep: fewest rows that a quantile may leave.
        ties: ``(n,)`` numbers that rank equal confidences, the smallest first.

    Returns:
        bool ``(n,)``.
    """
    unknown = np.isnan(c)
    keep = unknown | (c > gamma)
    known = np.flatnonzero(~unknown)
    least = min(min_keep, len(known))
    if share is not None and keep[known].sum() < least:
        count = max(least, int((1 - share) * len(known) + 1e-9))
        order = known[np.lexsort((known, np.asarray(ties)[known], -c[known]))]
        keep = unknown.copy()
        keep[order[:count]] = True
    return keep


def decide(keep: ArrayLike, p: ArrayLike, eta: float, max_replaced: int | None = None) -> NDArray[np.str_]:
    """Return ``"replace"``, ``"keep"`` or ``"remove"`` for each row.

    Args:
        keep: ``(n,)`` whether the row's confidence is above the threshold.
        p: ``(n,)`` confidence that the candidate is better, 0 where it is not the verdict, NaN where unknown.
        eta: a row is replaced where ``p > eta``, strictly, so never at 1.
        max_replaced: at most so many, those of the highest ``p``, ties by row; ``None`` for all.
    """
    score = np.nan_to_num(np.asarray(p, dtype=np.float64), nan=0.0)
    wanted = np.flatnonzero(score > eta)
    if max_replaced is not None:
        wanted = wanted[np.argsort(-score[wanted], kind="stable")[:max_replaced]]
    action = np.where(np.asarray(keep, dtype=bool), "keep", "remove").astype("<U7")
    action[wanted] = "replace"
    return action
