"""The training loop that clusterers with a network share."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tunesmith.cluster._torch import (
    EarlyStop,
    batches,
    mlp,
    on_rows,
    private_rng,
    resolve_device,
    to_tensor,
    train,
)
from tunesmith.core.errors import ParameterError, TrainingError


def test_batches_are_even_and_complete() -> None:
    sizes = [len(part) for part in batches(130, 64)]
    assert sizes == [44, 43, 43]
    shuffled = torch.cat(list(batches(130, 64, torch.Generator().manual_seed(0))))
    assert sorted(shuffled.tolist()) == list(range(130))
    assert shuffled.tolist() != list(range(130))
    assert [part.tolist() for part in batches(3, 64)] == [[0, 1, 2]]


def test_early_stop_waits_and_puts_the_best_weights_back() -> None:
    layer = nn.Linear(1, 1)
    stop = EarlyStop([layer], patience=1, tol=0.5)
    asked = []
    for weight, score in ((1.0, 3.0), (2.0, 2.0), (3.0, 1.9), (4.0, 5.0)):
        nn.init.constant_(layer.weight, weight)
        asked.append(stop(score))
    assert asked == [False, False, False, True]  # 1.9 is not better than 2.0 by more than 0.5
    stop.restore()
    assert layer.weight.item() == 2
    assert EarlyStop([layer], patience=None)(1.0) is False


def test_training_fits_a_line_and_tells_of_each_epoch() -> None:
    x = torch.linspace(-1, 1, 50)[:, None]
    layer = nn.Linear(1, 1)
    heard = []

    def loss_of(rows: torch.Tensor) -> torch.Tensor:
        return (layer(x[rows]) - 3 * x[rows]).square().mean()

    optimizer = torch.optim.SGD(layer.parameters(), 0.3)
    generator = torch.Generator().manual_seed(0)
    curve = train(
        iter(range(80)), loss_of, optimizer, 50, 16, generator, lambda e, loss: heard.append(e) or e == 59
    )
    assert len(curve) == 60
    assert heard == list(range(60))
    assert layer.weight.item() == pytest.approx(3, abs=1e-3)
    assert train(
        iter(range(5)), loss_of, optimizer, 50, 16, generator, before=lambda e: e == 2
    ) == pytest.approx([0, 0], abs=1e-6)


def test_a_loss_that_is_not_finite_ends_the_training() -> None:
    layer = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    message = r"The loss became nan in epoch 1\. Scale the data \(StandardScaler\) or lower learning_rate\."
    with pytest.raises(TrainingError, match=message):
        train(iter([0]), lambda rows: layer.weight.sum() * torch.nan, optimizer, 4, 2, torch.Generator())


def test_private_randomness_and_devices() -> None:
    cpu = resolve_device("cpu", "X")
    draws = []
    for _ in range(2):
        with private_rng(np.random.RandomState(3), cpu) as generator:
            draws.append((torch.rand(2).tolist(), torch.rand(2, generator=generator).tolist()))
    assert draws[0] == draws[1]
    assert draws[0][0] != draws[0][1]
    with pytest.raises(
        ParameterError, match="'device' parameter of X must be 'auto' or a device that torch can use"
    ):
        resolve_device("cuda:99", "X")


def test_rows_in_parts_and_read_only_arrays() -> None:
    X = np.arange(12.0).reshape(6, 2)
    X.flags.writeable = False
    x = to_tensor(X, torch.device("cpu"))
    assert x.dtype == torch.float64
    assert on_rows(lambda part: part.sum(dim=1), x, batch_size=4).tolist() == X.sum(axis=1).tolist()
    blocks = mlp([2, 3, 1], nn.ReLU, nn.Tanh())
    assert [type(block[-1]) for block in blocks] == [nn.ReLU, nn.Tanh]
