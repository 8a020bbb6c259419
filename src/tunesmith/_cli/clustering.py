"""The verb ``cluster``: read, embed, group, and write labels, a map and what each group is about."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tunesmith._cli.tables import table
from tunesmith.core.errors import ConfigError, DataError, ParameterError
from tunesmith.core.events import EventLog
from tunesmith.core.files import atomic_open, write_json
from tunesmith.core.seeds import child_seed

if TYPE_CHECKING:
    from tunesmith.look.material import Material
    from tunesmith.recipe.clustering import Seen

__all__ = ["cluster_data", "default_clusters"]

Labels = NDArray[np.int64]
_COUNTS = ("n_clusters", "n_novel", "k")  # what methods call the number of groups


def default_clusters(n: int) -> int:
    """Return about the root of a quarter of the rows, between 2 and 16, and no more than there are rows."""
    return min(n, int(np.clip(round((n / 4) ** 0.5), 2, 16)))


def cluster_data(
    data: str,
    out: Path,
    method: str,
    *,
    clusters: int | None,
    labels: str | None,
    known: str | None,
    per_class: int | None,
    settings: Sequence[str],
    standardize: bool,
    encoder: str,
    kind: str,
    seed: int,
    log: EventLog,
) -> list[str]:
    """Group rows of any kind; return the lines that tell what was done.

    Writes ``labels.csv`` (source, row, cluster, name), ``clusters.json``, ``map.svg`` and ``clusters.html``.

    Raises:
        ConfigError: the method or a setting is not valid.
        DataError: nothing can be read, or the labels are not there.
        ParameterError: the method refuses a parameter, or ``out`` is a file.
    """
    from tunesmith.look.clustered import write_clusters
    from tunesmith.look.material import open_material
    from tunesmith.look.rows import vectors_of
    from tunesmith.recipe.clustering import agreement, fit_clusterer, with_known_classes

    if out.exists() and not out.is_dir():
        raise ParameterError("out", "cluster", "a folder", str(out))
    parameters = _parameters(method, settings)
    material = open_material(data, kind=kind, log=log)
    for line in material.how:
        log.emit("message", message=line)
    seen = _seen(material, labels, known, per_class, child_seed(seed, "labels"))
    X, used = vectors_of(material, encoder, seed, log, leave_out=labels)
    count = _count_parameter(method)
    if clusters is not None and count is None:
        raise ParameterError(
            "clusters", f"cluster --method {method}", "left out: the method takes no number", clusters
        )
    if count is not None and count not in parameters:
        if clusters is not None:
            parameters[count] = clusters
        elif count == "n_clusters":
            parameters[count] = default_clusters(len(X))
    log.emit("message", message=f"Clustering {len(X):,} rows of {X.shape[1]:,} numbers by {method}.")
    _, found = fit_clusterer(
        method, parameters, X, seen, child_seed(seed, "cluster"), log, standardize=standardize
    )
    scores = None if seen is None else agreement(found, seen)
    found, named = with_known_classes(found, seen)
    out.mkdir(parents=True, exist_ok=True)
    facts = write_clusters(
        out, material, X, found, method=method, parameters=parameters, encoder=used, seed=seed, named=named
    )
    facts |= {"labels_seen": 0 if seen is None else int((seen.y >= 0).sum()), "agreement": scores}
    write_json(out / "clusters.json", facts)
    _write_labels(out / "labels.csv", material, found, {c["id"]: c["name"] for c in facts["clusters"]})
    lines = [f"{len(found):,} rows in {len(facts['clusters'])} clusters by {method}."]
    if facts["without_a_cluster"]:
        lines.append(f"{facts['without_a_cluster']:,} rows are in no cluster.")
    if scores is not None:
        lines.append(
            f"On {scores['rows']:,} labelled rows: accuracy {scores['accuracy']:.3f}, NMI {scores['nmi']:.3f}, "
            f"ARI {scores['ari']:.3f}."
        )
    rows = [(c["name"], c["rows"]) for c in sorted(facts["clusters"], key=lambda c: -c["rows"])]
    return [
        *lines,
        "",
        table(["cluster", "rows"], rows, wrap=0),
        "",
        f"Written to {out}: clusters.html, labels.csv, map.svg, clusters.json.",
    ]


def _parameters(method: str, settings: Sequence[str]) -> dict[str, Any]:
    """Read ``name=value`` settings as YAML and check their names.

    Raises:
        ConfigError: a setting is no ``name=value``, or the method has no such parameter.
        UnknownNameError: there is no such method.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    from tunesmith.core.errors import nearest
    from tunesmith.recipe.checking import parameters_of

    valid = parameters_of("cluster", method).named
    found = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise ConfigError(f"A setting reads name=value. Got '{setting}' instead.")
        if name not in valid:
            raise ConfigError(
                f"unknown key '{name}' in cluster of type '{method}'.{nearest(name, valid)} "
                f"Valid keys: {', '.join(sorted(valid))}."
            )
        try:
            found[name] = YAML(typ="safe", pure=True).load(value)
        except YAMLError as error:
            raise ConfigError(f"The value of '{name}' is not valid YAML: {value}") from error
    return found


def _count_parameter(method: str) -> str | None:
    from tunesmith.recipe.checking import parameters_of

    valid = parameters_of("cluster", method).named
    return next((name for name in _COUNTS if name in valid), None)


def _seen(
    material: Material, labels: str | None, known: str | None, per_class: int | None, seed: int
) -> Seen | None:
    """Return the labels of the column or, for images, of the folders."""
    from tunesmith.core.errors import nearest
    from tunesmith.recipe.clustering import seen_labels

    if labels is None:
        for name, value in (("known", known), ("per-class", per_class)):
            if value is not None:
                raise ParameterError(name, "cluster", "left out without --labels", value)
        return None
    if per_class is not None and per_class < 1:
        raise ParameterError("per-class", "cluster", "an int >= 1", per_class)
    if material.kind == "images":
        values, columns = [p.parent.name for p in material.paths], ["folder"]
    elif material.kind == "vectors":
        raise DataError("vectors have no column of labels; put them into a Parquet file or a table.")
    else:
        rows: Any = material.dataset if material.dataset is not None else material.frame
        columns = list(getattr(rows, "column_names", getattr(rows, "columns", [])))
        values = list(rows[labels][:]) if labels in columns else []
    if labels not in columns:
        raise DataError(
            f"--labels names '{labels}', which the rows do not have.{nearest(labels, columns)} "
            f"Their columns: {', '.join(columns)}.",
            source=material.source,
        )
    values = [None if isinstance(v, float) and np.isnan(v) else v for v in values]
    chosen = None if known is None else [name.strip() for name in known.split(",") if name.strip()]
    return seen_labels(values, labels, known=chosen, per_class=per_class, seed=seed)


def _write_labels(path: Path, material: Material, labels: Labels, names: dict[int, str]) -> None:
    with atomic_open(path) as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["source", "row", "cluster", "name"])
        for i, label in enumerate(labels.tolist()):
            source, row = material.where(i)
            writer.writerow([source, row, label, names.get(label, "")])
