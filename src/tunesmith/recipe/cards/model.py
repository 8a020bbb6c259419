"""The card of a model: of a finished run, or of a folder with weights and the audits that looked at it."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith import __version__
from tunesmith.core.errors import DataError, MissingModelError, RunDirectoryError
from tunesmith.core.files import hash_file, read_json
from tunesmith.core.wording import count, difference_label, metric_label, number
from tunesmith.recipe.cards import gaps
from tunesmith.recipe.cards.facts import Made, finished_run, hyperparameters, is_run, methods_of, papers_of
from tunesmith.recipe.cards.kinds import ModelKind, kind_of, loading_code
from tunesmith.recipe.cards.origins import Origin, base_origin, data_origin, model_origin, scrubbed
from tunesmith.recipe.cards.pages import rendered
from tunesmith.recipe.cards.readme import block, head_note
from tunesmith.recipe.cards.steps import digest_lines, steps_of
from tunesmith.recipe.report.answer import comparison, headline
from tunesmith.recipe.report.sections import cost, recipe_text
from tunesmith.recipe.report.style import arm_colours, arm_label

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCard

__all__ = ["model_card"]

NO_WEIGHTS = "The weights are not in the run's directory any more, so there is nothing to load."


def model_card(
    run_or_model: str | os.PathLike[str], *, audits: Sequence[str | os.PathLike[str]] = ()
) -> ModelCard:
    """Return the card of the model that a run made, or of a folder of weights.

    All of it comes from the files: what was not recorded is said to be unknown, and what nobody checked is listed. Of
    local data and models names and hashes are shown, never paths; no row of the data is shown. The Hub is not called.

    Args:
        run_or_model: the directory of a finished run; or a folder with ``adapter_config.json``, ``config.json`` or
            safetensors, for a card that says what the folder and the audits say.
        audits: folders that an audit wrote its report to, beside those of the run.

    Returns:
        A ``huggingface_hub.ModelCard``; `write_card` puts it into a README. Its two parts, ``model`` and ``audits``,
        are renewed apart.

    Raises:
        RunDirectoryError: the run failed, has not finished, or has no model.
        MissingModelError: the folder holds neither a run nor a model.
        DataError: the report of an audit cannot be read.
    """
    path = Path(run_or_model)
    reports = [_report(Path(folder)) for folder in audits]
    if path.name == "weights" and is_run(path.parent.parent) and (path.parent / "export.json").exists():
        path = path.parent.parent  # the model that a run exported: the run knows more
    return _of_run(finished_run(path), reports) if is_run(path) else _of_folder(path, reports)


def _report(folder: Path) -> dict[str, Any]:
    """Read the report of an audit.

    Raises:
        DataError: it is not there, is damaged, or is something else.
    """
    file = folder / "report.json"
    if not file.is_file():
        raise DataError("there is no report.json; give a folder that an audit wrote.", source=str(folder))
    try:
        value = read_json(file)
    except (OSError, ValueError) as error:
        raise DataError(f"the report cannot be read: {error}", source=str(file)) from error
    texts = ("audit", "subject", "level", "verdict")
    if not isinstance(value, dict) or not all(isinstance(value.get(key), str) for key in texts):
        raise DataError(
            f"this is no report of an audit: it must have the texts {', '.join(texts)}.", source=str(file)
        )
    return value


def _of_run(made: Made, more: list[dict[str, Any]]) -> ModelCard:
    files, recipe = made.files, made.recipe
    if recipe.train is None:
        raise RunDirectoryError(
            f"The run in {files.root} trained no model, so there is no model card. The card of the rows that it "
            f"chose is written by `tunesmith card {files.root} --data`."
        )
    base, data = model_origin(files), data_origin(files, "train")
    weights = made.weights
    kind = kind_of(weights) if weights is not None else None
    reports = [_report(path.parent) for path in sorted((files.root / "audit").glob("*/report/report.json"))]
    methods = methods_of(recipe)
    colours = arm_colours(files.arms, files.baseline)
    revision = recipe.model.revision if recipe.model else None
    spent = cost(files, colours)
    compared = comparison(files, colours, draw=False)
    for part in compared["blocks"]:
        unit = difference_label(part["metric"])
        part["unit"] = "" if unit == part["metric"] else f" Differences are in {unit}."
    values = {
        "made": True,
        "intro": _intro(made, kind, base, data),
        "loading": kind and weights and loading_code(
            kind,
            weights.relative_to(files.root).as_posix(),
            base,
            classes=_classes(made, kind),
            revision=revision,
        ),
        "no_weights": NO_WEIGHTS,
        "data": {
            "sentence": _data_sentence(made, data),
            "steps": steps_of(made),
            "lines": digest_lines(files),
        },
        "training": {
            "settings": hyperparameters(made),
            "costs": spent["trainings"],
            "total": spent["total"] or "an unknown time",
            "this": f"{arm_label(made.arm)} under seed {made.seed}",
        },
        "answer": headline(files),
        "comparison": compared,
        "tested": _tested(made)[1],
        "scores": _scores(made),
        "unchecked": gaps.unchecked_run(made, base, data),
        "to_do": gaps.before_publishing(weights, kind, base, data),
        "papers": papers_of(methods),
        "recipe": recipe_text({**files.lock, "recipe": scrubbed(files)}),
    }  # fmt: skip
    given = {
        "base_model": base.hub_id if base else None,
        "base_model_relation": kind.relation if kind and base and base.hub_id else None,
        "library_name": kind.library if kind else None,
        "pipeline_tag": kind.task if kind else None,
        "language": base.facts.get("language") if base else None,
        "license": base.license if base else None,
        **{
            name: base.facts.get(name) if base else None
            for name in ("license_name", "license_link")  # what a licence named "other" needs
        },
        "datasets": [data.hub_id] if data and data.hub_id else None,
        "tags": ["tunesmith", *_tags(methods)],
    }
    results = _results(made, kind)
    return _card(recipe.name, given, values, [*reports, *more], kind, "run", results)


def _of_folder(path: Path, reports: list[dict[str, Any]]) -> ModelCard:
    if not path.is_dir():
        raise MissingModelError(f"There is no folder {path}.")
    kind = kind_of(path)
    base = base_origin(kind.base) if kind.base else None
    files = sorted(path.glob("*.safetensors"))
    hashes = ", ".join(f"{file.name} {hash_file(file)}" for file in files)
    whose = f" of {base.name}" if base else ""
    intro = (
        f"The folder holds {kind.what}{whose}. How it was trained is not known here: this part was made by tunesmith "
        f"{__version__} from the folder alone."
    )
    intro += f" SHA-256 of the weights: {hashes}." if files else ""
    unchecked = ["Quality, data and training: this part was made from the weights, which do not tell."]
    if base is not None and base.license is None:
        unchecked.append("Licence of the base model: unknown.")
    values = {
        "made": False,
        "intro": intro,
        "loading": loading_code(kind, path.resolve().name, base, classes=()),
        "unchecked": unchecked,
        "to_do": gaps.before_publishing(path, kind, base, None),
        "papers": papers_of([f"audit.{report['audit']}" for report in reports]),
        "recipe": None,
    }
    given = {
        "base_model": base.hub_id if base else None,
        "base_model_relation": kind.relation if base and base.hub_id else None,
        "library_name": kind.library,
        "pipeline_tag": kind.task,
        "license": base.license if base else None,
        "tags": ["tunesmith"],
    }
    return _card(path.resolve().name, given, values, reports, kind, "folder", None)


def _card(
    title: str,
    given: dict[str, Any],
    values: dict[str, Any],
    reports: list[dict[str, Any]],
    kind: ModelKind | None,
    made_from: str,
    results: list[EvalResult] | None,
) -> ModelCard:
    from huggingface_hub import ModelCard, ModelCardData

    head = {key: value for key, value in given.items() if value is not None}
    if results:
        head |= {"model_name": title, "eval_results": results}
    data = ModelCardData(**head)
    parts = [block("model", rendered("model.md.j2", **values), head_note(data.to_dict(), made_from))]
    shown = [_shown(report) for report in reports]
    missing = gaps.audits_missing(reports, kind.task if kind else None)
    parts.append(block("audits", rendered("audits.md.j2", reports=shown, missing=missing)))
    body = "\n\n".join([f"# {' '.join(title.split())}".replace("<", "&lt;"), *parts])
    return ModelCard.from_template(data, template_str="---\n{{ card_data }}\n---\n\n{{ body }}\n", body=body)


def _shown(report: dict[str, Any]) -> dict[str, Any]:
    """Return what a card says of an audit: not its tables and pictures, which may show rows of the data."""
    verdict = str(report["verdict"])
    if report["audit"] == "novelty":  # it names its finds by words of generated text, which may repeat rows
        verdict = verdict.partition(", above all: ")[0].rstrip(".") + "."
    numbers = report.get("numbers")
    notes = report.get("notes")
    return {
        **report,
        "verdict": verdict,
        "numbers": [(name, _number(value)) for name, value in numbers.items()]
        if isinstance(numbers, dict)
        else [],
        "notes": notes if isinstance(notes, list) else [],
    }


def _number(value: Any) -> str:
    if isinstance(value, list) and len(value) == 3:
        return f"{number(value[0])} [{number(value[1])}, {number(value[2])}]"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else number(value)


def _intro(made: Made, kind: ModelKind | None, base: Origin | None, data: Origin | None) -> str:
    name = "an unknown model" if base is None else base.name
    if base is not None:
        copy = f", the bundled copy of {base.hub_id}" if base.alias else ""
        digest = f"; SHA-256 {base.digest}" if base.local and base.digest else ""
        where = "a local folder" if base.local else "bundled with tunesmith" if base.alias else "on the Hub"
        name += f" ({where}{copy}"
        name += f"{digest})"
    what = "A model" if kind is None else kind.what[:1].upper() + kind.what[1:]
    chosen = (made.run.selection or {}).get("n_selected")
    rows = f"{number(chosen)} rows" if isinstance(chosen, int) else "rows"
    source = "" if data is None else f" of {data.name}"
    merged = " Its adapter was merged into the weights." if (made.export or {}).get("merged") else ""
    version = (made.files.lock.get("versions") or {}).get("tunesmith", __version__)
    return (
        f"{what}, made from {name} by training on {rows}{source}.{merged} It comes from a recipe that tunesmith "
        f"{version} ran; this part of the card was written from the files of that run."
    )


def _data_sentence(made: Made, data: Origin | None) -> str:
    if data is None:
        return "It is not recorded where the rows came from."
    where = "on the Hub" if data.hub_id else "a local source" if data.local else "made by tunesmith"
    licence = f"licence {data.license}" if data.license else "licence unknown"
    return f"The rows come from {data.name} ({where}; {licence}). No row is shown here."


def _scores(made: Made) -> str:
    """Say what these very weights scored, which the means over seeds do not."""
    found = [f"{metric_label(name)} {number(entry['value'])}" for name, entry in made.run.metrics.items()]
    whose = f"{arm_label(made.arm)}, seed {made.seed}"
    return f"The weights of this card ({whose}) scored: {', '.join(found)}." if found else ""


def _tested(made: Made) -> tuple[Origin | None, str]:
    """Return the source of the test rows, and how to name them."""
    files = made.files
    origin = data_origin(files, "test")
    n = None if files.test is None else len(files.test)
    rows = "" if n is None else f", {count(n, 'row')}"
    if origin is not None:
        return origin, f"{origin.name}{rows}"
    origin = data_origin(files, "train")
    share = made.recipe.data.holdout
    return origin, f"{share:.0%} of the pool, set aside before anything else{rows}"


def _results(made: Made, kind: ModelKind | None) -> list[EvalResult]:
    """Return the scores of these weights, one seed's, in the form of the Hub's index."""
    from huggingface_hub import EvalResult

    origin, _ = _tested(made)
    if origin is None or kind is None:
        return []
    held = data_origin(made.files, "test") is None
    digest = {"sha256": origin.digest} if origin.local and origin.digest else None
    return [
        EvalResult(
            task_type=kind.task or "other",
            dataset_type=origin.hub_id or origin.name,
            dataset_name=origin.name,
            dataset_split="held out of train" if held else "test",
            dataset_args=digest,
            metric_type=name,
            metric_name=metric_label(name),
            metric_value=entry["value"],
            verified=False,
        )
        for name, entry in made.run.metrics.items()
        if isinstance(entry["value"], (int, float)) and math.isfinite(entry["value"])
    ]


def _classes(made: Made, kind: ModelKind) -> tuple[str, ...]:
    if kind.name != "adapter" or not made.recipe.classifies:
        return ()
    try:
        found = read_json(made.run.folder / "train" / "classes.json")
    except (OSError, ValueError):
        return ()
    return tuple(map(str, found))


def _tags(methods: list[str]) -> list[str]:
    """Return the methods' own names: what chose, cleaned, tuned and examined, without the plain parts of any run."""
    plain = {"train.sft", "tuner.full", "train.classify"}
    return list(
        dict.fromkeys(
            m.partition(".")[2] for m in methods if m not in plain and not m.startswith("evaluate.")
        )
    )
