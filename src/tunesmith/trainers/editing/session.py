"""Edits that arrive over time: `EditSession`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from tunesmith.core.errors import TrainingError
from tunesmith.data.edits import read_edits
from tunesmith.trainers.editing.editor import EditResult, edit, without_conflicts
from tunesmith.tuners.locft import LocFTConfig, find_sites

__all__ = ["EditSession"]


@dataclass
class _Commit:
    """State before a commit: the edits then, and the weights then."""

    edits: list[dict[str, str]]
    weights: dict[str, torch.Tensor] = field(repr=False)


class EditSession:
    """Sequential editing by LocFT-BF (Yang et al., ICLR 2026, arXiv 2509.22072): collect edits, write, take back.

    Every commit fine-tunes on all edits so far, so that later ones do not overwrite earlier ones. Commit after each
    edit for real time, or after a few dozen to save work::

        session = EditSession(model, tokenizer, LocFTConfig(layer=21))
        session.add([{"prompt": "The capital of Velloria is", "target_new": "amber"}])
        session.commit()
        session.undo()

    Memory: a copy of the tuned weights for the start and for each commit that can be undone.

    Args:
        model: changed in place by `commit`.
        tokenizer: its tokenizer.
        config: where and how; `LocFTConfig` by default.
        restart: every commit starts from the weights at the session's begin (then the result does not depend on how
            the edits were split into commits); False goes on from the weights as they are, which is cheaper. The paper
            leaves this open.
        conflicts: ``"error"``, or ``"newest"`` to let an edit replace the earlier ones of its prompt.

    Attributes:
        edits: those committed.
        pending: those added since.

    Raises:
        ParameterError: layer or module does not fit the model, or ``conflicts`` is neither.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        config: LocFTConfig | None = None,
        *,
        restart: bool = True,
        conflicts: str = "error",
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.config = LocFTConfig() if config is None else config
        self.restart, self.conflicts = restart, conflicts
        without_conflicts([], conflicts)
        self._names = [site.name for site in find_sites(model, self.config)[0]]
        self._start = self._weights()
        self._history: list[_Commit] = []
        self.edits: list[dict[str, str]] = []
        self.pending: list[dict[str, str]] = []

    def add(self, edits: Any) -> int:
        """Add edits to the next commit; return how many wait.

        Args:
            edits: one row, or what `data.edits.read_edits` takes.

        Raises:
            DataError: an edit is malformed, or contradicts one before it; nothing is added then.
        """
        rows = read_edits([edits] if isinstance(edits, dict) else edits)
        without_conflicts([*self.edits, *self.pending, *rows], self.conflicts)
        self.pending += rows
        return len(self.pending)

    def commit(self) -> EditResult:
        """Write all edits so far into the model.

        Returns:
            The result, over all edits of the session.

        Raises:
            TrainingError: nothing was added since the last commit, or the loss is not finite; the weights and what
                waits are as before.
        """
        if not self.pending:
            raise TrainingError("There is nothing to commit: add edits first.")
        rows = without_conflicts([*self.edits, *self.pending], self.conflicts)
        before = self._weights()
        if self.restart:
            self._put(self._start)
        try:
            result = edit(self.model, self.tokenizer, rows, self.config)
        except BaseException:
            self._put(before)
            raise
        self._history.append(_Commit(self.edits, before))
        self.edits, self.pending = rows, []
        result.before = before
        return result

    def undo(self) -> list[dict[str, str]]:
        """Take the last commit back: weights, bit for bit, and edits; what waits for the next commit stays.

        Returns:
            The edits that are no longer in the model.

        Raises:
            TrainingError: there is no commit to undo.
        """
        if not self._history:
            raise TrainingError("There is no commit to undo.")
        last = self._history.pop()
        self._put(last.weights)
        gone = [row for row in self.edits if row not in last.edits]
        self.edits = last.edits
        return gone

    def reset(self) -> None:
        """Put the weights back to those at the session's begin, and forget all edits."""
        self._put(self._start)
        self._history, self.edits, self.pending = [], [], []

    def _weights(self) -> dict[str, torch.Tensor]:
        own = dict(self.model.named_parameters())
        return {name: own[name].detach().clone() for name in self._names}

    def _put(self, weights: dict[str, torch.Tensor]) -> None:
        own = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, value in weights.items():
                own[name].copy_(value)
