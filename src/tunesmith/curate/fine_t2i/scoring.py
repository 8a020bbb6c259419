"""Calling scorers on rows: in batches, with results on disk where the scorer can be named, and checked."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.core.errors import DataError
from tunesmith.core.files import cache_dir, hash_text
from tunesmith.curate.fine_t2i.rules import parse_verdict
from tunesmith.engine import map_rows

__all__ = ["as_scores", "score", "units"]

_CHUNK = 256  # rows a call: what a kill can lose


def score(
    scorer: Any,
    rows: Sequence[int],
    inputs: Callable[[list[int]], tuple[Sequence[Any], ...]],
    keys: Callable[[int], bytes],
    what: str,
) -> tuple[NDArray[np.float64], bool]:
    """Return a number for each row, and whether the scorer is a graded one (numbers) or a judge (verdicts).

    Args:
        scorer: any callable; with a text ``fingerprint`` its scores are kept under the rows' keys.
        rows: row numbers.
        inputs: gives the arguments of the scorer for some rows.
        keys: gives the bytes that a row's score depends on.
        what: name of the scorer's role, for messages.

    Returns:
        float64, one a row: 1 and 0 for verdicts, NaN for a verdict that cannot be read; and whether they are graded.

    Raises:
        DataError: the scorer returned another number of scores, or something that is no score.
    """
    kinds: set[bool] = set()

    def call(places: NDArray[np.int64]) -> NDArray[np.float64]:
        chosen = [int(rows[i]) for i in places]
        found, graded = as_scores(scorer(*inputs(chosen)), len(chosen), what)
        kinds.add(graded)
        return np.column_stack([found, np.full(len(found), float(graded))])

    mark = getattr(scorer, "fingerprint", None)
    if not isinstance(mark, str):
        parts = [call(np.arange(i, min(i + _CHUNK, len(rows)))) for i in range(0, len(rows), _CHUNK)]
        table = np.concatenate(parts) if parts else np.empty((0, 2))
    else:
        digest = hashlib.sha256(hash_text(what, mark).encode())
        for row in rows:
            digest.update(hashlib.sha256(keys(row)).digest())
        folder = cache_dir("scores") / digest.hexdigest()[:32]
        table = np.asarray(
            map_rows(call, len(rows), folder, dtype=np.float64, width=2, chunk=_CHUNK, what=what)
        )
    return np.array(table[:, 0]), bool(table[:, 1].any())


def as_scores(values: Any, count: int, what: str) -> tuple[NDArray[np.float64], bool]:
    """Turn what a scorer returned into numbers; see `score`."""
    found = list(values)
    if len(found) != count:
        raise DataError(f"the scorer '{what}' returned {len(found)} scores for {count} rows.")
    graded = False
    out = np.full(count, np.nan)
    for i, value in enumerate(found):
        if value is None:
            continue
        if isinstance(value, (bool, np.bool_, str)):
            verdict = parse_verdict(value)
            out[i] = np.nan if verdict is None else float(verdict)
            continue
        try:
            out[i] = float(value)
        except (TypeError, ValueError):
            raise DataError(
                f"the scorer '{what}' must return numbers, booleans or replies. Got {type(value).__name__} instead."
            ) from None
        graded = True
    return out, graded


def units(embedder: Any, texts: list[str]) -> NDArray[np.float32]:
    """Return the vectors of texts by a callable or a sentence encoder (kept on disk).

    Raises:
        DataError: the callable returned another shape. `greedy_cosine` checks their lengths.
    """
    if callable(embedder):
        vectors = np.asarray(embedder(texts), dtype=np.float32)
        if vectors.ndim != 2 or len(vectors) != len(texts):
            raise DataError(
                f"the embedder returned an array of shape {vectors.shape} for {len(texts)} texts."
            )
        return vectors
    from datasets import Dataset

    from tunesmith.data import Pool

    return np.asarray(Pool(Dataset.from_dict({"text": texts}), encoder=embedder).feature("embedding"))
