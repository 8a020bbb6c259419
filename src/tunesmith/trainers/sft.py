"""Supervised fine-tuning on TRL's ``SFTTrainer``: adapters of any PEFT kind or all weights, killable at any
point.

What is ours: rows come encoded and checked (`tunesmith.data.preflight`), so the trainer neither cuts nor
    filters;
seeds are set before adapters are initialised; a killed and continued training ends with the bytes of a
straight one; a loss that is not finite stops with the last good checkpoint in place.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.core.errors import ParameterError, TrainingError, nearest
from tunesmith.core.events import EventLog
from tunesmith.core.files import disk_errors, hash_json
from tunesmith.trainers._common import base_settings, model_mark, rows_hash
from tunesmith.trainers.plans import plan_of
from tunesmith.trainers.saving import load_tuned, save_tuned

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["SFTResult", "load_tuned", "save_tuned", "train_sft"]

# Fields of trl.SFTConfig that have a name of our own, or that would undo what the preflight has counted.
RENAMED = {
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "batch_size",
    "gradient_accumulation_steps": "accumulate",
    "lr_scheduler_type": "schedule",
    "warmup_steps": "warmup",
    "warmup_ratio": "warmup",
    "save_steps": "save_every",
    "data_seed": "seed",
}
OURS = frozenset(
    """
    output_dir do_train save_strategy save_only_model save_total_limit logging_steps logging_strategy
    logging_nan_inf_filter report_to disable_tqdm use_cpu bf16 fp16 eval_strategy eval_steps eval_on_start
    dataset_kwargs max_length packing padding_free truncation_mode completion_only_loss assistant_only_loss
    shuffle_dataset remove_unused_columns load_best_model_at_end resume_from_checkpoint ignore_data_skip
    include_num_input_tokens_seen push_to_hub eos_token chat_template_path
    """.split()  # noqa: SIM905  (a list of forty quoted names reads worse)
)


@dataclass
class SFTResult:
    """What a training left.

    Attributes:
        model: the tuned model (a ``PeftModel`` for adapters), in evaluation mode.
        steps: optimiser steps.
        epochs: passes over the rows.
        train_loss: mean of the steps' losses, in nats per trained token.
        losses: ``(step, loss, learning rate)`` of each step.
        tokens: tokens seen, without padding, over all epochs and processes.
        trained_tokens: those that were learned from.
        seconds: time in training, over all attempts of a killed and continued one.
        tokens_per_second: tokens by seconds.
        peak_memory_mb: peak memory of the process (of the GPU where there is one) in the last attempt, in MB
            of 10^6.
        candidates: rows that an online policy chose among (in this process); None without one.
        kept: those of them that were trained on.
        delta: the `tuners.SparseDelta` that LT-SFT learned, which is applied to ``model``; None with other methods.
    """

    model: Any
    steps: int
    epochs: float
    train_loss: float
    losses: list[tuple[int, float, float]]
    tokens: int
    trained_tokens: int
    seconds: float
    tokens_per_second: float
    peak_memory_mb: float
    candidates: int | None = None
    kept: int | None = None
    delta: Any | None = None


def train_sft(
    model: Any,
    tokenizer: Any,
    train: Dataset,
    *,
    output_dir: str | Path,
    tuner: dict[str, Any] | Any | None = None,
    epochs: float = 1.0,
    learning_rate: float | None = None,
    batch_size: int = 8,
    accumulate: int = 1,
    schedule: str = "cosine",
    warmup: float = 0.1,
    save_every: int = 50,
    seed: int = 0,
    validation: Dataset | None = None,
    online: dict[str, Any] | Any | None = None,
    consistency: float | None = None,
    masked: dict[str, Any] | Any | None = None,
    callbacks: Sequence[Any] = (),
    log: EventLog | None = None,
    resume: bool = True,
    **config_overrides: Any,
) -> SFTResult:
    """Train a causal language model on encoded rows.

    The weights' type decides how it computes: no mixed precision is added, and adapters are float32. Each
    step emits ``metric`` (step, loss, learning_rate, tokens) and ``progress``; validation emits ``metric``
    (step, validation_loss). Only the first process of a distributed run writes and emits. Memory beside the
    model: gradients and two moments per trained weight, and the logits of the trained positions of a batch.

    Args:
        model: from `engine.models.load_model`; adapters are put into it, and it is changed in place.
        tokenizer: the model's tokenizer.
        train: rows of `data.preflight.encode_dataset`.
        output_dir: for checkpoints; a whole one found there is continued.
        tuner: ``{"type": "lora", "r": 16}`` (see `tuners.peft_config`), a ``PeftConfig``, None or
            ``{"type": "full"}`` for all weights, or another name of `trainers.plans.PLANS`: ``hft``, ``locft``,
            ``lt_sft``, ``roste``.
        epochs: passes over the rows, > 0.
        learning_rate: peak; 2e-4 for adapters and 2e-5 for all weights by default.
        batch_size: rows per forward pass and process.
        accumulate: forward passes per optimiser step; ``accumulate=4, batch_size=2`` equals ``batch_size=8``.
        schedule: learning-rate schedule by its transformers name.
        warmup: share of the steps in which the rate rises, in [0, 1).
        save_every: steps between checkpoints.
        seed: set before adapters are initialised; equal seeds give equal tensors on one machine.
        validation: encoded rows whose loss is measured after each epoch (mean over batches).
        online: train on chosen rows of each batch: ``{"policy": "uds", "keep": 0.5}`` with the policy's parameters
            beside them, or an `OnlineSelection`. By default every row is trained on.
        consistency: weight of the loss between two passes over each batch (`ConsistencyMixin`; twice the time); by
            default 1 with MoSA, whose passes draw different parts, and 0 with everything else.
        masked: hide tokens of the answers in the input (masked thought): settings of `masked_thought.MaskedThought`,
            such as ``{"rate": 0.3, "mode": "random"}``.
        callbacks: further callbacks of the trainer, such as an `EarlySignalCallback`.
        log: event log.
        resume: continue from the last whole checkpoint; False discards what is there.
        **config_overrides: further fields of ``trl.SFTConfig``, for example ``gradient_checkpointing=True``,
            ``weight_decay`` or ``train_sampling_strategy="random"`` (``"group_by_length"`` by default).

    Returns:
        The result, with the tuned model.

    Raises:
        ParameterError: a parameter is outside its set, or ``target_modules`` names no module.
        UnknownNameError: PEFT has no such method.
        TrainingError: nothing to train on, the loss is not finite, or the checkpoints belong to another
            training.
    """
    log = EventLog() if log is None else log
    folder = Path(output_dir)
    plan = plan_of(tuner, train_sft)
    plan.ask_consistency(consistency, train_sft)
    hidden = None if masked is None else plan.ask_masking(masked)
    settings = base_settings(
        train_sft,
        epochs=epochs,
        learning_rate=plan.rate if learning_rate is None else learning_rate,
        batch_size=batch_size,
        accumulate=accumulate,
        schedule=schedule,
        warmup=warmup,
        save_every=save_every,
        seed=seed,
    )
    if len(train) == 0:
        raise TrainingError("There is nothing to train on: the encoded dataset has no rows.")
    overrides = {
        "train_sampling_strategy": "group_by_length",
        "gradient_checkpointing": False,
        **config_overrides,
    }
    settings |= _checked_overrides(overrides)
    selection = None
    if online is not None:
        from tunesmith.trainers.online import OnlineSelection

        selection = OnlineSelection.of(online, seed=seed)
        selection.rows(batch_size)
    identity = {
        "data": rows_hash(train),
        "tuner": plan.describe(),
        **({"consistency": plan.consistency} if plan.consistency else {}),
        **({} if hidden is None else {"masked": hash_json(hidden)}),
        "model": model_mark(model),
        **{key: str(value) for key, value in settings.items() if key != "save_steps"},
        **({} if selection is None else {"online": selection.describe()}),
    }
    from tunesmith.trainers._loop import run

    with disk_errors(folder):
        return run(
            model,
            tokenizer,
            train,
            folder,
            plan,
            settings,
            identity,
            validation,
            log,
            resume,
            selection,
            callbacks,
        )


def _checked_overrides(overrides: dict[str, Any]) -> dict[str, Any]:
    from trl import SFTConfig

    fields = {field.name for field in dataclasses.fields(SFTConfig) if field.init}
    own = [
        name for name in inspect.signature(train_sft).parameters if name not in ("model", "config_overrides")
    ]
    for name, value in overrides.items():
        if name in RENAMED:
            raise ParameterError(name, train_sft, f"given as '{RENAMED[name]}'", value)
        if name in OURS:
            raise ParameterError(
                name,
                train_sft,
                "left out: it is set by tunesmith, and changing it would void the preflight or resuming",
                value,
            )
        if name not in fields:
            near = nearest(name, [*own, *(fields - OURS - RENAMED.keys())])
            raise ParameterError(
                name, train_sft, f"a parameter of train_sft or a field of trl.SFTConfig.{near}", value
            )
    return overrides
