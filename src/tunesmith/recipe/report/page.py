"""Put the report together and write it."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tunesmith import __version__
from tunesmith.core.errors import RunDirectoryError
from tunesmith.core.files import atomic_open
from tunesmith.core.pages import html_environment
from tunesmith.recipe.report import answer, sections
from tunesmith.recipe.report.examples import examples
from tunesmith.recipe.report.files import RunFiles
from tunesmith.recipe.report.style import arm_colours, arm_label, css_variable

__all__ = ["write_report"]

# What damaged files can raise inside a section. One bad file must not cost the reader the other sections.
_DAMAGE = (KeyError, TypeError, ValueError, IndexError, AttributeError, OSError)


def write_report(run_dir: str | os.PathLike[str]) -> Path:
    """Write ``report.html`` into a run directory, from its files alone.

    Works for a finished, failed, half-finished or single-arm run: a part that is missing says what is missing
    and why. The page loads nothing from anywhere, follows the reader's light or dark theme, and prints.

    Args:
        run_dir: the run directory.

    Returns:
        The path of the page.

    Raises:
        RunDirectoryError: ``run_dir`` is not a folder, or holds nothing of a run.
    """
    root = Path(run_dir)
    if not root.is_dir():
        raise RunDirectoryError(f"There is no run directory {run_dir}.")
    if not any((root / name).exists() for name in ("events.jsonl", "recipe.lock.yaml", "arms", "data")):
        raise RunDirectoryError(
            f"The folder {run_dir} holds no run: neither events.jsonl nor recipe.lock.yaml is there."
        )
    target = root / "report.html"
    html = _render(RunFiles(root))
    with atomic_open(target) as stream:
        stream.write(html)
    return target


def _render(files: RunFiles) -> str:
    return html_environment("tunesmith.recipe.report").get_template("report.html.j2").render(**context(files))


def context(files: RunFiles) -> dict[str, Any]:
    """Return what the template prints."""
    colours = arm_colours(files.arms, files.baseline)
    status, sentence = answer.outcome(files)
    name = files.recipe.get("name")
    found = {
        "answer": _guard(partial(answer.headline, files), {"sentence": "", "notes": [], "tone": "none"}),
        "comparison": _guard(partial(answer.comparison, files, colours), {"blocks": []}),
        "data": _guard(partial(sections.data, files), {"sources": [], "steps": []}),
        "preflight": _guard(
            partial(sections.preflight, files, colours), {"rows": [], "sample": [], "of": ""}
        ),
        "choice": _guard(
            partial(sections.choice, files, colours),
            {
                "selections": [],
                "maps": [],
                "tables": [],
                "histograms": [],
                "no_map": None,
                "no_scores": [],
                "clustering": None,
            },
        ),
        "training": _guard(partial(sections.training, files, colours), {"figure": None, "early": []}),
        "examples": _guard(partial(examples, files, colours), {"shown": []}),
        "audits": _guard(partial(sections.audits, files), {"found": []}),
        "cost": _guard(
            partial(sections.cost, files, colours),
            {"stages": [], "trainings": [], "total": None, "columns": []},
        ),
    }
    return {
        **found,
        "name": str(name or files.root.resolve().name),
        "version": __version__,
        "status": status,
        "status_sentence": sentence,
        "model": _model(files),
        "arms": [{"name": arm_label(arm), "colour": css_variable(colours[arm])} for arm in files.arms],
        "reproduce": _guard(partial(sections.reproduce, files), {"recipe": None, "facts": []}),
        "warnings": sections.warnings(
            files
        ),  # last: it lists the files that the other sections could not read
    }


def _model(files: RunFiles) -> str:
    spec = files.recipe.get("model")
    return str(spec.get("id", "")) if isinstance(spec, dict) else ""


def _guard(section: Callable[[], dict[str, Any]], empty: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"summary": "", "note": "", **section()}
    except _DAMAGE as error:
        text = f"This part could not be made from the files of the run: {type(error).__name__}: {error}"
        return {"summary": "", "note": "", **empty, "missing": text}
