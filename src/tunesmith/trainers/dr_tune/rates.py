"""The head's own learning rate, which DR-Tune needs in any training loop (arXiv 2308.12058, Sec. 4.2)."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from tunesmith.core.errors import ParameterError

__all__ = ["head_lr_factor", "raise_head_lr"]


def head_lr_factor(bank_size: int, batch_size: int) -> float:
    """Return ``1 + K / B``, the head's learning rate over the encoder's.

    Under ``loss_scale="mean"`` the gradient of the batch is divided by it: with SGD this gives the head its step back.
    Adam undoes such divisions by itself, so there the factor is a true rise, and probably too high at large K / B.

    Args:
        bank_size: K.
        batch_size: B, rows of one optimiser step, over all accumulation steps and processes.

    Raises:
        ParameterError: a negative bank, an empty batch.
    """
    if bank_size < 0:
        raise ParameterError("bank_size", "head_lr_factor", "at least 0", bank_size)
    if batch_size < 1:
        raise ParameterError("batch_size", "head_lr_factor", "at least 1", batch_size)
    return 1 + bank_size / batch_size


def raise_head_lr(
    optimizer: torch.optim.Optimizer, head: torch.nn.Module | Iterable[torch.nn.Parameter], factor: float
) -> None:
    """Move the head's parameters into optimiser groups of their own, with ``factor`` times the learning rate.

    Everything else of a group (weight decay, momentum) stays. Call it before a learning-rate scheduler is made, which
    then keeps the ratio.

    Args:
        optimizer: any that has not stepped yet.
        head: the module, or its parameters.
        factor: above 0; see `head_lr_factor`.

    Raises:
        ParameterError: a factor that is not positive, no parameter of the head in the optimiser, or an optimiser that a
            scheduler has been made for.
    """
    if not factor > 0:
        raise ParameterError("factor", "raise_head_lr", "above 0", factor)
    if any("initial_lr" in group for group in optimizer.param_groups):
        expected = "one without a scheduler yet: a scheduler keeps the rates that it found"
        raise ParameterError("optimizer", "raise_head_lr", expected, type(optimizer).__name__)
    parameters = head.parameters() if isinstance(head, torch.nn.Module) else head
    wanted = {id(p) for p in parameters}
    found = []
    for group in optimizer.param_groups:
        own = [p for p in group["params"] if id(p) in wanted]
        if own:
            found.append({**group, "params": own, "lr": group["lr"] * factor})
            group["params"] = [p for p in group["params"] if id(p) not in wanted]
    if not found:
        expected = "parameters that the optimiser trains"
        raise ParameterError("head", "raise_head_lr", expected, type(head).__name__)
    for group in found:
        optimizer.add_param_group(group)
    optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
