"""What the trainings of language models and of classifiers share: checks, settings, identity, and going on."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tunesmith.core.errors import ParameterError, nearest

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["base_arguments", "base_settings", "check_schedule", "go_on", "model_mark", "rows_hash"]


def base_settings(
    owner: Any,
    *,
    epochs: float,
    learning_rate: float,
    batch_size: int,
    accumulate: int,
    schedule: str,
    warmup: float,
    save_every: int,
    seed: int,
) -> dict[str, Any]:
    """Return the fields of ``TrainingArguments`` that our names stand for.

    Raises:
        ParameterError: a value is outside its set; ``owner`` is whose parameter it is.
    """
    for name, value in (("batch_size", batch_size), ("accumulate", accumulate), ("save_every", save_every)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ParameterError(name, owner, "an int of at least 1", value)
    for name, number in (("epochs", epochs), ("learning_rate", learning_rate)):
        if not number > 0:
            raise ParameterError(name, owner, "a float above 0", number)
    if not 0 <= warmup < 1:
        raise ParameterError("warmup", owner, "a float in [0, 1)", warmup)
    check_schedule(schedule, owner)
    return {
        "num_train_epochs": epochs,
        "learning_rate": learning_rate,
        "per_device_train_batch_size": batch_size,
        "gradient_accumulation_steps": accumulate,
        "lr_scheduler_type": schedule,
        "warmup_steps": warmup,
        "save_steps": save_every,
        "seed": seed,
    }


def check_schedule(schedule: str, owner: Any) -> None:
    """Raise ParameterError unless transformers has a learning-rate schedule of that name."""
    from transformers import SchedulerType

    names = sorted(kind.value for kind in SchedulerType)
    if schedule not in names:
        raise ParameterError(
            "schedule", owner, f"one of {', '.join(names)}{nearest(schedule, names)}", schedule
        )


def base_arguments(folder: Path, on_cpu: bool, validation: Any) -> dict[str, Any]:
    """Return the fields of ``TrainingArguments`` that are always ours: silent, logged and saved by steps."""
    from tunesmith.trainers.checkpoints import KEPT

    return {
        "output_dir": str(folder),
        "use_cpu": on_cpu,
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "steps",
        "save_total_limit": KEPT,
        "eval_strategy": "no" if validation is None else "epoch",
        "include_num_input_tokens_seen": "non_padding",
        "dataloader_pin_memory": not on_cpu,
    }


def rows_hash(rows: Dataset) -> str:
    """Return a hash of ids and labels in order; about 1 GB of tokens a second.

    Args:
        rows: ``input_ids`` lists of ints; ``labels`` lists of ints, or an int per row.
    """
    digest = hashlib.sha256()
    for name in ("input_ids", "labels"):
        for chunk in rows.with_format("arrow").select_columns(name).iter(10_000):
            column = chunk.column(0).combine_chunks()
            if hasattr(column, "offsets"):
                digest.update(np.diff(column.offsets.to_numpy()).astype(np.int64).tobytes())
                column = column.flatten()
            digest.update(column.to_numpy().astype(np.int32).tobytes())
    return digest.hexdigest()


def model_mark(model: Any) -> str:
    """Return what a model is known again by in a checkpoint's identity."""
    return f"{type(model).__name__}, {model.dtype}, {model.num_parameters():,} parameters"


def go_on(trainer: Any, checkpoint: Path | None) -> None:
    """Train, from a checkpoint where there is one.

    Args:
        trainer: with ``restore(checkpoint)``, which loads weights and state without training on.
        checkpoint: a whole one, or None.
    """
    if checkpoint is not None:
        from transformers import TrainerState

        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        if state.global_step >= state.max_steps:  # killed after the last step: one more would be one too many
            trainer.restore(checkpoint)
            trainer.state = state
            return
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
