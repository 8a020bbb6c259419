"""RoSTE's linear layer: gradients against the formulas, caching, shared inputs, types, checkpointing."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from tunesmith.numerics import RandomHadamard
from tunesmith.tuners.roste import (
    Quantizer,
    RosteConfig,
    RotatedQuantLinear,
    apply_roste,
    fake_quant,
    quantizers_off,
    roste_layers,
)

Q4 = Quantizer(4)


def layer(
    turn: bool = True, width: int = 16, out: int = 6, dtype: Any = torch.float64, **kw: Any
) -> RotatedQuantLinear:
    torch.manual_seed(0)
    base = torch.nn.Linear(width, out, dtype=dtype)
    rotation = RandomHadamard.drawn(width, 0) if turn else None
    return RotatedQuantLinear(base, Q4, Q4, rotation=rotation, **kw)


def inputs(*shape: int, dtype: Any = torch.float64, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("turn", [False, True])
def test_forward_and_gradients_are_those_of_equation_5(turn: bool) -> None:
    module = layer(turn)
    x, G = inputs(2, 5, 16).requires_grad_(), inputs(2, 5, 6, seed=2)
    y = module(x)
    y.backward(G)
    R = module.rotation
    W, b = module.weight.detach(), module.bias.detach()
    rotated = x.detach() if R is None else R(x.detach())
    xq, wq = fake_quant(rotated), fake_quant(W if R is None else R(W))
    assert torch.equal(y, linear(xq, wq, b))
    g, rows = G.flatten(0, 1), xq.flatten(0, 1)
    dw, dx = g.T @ rows, G @ wq
    assert torch.equal(module.weight.grad, dw if R is None else R.inverse(dw))
    assert torch.equal(x.grad, dx if R is None else R.inverse(dx))
    assert torch.equal(module.bias.grad, g.sum(0))
    if R is not None:  # and with the matrix written out
        M = R.matrix()
        torch.testing.assert_close(module.weight.grad, dw @ M.T, rtol=0, atol=1e-12)
        torch.testing.assert_close(x.grad, dx @ M.T, rtol=0, atol=1e-12)


def test_gradients_approach_those_of_full_precision_with_more_bits() -> None:
    x, G = inputs(5, 16), inputs(5, 6, seed=2)
    plain = torch.nn.Linear(16, 6, dtype=torch.float64)
    distance = []
    for bits in (2, 4, 8, 16):
        module = layer()
        module.weight_quantizer = module.activation_quantizer = Quantizer(bits)
        plain.load_state_dict({"weight": module.weight, "bias": module.bias})
        plain.zero_grad()
        plain(x).backward(G)
        module(x).backward(G)
        distance.append(float((module.weight.grad - plain.weight.grad).norm() / plain.weight.grad.norm()))
    assert distance == sorted(distance, reverse=True)
    assert distance[-1] < 1e-4


def test_the_linear_model_of_section_4() -> None:
    """g = (<Q_x(Rx), Q_w(Rw)> - y) R^T Q_x(Rx) for the loss 1/2 (prediction - y)^2."""
    module = layer(out=1)
    module.bias = None
    x, y = inputs(16), 0.7
    (0.5 * (module(x) - y) ** 2).sum().backward()
    R = module.rotation
    assert R is not None
    w = module.weight.detach()
    xq, wq = fake_quant(R(x)), fake_quant(R(w))[0]
    expected = (xq @ wq - y) * R.inverse(xq)
    torch.testing.assert_close(module.weight.grad[0], expected, rtol=0, atol=1e-14)


def test_rotated_outputs_move_into_weight_and_bias() -> None:
    turn = RandomHadamard.drawn(6, 0)
    module = layer(rotation_out=turn)
    plain = torch.nn.Linear(16, 6, dtype=torch.float64)
    plain.load_state_dict({"weight": module.weight, "bias": module.bias})
    x, G = inputs(5, 16), inputs(5, 6, seed=2)
    module.active = False
    y = module(x)
    torch.testing.assert_close(y, turn(plain(x)), rtol=0, atol=1e-12)
    y.backward(G)
    turn(plain(x)).backward(G)  # in float64 the rotation is differentiable as it is
    torch.testing.assert_close(module.weight.grad, plain.weight.grad, rtol=0, atol=1e-12)
    torch.testing.assert_close(module.bias.grad, plain.bias.grad, rtol=0, atol=1e-12)


def test_weights_are_rounded_once_per_optimiser_step(monkeypatch: pytest.MonkeyPatch) -> None:
    module = layer(dtype=torch.float32)
    calls = []
    original = RotatedQuantLinear.rotated
    monkeypatch.setattr(RotatedQuantLinear, "rotated", lambda self: calls.append(1) or original(self))
    optimiser = torch.optim.AdamW(module.parameters(), lr=0.1)
    for step in range(3):
        for micro in range(4):
            module(inputs(2, 16, dtype=torch.float32, seed=micro)).sum().backward()
        assert len(calls) == step + 1
        optimiser.step()
        optimiser.zero_grad()


@pytest.mark.parametrize(
    "how", ["in place", "through .data by an optimiser", "load_state_dict", "new tensor", "eval"]
)
def test_a_changed_weight_is_seen(how: str) -> None:
    module = layer()
    x = inputs(2, 16)
    before = module(x)
    if how == "in place":
        with torch.no_grad():
            module.weight.mul_(2)
    elif how == "through .data by an optimiser":

        class Careless(torch.optim.SGD):
            def step(self, closure: Any = None) -> None:
                module.weight.data.mul_(2)

        Careless(module.parameters(), lr=0.1).step()
    elif how == "load_state_dict":
        module.load_state_dict({"weight": module.weight * 2, "bias": module.bias})
    elif how == "new tensor":
        module.weight.data = module.weight.data * 2
    else:
        module.weight.data.mul_(2)
        module.eval()
    after = module(x)
    fresh = copy.deepcopy(module)
    assert torch.equal(after, fresh(x))
    assert not torch.equal(after, before)


def test_inference_does_not_spoil_training() -> None:
    module = layer()
    x = inputs(2, 16)
    with torch.inference_mode():
        first = module(x)
    second = module(x)
    second.sum().backward()
    assert torch.equal(first, second)
    assert module.weight.grad is not None


class Attention(torch.nn.Module):
    """Three layers that read one input, and a fourth."""

    def __init__(self, dtype: Any) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (torch.nn.Linear(16, 16, dtype=dtype) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.o(torch.tanh(self.q(x) * self.k(x) + self.v(x)))


def attention(dtype: Any = torch.float64, rotation: str = "all", **kw: Any) -> Any:
    torch.manual_seed(0)
    return apply_roste(torch.nn.Sequential(Attention(dtype)), RosteConfig(rotation=rotation, **kw))


def test_layers_that_read_one_tensor_quantise_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from tunesmith.tuners.roste import layers

    model = attention()
    calls = []
    original = layers.rotate_fake_quant
    monkeypatch.setattr(layers, "rotate_fake_quant", lambda *a, **k: calls.append(1) or original(*a, **k))
    x = inputs(3, 16).requires_grad_()
    shared = model(x)
    shared.sum().backward()
    assert len(calls) == 2
    grads = [x.grad.clone(), *(p.grad.clone() for p in model.parameters())]
    for module in roste_layers(model).values():
        monkeypatch.setattr(module.shared, "get", lambda x, key, compute: compute())
    x.grad = None
    model.zero_grad()
    alone = model(x)
    alone.sum().backward()
    assert len(calls) == 6
    assert torch.equal(shared, alone)
    for one, other in zip(grads, [x.grad, *(p.grad for p in model.parameters())], strict=True):
        # Three gradients are summed before the rotation.
        torch.testing.assert_close(one, other, rtol=0, atol=1e-13)


def test_an_input_changed_in_place_is_quantised_anew() -> None:
    class InPlace(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = torch.nn.Linear(16, 4), torch.nn.Linear(16, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            first = self.a(x)
            return first + self.b(x.mul_(2))

    torch.manual_seed(0)
    model = apply_roste(torch.nn.Sequential(InPlace()), RosteConfig(rotation="none"))
    x = inputs(2, 16, dtype=torch.float32)
    a, b = model[0].a, model[0].b
    expected = linear(fake_quant(x), fake_quant(a.weight), a.bias) + linear(
        fake_quant(2 * x), fake_quant(b.weight), b.bias
    )
    torch.testing.assert_close(model(x.clone()), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(reentrant: bool) -> None:
    plain, saved = attention(torch.float32), attention(torch.float32)
    x = inputs(3, 16, dtype=torch.float32)
    one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    plain(one).square().sum().backward()
    checkpoint(saved, other, use_reentrant=reentrant).square().sum().backward()
    assert torch.equal(one.grad, other.grad)
    for a, b in zip(plain.parameters(), saved.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
    assert all(m.shared.source is None for m in roste_layers(saved).values())


def test_accumulation_equals_the_sum_and_the_cache_changes_nothing() -> None:
    cached, fresh = attention(), attention(cache_weights=False)
    parts = inputs(4, 3, 16).unbind()
    for part in parts:
        cached(part).square().sum().backward()
        fresh(part).square().sum().backward()
    whole = attention()
    whole(torch.cat(parts)).square().sum().backward()
    for a, b, c in zip(cached.parameters(), fresh.parameters(), whole.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
        torch.testing.assert_close(a.grad, c.grad, rtol=0, atol=1e-12)


def test_bfloat16_and_autocast() -> None:
    module = layer(dtype=torch.bfloat16)
    x = inputs(3, 16, dtype=torch.bfloat16).requires_grad_()
    y = module(x)
    y.sum().backward()
    assert y.dtype == x.grad.dtype == module.weight.grad.dtype == torch.bfloat16
    wide = layer(dtype=torch.float32)
    x = inputs(3, 16, dtype=torch.float32).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = wide(x)
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    assert x.grad.dtype == wide.weight.grad.dtype == torch.float32
    R = wide.rotation
    assert R is not None
    expected = linear(
        fake_quant(R(x.detach())).bfloat16(), fake_quant(R(wide.weight)).bfloat16(), wide.bias.bfloat16()
    )
    assert torch.equal(y, expected)


def test_a_frozen_weight_gets_no_gradient_and_the_input_still_does() -> None:
    module = layer()
    module.weight.requires_grad_(False)
    x = inputs(3, 16).requires_grad_()
    module(x).sum().backward()
    assert module.weight.grad is None
    assert x.grad is not None


def test_copies_are_independent_and_leave_the_cache_behind() -> None:
    model = attention()
    x = inputs(2, 16)
    model(x)
    copied = copy.deepcopy(model)
    assert all(m._kept is None for m in roste_layers(copied).values())
    assert copied[0].q.shared is copied[0].k.shared is not model[0].q.shared
    assert torch.equal(copied(x), model(x))
    with torch.no_grad():
        copied[0].q.weight.zero_()
    assert not torch.equal(copied(x), model(x))


def test_no_rotation_is_plain_straight_through_tuning_to_the_bit() -> None:
    class Plain(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return Q4(x)

        @staticmethod
        def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
            return grads[0]

    ours = attention(torch.float32, "none")[0]
    torch.manual_seed(0)
    theirs = Attention(torch.float32)

    def forward(x: torch.Tensor) -> torch.Tensor:
        def apply(m: Any, x: torch.Tensor) -> torch.Tensor:
            return linear(Plain.apply(x), Plain.apply(m.weight), m.bias)

        q, k, v, o = theirs.q, theirs.k, theirs.v, theirs.o
        return apply(o, torch.tanh(apply(q, x) * apply(k, x) + apply(v, x)))

    steps = [torch.optim.AdamW(m.parameters(), lr=1e-2) for m in (ours, theirs)]
    for i in range(5):
        x = inputs(8, 16, dtype=torch.float32, seed=i)
        one, other = ours(x).square().mean(), forward(x).square().mean()
        assert torch.equal(one, other)
        one.backward()
        other.backward()
        for optimiser in steps:
            optimiser.step()
            optimiser.zero_grad()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)


def test_quantisers_off_and_no_rotation_is_the_layer_itself() -> None:
    model = attention(torch.float32, "none")
    torch.manual_seed(0)
    plain = Attention(torch.float32)
    x = inputs(8, 16, dtype=torch.float32)
    with quantizers_off(model):
        assert torch.equal(model(x), plain(x))
    assert not torch.equal(model(x), plain(x))
