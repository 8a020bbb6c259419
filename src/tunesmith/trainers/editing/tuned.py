"""The weights that an edit moves: everything else frozen, steps in float32, the old values kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from tunesmith.tuners.locft import Site

__all__ = ["TunedWeights"]


class TunedWeights:
    """Weights at given sites of a model.

    bfloat16 keeps 8 bits: a step of 5e-5 on a weight of 0.1 rounds to nothing. So weights below float32 have a float32
    copy that Adam moves, and are rounded from it after each step. Memory: for each tuned number the old value, Adam's
    two moments, and the copy.

    Args:
        model: changed in place by `new_update`.
        sites: of the weights.
        learning_rate: of Adam.
    """

    def __init__(self, model: Any, sites: Sequence[Site], learning_rate: float) -> None:
        own = dict(model.named_parameters())
        self.model, self.sites, self.learning_rate = model, list(sites), learning_rate
        self.parameters: dict[str, Any] = {site.name: own[site.name] for site in sites}
        self.before = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.masters = {
            name: p if p.dtype in (torch.float32, torch.float64) else torch.nn.Parameter(p.detach().float())
            for name, p in self.parameters.items()
        }

    @contextmanager
    def only_these(self) -> Iterator[None]:
        """Freeze all other weights, in evaluation mode (no dropout), and set everything back at the end."""
        flags = {name: p.requires_grad for name, p in self.model.named_parameters()}
        was_training = self.model.training
        self.model.eval()
        for name, p in self.model.named_parameters():
            p.requires_grad_(name in self.parameters)
        try:
            yield
        finally:
            for name, p in self.model.named_parameters():
                p.requires_grad_(flags[name])
                if name in self.parameters:
                    p.grad = None
            self.model.train(was_training)

    def new_update(self) -> Callable[[torch.Tensor], None]:
        """Return a step of a new Adam (betas 0.9 and 0.999, no decay, constant rate, no clipping)."""
        optimizer = torch.optim.Adam(self.masters.values(), lr=self.learning_rate)

        def update(loss: torch.Tensor) -> None:
            for p in self.parameters.values():
                p.grad = None
            loss.backward()  # type: ignore[no-untyped-call]
            for site in self.sites:
                parameter, master = self.parameters[site.name], self.masters[site.name]
                if site.rows is not None and parameter.grad is not None:
                    parameter.grad[: site.rows[0]] = 0
                    parameter.grad[site.rows[1] :] = 0
                if master is not parameter:
                    master.grad = None if parameter.grad is None else parameter.grad.float()
            optimizer.step()
            with torch.no_grad():
                for name, parameter in self.parameters.items():
                    if self.masters[name] is not parameter:
                        parameter.copy_(self.masters[name])

        return update
