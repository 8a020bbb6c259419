"""The verb ``select``: a recipe of two stages, reading and selecting, without a run directory."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith._cli.tables import table
from tunesmith.core.errors import ConfigError, DataError, ParameterError
from tunesmith.core.events import EventLog
from tunesmith.core.files import atomic_open
from tunesmith.core.seeds import child_seed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from tunesmith.data import Pool, ReadReport
    from tunesmith.recipe.schema import Recipe

__all__ = ["reading_lines", "recipe_of", "refuse_source", "select_rows", "summary_of"]

SAMPLE = 1000  # rows on either side whose text is measured for the summary


def recipe_of(
    data: str,
    method: str,
    budget: str,
    settings: Sequence[str],
    features: dict[str, Any],
    seed: int,
    rows: str,
    target: str | None = None,
) -> Recipe:
    """Return the recipe that the verb's options stand for.

    Args:
        data: what to read.
        method: registered selector without its family.
        budget: rows, share or percentage.
        settings: ``name=value`` for the selector's parameters; values are read as YAML.
        features: ``encoder``, ``scorer``, ``quality`` and ``tags`` as in a recipe, None for its default.
        seed: root seed; the picks are those of ``tunesmith run`` with the same seed.
        rows: format of the rows.
        target: what to read for selectors that aim at a target.

    Raises:
        ConfigError: an option is not valid.
    """
    from tunesmith.recipe import check, load

    values = {
        "seed": seed,
        "data": {"train": data, "validation": target, "format": rows},
        "features": {name: value for name, value in features.items() if value is not None},
        "select": {"type": method, "budget": budget},
    }
    loaded = load(values, [f"select.{setting}" for setting in settings])
    problems = check(loaded)
    if problems:
        raise ConfigError("\n".join(str(problem) for problem in problems))
    return loaded.recipe


def select_rows(recipe: Recipe, out: Path, scores: Path | None, log: EventLog) -> list[str]:
    """Read, select and write; return the lines that tell what was done.

    Args:
        recipe: from `recipe_of`.
        out: the chosen rows, as they stood in the source.
        scores: CSV with one line per row of the pool.
        log: receives progress and warnings.

    Raises:
        DataError: the rows or a feature are not there, or ``out`` or ``scores`` is the source.
        ParameterError: the selector refuses a parameter, the budget exceeds the pool, or ``out`` has an
            unknown ending.
    """
    from tunesmith.data import Pool, read, write_subset
    from tunesmith.data.subset import WRITERS
    from tunesmith.recipe.stages import make_selector
    from tunesmith.select import resolve_budget

    assert recipe.select is not None
    if out.suffix.lower() not in WRITERS:  # known now, not after an hour of scoring
        raise ParameterError("out", "select", "a path that ends in " + ", ".join(WRITERS), str(out))
    selector = make_selector(recipe, recipe.seed)
    result = read(recipe.data.train, format=recipe.data.format, log=log)
    for line in reading_lines(result.report):
        log.emit("message", message=line)
    resolve_budget(recipe.select.budget, len(result.dataset), selector)
    for path in (out, scores):
        refuse_source(path, result.report)
    pool = Pool(
        result.dataset,
        encoder=recipe.features.encoder,
        scorer=recipe.features.scorer,
        target=None
        if recipe.data.validation is None
        else read(recipe.data.validation, format=recipe.data.format, log=log).dataset,
        quality=recipe.features.quality,
        tags=recipe.features.tags,
        seed=child_seed(recipe.seed, "features"),
        log=log,
    )
    chosen = pool.fit(selector).select(recipe.select.budget)
    written = write_subset(result, chosen, out)
    lines = [f"{written:,} of {len(pool):,} rows chosen by {recipe.select.type}, written to {out}."]
    if scores is not None:
        write_scores(scores, pool, chosen, selector.scores_)
        lines.append(f"Scores and ranks of all {len(pool):,} rows are in {scores}.")
    return [*lines, "", summary_of(pool, selector.required_features(), chosen)]


def reading_lines(report: ReadReport) -> list[str]:
    """Return how the rows were read, with the counts and the first rows that could not be used."""
    lines = [*report.how, f"{report.n_read:,} rows read, {report.n_kept:,} kept."]
    lines += [f"  {count:,} × {reason}" for reason, count in report.reasons.items()]
    lines += [f"  {file}, row {row}: {reason}: {snippet}" for file, row, reason, snippet in report.bad[:5]]
    if len(report.bad) > 5:
        lines.append(f"  … {sum(report.reasons.values()) - 5:,} more")
    return lines


def summary_of(pool: Pool, features: Sequence[str], chosen: NDArray[np.int64]) -> str:
    """Compare the picks with the pool by what the selector looked at, as a table.

    Of more than 1,000 rows on either side, 1,000 evenly spaced ones are measured for the length.
    """
    import numpy as np

    rows: list[tuple[str, Any, Any]] = [("rows", len(pool), len(chosen))]
    everything = np.linspace(0, len(pool) - 1, min(SAMPLE, len(pool)), dtype=np.int64)
    some = chosen[np.linspace(0, len(chosen) - 1, min(SAMPLE, len(chosen)), dtype=np.int64)]
    lengths = [float(np.median([len(text) for text in pool.texts(i)])) for i in (everything, some)]
    rows.append(("median characters", lengths[0], lengths[1]))
    for name in features:
        value = pool.feature(name)
        if name == "tags":
            tags = [len({t for i in part for t in value[i]}) for part in (range(len(pool)), chosen)]
            rows.append(("distinct tags", tags[0], tags[1]))
        elif isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype.kind in "fi":
            rows.append((f"mean {name}", float(np.nanmean(value)), float(np.nanmean(value[chosen]))))
    return table(["", "pool", "picks"], rows)


def write_scores(path: Path, pool: Pool, chosen: NDArray[np.int64], scores: NDArray[np.float64]) -> None:
    """Write row number, source, score and rank of every row; the rank of the first pick is 1."""
    rank = {int(row): position for position, row in enumerate(chosen, 1)}
    with atomic_open(path) as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["source", "row", "score", "rank"])
        for begin in range(0, len(pool), 10_000):
            part = pool.dataset[begin : begin + 10_000]
            numbers = part.get("_row") or list(range(begin, begin + len(next(iter(part.values())))))
            names = part.get("_source") or [""] * len(numbers)
            for i, (name, number) in enumerate(zip(names, numbers, strict=True), begin):
                writer.writerow([name, number, repr(float(scores[i])), rank.get(i, "")])


def refuse_source(path: Path | None, report: ReadReport) -> None:
    """Refuse to write to a file that the rows come from.

    Raises:
        DataError: ``path`` is one of them.
    """
    for source in report.files.values():
        if path is not None and path.exists() and path.samefile(source):
            raise DataError(
                f"{path} is the source itself, and no input file is ever changed. Name another file."
            )
