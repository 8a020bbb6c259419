"""A complete, commented recipe made from the user's own rows."""

from __future__ import annotations

import inspect
import json
import math
import os
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.recipe import schema
from tunesmith.recipe.schemas import BLOCKS

if TYPE_CHECKING:
    from tunesmith.data import ReadReport

__all__ = ["init_recipe"]

SAMPLE = 2000  # rows read to see format and lengths
CHARACTERS = 4  # per token
WIDTH = 100
EMBED_LIMIT = 50_000  # rows that MiniLM embeds on two CPU cores in about half an hour


@dataclass
class _Sight:
    """What was seen of the rows."""

    report: ReadReport
    rows: int
    exact: bool
    longest: int  # characters, 99th percentile
    answers: int  # characters, median of the last answer
    columns: list[str]
    family: str


def init_recipe(data: str | os.PathLike[str]) -> str:
    """Return a recipe in YAML for some rows, with every field, its meaning and a sensible value.

    Reads at most 2,000 rows. The budget, the encoder, the lengths, the epochs and the metrics follow from the
    number of rows, their lengths and their columns; everything else has its default.

    Args:
        data: a file, a folder, a Hub id or ``demo:NAME``.

    Returns:
        YAML that `tunesmith.recipe.load` accepts.

    Raises:
        DataError: the rows cannot be read.
    """
    sight = _look(os.fspath(data))
    values = _values(os.fspath(data), sight)
    lines = [
        *_comment(f"Recipe for {os.fspath(data)}, written by tunesmith init. How the rows were read:"),
        *(line for how in sight.report.how for line in _comment(how, "  ")),
        *_comment(_count_text(sight), "  "),
    ]
    lines += ["#", "#   tunesmith validate RECIPE              check it, with time, memory and disk"]
    lines += ["#   tunesmith run RECIPE output=DIR        run it, or continue it", ""]
    for name, info in schema.Recipe.model_fields.items():
        if name not in BLOCKS:
            lines += [
                *_comment(info.description or ""),
                f"{name}: {_scalar(values.get(name, info.default))}",
                "",
            ]
            continue
        lines += _block(name, values.get(name), info.description)
        lines.append("")
    return "\n".join(lines).rstrip("\n") + "\n"


def _look(data: str) -> _Sight:
    import numpy as np

    from tunesmith.data import formats, read
    from tunesmith.data.rows import completion_text, iter_rows, row_text
    from tunesmith.recipe.estimating import count_rows

    found = read(data, max_rows=SAMPLE)
    rows = list(iter_rows(found.dataset))
    longest = int(np.percentile([len(row_text(row)) for row in rows], 99))
    family = formats.FORMATS[found.report.format].family
    answers = int(np.median([len(completion_text(row)) for row in rows])) if family == "messages" else 0
    total, exact = found.report.n_kept, True
    if found.report.n_read == SAMPLE:
        total, exact = count_rows(data, found.report.n_read, longest)
    return _Sight(found.report, total, exact, longest, answers, found.dataset.column_names, family)


def _count_text(sight: _Sight) -> str:
    report, about = sight.report, "" if sight.exact else "about "
    text = f"{about}{sight.rows:,} rows"
    if report.reasons:
        text += f"; of the first {report.n_read:,} these cannot be used: "
        text += "; ".join(f"{count:,} × {reason}" for reason, count in report.reasons.items())
    return text[0].upper() + text[1:] + "."


def _values(data: str, sight: _Sight) -> dict[str, Any]:
    """Return what differs from the defaults, and the blocks that are on."""
    budget, chosen = _budget(sight.rows)
    selector = {"type": "mig", "budget": budget} if sight.rows >= 20 else {"type": "random", "budget": 1.0}
    values: dict[str, Any] = {
        "name": re.sub(r"[^\w-]+", "-", Path(data.replace(":", "-")).name.split(".")[0]).strip("-") or "run",
        "data": {"train": data},
        "curate": [{"type": "dedup"}],
        "features": {"encoder": "minilm" if sight.rows <= EMBED_LIMIT else "static"},
        "select": selector,
    }
    if sight.family == "pairs":
        return values  # text pairs are chosen from, but supervised fine-tuning has no use for them
    length = 2 ** math.ceil(math.log2(max(sight.longest / CHARACTERS * 1.25 + 16, 128)))
    values |= {
        "model": {"id": "smollm2-135m-instruct"},
        "tuner": {"type": "lora"},
        "train": {
            "epochs": 3.0 if chosen < 500 else 2.0 if chosen < 5000 else 1.0,
            "max_length": min(length, 4096),
            "loss": "all" if sight.family == "text" else "completion",
        },
        "evaluate": _metrics(sight),
        "export": {"merged": False},
    }
    if sight.rows >= 20:
        values["compare"] = {"select.type": ["random", "mig"], "seeds": [0, 1, 2]}
    return values


def _budget(rows: int) -> tuple[str | int | float, int]:
    """Return the budget and the rows it stands for: a tenth, but at least 200 rows and at most 50,000."""
    if rows <= 400:
        return "50%", max(1, rows // 2)
    if rows < 2000:
        return 200, 200
    return ("10%", rows // 10) if rows <= 500_000 else (50_000, 50_000)


def _metrics(sight: _Sight) -> list[dict[str, Any]]:
    metrics: list[dict[str, Any]] = []
    if sight.family == "messages":
        new = min(512, 16 * math.ceil(max(sight.answers * 2 / CHARACTERS, 16) / 16))
        if "task" in sight.columns:
            metrics.append({"type": "task_score", "max_new_tokens": new})
        elif sight.answers <= 80:  # an exact match means something for short answers only
            metrics.append({"type": "exact_match", "max_new_tokens": new})
    return [*metrics, {"type": "perplexity"}]


def _block(name: str, value: Any, description: str | None) -> list[str]:
    """Return a stage: what it is, then its keys, or the same as a comment where it is off."""
    model = BLOCKS[name]
    lines = list(_comment(description or inspect.cleandoc(model.__doc__ or "")))
    if name in ("curate", "evaluate", "audit"):
        lines += _comment(f"Methods: {', '.join(_names(name)) or 'none is installed yet'}.")
        if not value:
            return [*lines, f"{name}: []"]
        return [*lines, f"{name}:", *(f"  - {_flow(item)}" for item in value)]
    if value is None and name in ("features", "preflight", "tuner"):
        value = {}
    body = [f"{name}:"]
    for key, info in model.model_fields.items():
        default = "..." if info.is_required() else info.get_default(call_default_factory=True)
        given = (value or {}).get(key, default)
        meaning = info.description or ""
        if key == "type" and name in ("cluster", "select", "train"):
            meaning = f"One of {', '.join(_names(name))}."
        elif key == "type" and name == "tuner":
            meaning += " For example r: 16."
        body += [*(f"  {line}" for line in _comment(meaning)), f"  {key}: {_flow(given)}"]
    body += [
        f"  {key}: {_flow(item)}" for key, item in (value or {}).items() if key not in model.model_fields
    ]
    if value is None:
        body = [f"# {line}" for line in body]
    return lines + body


def _names(family: str) -> list[str]:
    from tunesmith import methods

    return [name.removeprefix(f"{family}.") for name in methods.names(f"{family}.*")]


def _comment(text: str, indent: str = "") -> Iterator[str]:
    printable = "".join(c if c.isprintable() else " " for c in text)
    for line in textwrap.wrap(printable.replace("``", ""), WIDTH - len(indent)):
        yield f"# {indent}{line}"


def _flow(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_scalar(k)}: {_flow(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    return _scalar(value)


def _scalar(value: Any) -> str:
    """Return a value as YAML; text is quoted unless it is plain beyond doubt."""
    words = ("true", "false", "yes", "no", "on", "off", "null", "y", "n")
    if (
        isinstance(value, str)
        and re.fullmatch(r"[A-Za-z_][\w./-]*|\d+%", value)
        and value.lower() not in words
    ):
        return value
    return json.dumps(value, ensure_ascii=not (isinstance(value, str) and value.isprintable()))
