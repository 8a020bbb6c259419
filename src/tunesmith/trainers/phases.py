"""A training in phases (LT-SFT) under the trainer's loop: found again, continued, and counted as one.

The mixin keeps each phase in a folder of its own and knows whether the base and its settings are the same; here the
rest of what a training is made of (rows, rates, lengths) is compared too, and steps and tokens are counted on.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerState

from tunesmith.core.errors import TrainingError
from tunesmith.core.files import read_json, write_json
from tunesmith.trainers.checkpoints import MARKER

__all__ = ["find", "train"]

IDENTITY = "phases.json"


def find(folder: Path, identity: dict[str, Any], resume: bool) -> bool:
    """Say whether a training in phases in ``folder`` is to be continued.

    Args:
        folder: where its phases are kept.
        identity: what the training is made of; must equal what was written when it began.
        resume: False removes every phase.

    Raises:
        TrainingError: the phases belong to another training; names what differs.
    """
    from tunesmith.trainers.lottery import can_continue

    if not resume:
        for kind in ("dense", "sparse"):
            for path in folder.glob(f"{kind}-*"):
                shutil.rmtree(path)
        return False
    if not can_continue(folder) or not (folder / IDENTITY).exists():
        return False
    theirs = read_json(folder / IDENTITY)
    different = sorted(key for key in {*theirs, *identity} if theirs.get(key) != identity.get(key))
    if different:
        raise TrainingError(
            f"{folder} holds phases of another training; it differs in: {', '.join(different)}. Give another folder, "
            "or resume=False to discard them."
        )
    return True


def train(
    trainer: Any, folder: Path, identity: dict[str, Any], resume: bool, reporter: Any, clock: Any
) -> None:
    """Run the phases that are left.

    Args:
        trainer: with `LotteryTicketMixin` in front.
        folder: of the training.
        identity: see `find`.
        resume: what `find` said.
        reporter: the loop's `Reporter`.
        clock: the loop's `Stopwatch`.
    """
    if resume:
        _count_earlier(trainer, folder, reporter, clock)
    elif trainer.is_world_process_zero():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / IDENTITY, identity)
    trainer.add_callback(_Phases(trainer, reporter))
    trainer.train(resume_from_checkpoint=True if resume else None)


class _Phases(TrainerCallback):
    """When a phase begins after another one, count on from the other's end."""

    def __init__(self, trainer: Any, reporter: Any) -> None:
        self.trainer, self.reporter = trainer, reporter
        self.ended: Any = None

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the trainer at the end of each phase."""
        self.ended = state

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the trainer at the beginning of each phase."""
        if self.ended is not None:
            self.reporter.end_phase(self.ended)
            self.ended = None


def _count_earlier(trainer: Any, folder: Path, reporter: Any, clock: Any) -> None:
    """Take over steps, tokens and seconds of the phases that are finished, and of the newest checkpoint."""
    names = [
        f"{kind}-{i}" for i in range(1, 1 + trainer.lottery.n_iterations) for kind in ("dense", "sparse")
    ]
    started = [name for name in names if (folder / name).is_dir()]
    newest: Path | None = None
    for name in started:
        steps = [path.parent for path in (folder / name).glob(f"checkpoint-*/{MARKER}")]
        last = max(steps, key=lambda path: int(path.name.rsplit("-", 1)[1]), default=None)
        newest = last or newest
        if last is not None and name != started[-1]:
            reporter.end_phase(TrainerState.load_from_json(str(last / "trainer_state.json")))
    if newest is not None:
        marker = read_json(newest / MARKER)
        trainer.trained_tokens, clock.before = marker["trained_tokens"], marker["seconds"]
