"""The stage ``cluster``: group the pool's embedding by any clusterer, with the labels that the recipe lets it see."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tunesmith import methods
from tunesmith.core.errors import DataError, ParameterError, nearest
from tunesmith.core.files import atomic_open, write_json
from tunesmith.core.seeds import child_seed

if TYPE_CHECKING:
    from datasets import Dataset

    from tunesmith.core.events import EventLog
    from tunesmith.recipe.schema import ClusterSpec
    from tunesmith.recipe.stages import Work

__all__ = ["Seen", "agreement", "build_cluster", "fit_clusterer", "seen_labels", "with_known_classes"]

Labels = NDArray[np.int64]

UNLABELLED = -1


@dataclass(frozen=True)
class Seen:
    """Labels of a column, and the part of them that the clusterer may see.

    Attributes:
        y: int64 (n,): class number, or -1 where the clusterer must not or cannot know it.
        classes: name of each class number.
        truth: int64 (n,): class number of every row that has one, whether seen or not, else -1.
        names: name of each number in ``truth``.
    """

    y: Labels
    classes: list[str]
    truth: Labels
    names: list[str]


def seen_labels(
    values: Sequence[Any],
    column: str,
    *,
    known: Sequence[str] | None = None,
    per_class: int | None = None,
    seed: int = 0,
) -> Seen:
    """Return the labels that a clusterer sees.

    Args:
        values: n values of the column; ``None`` and the empty string mean unknown.
        column: its name, for messages.
        known: the classes that may be seen, by default all.
        per_class: most labels per class that may be seen, drawn at random.
        seed: of that draw.

    Raises:
        DataError: the column has no value, or more than a thousand different ones.
        ParameterError: ``known`` names a class that does not occur.
    """
    text = ["" if value is None else str(value).strip() for value in values]
    names = sorted({value for value in text if value})
    if not names:
        raise DataError(f"the column '{column}' of labels is empty in every row.")
    if len(names) > 1000:
        raise DataError(
            f"the column '{column}' has {len(names):,} different values; labels are few and repeat."
        )
    number = {name: i for i, name in enumerate(names)}
    truth = np.array([number.get(value, UNLABELLED) for value in text], dtype=np.int64)
    allowed = names if known is None else [str(name) for name in known]
    for name in allowed:
        if name not in number:
            raise ParameterError(
                "known",
                "cluster",
                f"values of the column '{column}'{nearest(name, names)}: {', '.join(names)}",
                name,
            )
    rank = {number[name]: i for i, name in enumerate(sorted(allowed))}
    y = np.array([rank.get(int(value), UNLABELLED) for value in truth], dtype=np.int64)
    if per_class is not None:
        rng = np.random.default_rng(seed)
        for group in range(len(rank)):
            rows = rng.permutation(np.flatnonzero(y == group))
            y[rows[per_class:]] = UNLABELLED
    return Seen(y, sorted(allowed), truth, names)


def fit_clusterer(
    name: str,
    parameters: dict[str, Any],
    X: Any,
    seen: Seen | None,
    seed: int,
    log: EventLog,
    *,
    standardize: bool = False,
) -> tuple[Any, Labels]:
    """Fit a registered clusterer, seeded where it draws at random, and return it with one label per row.

    With ``standardize`` every column of X has mean 0 and variance 1 before.

    Warnings of the fit (no convergence, for example) go to the log.
    """
    estimator = methods.create(f"cluster.{name}", **parameters)
    if "random_state" in estimator.get_params() and "random_state" not in parameters:
        estimator.set_params(random_state=seed)
    if standardize:
        from sklearn.preprocessing import StandardScaler

        X = StandardScaler().fit_transform(X)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        estimator.fit(X) if seen is None else estimator.fit(X, seen.y)
    for text in dict.fromkeys(str(w.message) for w in caught if issubclass(w.category, UserWarning)):
        log.warn(f"cluster.{name}: {text}")
    return estimator, np.asarray(estimator.labels_, dtype=np.int64)


def with_known_classes(labels: Labels, seen: Seen | None) -> tuple[Labels, dict[int, str]]:
    """Put rows that a method left out since their class is known into a group of that class.

    Returns:
        The labels, and the names of the groups added.
    """
    if seen is None or not np.any(left := (labels < 0) & (seen.y >= 0)):
        return labels, {}
    first = int(labels.max(initial=-1)) + 1
    present = np.unique(seen.y[left])
    place = np.full(len(seen.classes), -1, dtype=np.int64)
    place[present] = first + np.arange(len(present))
    names = {int(place[c]): f"{seen.classes[c]} (known)" for c in present}
    return np.where(left, place[seen.y], labels), names


def label_column(rows: Dataset, spec: ClusterSpec, seed: int) -> Seen | None:
    """Return the labels that the recipe's block lets the clusterer see, or None where it names no column.

    Raises:
        DataError: the rows have no such column.
    """
    if spec.labels is None:
        return None
    if spec.labels not in rows.column_names:
        raise DataError(
            f"cluster.labels names the column '{spec.labels}', which the rows do not have."
            f"{nearest(spec.labels, rows.column_names)} Their columns: {', '.join(rows.column_names)}."
        )
    return seen_labels(
        rows[spec.labels][:],
        spec.labels,
        known=spec.known,
        per_class=spec.per_class,
        seed=child_seed(seed, "labels"),
    )


def agreement(labels: Labels, seen: Seen) -> dict[str, float | int] | None:
    """Compare the labels with the truth that the clusterer did not see; None where there is none."""
    from tunesmith.metrics.clustering import compute

    hidden = (seen.truth >= 0) & (seen.y < 0) & (labels >= 0)
    if not hidden.any():  # the labels were coarser ones, which it saw; or every row had to be labelled
        hidden = (seen.truth >= 0) & (labels >= 0)
    if len(np.unique(seen.truth[hidden])) < 2:
        return None
    scores = compute(predictions=labels[hidden], references=seen.truth[hidden])
    return {"rows": int(hidden.sum()), **{key: float(value) for key, value in scores.items()}}


def build_cluster(work: Work, folder: Path) -> dict[str, Any]:
    """Group the pool's rows; write a label per row, and what each group is about."""
    from tunesmith.data.groups import central_rows, group_names, telling_words

    spec = work.recipe.cluster
    assert spec is not None
    pool, seed = work.unclustered_pool, child_seed(work.recipe.seed, "cluster")
    X = np.asarray(pool.feature("embedding"))
    seen = label_column(work.dataset, spec, seed)
    estimator, labels = fit_clusterer(
        spec.type, spec.parameters, X, seen, seed, work.log, standardize=spec.standardize
    )
    scores = None if seen is None else agreement(labels, seen)
    labels, known = with_known_classes(labels, seen)
    with atomic_open(folder / "labels.npy", "wb") as stream:
        np.save(stream, labels)
    names = group_names(telling_words(pool.texts, labels)) | known
    central = central_rows(X, labels, 3)
    facts = {
        "method": spec.type,
        "parameters": spec.parameters,
        "rows": len(labels),
        "without_a_cluster": int((labels < 0).sum()),
        "known_classes": len(known),
        "labels_seen": 0 if seen is None else int((seen.y >= 0).sum()),
        "agreement": scores,
        "n_iter": int(getattr(estimator, "n_iter_", 0)),
        "clusters": [
            {
                "id": g,
                "name": name,
                "rows": int((labels == g).sum()),
                "examples": [int(i) for i in central[g]],
            }
            for g, name in names.items()
        ],
    }
    write_json(folder / "clusters.json", facts)
    return {
        "rows": len(labels),
        "clusters": len(names),
        **({} if scores is None else {"accuracy": scores["accuracy"]}),
    }
