"""What a card says of a run, gathered from its files; what is calculated comes from the report's own functions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tunesmith import papers
from tunesmith.core.errors import RunDirectoryError, UnknownNameError
from tunesmith.core.wording import number
from tunesmith.recipe.loading import expand
from tunesmith.recipe.report.answer import best_arm, metrics_of, outcome
from tunesmith.recipe.report.files import ArmRun, RunFiles
from tunesmith.recipe.schema import Recipe

__all__ = ["Made", "finished_run", "is_run", "methods_of", "papers_of"]

# Ways to tune and to learn that a recipe names by a key of their own, with the paper's short name.
_TUNERS = {
    "mosa": "mosa",
    "lofit": "lofit",
    "iaa": "iaa-retrieval",
    "hft": "hft",
    "locft": "locft-bf",
    "lt_sft": "composable-sft",
    "roste": "roste",
}
_OBJECTIVES = {"core_tuning": "core-tuning", "dr_tune": "dr-tune"}
_AUDITS = {"backdoor": "invertune", "novelty": "cge", "drift": "seven-stage-pipeline"}


@dataclass
class Made:
    """The model that a run ends with, and how it came about.

    Attributes:
        files: of the run.
        arm: the arm that was exported, or the best one.
        seed: its first seed.
    """

    files: RunFiles
    arm: str
    seed: int

    @cached_property
    def run(self) -> ArmRun:
        """The arm under that seed."""
        return next(run for run in self.files.of_arm(self.arm) if run.seed == self.seed)

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe of the arm itself, with what ``compare`` sets for it."""
        try:
            arms = {arm.name: arm.recipe for arm in expand(Recipe.model_validate(self.files.recipe))}
        except (ValidationError, ValueError) as error:
            raise RunDirectoryError(
                f"The recipe in {self.files.root / 'recipe.lock.yaml'} cannot be read: {error}"
            ) from error
        return arms.get(self.arm) or next(iter(arms.values()))

    @property
    def export(self) -> dict[str, Any] | None:
        """What the stage ``export`` wrote about the model."""
        return self.files.object(self.files.root / "model" / "export.json")

    @property
    def weights(self) -> Path | None:
        """Folder of the model: ``model/weights`` after an export, else what the training left."""
        places = [self.files.root / "model" / "weights", self.run.folder / "train" / "tuned"]
        return next((place for place in places if place.is_dir()), None)


def is_run(path: Path) -> bool:
    """Say whether a folder is the directory of a run."""
    return any((path / name).is_file() for name in ("events.jsonl", "recipe.lock.yaml"))


def finished_run(path: Path) -> Made:
    """Return what a finished run made.

    Raises:
        RunDirectoryError: it is no run, it failed or has not finished, or its recipe is missing.
    """
    if not path.is_dir():
        raise RunDirectoryError(f"There is no run directory {path}.")
    if not is_run(path):
        raise RunDirectoryError(
            f"The folder {path} holds no run: neither events.jsonl nor recipe.lock.yaml is there."
        )
    files = RunFiles(path)
    status, sentence = outcome(files)
    if status != "finished":
        raise RunDirectoryError(
            f"No card is written of {path}: a card is to be published, and this run is not whole. {sentence} "
            "Run the same command again to continue it, then write the card."
        )
    if not files.recipe:
        raise RunDirectoryError(f"The recipe in {path / 'recipe.lock.yaml'} is missing or damaged.")
    arm, seed = _chosen(files)
    return Made(files, arm, seed)


def _chosen(files: RunFiles) -> tuple[str, int]:
    """Return the arm and seed that were exported, or else the best arm and its first seed."""
    exported = files.object(files.root / "model" / "export.json") or {}
    found = re.fullmatch(r"arms/(.+)/seed-(-?\d+)/train", str(exported.get("from", "")))
    if found and any((run.arm, run.seed) == (found[1], int(found[2])) for run in files.runs):
        return found[1], int(found[2])
    best = (files.compare or {}).get("best")
    if best is None and (metrics := metrics_of(files)):  # of a run before this was written down
        best = best_arm(files, metrics[0])
    arm = best if best in files.arms else next(iter(files.arms), None)
    if arm is None:
        raise RunDirectoryError(
            f"The run in {files.root} chose no rows and trained nothing: there is nothing for a card."
        )
    seeds = (files.compare or {}).get("seeds") or []
    runs = files.of_arm(arm)
    first = next((run.seed for seed in seeds for run in runs if run.seed == seed), runs[0].seed)
    assert first is not None
    return arm, first


def methods_of(recipe: Recipe) -> list[str]:
    """Return the names of the methods that a recipe uses, as the registry has them where they are registered."""
    found = [f"curate.{spec.type}" for spec in recipe.curate]
    for family in ("cluster", "select", "targets"):
        spec = getattr(recipe, family)
        found += [f"{family}.{spec.type}"] if spec is not None else []
    if recipe.train is not None:
        found += [f"tuner.{recipe.tuner.type}", f"train.{recipe.train.type}"]
        given = recipe.train.parameters
        found += [f"objective.{given['objective']}"] if isinstance(given.get("objective"), str) else []
        found += ["train.masked"] if "masked" in given else []
        online = given.get("online")
        found += [f"online.{online.get('policy', 'uds')}"] if isinstance(online, dict) else []
    found += [f"evaluate.{spec.type}" for spec in recipe.evaluate]
    return list(dict.fromkeys([*found, *(f"audit.{spec.type}" for spec in recipe.audit)]))


def papers_of(methods: Iterable[str]) -> list[dict[str, str]]:
    """Return title, arXiv id and what it was used for, of each paper behind the methods."""
    found: dict[str, dict[str, str]] = {}
    for name in methods:
        for title, arxiv in _papers(name):
            entry = found.setdefault(arxiv, {"title": title, "arxiv": arxiv, "used": name})
            if name not in entry["used"].split(", "):
                entry["used"] += f", {name}"
    return list(found.values())


def _papers(method: str) -> Iterator[tuple[str, str]]:
    family, _, name = method.partition(".")
    slug = {"tuner": _TUNERS, "objective": _OBJECTIVES, "audit": _AUDITS}.get(family, {}).get(name)
    slug = "masked-thought" if method == "train.masked" else slug
    try:
        card = papers.get(slug) if slug else papers.of_method(method) if family != "tuner" else None
    except UnknownNameError:  # of another package
        card = None
    if card is not None:
        yield card.title, card.arxiv
    elif family == "tuner" and name != "full":
        from tunesmith.tuners import catalogue

        try:
            entry = catalogue.get(name)
        except UnknownNameError:
            return
        if entry.arxiv:
            yield entry.title, entry.arxiv


def hyperparameters(made: Made) -> list[tuple[str, str]]:
    """Return what the training was set to, and what the log says the learning rate became."""
    recipe = made.recipe
    train = recipe.train
    if train is None:
        return []
    rates = [
        event["learning_rate"]
        for event in made.files.events_of("metric", made.arm, made.seed)
        if isinstance(event.get("learning_rate"), float)
    ]
    values: dict[str, Any] = {"tuner": recipe.tuner.type, **recipe.tuner.parameters}
    values |= {"trainer": train.type, "epochs": train.epochs, "learning rate": train.learning_rate}
    if train.learning_rate is None:
        values["learning rate"] = f"by default, {max(rates):.3g} at its highest" if rates else "by default"
    values |= {
        "schedule": f"{train.schedule}, warm-up {train.warmup:g} of the steps",
        "batch size": train.batch_size * train.accumulate,
        "longest row": f"{number(train.max_length)} tokens",
        "loss on": train.loss,
        **train.parameters,
        "precision": recipe.model.dtype if recipe.model else None,
    }
    seeds = [run.seed for run in made.files.of_arm(made.arm)]
    values["seed"] = str(made.seed) + (f" (of {', '.join(map(str, seeds))})" if len(seeds) > 1 else "")
    hardware = (made.run.train or {}).get("hardware")
    values["hardware"] = hardware or "not recorded"
    return [(name, value if isinstance(value, str) else repr(value)) for name, value in values.items()]
