"""Which part each projection uses in a pass."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import torch

from tunesmith.core.seeds import child_seed

__all__ = ["Draws"]

KEPT = 4
"""Passes over one and the same input tensor that are remembered."""


@dataclass
class _Run:
    """A block's run in a forward pass: its input, the draw, and the first of its children that was called."""

    x: weakref.ref[torch.Tensor]
    draw: dict[str, list[list[int]]]
    child: str | None = None


class Draws:
    """The draws of a model's adapters: one set per forward pass, from the seed and the number of the pass alone.

    ``counts`` holds how many passes each adapter has drawn for, ``sites`` how many branches it has.

    Gradient checkpointing runs a block again during the backward pass, when a later pass may have drawn anew. The input
    of a block is kept for that and is the same tensor both times, so the draw is found by its address, when the first
    child of the block (its norm or its attention) is handed it.
    """

    def __init__(self) -> None:
        self.configs: dict[str, Any] = {}
        self.sites: dict[str, int] = {}
        self.counts: dict[str, int] = {}
        self.current: dict[str, list[list[int]]] = {}
        self.runs: dict[tuple[str, int], list[_Run]] = {}
        self.inside: _Run | None = None
        self.handles: list[Any] = []

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "runs": {}, "inside": None, "handles": []}

    def begin(self) -> None:
        """A pass in training mode begins."""
        self.current = {name: self._draw(name) for name in self.configs}

    def of(self, adapter: str, site: int) -> tuple[int, int]:
        """Return the down part and the up part of a branch in the pass under way."""
        if adapter not in self.current:  # a part of the model was called by itself
            self.current = {**self.current, adapter: self._draw(adapter)}
        down, up = self.current[adapter][site]
        return down, up

    def _draw(self, adapter: str) -> list[list[int]]:
        config, count = self.configs[adapter], self.sites[adapter]
        if config.num_parts == 1:
            return [[0, 0]] * count
        number = self.counts.get(adapter, 0)
        generator = torch.Generator().manual_seed(child_seed(config.seed, "mosa", "draw", number))
        self.counts[adapter] = number + 1
        drawn: list[list[int]] = torch.randint(config.num_parts, (count, 2), generator=generator).tolist()
        return drawn

    def at_model(self, module: Any, args: Any) -> None:
        """Hook before the model's forward."""
        if module.training:
            self.begin()

    def at_block(self, block: str, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        """Hook before a block: remember its input and the draw."""
        x = _first_tensor(args, kwargs)
        self.inside = None
        if not module.training or x is None or in_backward():
            return
        if len(self.runs) > 1024:  # inputs that are gone
            self.runs = {key: runs for key, runs in self.runs.items() if runs[-1].x() is not None}
        key = (block, x.data_ptr())
        self.inside = _Run(weakref.ref(x), self.current)
        alive = [run for run in self.runs.get(key, []) if run.x() is not None]
        self.runs[key] = [*alive[1 - KEPT :], self.inside]

    def at_child(self, block: str, child: str, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        """Hook before a child of a block: note who is first, or find the draw where the block is run again."""
        if not in_backward():
            if self.inside is not None and self.inside.child is None:
                self.inside.child = child
            return
        x = _first_tensor(args, kwargs)
        runs = [] if x is None else self.runs.get((block, x.data_ptr()), [])
        if not runs or runs[-1].child != child or runs[-1].x() is None:
            return
        # Passes over one input are run again last first.
        self.current = (runs.pop() if len(runs) > 1 else runs[0]).draw


def in_backward() -> bool:
    """Whether this thread runs a backward pass; torch's own checkpointing asks the same way."""
    return bool(torch._C._current_graph_task_id() != -1)


def _first_tensor(args: Any, kwargs: dict[str, Any]) -> torch.Tensor | None:
    return next((t for t in (*args, *kwargs.values()) if isinstance(t, torch.Tensor)), None)
