"""Train an arm to the end of its early window, and go on from there later: the first part of the very same training."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from pathlib import Path
from typing import Any

from tunesmith.core.errors import ConfigError
from tunesmith.core.files import write_json
from tunesmith.recipe import stages
from tunesmith.trainers.recipe_guide.ranking import MIN_RECORDS
from tunesmith.trainers.recipe_guide.signals import EarlySignalCallback

__all__ = ["build_pilot", "build_rest"]


class WindowReached(Exception):
    """The window's last step is done and its checkpoint is whole."""


class Pilot(EarlySignalCallback):
    """Record the window, save a checkpoint at its end, and leave the training there.

    Args:
        path: the file of records.
        share: of the samples of ``epochs`` passes.
        epochs: passes of the shortest arm that this one is compared with: all have the same window.
        arm: for messages.
    """

    def __init__(self, path: Path, share: float, epochs: float, arm: str) -> None:
        super().__init__(path)
        self.share, self.epochs, self.arm = share, epochs, arm
        self.steps = 0

    def _measure(self, args: Any, state: Any, loader: Any) -> None:
        super()._measure(args, state, loader)
        whole = self.epochs * self.n_examples
        self.samples = self.share * whole
        while self.samples_seen(self.steps + 1) <= self.samples:
            self.steps += 1
        if self.steps < MIN_RECORDS:
            needed = self.samples_seen(MIN_RECORDS) / whole
            advice = (
                f"Set compare.early_stop to {-(-needed // 0.01) / 100:.2f} or more, or leave it out."
                if needed < 1
                else "Leave compare.early_stop out: the runs are too short for it."
            )
            raise ConfigError(
                f"The arm '{self.arm}' takes {self.steps} optimiser steps in the first {self.share:.0%} of the "
                f"samples, and its signals need {MIN_RECORDS}. {advice}"
            )

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the trainer: a training that was killed after its window has nothing left to do here."""
        super().on_train_begin(args, state, control, **kwargs)
        if state.global_step >= self.steps:
            raise WindowReached

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the trainer after each step: the last one of the window is saved."""
        super().on_step_end(args, state, control, **kwargs)
        if state.global_step >= self.steps:
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the trainer when a checkpoint is whole."""
        if state.global_step >= self.steps:
            raise WindowReached


def build_pilot(
    work: stages.Work, folder: Path, selection: Path, seed: int, share: float, epochs: float, arm: str
) -> dict[str, Any]:
    """Train to the end of the window as `stages.build_train` would; leaves the records and a checkpoint.

    Args:
        work: of the arm.
        folder: of this stage.
        selection: folder of the chosen rows.
        seed: of the run.
        share: see `Pilot`.
        epochs: see `Pilot`.
        arm: see `Pilot`.

    Raises:
        ConfigError: the window has fewer than ten optimiser steps.
    """
    assert work.recipe.train is not None
    pilot = Pilot(folder / "signals.jsonl", share, epochs, arm)
    train = work.recipe.train.model_copy(update={"callbacks": [pilot]})
    mine = dataclasses.replace(work, recipe=work.recipe.model_copy(update={"train": train}))
    mine.dataset = work.dataset
    with contextlib.suppress(WindowReached):
        stages.build_train(mine, folder, selection=selection, seed=seed)
    facts = {"samples": pilot.samples, "steps": len(pilot.records)}
    write_json(folder / "window.json", facts)
    return facts


def build_rest(work: stages.Work, folder: Path, selection: Path, seed: int, pilot: Path) -> dict[str, Any]:
    """Train from the end of the window on, as `stages.build_train` would; from the start if the checkpoint is gone."""
    mine, theirs = folder / "checkpoints", pilot / "checkpoints"
    if theirs.is_dir() and not mine.exists():
        os.replace(theirs, mine)
    return stages.build_train(work, folder, selection=selection, seed=seed)
