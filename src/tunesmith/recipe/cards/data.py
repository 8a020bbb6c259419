"""The card of the rows that a run chose to train on."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith import __version__
from tunesmith.core.errors import ParameterError, RunDirectoryError
from tunesmith.core.wording import clip, percent
from tunesmith.recipe.cards import gaps
from tunesmith.recipe.cards.facts import Made, finished_run, methods_of, papers_of
from tunesmith.recipe.cards.origins import Origin, data_origin, names_only
from tunesmith.recipe.cards.pages import rendered
from tunesmith.recipe.cards.readme import block, head_note
from tunesmith.recipe.cards.steps import steps_of

if TYPE_CHECKING:
    from datasets import Dataset
    from huggingface_hub import DatasetCard

__all__ = ["data_card"]

SIZES = (1_000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000, 1_000_000_000)
NAMES = ("1K", "10K", "100K", "1M", "10M", "100M", "1B")
GROUPS = ("label", "source", "row_source", "_source", "split", "family", "category", "task_type", "language")
SHOWN = 20  # values of a column of groups
MOST = 200  # a column with more values is no column of groups
PIECE = 2_000  # characters of one value of an example
BATCH = 1_000  # rows hashed at a time
KINDS = {
    "classify": ["text-classification"],
    "pairs": ["sentence-similarity"],
    "text": ["text-generation"],
}


def data_card(run: str | os.PathLike[str], *, examples: int = 0) -> DatasetCard:
    """Return the card of the rows that a run trained its model on, or chose where it trained none.

    Args:
        run: the directory of a finished run.
        examples: show that many of the first chosen rows; by default none, as a card is public and rows may not be.

    Returns:
        A ``huggingface_hub.DatasetCard``. O(rows) time for the hash, a batch of rows in memory.

    Raises:
        ParameterError: ``examples`` is negative or no int.
        RunDirectoryError: no run, not finished, or its rows are not there any more.
    """
    if isinstance(examples, bool) or not isinstance(examples, int) or examples < 0:
        raise ParameterError("examples", "data_card", "an int >= 0", examples)
    made = finished_run(Path(run))
    files, recipe = made.files, made.recipe
    rows, place = _chosen(made)
    origin = data_origin(files, "train")
    source = None if origin is None else origin.name
    methods = [
        name
        for name in methods_of(recipe)
        if name.split(".")[0] in ("curate", "cluster", "select", "targets")
    ]
    chosen = (made.run.selection or {}).get("method")
    values = {
        "intro": _intro(made, len(rows), source),
        "parts": _parts(made, rows, origin),
        "hashes": "The hash of the chosen rows is over their texts, in order; that of a file is of its bytes.",
        "steps": steps_of(made, trained=False),
        "choice": _choice(made, chosen),
        "columns": [
            {"name": name, "type": _type(feature), "filled": len(rows) - rows.data.column(name).null_count}
            for name, feature in rows.features.items()
        ],
        "balance": [t for name in _groups(made, rows) if (t := _balance(rows, name)) is not None],
        "examples": [_example(row) for row in rows.select(range(min(examples, len(rows))))]
        if examples
        else [],
        "loading": _loading(place),
        "unchecked": gaps.unchecked_data(made, origin),
        "to_do": gaps.before_publishing(None, None, None, origin),
        "papers": papers_of(methods),
    }
    head = {
        "pretty_name": f"{recipe.name}: training rows",
        "size_categories": [size_category(len(rows))],
        "task_categories": _tasks(made, rows),
        "source_datasets": [origin.hub_id] if origin and origin.hub_id else None,
        "license": origin.license if origin else None,
        "language": origin.facts.get("language") if origin else None,
        "tags": ["tunesmith", *dict.fromkeys(name.partition(".")[2] for name in methods)],
    }
    return _card(recipe.name, {k: v for k, v in head.items() if v is not None}, values)


def _card(name: str, head: dict[str, Any], values: dict[str, Any]) -> DatasetCard:
    from huggingface_hub import DatasetCard, DatasetCardData

    data = DatasetCardData(**head)
    text = block("data", rendered("data.md.j2", **values), head_note(data.to_dict(), "run"))
    title = f"# {' '.join(name.split())}: training rows".replace("<", "&lt;")
    return DatasetCard.from_template(
        data, template_str="---\n{{ card_data }}\n---\n\n{{ body }}\n", body=f"{title}\n\n{text}"
    )


def size_category(n: int) -> str:
    """Return the Hub's category of a number of rows: ``n<1K``, ``1K<n<10K`` … ``n>1T`` is not reached."""
    if n < SIZES[0]:
        return "n<1K"
    for (low, name), above in zip(zip(SIZES, NAMES, strict=True), (*SIZES[1:], None), strict=True):
        if above is not None and low <= n < above:
            return f"{name}<n<{NAMES[SIZES.index(above)]}"
    return "n>1B"


def _chosen(made: Made) -> tuple[Dataset, list[str]]:
    """Return the rows trained on, and the lines of code that read them from the run's directory."""
    files, folder = made.files, made.run.folder
    base = folder.relative_to(files.root).as_posix()
    rewritten = files.dataset(base, "targets", "dataset")
    if rewritten is not None:
        return rewritten, [f'rows = load_from_disk("{base}/targets/dataset")']
    pool, indices = files.pool, made.run.indices
    if pool is None or indices is None:
        raise RunDirectoryError(
            f"The chosen rows are not in {files.root} any more: it needs curate/dataset and "
            f"{base}/select/indices.npy."
        )
    return pool.select(indices), [
        f'chosen = np.load("{base}/select/indices.npy")',
        'rows = load_from_disk("curate/dataset").select(chosen)',
    ]


def _intro(made: Made, n: int, source: str | None) -> str:
    seeds = [run.seed for run in made.files.of_arm(made.arm)]
    draw = f", seed {made.seed}" if len(seeds) > 1 else ""
    version = (made.files.lock.get("versions") or {}).get("tunesmith", __version__)
    where = "" if source is None else f" from {source}"
    return (
        f"The {n:,} rows{where} that the recipe {made.recipe.name} trained its model on (arm {made.arm}{draw}), by "
        f"tunesmith {version}. This part of the card was written from the files of the run; it shows no row unless "
        "asked to."
    )


def _parts(made: Made, rows: Dataset, origin: Origin | None) -> list[dict[str, Any]]:
    files = made.files
    found = [
        {
            "name": "chosen",
            "rows": len(rows),
            "source": origin.name if origin else "unknown",
            "digest": _digest(rows),
        }
    ]
    if files.pool is not None:
        local = origin is not None and origin.local
        found.append(
            {
                "name": "pool, after cleaning",
                "rows": len(files.pool),
                "source": origin.name if origin else "unknown",
                "digest": f"{origin.digest} (of the source)" if local and origin and origin.digest else "",
            }
        )
    test = data_origin(files, "test")
    if files.test is not None and len(files.test):
        held = "set aside from the pool" if test is None else test.name
        digest = test.digest if test is not None and test.local else ""
        found.append({"name": "test", "rows": len(files.test), "source": held, "digest": digest or ""})
    validation = data_origin(files, "validation")
    if validation is not None:
        digest = validation.digest if validation.local else ""
        found.append({"name": "validation", "rows": None, "source": validation.name, "digest": digest or ""})
    return found


def _digest(rows: Dataset) -> str:
    """Return the SHA-256 of the rows' texts as JSON lines."""
    from tunesmith.data.rows import take_rows

    digest = hashlib.sha256()
    for start in range(0, len(rows), BATCH):
        for row in take_rows(rows, range(start, min(start + BATCH, len(rows)))):
            digest.update(
                (json.dumps(row, sort_keys=True, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass")
            )
    return digest.hexdigest()


def _choice(made: Made, method: Any) -> list[str]:
    if method in (None, "all"):
        return []
    others = [arm for arm in made.files.arms if arm != made.arm]
    if not others:
        return []
    return [f"Other ways to choose that the same run compared: {', '.join(others)}."]


def _groups(made: Made, rows: Dataset) -> list[str]:
    recipe = made.recipe
    named = [recipe.train.parameters.get("label", "label")] if recipe.train and recipe.classifies else []
    named += [recipe.cluster.labels] if recipe.cluster and recipe.cluster.labels else []
    return [name for name in dict.fromkeys([*named, *GROUPS]) if name in rows.column_names]


def _balance(rows: Dataset, column: str) -> dict[str, Any] | None:
    values = Counter(names_only(value) for value in rows[column][:] if value is not None)
    if not 1 <= len(values) <= MOST:
        return None
    whole = sum(values.values())
    shown = [(value, n, percent(n / whole)) for value, n in values.most_common(SHOWN)]
    return {"column": column, "rows": shown, "more": len(values) if len(values) > SHOWN else 0}


def _type(feature: Any) -> str:
    """Return a column's type as people write it."""
    if isinstance(feature, dict):
        return "{" + ", ".join(f"{name}: {_type(inner)}" for name, inner in feature.items()) + "}"
    if isinstance(feature, list):
        return f"list of {_type(feature[0])}"
    inner = getattr(feature, "feature", None)
    return f"list of {_type(inner)}" if inner is not None else str(getattr(feature, "dtype", feature))


def _tasks(made: Made, rows: Dataset) -> list[str]:
    if made.recipe.classifies:
        return KINDS["classify"]
    columns = set(rows.column_names)
    if "anchor" in columns and "messages" not in columns:
        return KINDS["pairs"]
    return KINDS["text"]


def _example(row: dict[str, Any]) -> str:
    cut = {name: clip(value, PIECE) if isinstance(value, str) else value for name, value in row.items()}
    return clip(json.dumps(cut, indent=1, ensure_ascii=False, default=str), 2 * PIECE)


def _loading(lines: list[str]) -> str:
    numpy = ["import numpy as np"] if any("np." in line for line in lines) else []
    return "\n".join(
        [
            *numpy,
            "from datasets import load_from_disk",
            "",
            "# in the directory of the run",
            *lines,
            '# rows.push_to_hub("YOUR/NAME") publishes them; read "Before you publish" first',
        ]
    )
