"""Who was chosen: shares of the pool against shares of each arm's picks, by cluster or by a column."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.core.wording import number, percent
from tunesmith.recipe.report import figures
from tunesmith.recipe.report.files import RunFiles
from tunesmith.recipe.report.style import arm_label, css_variable

__all__ = ["cluster_table", "column_table", "picks_by_arm"]

Picks = dict[str, NDArray[np.int64]]
MAX_GROUPS = 16


def picks_by_arm(files: RunFiles) -> Picks:
    """Return the chosen rows of each arm's first seed."""
    found = {}
    for arm in files.arms:
        indices = files.first(arm).indices
        if indices is not None:
            found[arm] = indices
    return found


def cluster_table(
    files: RunFiles, cluster: NDArray[np.int64], picks: Picks, colours: dict[str, str]
) -> dict[str, Any]:
    """Compare pool and picks by cluster; each cluster is named by its telling words."""
    names = _cluster_names(files, cluster)
    labels = [names.get(int(c), f"cluster {int(c) + 1}") for c in cluster]
    table = _table("cluster", labels, picks, colours)
    reached = ", ".join(
        f"{arm_label(arm)} {len(set(cluster[chosen].tolist()))}" for arm, chosen in picks.items()
    )
    table["title"] = "Coverage by cluster"
    table["note"] = (
        f"Clusters reached, of {len(set(cluster.tolist()))}: {reached}. A cluster is named by the words "
        "that are most typical of it."
    )
    return table


def column_table(
    files: RunFiles, column: str, picks: Picks, colours: dict[str, str]
) -> dict[str, Any] | None:
    """Compare pool and picks by the values of a column; None when the rows have no such column of labels."""
    pool = files.pool
    if pool is None or column not in pool.column_names:
        return None
    labels = [str(value) for value in pool[column]]
    if not 2 <= len(set(labels)) <= 200:
        return None
    usable = {arm: chosen for arm, chosen in picks.items() if len(chosen) and chosen.max() < len(labels)}
    if not usable:
        return None
    table = _table(column, labels, usable, colours)
    table["title"] = f"Share of each {column.replace('_', ' ')}"
    table["note"] = f"By the column '{column}' of the rows; no method saw it unless its parameters name it."
    return table


def _table(kind: str, labels: list[str], picks: Picks, colours: dict[str, str]) -> dict[str, Any]:
    counts = Counter(labels)
    names = [name for name, _ in counts.most_common(MAX_GROUPS)]
    if len(counts) > MAX_GROUPS:
        names = [*names[:-1], "all others"]
    position = {name: i for i, name in enumerate(names)}
    group = np.array([position.get(label, len(names) - 1) for label in labels])
    pool = np.bincount(group, minlength=len(names)) / len(group)
    chosen = {arm: np.bincount(group[rows], minlength=len(names)) for arm, rows in picks.items()}
    shares = {arm: values / max(values.sum(), 1) for arm, values in chosen.items()}
    rows = [
        {
            "name": name.replace("_", " "),
            "pool": percent(pool[i]),
            "cells": [f"{percent(shares[arm][i])} ({chosen[arm][i]:,})" for arm in picks],
        }
        for i, name in enumerate(names)
    ]
    # Total variation distance: the share of picks that would have to move to mirror the pool exactly.
    distance = [number(float(np.abs(shares[arm] - pool).sum() / 2), 2) for arm in picks]
    return {
        "kind": kind.replace("_", " "),
        "columns": [{"name": arm_label(arm), "colour": css_variable(colours[arm])} for arm in picks],
        "rows": rows,
        "distance": distance,
        "svg": figures.shares(
            [name.replace("_", " ") for name in names],
            pool.tolist(),
            {arm: values.tolist() for arm, values in shares.items()},
            colours,
            f"shares-{kind}",
            f"Share of the pool and of each arm's picks by {kind}",
        ),
    }


def _cluster_names(files: RunFiles, cluster: NDArray[np.int64]) -> dict[int, str]:
    """Name each cluster by its telling words; empty where the rows are not there."""
    pool = files.pool
    if pool is None or len(pool) != len(cluster):
        return {}
    from tunesmith.data.groups import group_names, telling_words
    from tunesmith.data.rows import row_text, take_rows

    return group_names(telling_words(lambda rows: [row_text(r) for r in take_rows(pool, rows)], cluster))
