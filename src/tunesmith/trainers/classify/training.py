"""Train a classifier on encoded rows: any objective, any adapter, killable at any point."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import (
    DataCollatorWithPadding,
    PrinterCallback,
    TrainingArguments,
)

from tunesmith.core.errors import ParameterError, TrainingError
from tunesmith.core.events import EventLog
from tunesmith.core.files import disk_errors, hash_json
from tunesmith.core.seeds import seed_everything
from tunesmith.engine.silence import quiet
from tunesmith.trainers._common import base_arguments, base_settings, go_on, model_mark, rows_hash
from tunesmith.trainers._watch import Reporter, Stopwatch, peak_mb, reset_peak
from tunesmith.trainers.checkpoints import Marker, describe_last, find_checkpoint, finite_weights
from tunesmith.trainers.classify.moving import prepared, rate_of
from tunesmith.trainers.classify.objectives import OwnLossTrainer, objective_of
from tunesmith.trainers.sft import SFTResult

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["train_classifier"]


def train_classifier(
    model: Any,
    tokenizer: Any,
    train: Dataset,
    *,
    output_dir: str | Path,
    objective: str | dict[str, Any] = "cross_entropy",
    tuner: dict[str, Any] | None = None,
    epochs: float = 1.0,
    learning_rate: float | None = None,
    batch_size: int = 8,
    accumulate: int = 1,
    schedule: str = "cosine",
    warmup: float = 0.1,
    weight_decay: float = 0.0,
    save_every: int = 50,
    seed: int = 0,
    validation: Dataset | None = None,
    log: EventLog | None = None,
    resume: bool = True,
) -> SFTResult:
    """Train a transformers text classifier.

    ``accumulate=4, batch_size=2`` equals ``batch_size=8`` for every objective (see `PooledTrainer`). Memory beside the
    model: gradients and two moments per trained weight, and what the objective holds.

    Args:
        model: from `load_classifier_for`; changed in place.
        tokenizer: of the model.
        train: rows of `encode_classes`.
        output_dir: for checkpoints; a whole one found there is continued.
        objective: ``"cross_entropy"``, ``"core_tuning"``, ``"dr_tune"``, or a dict with ``type`` and parameters. The
            optimiser is AdamW, so DR-Tune's head has the encoder's rate unless ``head_lr_factor`` says otherwise, and
            its banks hold no more rows than there are.
        tuner: None or ``{"type": "full"}`` for all weights, ``{"type": "head"}`` for the head alone, ``{"type":
            "levi"}`` with the parameters of `models.LeviConfig` (its own loss, so no other objective), or a PEFT method
            with its parameters (the head is then trained beside it).
        epochs: passes over the rows, > 0.
        learning_rate: peak; by default 2e-5 for all weights, 2e-4 for adapters, 1e-3 for the head and LEVI.
        batch_size: rows per forward pass and process.
        accumulate: forward passes per optimiser step.
        schedule: learning-rate schedule by its transformers name.
        warmup: share of the steps in which the rate rises, in [0, 1).
        weight_decay: AdamW's.
        save_every: steps between checkpoints.
        seed: of the order of rows, of dropout and of whatever the objective draws.
        validation: encoded rows whose cross-entropy is measured after each epoch.
        log: event log.
        resume: continue from the last whole checkpoint; False discards what is there.

    Returns:
        The result; ``trained_tokens`` counts the labels learned from.

    Raises:
        ParameterError: a parameter is outside its set.
        UnknownNameError: there is no such objective or tuner.
        TrainingError: nothing to train on, the loss is not finite, or the checkpoints belong to another training.
    """
    log = EventLog() if log is None else log
    kind, values = objective_of(objective, train_classifier)
    if len(train) == 0:
        raise TrainingError("There is nothing to train on: no row has a class and text.")
    if tuner is not None and not isinstance(tuner, dict):
        raise ParameterError("tuner", train_classifier, "a dict with 'type' and parameters, or None", tuner)
    tuner = {"type": "full"} if tuner is None else {"type": "lora", **tuner}
    if tuner["type"] == "levi":
        if objective not in ("cross_entropy", {"type": "cross_entropy"}):
            raise ParameterError(
                "objective", train_classifier, "'cross_entropy' with LEVI's own loss", objective
            )
        kind = OwnLossTrainer
    else:
        values = {**kind.settings_for(len(train)), **values}
    folder = Path(output_dir)
    settings = base_settings(
        train_classifier,
        epochs=epochs,
        learning_rate=rate_of(tuner) if learning_rate is None else learning_rate,
        batch_size=batch_size,
        accumulate=accumulate,
        schedule=schedule,
        warmup=warmup,
        save_every=save_every,
        seed=seed,
    )
    settings["weight_decay"] = weight_decay
    identity = {
        "data": rows_hash(train),
        "tuner": hash_json(tuner),
        "objective": hash_json([kind.__name__, values]),
        "model": model_mark(model),
        **{key: str(value) for key, value in settings.items() if key != "save_steps"},
    }
    with disk_errors(folder), quiet():
        return _run(
            model,
            tokenizer,
            train,
            folder,
            (kind, values),
            tuner,
            settings,
            identity,
            validation,
            log,
            resume,
        )


def _run(
    model: Any,
    tokenizer: Any,
    train: Dataset,
    folder: Path,
    objective: tuple[Any, dict[str, Any]],
    tuner: dict[str, Any],
    settings: dict[str, Any],
    identity: dict[str, Any],
    validation: Any,
    log: EventLog,
    resume: bool,
) -> SFTResult:
    on_cpu = model.device.type == "cpu"
    args = TrainingArguments(**base_arguments(folder, on_cpu, validation), **settings)
    with args.main_process_first(local=False):
        found = find_checkpoint(folder, identity, resume)
    seed_everything(args.seed)
    kind, values = objective
    trainer = kind(
        model=prepared(model, tuner),
        args=args,
        train_dataset=train,
        eval_dataset=validation,
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        **values,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.trained_tokens = 0
    clock, reporter = Stopwatch(), Reporter(log)
    trainer.add_callback(reporter)
    trainer.add_callback(Marker(trainer, identity, clock))
    reset_peak(on_cpu)
    checkpoint = None
    if found is not None:
        checkpoint, clock.before = found[0], found[1]["seconds"]
        log.emit("message", message=f"Training continues from step {found[1]['step']}.")
    try:
        go_on(trainer, checkpoint)
    except TrainingError as error:
        raise TrainingError(f"{error} {describe_last(folder)}") from None
    if not finite_weights(trainer.model):
        raise TrainingError(
            f"Training ended at step {trainer.state.global_step} with weights that are not finite. "
            f"{describe_last(folder)}"
        )
    state = trainer.state
    losses = [(e["step"], e["loss"], e["learning_rate"]) for e in state.log_history if "loss" in e]
    tokens, seconds = int(state.num_input_tokens_seen), clock()
    return SFTResult(
        model=trainer.accelerator.unwrap_model(trainer.model).eval(),
        steps=state.global_step,
        epochs=float(state.epoch or 0),
        train_loss=sum(loss for _, loss, _ in losses) / len(losses),
        losses=losses,
        tokens=tokens,
        trained_tokens=round(float(state.epoch or 0) * len(train)),
        seconds=seconds,
        tokens_per_second=tokens / max(seconds, 1e-9),
        peak_memory_mb=peak_mb(on_cpu),
    )
