"""The rules of the filters, each a pure function: word limits, thresholds, best of n, verdicts, sizes, splits."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tunesmith.core.errors import ParameterError
from tunesmith.core.files import hash_text
from tunesmith.curate._base import DETAIL

__all__ = [
    "aesthetic_reason",
    "balance",
    "best_of",
    "draw_size",
    "parse_verdict",
    "split_concepts",
    "verdict_reason",
    "word_reason",
]

_YES = re.compile(r"\b(true|yes|pass)\b", re.IGNORECASE)
_NO = re.compile(r"\b(false|no|fail)\b", re.IGNORECASE)
_THOUGHT = re.compile(r"<think>.*?(</think>|\Z)", re.DOTALL | re.IGNORECASE)
_LEAST, _MOST, _STEP = 512, 2560, 16
_RATIOS = ((4, 3), (3, 2), (16, 9), (5, 4))


def word_reason(text: str, min_words: int = 5, max_words: int = 150) -> str | None:
    """Return why a prompt's length rules it out, or ``None``; both limits are permitted lengths."""
    count = len(text.split())
    if count < min_words:
        return f"prompt of fewer than {min_words} words{DETAIL}{count}"
    return f"prompt of more than {max_words} words{DETAIL}{count}" if count > max_words else None


def aesthetic_reason(
    score: float, threshold: float = 5.5, *, real: bool = False, real_threshold: float = 6.5
) -> str | None:
    """Return why an image's score rules it out, or ``None``.

    A made image must be *above* ``threshold``, a real photograph must *reach* ``real_threshold``; a score that is not
    a number fails and is counted apart.
    """
    if np.isnan(score):
        return "aesthetic score is not a number"
    if real:
        fails = score < real_threshold
        return (
            f"aesthetic score of a photograph below {real_threshold:g}{DETAIL}{score:.3g}" if fails else None
        )
    return f"aesthetic score not above {threshold:g}{DETAIL}{score:.3g}" if score <= threshold else None


def parse_verdict(reply: Any) -> bool | None:
    """Return the verdict of a judge's reply: the one of its last line that has any, or ``None``.

    What stands in ``<think>`` tags is passed over; a line that says both yes and no has none.

    Example:
        >>> parse_verdict("The sky is right.\\nVerdict: True"), parse_verdict("yes and no"), parse_verdict("hm")
        (True, None, None)
    """
    if isinstance(reply, (bool, np.bool_)):
        return bool(reply)
    if not isinstance(reply, str):
        return None
    for line in reversed(_THOUGHT.sub("", reply).splitlines()):
        yes, no = bool(_YES.search(line)), bool(_NO.search(line))
        if yes or no:
            return yes if yes != no else None
    return None


def verdict_reason(verdict: float, threshold: float, *, graded: bool) -> str | None:
    """Return why a verdict rules an image out, or ``None``.

    Args:
        verdict: 1 or 0 for a binary judge, a similarity for a graded one, NaN for no readable verdict.
        threshold: least similarity; a binary judge ignores it.
        graded: which of the two it is.
    """
    if np.isnan(verdict):
        return "the verdict on image and prompt could not be read"
    if graded:
        fails = verdict < threshold
        return f"image and prompt agree less than {threshold:g}{DETAIL}{verdict:.3g}" if fails else None
    return None if verdict else "image does not show what its prompt says"


def best_of(scores: Sequence[float]) -> int:
    """Return the candidate with the highest score, the first among equals; NaN is below every number."""
    values = np.asarray(scores, dtype=np.float64)
    return int(np.argmax(np.where(np.isnan(values), -np.inf, values)))


def draw_size(shape: str, rng: np.random.Generator) -> tuple[int, int]:
    """Return width and height in pixels: multiples of 16, each from 512 to 2,560.

    Args:
        shape: ``"square"``, or ``"random"`` for 4:3, 3:2, 16:9 and 5:4 in both directions (to the nearest 16 pixels).
        rng: draws ratio, direction and size.
    """
    if shape == "square":
        side = int(rng.integers(_LEAST // _STEP, _MOST // _STEP + 1)) * _STEP
        return side, side
    if shape != "random":
        raise ParameterError("shape", draw_size, "'square' or 'random'", shape)
    a, b = _RATIOS[int(rng.integers(len(_RATIOS)))]
    short = int(rng.integers(_LEAST // _STEP, int(_MOST * b / a) // _STEP + 1)) * _STEP
    long = min(_MOST, round(short * a / b / _STEP) * _STEP)
    return (long, short) if rng.random() < 0.5 else (short, long)


def split_concepts(concepts: Sequence[str], share: float, random_state: int = 0) -> list[bool]:
    """Return for each row whether it is held out; rows of one concept always go to one side.

    The side depends on the concept's name and the seed alone, so it stays when rows are added or removed.

    Args:
        concepts: the concept of each row: the versions of a prompt and their images share it.
        share: of the concepts to hold out, in [0, 1], met on average.
        random_state: seed.

    Raises:
        ParameterError: ``share`` is outside [0, 1].
    """
    if isinstance(share, bool) or not 0 <= share <= 1:
        raise ParameterError("share", split_concepts, "a float in [0, 1]", share)
    return [int(hash_text(str(random_state), name)[:13], 16) / 16**13 < share for name in concepts]


def balance(labels: Sequence[Any], weights: Mapping[Any, float]) -> list[bool]:
    """Return which rows to keep so that labels have the shares of ``weights``: the first rows of each label.

    As many rows are kept as the scarcest label that occurs permits. Labels without a weight are dropped.

    Args:
        labels: one a row.
        weights: label -> weight.
    """
    counts = {label: 0 for label in weights if weights[label] > 0}
    for label in labels:
        if label in counts:
            counts[label] += 1
    present = {label: count for label, count in counts.items() if count}
    whole = min((count / weights[label] for label, count in present.items()), default=0.0)
    left = {label: min(count, max(1, round(whole * weights[label]))) for label, count in present.items()}
    keep = []
    for label in labels:
        keep.append(left.get(label, 0) > 0)
        if keep[-1]:
            left[label] -= 1
    return keep
