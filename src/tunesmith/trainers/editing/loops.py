"""The two pipelines of editing by fine-tuning, on any loss.

Breadth first: epochs over mini-batches of all edits. Depth first: one edit after the other until it sticks, which is
how fine-tuning used to be run as a baseline of model editing, and why it looked bad.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from tunesmith.core.errors import TrainingError

__all__ = ["LoopResult", "breadth_first", "depth_first"]

LossOf = Callable[[list[int]], torch.Tensor]
Update = Callable[[torch.Tensor], None]


@dataclass
class LoopResult:
    """What a loop did.

    Attributes:
        batch_losses: of each batch before its step, in nats.
        batch_sizes: edits in each.
        epoch_losses: means over the edits of an epoch; for depth first the last loss of each edit.
        steps: optimizer steps; batches below the threshold take none.
        converged: whether the last epoch's mean (depth first: every edit's last loss) was below the threshold.
    """

    batch_losses: list[float] = field(default_factory=list)
    batch_sizes: list[int] = field(default_factory=list)
    epoch_losses: list[float] = field(default_factory=list)
    steps: int = 0
    converged: bool = False

    def visit(self, loss: torch.Tensor, size: int, threshold: float, update: Update) -> float:
        """Count a batch, and take a step unless its loss is below the threshold; return the loss.

        Raises:
            TrainingError: the loss is not finite.
        """
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(
                f"Editing stopped after {self.steps} steps: the loss is {value}. A lower learning rate usually helps; "
                "float16 weights overflow easily."
            )
        self.batch_losses.append(value)
        self.batch_sizes.append(size)
        if value >= threshold:
            update(loss)
            self.steps += 1
        return value


def breadth_first(
    loss_of: LossOf,
    n: int,
    update: Update,
    *,
    batch_size: int,
    max_epochs: int,
    threshold: float,
    order: Callable[[int], Sequence[int]],
    after_epoch: Callable[[int, float], None] | None = None,
) -> LoopResult:
    """Visit every edit once an epoch, in mini-batches, until the mean loss of an epoch is below the threshold.

    Args:
        loss_of: loss of the edits with the given numbers.
        n: edits.
        update: takes one optimizer step on a loss.
        batch_size: b; the last batch of an epoch may be smaller.
        max_epochs: E_max.
        threshold: tau, for skipping the step of a batch and for stopping.
        order: the edits' order in an epoch.
        after_epoch: called with the epoch and its mean loss.

    Returns:
        Losses and counts. At most E_max ceil(n / b) steps.

    Raises:
        TrainingError: a loss is not finite.
    """
    result = LoopResult()
    for epoch in range(max_epochs):
        rows, total = list(order(epoch)), 0.0
        for begin in range(0, n, batch_size):
            batch = rows[begin : begin + batch_size]
            total += result.visit(loss_of(batch), len(batch), threshold, update) * len(batch)
        result.epoch_losses.append(total / n)
        if after_epoch is not None:
            after_epoch(epoch, total / n)
        if total / n < threshold:
            result.converged = True
            break
    return result


def depth_first(
    loss_of: LossOf,
    n: int,
    new_update: Callable[[], Update],
    *,
    max_steps: int,
    threshold: float,
    after_edit: Callable[[int, float], None] | None = None,
) -> LoopResult:
    """Fine-tune on one edit until its loss is below the threshold, then on the next; one pass, the baseline.

    Args:
        loss_of: loss of the edits with the given numbers.
        n: edits.
        new_update: makes the step of one edit; each has an optimizer of its own, as when edits arrive one by one.
        max_steps: steps on one edit at most.
        threshold: tau.
        after_edit: called with the edit and its last loss.

    Returns:
        Losses and counts.

    Raises:
        TrainingError: a loss is not finite.
    """
    result = LoopResult()
    for i in range(n):
        update, value = new_update(), math.inf
        for _ in range(max_steps):
            value = result.visit(loss_of([i]), 1, threshold, update)
            if value < threshold:
                break
        result.epoch_losses.append(value)
        if after_edit is not None:
            after_edit(i, value)
    result.converged = all(value < threshold for value in result.epoch_losses)
    return result
