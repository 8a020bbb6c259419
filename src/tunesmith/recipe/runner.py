"""Run a recipe: decide what is to do, do it stage by stage, and continue where a killed run stood.

``data → curate → (map) → arms: select → train → evaluate → compare → export → report, cards``. The stages
themselves are in `tunesmith.recipe.stages`; which of them are done is known by `tunesmith.recipe.workspace`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tunesmith import __version__
from tunesmith.core.errors import ConfigError, RunDirectoryError, TunesmithError
from tunesmith.core.events import EventLog
from tunesmith.core.files import (
    atomic_open,
    read_json,
    write_json,
)
from tunesmith.recipe import stages
from tunesmith.recipe.arms import ArmRun
from tunesmith.recipe.checking import check
from tunesmith.recipe.compare import baseline_arm, compare_arms
from tunesmith.recipe.curating import depends_on
from tunesmith.recipe.early import build_verdict, comparable_arms, ended_arms, window_of
from tunesmith.recipe.hashes import source_hashes
from tunesmith.recipe.loading import Arm, LoadedRecipe, expand, load, lock
from tunesmith.recipe.schema import Recipe
from tunesmith.recipe.workspace import RECIPE, RunDirectory

__all__ = ["RunResult", "run"]

HASHES = "hashes.json"
BASE = "base"


@dataclass(frozen=True)
class RunResult:
    """What a finished run left.

    Attributes:
        directory: the run directory.
        report: the HTML report in it.
        summary: one row per arm with its metrics (mean over seeds), rows and cost.
    """

    directory: Path
    report: Path
    summary: list[dict[str, Any]] = field(default_factory=list)


def run(
    recipe: Recipe | LoadedRecipe | str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    overrides: Sequence[str] = (),
    listeners: Iterable[Callable[[dict[str, Any]], None]] = (),
) -> RunResult:
    """Run a recipe in a directory; running again into the same directory continues it.

    A stage whose inputs did not change is not repeated, and a run killed at any point continues where it stood
    and ends equal to a straight run. The report is written from the event log even when a stage fails.

    Args:
        recipe: a recipe object, a loaded recipe, or the path of a YAML file.
        output: the run directory.
        overrides: ``"select.budget=10%"`` and the like, applied to a recipe read from a file.
        listeners: called with every event as it is written.

    Returns:
        The directory, its report and a summary row per arm.

    Raises:
        ConfigError: the recipe is not valid.
        RunDirectoryError: the directory is in use, holds something else, or its data changed.
        TunesmithError: a stage failed; the message says which data, model or parameter is at fault.
    """
    loaded = recipe if isinstance(recipe, LoadedRecipe) else load(recipe, list(overrides))
    problems = check(loaded)
    if problems:
        raise ConfigError("\n".join(str(problem) for problem in problems))
    directory = RunDirectory(output)
    _silence_bars()
    with directory.lock():
        log = EventLog(directory.path / "events.jsonl", list(listeners))
        log.emit("run", status="started", name=loaded.recipe.name, version=__version__)
        try:
            summary = _Run(loaded, directory, log).execute()
            log.emit("run", status="finished")
        except BaseException as error:
            log.emit("run", status="failed", error=f"{type(error).__name__}: {error}")
            _report_after_failure(directory, log)
            raise
        report = _report(directory)
        _cards(directory, loaded.recipe, log)
        return RunResult(directory.path, report, summary)


class _Run:
    """The stages of one run and the hashes that tie each to what it depends on."""

    def __init__(self, loaded: LoadedRecipe, directory: RunDirectory, log: EventLog) -> None:
        self.recipe = loaded.recipe
        self.directory, self.log = directory, log
        self.work = stages.Work(self.recipe, directory.path, log)
        self.hashes = source_hashes(self.recipe)
        self.cluster_key: dict[str, str] = {}
        self.selected: dict[str, ArmRun] = {}
        self._refuse_changed_data()
        with atomic_open(directory.path / RECIPE) as stream:
            stream.write(lock(loaded, hashes=self.hashes))
        write_json(directory.path / HASHES, self.hashes)

    def _refuse_changed_data(self) -> None:
        path = self.directory.path / HASHES
        before = read_json(path) if path.exists() else {}
        for name in ("train", "validation", "test"):
            if name in before and before[name] != self.hashes.get(name):
                raise RunDirectoryError(
                    f"The {name} data changed since the run in {self.directory.path} began (its hash was "
                    f"{before[name][:12]}, now it is {str(self.hashes.get(name))[:12]}), so it cannot be "
                    "continued. Bring the former data back, or start a new run with another output=DIR."
                )

    def execute(self) -> list[dict[str, Any]]:
        recipe, stage, work = self.recipe, self.directory.stage, self.work
        common = {"version": __version__, "seed": recipe.seed}
        data_key = stage(
            self.log,
            "data",
            "data",
            {
                **common,
                "data": recipe.data.model_dump(),
                "hashes": self.hashes,
                "split": bool(recipe.evaluate),
            },
            partial(stages.build_data, work),
        )
        pool_key = stage(
            self.log,
            "curate",
            "curate",
            {
                "data": data_key,
                "curate": [spec.model_dump() for spec in recipe.curate],
                **depends_on(recipe, self.hashes),
            },
            partial(stages.build_curate, work),
        )
        features = {
            **recipe.features.model_dump(),
            "scorer": self.hashes.get("scorer"),
            "target": self.hashes.get("validation"),
        }
        upstream = {"pool": pool_key, "features": features}
        self.cluster_key = self._cluster(work, "cluster", upstream)
        if self._wants_map():
            inputs = {"pool": pool_key, **features, **self.cluster_key}
            stage(self.log, "map", "map", inputs, partial(stages.build_map, work))
        seeds = recipe.compare.seeds if recipe.compare else [recipe.seed]
        if recipe.evaluate and (recipe.compare is None or recipe.compare.base):
            self._evaluate(BASE, None, None, {"model": self.hashes["model"], "data": data_key})
        arms = expand(recipe)
        ended = self._end_early(arms, seeds, upstream)
        for arm in arms:
            if arm.name not in (ended or {}):
                for seed in seeds:
                    self._finish(self._select(arm, seed, upstream))
        summary, best = compare_arms(
            self.directory.path, recipe, [arm.name for arm in arms], seeds, self.log, ended
        )
        if recipe.export is not None and recipe.train is not None:
            self._export(best, seeds[0])
        if recipe.train is not None:
            for place in range(len(recipe.audit)):
                self._audit(best, seeds[0], place)
        for row in summary:
            self.log.emit("result", **row)
        return summary

    def _cluster(self, work: stages.Work, folder: str, upstream: dict[str, Any]) -> dict[str, str]:
        """Run the stage ``cluster`` where the recipe has one; return its key for the stages after it."""
        spec = work.recipe.cluster
        if spec is None:
            return {}
        inputs = {**upstream, "cluster": spec.model_dump(), "seed": work.recipe.seed}
        key = self.directory.stage(work.log, "cluster", folder, inputs, partial(stages.build_cluster, work))
        work.clusters = self.directory.path / folder
        return {"cluster": key}

    def _wants_map(self) -> bool:
        selects = [arm.recipe.select for arm in expand(self.recipe)]
        embeds = any(
            select is not None and "embedding" in stages.make_selector(arm.recipe, 0).required_features()
            for arm, select in zip(expand(self.recipe), selects, strict=True)
        )
        return embeds or (any(selects) and len(self.work.dataset) <= stages.MAP_LIMIT)

    def _end_early(
        self, arms: list[Arm], seeds: list[int], upstream: dict[str, Any]
    ) -> dict[str, Any] | None:
        """Train the arms that can be judged to the end of the window, and return those that end there, and why."""
        share = window_of(self.recipe)
        if share is None:
            return None
        from tunesmith.recipe.pilot import build_pilot

        keys: dict[str, Any] = {}
        pilots: dict[str, dict[str, list[Path]]] = {}
        for group in comparable_arms(arms):
            epochs = min(arm.recipe.train.epochs for arm in group if arm.recipe.train is not None)
            folders = pilots[group[0].name] = {arm.name: [] for arm in group}
            for arm in group:
                for seed in seeds:
                    run = self._select(arm, seed, upstream)
                    window = {"share": share, "epochs": epochs}
                    keys[run.folder] = self.directory.stage(
                        run.work.log,
                        "early",
                        f"{run.folder}/early",
                        {**self._training_inputs(run), "window": window},
                        partial(
                            build_pilot,
                            run.work,
                            selection=run.selection,
                            seed=seed,
                            share=share,
                            epochs=epochs,
                            arm=arm.name,
                        ),
                    )
                    folders[arm.name].append(self.directory.path / run.folder / "early")
        baseline = baseline_arm(self.recipe, [arm.name for arm in arms])
        self.directory.stage(
            self.log,
            "early",
            "early",
            {"pilots": keys, "baseline": baseline},
            partial(build_verdict, runs=pilots, baseline=baseline),
        )
        return ended_arms(self.directory.path / "early", self.directory.path, self.log)

    def _select(self, arm: Arm, seed: int, upstream: dict[str, Any]) -> ArmRun:
        """Choose the rows of an arm, once in a run."""
        folder = f"arms/{arm.name}/seed-{seed}"
        if folder in self.selected:
            return self.selected[folder]
        recipe = arm.recipe
        log = self.log.with_context(arm=arm.name, seed=seed)
        work = stages.Work(recipe, self.directory.path, log)
        work.dataset = self.work.dataset
        shared = recipe.cluster == self.recipe.cluster
        if shared:
            work.clusters = self.work.clusters
        own = f"arms/{arm.name}/cluster"
        upstream = upstream | (self.cluster_key if shared else self._cluster(work, own, upstream))
        if shared and recipe.features == self.recipe.features:
            work.pool = self.work.pool
        spec = recipe.select
        key = self.directory.stage(
            log,
            "select",
            f"{folder}/select",
            {**upstream, "select": spec.model_dump() if spec else None, "seed": seed, "root": recipe.seed},
            partial(stages.build_select, work, seed=seed),
        )
        selection = self.directory.path / folder / "select"
        if recipe.targets is not None:
            key = self._rewrite(work, f"{folder}/targets", selection, key)
        self.selected[folder] = ArmRun(arm, seed, folder, work, key, selection)
        return self.selected[folder]

    def _rewrite(self, work: stages.Work, folder: str, selection: Path, key: str) -> str:
        """Rewrite the answers of chosen rows; return the key of the rows as they now are."""
        recipe = work.recipe
        assert recipe.targets is not None
        assert recipe.model is not None
        inputs = {
            "select": key,
            "targets": recipe.targets.model_dump(),
            "model": [self.hashes["model"], recipe.model.dtype],
            "root": recipe.seed,
        }
        build = partial(stages.build_targets, work, selection=selection)
        key = self.directory.stage(work.log, "targets", folder, inputs, build)
        work.targets = self.directory.path / folder
        return key

    def _training_inputs(self, run: ArmRun) -> dict[str, Any]:
        recipe = run.arm.recipe
        assert recipe.train is not None
        return {
            "select": run.key,
            "model": self.hashes["model"],
            "dtype": recipe.model.dtype if recipe.model else None,
            "tuner": recipe.tuner.model_dump(),
            "train": recipe.train.model_dump(),
            "validation": self.hashes.get("validation"),
            "limits": recipe.preflight.model_dump(),
        }

    def _finish(self, run: ArmRun) -> None:
        """Train and evaluate an arm."""
        if run.arm.recipe.train is None:
            return
        pilot = self.directory.path / run.folder / "early"
        build: Callable[..., dict[str, Any]] = stages.build_train
        if window_of(self.recipe) is not None:
            from tunesmith.recipe.pilot import build_rest

            build = partial(build_rest, pilot=pilot)
        key = self.directory.stage(
            run.work.log,
            "train",
            f"{run.folder}/train",
            self._training_inputs(run),
            partial(build, run.work, selection=run.selection, seed=run.seed),
        )
        if run.arm.recipe.evaluate:
            tuned = self.directory.path / run.folder / "train" / "tuned"
            self._evaluate(run.arm.name, run.seed, tuned, {"train": key})

    def _evaluate(self, arm: str, seed: int | None, tuned: Path | None, inputs: dict[str, Any]) -> None:
        folder = f"arms/{arm}/evaluate" if seed is None else f"arms/{arm}/seed-{seed}/evaluate"
        log = self.log.with_context(arm=arm, **({} if seed is None else {"seed": seed}))
        work = stages.Work(self.recipe, self.directory.path, log)
        inputs = {
            **inputs,
            "evaluate": [spec.model_dump() for spec in self.recipe.evaluate],
            "test": self.hashes.get("test") or self.hashes["train"],
        }
        self.directory.stage(
            log, "evaluate", folder, inputs, partial(stages.build_evaluate, work, tuned=tuned)
        )

    def _audit(self, arm: str, seed: int, place: int) -> None:
        source = f"arms/{arm}/seed-{seed}/train"
        done = read_json(self.directory.path / source / "DONE.json")
        spec = self.recipe.audit[place]
        tuned = self.directory.path / source / "tuned"
        build = partial(stages.build_audit, self.work, tuned=tuned, place=place, source=source)
        inputs = {"train": done["key"], "audit": spec.model_dump(), "root": self.recipe.seed}
        self.directory.stage(self.log, f"audit.{spec.type}", f"audit/{place}-{spec.type}", inputs, build)

    def _export(self, arm: str, seed: int) -> None:
        source = f"arms/{arm}/seed-{seed}/train"
        done = read_json(self.directory.path / source / "DONE.json")
        assert self.recipe.export is not None
        self.directory.stage(
            self.log,
            "export",
            "model",
            {"train": done["key"], "export": self.recipe.export.model_dump()},
            partial(
                stages.build_export, self.work, tuned=self.directory.path / source / "tuned", source=source
            ),
        )


def _silence_bars() -> None:
    """Switch off the libraries' own progress bars; the event log reports instead."""
    import datasets
    from transformers.utils import logging

    datasets.disable_progress_bars()
    logging.disable_progress_bar()


def _report(directory: RunDirectory) -> Path:
    from tunesmith.recipe.report import write_report

    return write_report(directory.path)


def _cards(directory: RunDirectory, recipe: Recipe, log: EventLog) -> None:
    from tunesmith.recipe.cards import write_cards

    write_cards(directory.path, recipe, log)


def _report_after_failure(directory: RunDirectory, log: EventLog) -> None:
    """Write the report of a run that failed; a failure of the report must not hide the first one."""
    try:
        _report(directory)
    except (TunesmithError, OSError, ValueError, KeyError, RuntimeError) as error:
        log.warn(f"The report could not be written either: {error}")
