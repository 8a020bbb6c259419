"""The one place that reaches below the public surface of TRL and transformers.

Each override says what it is for and which private name it leans on, so that a release that moves one breaks
here and in this module's tests, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import Sampler
from transformers import TrainerCallback
from trl import SFTTrainer

from tunesmith.core.errors import TrainingError
from tunesmith.core.seeds import child_seed

__all__ = ["LengthGroups", "Trainer"]

# Logits of the trained positions of one batch, in elements: 2^28 are 1 GiB in float32. Beyond, TRL's loss
# runs, which walks over the positions in tiles and computes each tile twice.
MAX_LOGITS = 2**28
GROUPED_BATCHES = 50
"""Batches' worth of rows that are sorted together: enough that neighbours differ by a few tokens (as
transformers)."""


class LengthGroups(Sampler[int]):
    """Draw rows so that those of one optimiser step have similar lengths, in an order that depends on the
    epoch alone.

    All rows are shuffled, cut into stretches of 50 steps, sorted by length within a stretch, and cut into
    steps, which are shuffled again; a last step with fewer rows stays last. Unlike transformers'
    ``group_by_length`` it draws from a seed of its own: that one uses the global random state when an epoch
    begins, so a run continued in its second epoch saw another order than a straight one. And as the steps are
    shuffled, length does not fall with time.

    Args:
        lengths: tokens per row.
        rows_per_step: rows that one optimiser step consumes, over all accumulation steps and processes.
        seed: with the epoch, determines the order.
    """

    def __init__(self, lengths: Any, rows_per_step: int, seed: int) -> None:
        self.lengths = np.asarray(lengths)
        self.rows_per_step = rows_per_step
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng(child_seed(self.seed, "order", self.epoch))
        rows = rng.permutation(len(self.lengths))
        stretch = self.rows_per_step * GROUPED_BATCHES
        parts = [rows[i : i + stretch] for i in range(0, len(rows), stretch)]
        rows = np.concatenate([part[np.argsort(-self.lengths[part], kind="stable")] for part in parts])
        steps = [rows[i : i + self.rows_per_step] for i in range(0, len(rows), self.rows_per_step)]
        full = len(self.lengths) // self.rows_per_step
        order = [*rng.permutation(full), *range(full, len(steps))]
        return iter(np.concatenate([steps[i] for i in order]).tolist())


class Trainer(SFTTrainer):
    """TRL's SFT trainer with three differences.

    1. On CPU the loss scores only the trained positions. TRL 1.16 does so on GPUs alone; elsewhere it puts
    every
       position through the output layer, and computes the entropy for a metric besides. The hidden states are
       gathered by a hook on the output layer, so whatever the model does to its logits (scale, cap) still
       happens.
    2. A loss that is not finite raises before the weights are touched.
    3. Rows are ordered by `LengthGroups` when ``train_sampling_strategy`` is ``"group_by_length"``.

    ``trained_tokens`` counts the labels learned from so far.
    """

    loss_is_scaled_for_ga = True  # both losses are divided by the tokens of the whole accumulated batch

    order: LengthGroups | None = None
    trained_tokens = 0

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the loss of a batch (nats per trained token of the accumulated batch)."""
        labels = inputs["labels"]
        wanted = labels[:, 1:] != -100
        count = wanted.sum()
        loss = None
        if self._scores_gathered(model, count, return_outputs):
            loss = self._gathered_loss(model, inputs, wanted, num_items_in_batch)
        if loss is None:
            loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        value = loss[0] if return_outputs else loss
        if not torch.isfinite(value):
            raise TrainingError(f"the loss is {value.item()}")
        if self.model.training:
            total = self.accelerator.reduce(count, "sum") if self.accelerator.num_processes > 1 else count
            self.trained_tokens += int(total)
        return loss

    def _scores_gathered(self, model: Any, count: torch.Tensor, return_outputs: bool) -> bool:
        head = self.accelerator.unwrap_model(model).get_output_embeddings()
        return (
            self.args.device.type == "cpu"
            and not return_outputs
            and self.args.loss_type == "nll"
            and self.label_smoother is None
            and not self.aux_loss_enabled
            and head is not None
            and int(count) * getattr(head, "out_features", 0) <= MAX_LOGITS
        )

    def _gathered_loss(
        self, model: Any, inputs: Any, wanted: torch.Tensor, num_items: Any
    ) -> torch.Tensor | None:
        """Return the loss from the logits of the trained positions; None if the hook on the head was not
        called."""
        length = inputs["labels"].shape[1]
        calls = 0

        def gather(_: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
            nonlocal calls
            calls += 1
            hidden = args[0][:, -length:]  # prompt tuning puts its virtual tokens in front
            return (hidden[:, :-1][wanted].unsqueeze(0), *args[1:])

        head = self.accelerator.unwrap_model(model).get_output_embeddings()
        handle = head.register_forward_pre_hook(gather)
        try:
            logits = model(**{k: v for k, v in inputs.items() if k != "labels"}, use_cache=False).logits
        finally:
            handle.remove()
        if calls != 1:
            return None
        total = cross_entropy(logits[0].float(), inputs["labels"][:, 1:][wanted], reduction="sum")
        loss: torch.Tensor = total / torch.as_tensor(wanted.sum() if num_items is None else num_items).clamp(
            min=1
        )
        if self.args.average_tokens_across_devices and num_items is not None:
            loss = loss * self.accelerator.num_processes  # DDP averages over processes, num_items is over all
        return loss

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        # Private, but the place that TRL's own trainers override for their order of rows.
        return self.order if self.order is not None else super()._get_train_sampler(train_dataset)

    def _send_telemetry(self) -> None:
        """Send nothing: TRL reports each run to the Hub unless an environment variable forbids it."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write no model card into checkpoints, which nobody publishes."""

    def restore(self, checkpoint: Path) -> None:
        """Load the weights of a checkpoint without training on."""
        self._load_from_checkpoint(str(checkpoint))

    def unpatch(self) -> None:
        """Give the model its own forward back, which TRL replaced by one with a fused output layer."""
        model = self.accelerator.unwrap_model(self.model)
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        base.__dict__.pop("forward", None)


class EpochOrder(TrainerCallback):
    """Tell the order which epoch begins, also when a run continues in the middle of one."""

    def __init__(self, order: LengthGroups) -> None:
        self.order = order

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the trainer before an epoch's rows are drawn."""
        self.order.epoch = int(state.epoch or 0)
