"""The run of a training: model made ready, trainer built, checkpoint found, loop run, result read off."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PrinterCallback
from trl import SFTConfig

from tunesmith.core.errors import ParameterError, TrainingError
from tunesmith.core.events import EventLog
from tunesmith.core.seeds import seed_everything
from tunesmith.engine.silence import quiet
from tunesmith.trainers import phases
from tunesmith.trainers._common import base_arguments, go_on
from tunesmith.trainers._trl_compat import EpochOrder, LengthGroups, Trainer
from tunesmith.trainers._watch import Reporter, Stopwatch, peak_mb, reset_peak
from tunesmith.trainers.checkpoints import Marker, describe_last, find_checkpoint, finite_weights
from tunesmith.trainers.online import OnlineSelection, OnlineSelectionMixin
from tunesmith.trainers.plans import Context, Plan, Sparse
from tunesmith.trainers.sft import SFTResult, train_sft

__all__ = ["run"]


class OnlineTrainer(OnlineSelectionMixin, Trainer):
    """Our trainer, on chosen rows of each batch."""

    def restore(self, checkpoint: Path) -> None:
        """Load weights and the policy's state without training on."""
        super().restore(checkpoint)
        self.restore_policy(checkpoint)


def run(
    model: Any,
    tokenizer: Any,
    train: Any,
    folder: Path,
    plan: Plan,
    settings: dict[str, Any],
    identity: dict[str, Any],
    validation: Any,
    log: EventLog,
    resume: bool,
    online: OnlineSelection | None = None,
    callbacks: Sequence[Any] = (),
) -> SFTResult:
    """Train; the arguments are those of `train_sft`, checked."""
    on_cpu = model.device.type == "cpu"
    with quiet(python_warnings=True):
        args = SFTConfig(
            bf16=False,
            fp16=False,
            dataset_kwargs={"skip_prepare_dataset": True},  # else TRL filters rows without labels in silence
            **base_arguments(folder, on_cpu, validation),
            **settings,
        )
        with args.main_process_first(local=False):
            found = find_checkpoint(folder, identity, resume)
            in_phases = isinstance(plan, Sparse) and phases.find(folder, identity, resume)
        seed_everything(args.seed)
        epochs = float(args.num_train_epochs)
        context = Context(train, args.seed, args.per_device_train_batch_size, epochs, log)
        model = plan.prepare(model, context)
        trainer = _trainer(model, tokenizer, train, validation, args, online, plan)
        clock = Stopwatch()
        trainer.remove_callback(PrinterCallback)
        reporter = Reporter(log)
        trainer.add_callback(reporter)
        trainer.add_callback(Marker(trainer, identity, clock))
        for callback in callbacks:  # after the marker: what they see saved is a whole checkpoint
            trainer.add_callback(callback)
        reset_peak(on_cpu)
        checkpoint = None
        if found is not None:
            checkpoint, marker = found
            trainer.trained_tokens, clock.before = marker["trained_tokens"], marker["seconds"]
            log.emit("message", message=f"Training continues from step {marker['step']}.")
        try:
            if isinstance(plan, Sparse):
                phases.train(trainer, folder, identity, in_phases, reporter, clock)
            else:
                go_on(trainer, checkpoint)
        except TrainingError as error:
            raise TrainingError(
                f"Training stopped at step {trainer.state.global_step + 1}: {error}. {describe_last(folder)} "
                "A lower learning rate, more warmup or a smaller max_grad_norm usually help; float16 weights "
                "overflow easily."
            ) from None
        finally:
            trainer.unpatch()
        if not finite_weights(trainer.model):
            raise TrainingError(
                f"Training ended at step {trainer.state.global_step} with weights that are not finite. "
                f"{describe_last(folder)}"
            )
        return _result(trainer, reporter, clock(), on_cpu)


def _trainer(
    model: Any,
    tokenizer: Any,
    train: Any,
    validation: Any,
    args: SFTConfig,
    online: OnlineSelection | None,
    plan: Plan,
) -> Trainer:
    columns = ["input_ids", "labels"]
    kind: Any = Trainer
    more = dict(plan.arguments)
    if online is not None:
        kind, more = OnlineTrainer, {**more, "online": online}
    if plan.mixins:
        kind = type("PlannedTrainer", (*plan.mixins, kind), {})
    try:
        trainer = kind(
            callbacks=plan.callbacks(),
            model=model,
            args=args,
            train_dataset=train.select_columns(columns),
            eval_dataset=None if validation is None else validation.select_columns(columns),
            processing_class=tokenizer,
            **more,
        )
    except ValueError as error:
        if "lm_head" not in str(error):
            raise
        raise ParameterError(
            "target_modules",
            train_sft,
            "without the output layer, whose adapter TRL would not train",
            "lm_head",
        ) from error
    if args.train_sampling_strategy == "group_by_length":
        rows_per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        lengths = [len(ids) for ids in train["input_ids"]]
        trainer.order = LengthGroups(lengths, rows_per_step, args.seed)
        trainer.add_callback(EpochOrder(trainer.order))
    return trainer


def _result(trainer: Trainer, reporter: Reporter, seconds: float, on_cpu: bool) -> SFTResult:
    state, done = trainer.state, reporter.done_steps
    losses = [(done + e["step"], e["loss"], e["learning_rate"]) for e in state.log_history if "loss" in e]
    losses = [*reporter.done_losses, *losses]
    tokens = reporter.done_tokens + int(state.num_input_tokens_seen)
    return SFTResult(
        model=trainer.accelerator.unwrap_model(trainer.model).eval(),
        steps=done + state.global_step,
        epochs=float(state.epoch or 0),
        train_loss=sum(loss for _, loss, _ in losses) / len(losses),
        losses=losses,
        tokens=tokens,
        trained_tokens=trainer.trained_tokens,
        seconds=seconds,
        tokens_per_second=tokens / max(seconds, 1e-9),
        peak_memory_mb=peak_mb(on_cpu),
        candidates=trainer.policy.seen_ if isinstance(trainer, OnlineTrainer) else None,
        kept=trainer.policy.kept_ if isinstance(trainer, OnlineTrainer) else None,
        delta=getattr(trainer, "sparse_delta", None),
    )
