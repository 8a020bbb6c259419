"""Features of one whole optimiser step: those of every micro-batch on every process, in one order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

__all__ = ["Step", "keeping_statistics", "same_draws"]


class Step:
    """Where each process's micro-batches lie among the rows of a step.

    Micro-batch j of process p comes before micro-batch j of process p + 1, and all of those before micro-batch j + 1:
    the order in which one process with the big batch would see the rows.

    Args:
        sizes: rows of this process's micro-batches.
        accelerator: of the trainer, which gathers.
    """

    def __init__(self, sizes: list[int], accelerator: Any) -> None:
        self.accelerator, self.processes, self.rank = (
            accelerator,
            accelerator.num_processes,
            accelerator.process_index,
        )
        own = torch.tensor(sizes, device=accelerator.device)
        self.sizes = self._gather(own[None]).tolist()  # (P, k)

    def _gather(self, local: torch.Tensor) -> torch.Tensor:
        """(1, ...) of each process -> (P, ...)."""
        return local if self.processes == 1 else self.accelerator.gather(local.contiguous())  # type: ignore[no-any-return]

    def gather(self, parts: list[torch.Tensor]) -> torch.Tensor:
        """Return the rows (N, ...) of all micro-batches (b, ...) on all processes; no gradient passes."""
        if self.processes == 1:
            return torch.cat(parts)
        longest = max(max(row) for row in self.sizes)
        stacked = parts[0].new_zeros(1, len(parts), longest, *parts[0].shape[1:])
        for j, part in enumerate(parts):
            stacked[0, j, : len(part)] = part
        everything = self._gather(stacked)  # (P, k, longest, ...)
        k = len(parts)
        return torch.cat(
            [everything[p, j, : self.sizes[p][j]] for j in range(k) for p in range(self.processes)]
        )

    def slot(self, j: int) -> slice:
        """Return where this process's micro-batch j lies."""
        before = sum(row[i] for row in self.sizes for i in range(j))
        begin = before + sum(self.sizes[p][j] for p in range(self.rank))
        return slice(begin, begin + self.sizes[self.rank][j])


@contextmanager
def same_draws(device: torch.device) -> Iterator[None]:
    """Give torch's generators back as they were, so that the passes after this draw the same dropout masks."""
    devices = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices=devices, device_type=device.type if devices else "cuda"):
        yield


@contextmanager
def keeping_statistics(model: nn.Module) -> Iterator[None]:
    """Give batch normalisation its running statistics back: a pass more per step must not count twice."""
    kept = [
        (buffer, buffer.clone())
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._NormBase)
        for buffer in module.buffers(recurse=False)
    ]
    try:
        yield
    finally:
        for buffer, before in kept:
            buffer.copy_(before)
