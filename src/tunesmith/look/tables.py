"""Columns of a table: what they hold, what is missing, and how rows become vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pandas import DataFrame, Series

__all__ = ["column_facts", "row_hashes", "table_vectors", "telling_columns"]

LEVELS = 30  # different values up to which a column of words counts as categories


def column_facts(frame: DataFrame) -> list[dict[str, Any]]:
    """Return for each column its kind, share missing, different values, and range or commonest values.

    Kinds: ``number``, ``category`` (up to 30 different values, or true/false), ``text``, ``constant``, ``empty``.
    """
    return [_column(name, frame[name]) for name in frame.columns]


def _column(name: str, values: Series[Any]) -> dict[str, Any]:
    import pandas as pd

    present = values.dropna()
    keys = present if _hashable(present) else present.astype(str)
    facts: dict[str, Any] = {
        "name": name,
        "missing": float(values.isna().mean()),
        "different": int(keys.nunique()),
        "dtype": str(values.dtype),
    }
    number = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
    if not len(present):
        kind = "empty"
    elif facts["different"] == 1:
        kind = "constant"
    elif number:
        kind = "number"
    else:
        kind = "category" if facts["different"] <= LEVELS else "text"
    facts["kind"] = kind
    if kind == "number":
        array = present.to_numpy(dtype=np.float64)
        array = array[np.isfinite(array)]
        cuts = np.quantile(array, [0, 0.25, 0.5, 0.75, 1]) if len(array) else [np.nan] * 5
        facts |= dict(zip(("min", "q1", "median", "q3", "max"), map(float, cuts), strict=True))
        facts["infinite"] = int(len(present) - len(array))
    elif len(present):
        facts["common"] = [(str(value), int(n)) for value, n in keys.value_counts().head(5).items()]
    return facts


def row_hashes(frame: DataFrame) -> NDArray[np.uint64]:
    """Return a hash of each row's values; equal rows have equal ones, missing values included."""
    import pandas as pd

    plain = {name: frame[name] if _hashable(frame[name]) else frame[name].map(repr) for name in frame.columns}
    return pd.util.hash_pandas_object(pd.DataFrame(plain), index=False).to_numpy()


def _hashable(values: Series[Any]) -> bool:
    return values.dtype != object or not any(
        isinstance(v, (list, dict, np.ndarray)) for v in values.head(100)
    )


def table_vectors(frame: DataFrame, facts: list[dict[str, Any]]) -> NDArray[np.float32]:
    """Return a vector per row: numbers by rank, and categories one-hot.

    Numbers become normal scores of their ranks (robust to outliers in scale, and without a unit), missing ones 0,
    with a column of their own where more than 1 % are missing; a category weighs about as much as a number.

    Returns:
        float32 (n, d); d = 0 where there are neither numbers nor categories.
    """
    from scipy.stats import norm, rankdata

    n = len(frame)
    parts: list[NDArray[np.float32]] = []
    for column in facts:
        values = frame[column["name"]]
        if column["kind"] == "number":
            array = values.to_numpy(dtype=np.float64, na_value=np.nan)
            known = np.isfinite(array)
            scores = np.zeros(n, dtype=np.float32)
            scores[known] = norm.ppf(rankdata(array[known]) / (known.sum() + 1))
            parts.append(scores[:, None])
            if (~known).mean() > 0.01:
                parts.append((~known).astype(np.float32)[:, None])
        elif column["kind"] == "category":
            keys = (values if _hashable(values) else values.astype(str)).astype(str)
            codes = np.unique(keys.to_numpy(dtype=str), return_inverse=True)[1]
            parts.append(np.eye(codes.max() + 1, dtype=np.float32)[codes] / np.float32(np.sqrt(2)))
    return np.concatenate(parts, axis=1) if parts else np.zeros((n, 0), dtype=np.float32)


def telling_columns(
    frame: DataFrame, facts: list[dict[str, Any]], labels: NDArray[np.int64], per_group: int = 3
) -> dict[int, list[str]]:
    """Return for each cluster the columns that set it apart: ``"age high"``, ``"colour = red"``.

    A number scores by how far the cluster's mean normal score is from that of all rows, a category by how much
    its share exceeds the share in all rows.
    """
    from scipy.stats import norm, rankdata

    scored: dict[int, list[tuple[float, str]]] = {int(g): [] for g in np.unique(labels) if g >= 0}
    for column in facts:
        name, values = column["name"], frame[column["name"]]
        if column["kind"] == "number":
            array = values.to_numpy(dtype=np.float64, na_value=np.nan)
            known = np.isfinite(array)
            scores = np.zeros(len(frame))
            scores[known] = norm.ppf(rankdata(array[known]) / (known.sum() + 1))
            for group, found in scored.items():
                mean = float(scores[labels == group].mean())
                found.append((abs(mean), f"{name} {'high' if mean > 0 else 'low'}"))
        elif column["kind"] == "category":
            keys = values.astype(str).to_numpy(dtype=str)
            for group, found in scored.items():
                inside = keys[labels == group]
                levels, counts = np.unique(inside, return_counts=True)
                gains = [
                    c / len(inside) - float((keys == v).mean()) for v, c in zip(levels, counts, strict=True)
                ]
                best = int(np.argmax(gains))
                found.append((2 * gains[best], f"{name} = {levels[best]}"))
    return {
        g: [text for score, text in sorted(found, reverse=True)[:per_group] if score > 0.25]
        for g, found in scored.items()
    }
