"""The verb ``curate``: read, run one filter or repair, write what stays and why the rest went."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tunesmith._cli.selecting import reading_lines, refuse_source
from tunesmith._cli.tables import table
from tunesmith.core.errors import ConfigError, ParameterError
from tunesmith.core.events import EventLog
from tunesmith.core.files import atomic_open

if TYPE_CHECKING:
    from datasets import Dataset

    from tunesmith.curate import CurateReport
    from tunesmith.recipe.schema import Recipe

__all__ = ["curate_rows", "recipe_of"]


def recipe_of(
    data: str, method: str, settings: Sequence[str], model: str | None, seed: int, rows: str
) -> Recipe:
    """Return the recipe that the verb's options stand for.

    Args:
        data: what to read.
        method: registered filter or repair without its family.
        settings: ``name=value`` for its parameters; values are read as YAML.
        model: language model for methods that ask one.
        seed: root seed.
        rows: format of the rows.

    Raises:
        ConfigError: an option is not valid.
    """
    from tunesmith.recipe import check, load

    values: dict[str, Any] = {
        "seed": seed,
        "data": {"train": data, "format": rows},
        "curate": [{"type": method}],
    }
    if model is not None:
        values["model"] = {"id": model}
    loaded = load(values, [f"curate.0.{setting}" for setting in settings])
    problems = check(loaded)
    if problems:
        raise ConfigError("\n".join(str(problem) for problem in problems))
    return loaded.recipe


def curate_rows(recipe: Recipe, out: Path, reasons: Path | None, log: EventLog) -> list[str]:
    """Read, filter or repair, and write; return the lines that tell what was done.

    Rows stand in ``out`` as in the source, unless one was changed: then all are written in the canonical form
    (``messages``, ``text`` or pairs, and their other columns).

    Args:
        recipe: from `recipe_of`.
        out: the rows that stay, in their order.
        reasons: JSON lines with one object per row that was not simply kept; by default beside ``out``.
        log: receives progress and warnings.

    Raises:
        DataError: the rows are not there or not of a kind the method takes, or a path is the source.
        ParameterError: the method refuses a parameter, or ``out`` has an unknown ending.
    """
    import datasets

    from tunesmith.data import read, write_subset
    from tunesmith.data.subset import WRITERS
    from tunesmith.recipe.curating import make_curator

    if out.suffix.lower() not in WRITERS:  # known now, not after an hour of judging
        raise ParameterError("out", "curate", "a path that ends in " + ", ".join(WRITERS), str(out))
    reasons = out.with_name(f"{out.stem}.reasons.jsonl") if reasons is None else reasons
    datasets.disable_progress_bars()
    method = make_curator(recipe, recipe.curate[0], 0)
    if hasattr(method, "log"):
        method.log = log
    result = read(recipe.data.train, format=recipe.data.format, log=log)
    for line in reading_lines(result.report):
        log.emit("message", message=line)
    for path in (out, reasons):
        refuse_source(path, result.report)
    kept = method.fit(result.dataset).transform(result.dataset)
    report = method.report_
    _write_reasons(reasons, report, result.dataset)
    lines = [f"{report.n_out:,} of {report.n_in:,} rows kept by {recipe.curate[0].type}, written to {out}."]
    if report.changed:
        plain = kept.remove_columns([c for c in ("_row", "_source") if c in kept.column_names])
        write_subset(plain, np.arange(len(plain)), out)
        lines.append(
            f"{len(report.changed):,} of them were changed, so all are written with {_names(plain)}."
        )
    else:
        gone = {row for row, _ in report.dropped}
        write_subset(result, [i for i in range(report.n_in) if i not in gone], out)
    lines.append(f"What was done to which row, and why, is in {reasons}.")
    if report.table():
        lines += [
            "",
            table(["rows", "what", "reason"], [(n, did, why) for did, why, n in report.table()], wrap=2),
        ]
    return lines


def _names(rows: Dataset) -> str:
    return ", ".join(rows.column_names)


def _write_reasons(path: Path, report: CurateReport, rows: Dataset) -> None:
    """Write the report's lines, with the place of each row in the source."""
    lines = list(report.lines())
    at = [line["row"] for line in lines]
    columns = [name for name in ("_source", "_row") if name in rows.column_names]
    places = rows.select_columns(columns)[at] if columns and at else {}
    with atomic_open(path) as stream:
        for i, line in enumerate(lines):
            place = {name.strip("_"): places[name][i] for name in columns} if places else {}
            stream.write(json.dumps({**line, **place}, ensure_ascii=False) + "\n")
