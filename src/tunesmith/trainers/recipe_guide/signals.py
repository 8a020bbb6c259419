"""A callback for any trainer of transformers or TRL that keeps what `rank_runs` reads: one record a step."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from tunesmith.core.files import atomic_open, disk_errors, hash_json, hash_text
from tunesmith.trainers.recipe_guide.ranking import EarlyRun
from tunesmith.trainers.recipe_guide.settings import samples_after

__all__ = ["EarlySignalCallback"]


class EarlySignalCallback(TrainerCallback):
    """Record rows seen, loss, gradient norm before clipping, and learning rate of every optimiser step.

    The trainer logs each step while this records, whatever its ``logging_steps``: means over several steps are other
    signals. A run that was killed and continues from a checkpoint takes the records before it from the checkpoint. Only
    the first process writes. Source of the signals: arXiv 2412.13337.

    Args:
        path: a JSON Lines file: first the setting, then the records. None keeps them in ``records`` alone.
        setting: what must be equal for runs to be compared, added to what the callback finds out itself: the model's
            name and numbers of parameters, the data, the tokenizer and its template, and how the loss is normalised.
        samples: stop recording after so many rows; by default the whole run is recorded.

    Attributes:
        records: mappings of ``step``, ``samples_seen``, ``loss``, ``grad_norm``, ``lr``.
        setting: all of it, once training has begun.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        setting: dict[str, Any] | None = None,
        samples: float | None = None,
    ) -> None:
        self.path = None if path is None else Path(path)
        self.given = dict(setting or {})
        self.samples = samples
        self.setting: dict[str, Any] = dict(self.given)
        self.records: list[dict[str, Any]] = []
        self.n_examples = self.batch = 0

    @property
    def run(self) -> EarlyRun:
        """The records and their setting, for `rank_runs`."""
        return EarlyRun(self.records, self.setting)

    def samples_seen(self, step: int) -> int:
        """Return the rows that the first ``step`` steps of this training have seen."""
        return samples_after(step, self.n_examples, self.batch)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the trainer once model, data and, after a kill, the state are there."""
        loader = kwargs["train_dataloader"]
        self._measure(args, state, loader)
        self.setting = {**_setting(args, loader.dataset, **kwargs), **self.given}
        self.records = [
            self._record(entry["step"], entry)
            for entry in state.log_history
            if "loss" in entry and "grad_norm" in entry and entry["step"] <= state.global_step
        ]
        self.records = [record for record in self.records if not self._is_after(record["samples_seen"])]
        if self.path is not None and state.is_world_process_zero:
            with atomic_open(self.path) as stream:
                for line in ({"setting": self.setting}, *self.records):
                    stream.write(json.dumps(line) + "\n")

    def _measure(self, args: Any, state: Any, loader: Any) -> None:
        """Take note of the rows per epoch and per step."""
        self.batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        per_process = args.train_batch_size * len(loader) if hasattr(loader, "__len__") else 0
        rows = len(loader.dataset) if hasattr(loader.dataset, "__len__") else per_process * args.world_size
        # without a last partial batch an epoch has whole steps only; a stream has one endless epoch
        self.n_examples = per_process * args.world_size if args.dataloader_drop_last else rows
        self.n_examples = self.n_examples or self.batch * max(1, state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the trainer after each optimiser step: ask for its log."""
        if not self._is_after(self.samples_seen(state.global_step)):
            control.should_log = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Called by the trainer with the step's loss and gradient norm."""
        if "loss" not in logs or "grad_norm" not in logs:
            return
        record = self._record(state.global_step, logs)
        if self._is_after(record["samples_seen"]):
            return
        self.records.append(record)
        if self.path is not None and state.is_world_process_zero:
            with disk_errors(self.path), open(self.path, "a", encoding="utf-8") as stream:
                stream.write(json.dumps(record) + "\n")

    def _is_after(self, samples_seen: int) -> bool:
        return self.samples is not None and samples_seen > self.samples

    def _record(self, step: int, logs: dict[str, Any]) -> dict[str, Any]:
        return {
            "step": step,
            "samples_seen": self.samples_seen(step),
            "loss": float(logs["loss"]),
            "grad_norm": float(logs["grad_norm"]),
            "lr": float(logs["learning_rate"]),
        }


def _setting(
    args: Any, dataset: Any, model: Any = None, processing_class: Any = None, **_: Any
) -> dict[str, Any]:
    """Return what the runs of one comparison must have in common."""
    config = getattr(model, "config", None)
    parameters = list(model.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    every = sum(p.numel() for p in parameters)
    template = getattr(processing_class, "chat_template", None)
    return {
        "model": f"{getattr(config, '_name_or_path', '') or type(model).__name__}: {trained:,} of {every:,} trained",
        "data": _data(dataset),
        "tokenizer": _tokenizer(processing_class),
        "template": hash_text(str(template)) if template else None,
        "loss": ", ".join(
            f"{name}={getattr(args, name, None)}"
            for name in (
                "loss_type",
                "average_tokens_across_devices",
                "label_smoothing_factor",
                "neftune_noise_alpha",
            )
        ),
    }


def _data(dataset: Any) -> str:
    columns = getattr(dataset, "column_names", None) or []
    if {"input_ids", "labels"} <= set(columns) and hasattr(dataset, "with_format"):
        from tunesmith.trainers._common import rows_hash

        return rows_hash(dataset)
    size = f"{len(dataset):,} rows" if hasattr(dataset, "__len__") else "a stream"
    return f"{size} {getattr(dataset, '_fingerprint', '')}".strip()


def _tokenizer(tokenizer: Any) -> str | None:
    if tokenizer is None:
        return None
    vocabulary = tokenizer.get_vocab() if hasattr(tokenizer, "get_vocab") else {}
    return f"{type(tokenizer).__name__} {hash_json(vocabulary)}"
