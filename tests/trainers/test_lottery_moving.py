"""Values that move beside a frozen model: gradients at the chosen entries, nothing anywhere else."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tunesmith.trainers.lottery.moving import Moving, Through


def some_positions(model, share=0.3):
    generator = torch.Generator().manual_seed(3)
    return {
        n: (torch.rand(p.numel(), generator=generator) < share).nonzero()[:, 0]
        for n, p in model.named_parameters()
    }


def moving_of(model, positions):
    model.requires_grad_(False)
    moving = Moving(model)
    for name, p in model.named_parameters():
        if len(positions[name]):
            moving.add(name, p.detach().reshape(-1)[positions[name]], positions[name])
    return moving


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", ["llama", "llama-tied", "gpt2", "bert", "vit", "clip"])
def test_gradients_are_those_of_the_dense_weights(kind, checkpointing, tiny_transformer, output_of):
    model, inputs = tiny_transformer(kind)
    if checkpointing:
        model.gradient_checkpointing_enable()
        model.train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    model.config.use_cache = False
    output_of(model(**inputs)).pow(2).mean().backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    positions = some_positions(model)
    moving = moving_of(model, positions)
    for _ in range(2):  # gradients of micro-batches add up
        with moving.seen():
            output_of(model(**inputs)).pow(2).mean().backward()
    assert len(moving.names) > 10
    for name in moving.names:
        found = moving.values(name).grad
        if name in expected:
            wanted = 2 * expected[name].reshape(-1)[positions[name]]
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-7)
    assert all(p.grad is None for p in model.parameters())
    assert all(
        isinstance(p, nn.Parameter) for m in model.modules() for p in m._parameters.values() if p is not None
    )


def test_what_is_written_and_what_is_not(tiny_transformer):
    model, _ = tiny_transformer("llama-tied", torch.bfloat16)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    positions = some_positions(model)
    moving = moving_of(model, positions)
    with torch.no_grad():
        for name in moving.names:
            moving.values(name).add_(1e-5)  # below half a unit in the last place of most weights
    moving.write()
    for name, p in model.named_parameters():
        untouched = torch.ones(p.numel(), dtype=torch.bool)
        untouched[positions[name]] = False
        assert torch.equal(p.detach().reshape(-1)[untouched], before[name].reshape(-1)[untouched])
        assert torch.equal(p.detach().reshape(-1)[positions[name]], moving.values(name).detach().bfloat16())
        assert (moving.values(name) != before[name].reshape(-1)[positions[name]].float()).any()
    assert model.state_dict().keys() == {**before, "lm_head.weight": None}.keys()
    model.add_module("beside", moving)
    assert model.state_dict().keys() == {**before, "lm_head.weight": None}.keys()
    assert model.load_state_dict(model.state_dict()).missing_keys == []


def test_a_gradient_that_is_not_finite_stays_where_it_is():
    weight, values = torch.zeros(4), nn.Parameter(torch.zeros(2))
    scale = torch.tensor([1.0, float("inf"), 2.0, float("nan")])
    (Through.apply(weight, values, torch.tensor([0, 2])) * scale).sum().backward()
    assert values.grad.tolist() == [1.0, 2.0]


def test_autocast(tiny_transformer):
    model, inputs = tiny_transformer("llama")
    moving = moving_of(model, some_positions(model))
    with moving.seen(), torch.autocast("cpu", torch.bfloat16):
        model(**inputs).logits.float().pow(2).mean().backward()
    assert all(moving.values(n).grad.dtype == torch.float32 for n in moving.names)
