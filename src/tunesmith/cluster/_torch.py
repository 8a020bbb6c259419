"""What the clusterers with a network share: device, private randomness, mini-batches, early stopping."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tunesmith.core.errors import ParameterError, TrainingError

__all__ = ["EarlyStop", "batches", "mlp", "on_rows", "private_rng", "resolve_device", "to_tensor", "train"]


def resolve_device(device: str | torch.device, owner: Any) -> torch.device:
    """Return the device; ``"auto"`` is CUDA where there is one, else the CPU.

    Raises:
        ParameterError: torch does not know the device, or the machine has none of it.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise ParameterError("device", owner, "'auto' or a device that torch can use here", device) from None
    return found


@contextmanager
def private_rng(random_state: np.random.RandomState, device: torch.device) -> Iterator[torch.Generator]:
    """Seed torch from ``random_state`` inside the block and give its global state back afterwards.

    Yields:
        A CPU generator for shuffling, apart from the stream of initialisation and dropout.
    """
    seeds = random_state.randint(0, np.iinfo(np.int32).max, size=2)
    cuda: list[int] = []
    if device.type == "cuda":
        cuda = [torch.cuda.current_device() if device.index is None else device.index]
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(int(seeds[0]))
        yield torch.Generator().manual_seed(int(seeds[1]))


def to_tensor(X: NDArray[Any], device: torch.device) -> torch.Tensor:
    """Return X on ``device`` in its own floating type; memory is shared only if X may be written to."""
    return torch.as_tensor(X if X.flags.writeable else X.copy(), device=device)


def batches(n: int, batch_size: int, generator: torch.Generator | None = None) -> Iterator[torch.Tensor]:
    """Yield the indices 0..n-1, shuffled if a generator is given, in ceil(n / batch_size) parts of even size.

    Even parts: no tiny last batch whose statistics or gradient would be mostly noise.
    """
    order = torch.arange(n) if generator is None else torch.randperm(n, generator=generator)
    yield from torch.tensor_split(order, math.ceil(n / batch_size))


def on_rows(
    function: Callable[[torch.Tensor], torch.Tensor], X: torch.Tensor, batch_size: int = 1024
) -> torch.Tensor:
    """Apply ``function`` to the rows of X batch by batch, without gradients."""
    with torch.no_grad():
        return torch.cat([function(part) for part in torch.split(X, batch_size)])


def mlp(
    sizes: Sequence[int], activation: Callable[[], nn.Module], last: nn.Module | None = None
) -> list[nn.Module]:
    """Return blocks Linear + activation between ``sizes``, Glorot-uniform with zero bias.

    Args:
        sizes: widths, input first.
        activation: makes the activation of a block.
        last: replaces it in the last block.
    """
    blocks: list[nn.Module] = []
    for i, (a, b) in enumerate(itertools.pairwise(sizes)):
        linear = nn.Linear(a, b)
        nn.init.xavier_uniform_(linear.weight)
        nn.init.zeros_(linear.bias)
        end = last if last is not None and i == len(sizes) - 2 else activation()
        blocks.append(nn.Sequential(linear, end))
    return blocks


class EarlyStop:
    """Keep the best weights of some modules; ``patience`` checks without a better score end the training.

    Args:
        modules: their weights are kept.
        patience: checks to wait; None never stops.
        tol: a score is better only if lower by more than this.
    """

    def __init__(self, modules: Sequence[nn.Module], patience: int | None, tol: float = 0.0) -> None:
        self.modules, self.patience, self.tol = modules, patience, tol
        self.best, self.waited = math.inf, 0
        self._kept: list[dict[str, Any]] | None = None

    def __call__(self, score: float) -> bool:
        """Take note of a score (lower is better); true if training should stop."""
        if score < self.best - self.tol:
            self.best, self.waited = score, 0
            self._kept = [copy.deepcopy(module.state_dict()) for module in self.modules]
        else:
            self.waited += 1
        return self.patience is not None and self.waited > self.patience

    def restore(self) -> Self:
        """Put the best weights back."""
        for module, state in zip(self.modules, self._kept or (), strict=False):
            module.load_state_dict(state)
        return self


def train(
    epochs: Iterator[int],
    loss_of: Callable[[torch.Tensor], torch.Tensor],
    optimizer: torch.optim.Optimizer,
    n: int,
    batch_size: int,
    generator: torch.Generator,
    after: Callable[[int, float], bool | None] | None = None,
    before: Callable[[int], bool | None] | None = None,
) -> list[float]:
    """Run epochs of shuffled mini-batches.

    Args:
        epochs: usually ``estimator._phase(name, total)``, which tells the callbacks.
        loss_of: indices of a batch -> loss, a mean over its rows.
        optimizer: steps once per batch.
        n: rows.
        batch_size: rows of a batch, at most.
        generator: shuffles.
        after: called with epoch and mean loss; true ends the training.
        before: called with the epoch before its first batch; true ends the training without that epoch.

    Returns:
        Mean loss of each epoch that was run.

    Raises:
        TrainingError: a loss is not finite.
    """
    curve: list[float] = []
    for epoch in epochs:
        if before is not None and before(epoch):
            break
        total = 0.0
        for rows in batches(n, batch_size, generator):
            optimizer.zero_grad(set_to_none=True)
            loss = loss_of(rows)
            value = loss.item()
            if not math.isfinite(value):
                raise TrainingError(
                    f"The loss became {value} in epoch {epoch + 1}. Scale the data (StandardScaler) or lower "
                    "learning_rate."
                )
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += value * len(rows)
        curve.append(total / n)
        if after is not None and after(epoch, curve[-1]):
            break
    return curve
