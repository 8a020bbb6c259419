"""The loss of each row of a batch, with logits only where a token is trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.functional import cross_entropy

from tunesmith.numerics.gradients.capture import Layout

__all__ = ["RowLosses"]

Encoded = dict[str, NDArray[np.int64]]


class RowLosses:
    """Sum of the rows' losses under a model.

    Args:
        model: a causal language model.
        reduction: of a row's tokens, ``"mean"`` or ``"sum"``.
    """

    def __init__(self, model: Any, reduction: str) -> None:
        self.model, self.reduction = model, reduction
        self._gathers = True

    def __call__(
        self, rows: Sequence[Encoded], ready: Callable[[Layout], None] = lambda layout: None
    ) -> torch.Tensor:
        """Return the sum over rows of the mean (or sum) of their trained tokens' nll, in float32.

        Args:
            rows: ``input_ids`` and ``labels``; each has a trained token.
            ready: called with the layout of the batch before each forward pass.
        """
        device = self.model.device
        lengths = torch.tensor([len(row["input_ids"]) for row in rows])
        ids = torch.zeros((len(rows), int(lengths.max())), dtype=torch.long)
        labels = torch.full_like(ids, -100)
        for i, row in enumerate(rows):
            ids[i, : lengths[i]] = torch.from_numpy(row["input_ids"])
            labels[i, : lengths[i]] = torch.from_numpy(row["labels"])
        seen = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        wanted = labels[:, 1:] != -100
        row_of, position = wanted.nonzero(as_tuple=True)  # the state at t predicts the token at t + 1
        counts = wanted.sum(1)
        slot = wanted.cumsum(1)[row_of, position] - 1
        layout = Layout(len(ids), ids.shape[1], row_of.to(device), slot.to(device), int(counts.max()))
        logits = self._logits(ids.to(device), seen.to(device), position.to(device), layout, ready)
        losses = cross_entropy(logits.float(), labels[row_of, position + 1].to(device), reduction="none")
        if self.reduction == "mean":
            losses = losses / counts[row_of].to(device)
        return losses.sum()

    def _logits(
        self,
        ids: torch.Tensor,
        seen: torch.Tensor,
        position: torch.Tensor,
        layout: Layout,
        ready: Callable[[Layout], None],
    ) -> torch.Tensor:
        """Return the logits ``(n, V)`` that predict trained tokens.

        A hook gathers the hidden states in front of the output layer, so whatever the model does to its logits
        afterwards (scale, cap) still happens. A model that does not call the layer once is asked for all of them.
        """
        head = self.model.get_output_embeddings() if self._gathers else None
        length, calls = ids.shape[1], 0

        def gather(_: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
            nonlocal calls
            calls += 1
            return (args[0][:, -length:][layout.row, position].unsqueeze(0), *args[1:])

        handle = head.register_forward_pre_hook(gather) if isinstance(head, nn.Module) else None
        ready(layout)
        try:
            logits: torch.Tensor = self.model(input_ids=ids, attention_mask=seen, use_cache=False).logits
        finally:
            if handle is not None:
                handle.remove()
        if calls == 1:
            return logits[0]
        self._gathers = False
        if calls > 1:
            return self._logits(ids, seen, position, layout, ready)
        return logits[:, -length:][layout.row, position]
