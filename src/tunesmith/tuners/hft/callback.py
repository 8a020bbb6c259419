"""A guard for trainings of a half: the optimizer fits the round, and checkpoints say which half they are of."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from tunesmith.core.errors import TrainingError
from tunesmith.core.files import read_json

if TYPE_CHECKING:
    from tunesmith.tuners.hft.rounds import HalfFineTuning

__all__ = ["HalfFineTuningCallback"]


class HalfFineTuningCallback(TrainerCallback):
    """Made by `HalfFineTuning.callback`; for any trainer that stands on ``transformers.Trainer``.

    Raises:
        TrainingError: when the training begins, if the flags are not those of the round, the optimizer holds frozen
            weights, or the checkpoint it resumes from is of another half.
    """

    def __init__(self, half: HalfFineTuning) -> None:
        self.half = half

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the trainer after its optimizer is made and a checkpoint is loaded."""
        half, trained = self.half, self.half.trained
        wrong = [name for name, p in half.model.named_parameters() if p.requires_grad != (name in trained)]
        if wrong:
            raise TrainingError(
                f"{len(wrong)} parameters, {wrong[0]} first, are not as the round says: something has "
                "set their requires_grad after new_round(). Call new_round() or apply() after it."
            )
        held = {id(p) for group in kwargs["optimizer"].param_groups for p in group["params"]}
        stale = [name for name, p in half.model.named_parameters() if name not in trained and id(p) in held]
        if stale:
            raise TrainingError(
                f"The optimizer holds {len(stale)} frozen parameters, {stale[0]} first: it was made before the round, "
                "and its decay and moments would move them. Call new_round() first, then make the trainer."
            )
        if args.gradient_checkpointing and not half.train_outside:
            half.model.enable_input_require_grads()  # else a checkpointed layer sees no input that needs a gradient
        if state.global_step:
            self._compare(Path(args.output_dir, f"checkpoint-{state.global_step}"))

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the trainer when a checkpoint is written."""
        if state.is_world_process_zero:
            self.half.save(Path(args.output_dir, f"checkpoint-{state.global_step}"))

    def _compare(self, checkpoint: Path) -> None:
        from tunesmith.tuners.hft.rounds import FILE

        path = checkpoint / FILE
        if path.exists() and read_json(path)["rounds"][-1:] != self.half.state_dict()["rounds"][-1:]:
            raise TrainingError(
                f"{checkpoint} is of another half than the current round: its optimizer state belongs to other "
                "weights. Take its rounds up with HalfFineTuning.load(model, checkpoint) before the trainer is made."
            )
