"""RoSTE's quantisers: the hand-worked numbers, what holds for every input, straight-through gradients."""

from __future__ import annotations

import math

import pytest
import torch

from tunesmith.core.errors import ParameterError
from tunesmith.numerics import RandomHadamard, walsh_hadamard
from tunesmith.tuners.roste import Quantizer, dequantize, fake_quant, quantize
from tunesmith.tuners.roste.quantizer import rotate_fake_quant


def rows(n: int, d: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_hand_worked_symmetric_and_asymmetric_values() -> None:
    x = torch.tensor([-1, 0.2, 0.7], dtype=torch.float64)
    # s = 1/7; -7, 1.4 -> 1, 4.9 -> 5.
    assert fake_quant(x, 4, symmetric=True).tolist() == pytest.approx([-1, 1 / 7, 5 / 7], abs=1e-12)
    # s = 1.7/15, z = round(8.82) = 9; codes 0, 11, 15.
    assert fake_quant(x, 4).tolist() == pytest.approx([-1.02, 0.226667, 0.68], abs=1e-6)
    codes, scale, zero = quantize(x, Quantizer(4))
    assert codes.tolist() == [0, 11, 15]
    assert float(scale) == pytest.approx(1.7 / 15)
    assert float(zero) == 9


def test_the_zero_point_is_not_clamped() -> None:
    codes, scale, zero = quantize(torch.tensor([10.0, 10.4, 11.0]), Quantizer(4))
    assert float(zero) == -150
    assert codes.tolist() == [0, 6, 15]
    assert dequantize(codes, scale, zero).tolist() == pytest.approx([10.0, 10.4, 11.0], rel=1e-6)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("value", [0.0, 1.0, -3e4])
def test_a_constant_group_gives_finite_numbers_near_it(symmetric: bool, value: float) -> None:
    x = torch.full((2, 5), value)
    got = fake_quant(x, 4, symmetric=symmetric)
    assert torch.isfinite(got).all()
    torch.testing.assert_close(got, x, rtol=1e-5, atol=1e-6)


def test_clipping_hand_worked() -> None:
    # Symmetric, c = 0.5: s = 0.5/7, so 1 -> 7 s = 0.5 and 0.25 -> 3.5 rounds to the even 4 -> 4 s.
    x = torch.tensor([1.0, 0.25], dtype=torch.float64)
    assert fake_quant(x, 4, symmetric=True, clip=0.5).tolist() == pytest.approx([0.5, 4 * 0.5 / 7])
    # Asymmetric, c = 0.5 on 0..15: s = 0.5, codes stop at 15, which stands for 7.5.
    x = torch.tensor([0.0, 3.2, 15.0], dtype=torch.float64)
    assert fake_quant(x, 4, clip=0.5).tolist() == pytest.approx([0, 3.0, 7.5])


def test_symmetric_rounding_twice_is_rounding_once_to_the_bit() -> None:
    x = rows(20_000, 16)
    once = fake_quant(x, 4, symmetric=True)
    assert torch.equal(fake_quant(once, 4, symmetric=True), once)


def test_asymmetric_rounding_twice_is_rounding_once() -> None:
    once = fake_quant(rows(20_000, 16), 4)
    torch.testing.assert_close(fake_quant(once, 4), once, rtol=0, atol=1e-5)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
def test_levels_and_error_bound(bits: int, symmetric: bool) -> None:
    x = rows(200, 64, dtype=torch.float64) * torch.logspace(-3, 3, 200, dtype=torch.float64)[:, None]
    x[::3] += 5  # groups that exclude 0
    codes, scale, _ = quantize(x, Quantizer(bits, symmetric))
    got = fake_quant(x, bits, symmetric=symmetric)
    levels = 2**bits - symmetric
    assert max(len(row.unique()) for row in got) <= levels
    assert ((got - x).abs() <= scale[:, None] / 2 * (1 + 1e-9)).all()
    low = -(2 ** (bits - 1)) if symmetric else 0
    assert codes.min() >= low
    assert codes.max() <= low + 2**bits - 1


@pytest.mark.parametrize("symmetric", [False, True])
def test_with_clipping_the_bound_holds_for_what_is_not_clipped(symmetric: bool) -> None:
    x = rows(100, 64, dtype=torch.float64)
    quantizer = Quantizer(4, symmetric, clip=0.9)
    codes, scale, zero = quantize(x, quantizer)
    scale = scale[:, None]
    whole = torch.round(x / scale) + (0 if zero is None else zero[:, None])
    kept = whole == codes
    assert 0.8 < kept.double().mean() < 1
    error = (quantizer(x) - x).abs()
    assert (error <= scale / 2 * (1 + 1e-9))[kept].all()
    assert (error > scale / 2)[~kept].any()


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("group_size", [None, 8])
def test_codes_scales_and_zero_points_give_the_fake_quantised_numbers_to_the_bit(
    symmetric: bool, group_size: int | None
) -> None:
    x = rows(50, 32)
    quantizer = Quantizer(4, symmetric, 0.95, group_size)
    codes, scale, zero = quantize(x, quantizer)
    assert scale.shape == ((50, 4) if group_size else (50,))
    assert torch.equal(dequantize(codes, scale, zero), quantizer(x))


def test_groups_are_quantised_on_their_own() -> None:
    x = rows(6, 32)
    got = fake_quant(x, 4, group_size=8)
    assert torch.equal(got, fake_quant(x.view(6, 4, 8), 4).view(6, 32))


def test_an_outlier_is_helped_and_one_is_made() -> None:
    def error(x: torch.Tensor) -> float:
        return Quantizer(4, symmetric=True).error(x)

    helped = torch.tensor([7, 0.4, 0.4, 0.4], dtype=torch.float64)
    assert error(helped) == pytest.approx(0.48, abs=1e-12)
    assert error(walsh_hadamard(helped)) == pytest.approx(0.137755, abs=1e-6)
    made = torch.tensor([1, 1, 1, 3 / 7], dtype=torch.float64)
    assert error(made) == pytest.approx(0, abs=1e-12)
    assert error(walsh_hadamard(made)) == pytest.approx(0.004998, abs=1e-6)


def test_the_error_bounds_of_proposition_4_4() -> None:
    w = torch.tensor([7, 0.4, 0.4, 0.4], dtype=torch.float64)
    assert 4 * 49 / (4 * 7**2) == 1.0
    assert Quantizer(4, symmetric=True).error(w) <= 1.0
    d, delta, held = 64, 0.1, 0
    heavy = torch.distributions.StudentT(2.0)
    torch.manual_seed(0)
    for seed in range(200):
        w = heavy.sample((d,)).double()
        bound = d * w.abs().max() ** 2 / (4 * 7**2)
        assert Quantizer(4, symmetric=True).error(w) <= bound
        turned = RandomHadamard.drawn(d, seed)(w)
        held += Quantizer(4, symmetric=True).error(turned) <= math.log(4 * d / delta) / (2 * 7**2) * w.dot(w)
    assert held >= 200 * (1 - delta)


def test_gradients_pass_straight_also_through_clipping() -> None:
    x = rows(3, 8, dtype=torch.float64).requires_grad_()
    grad = rows(3, 8, 1, torch.float64)
    fake_quant(x, 2, clip=0.5).backward(grad)
    assert torch.equal(x.grad, grad)


@pytest.mark.parametrize("back", [False, True])
def test_gradients_of_the_rotated_quantiser(back: bool) -> None:
    turn = RandomHadamard.drawn(8, 0)
    x = rows(3, 8, dtype=torch.float64).requires_grad_()
    grad = rows(3, 8, 1, torch.float64)
    y = rotate_fake_quant(x, Quantizer(4), turn, back=back)
    y.backward(grad)
    expected = fake_quant(turn(x.detach()), 4)
    assert torch.equal(y, turn.inverse(expected) if back else expected)
    assert torch.equal(x.grad, grad if back else turn.inverse(grad))


def test_no_bits_leave_the_numbers_alone() -> None:
    x = rows(2, 4)
    assert fake_quant(x, None) is x
    assert torch.equal(rotate_fake_quant(x, Quantizer(None), None), x)
    assert Quantizer(None).error(x) == 0


def test_half_precision_is_computed_in_float32() -> None:
    x = rows(4, 16).bfloat16()
    got = fake_quant(x, 4)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, fake_quant(x.float(), 4).bfloat16())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"bits": 1},
            "'bits' parameter of Quantizer must be an int in [2, 16], or None to leave the numbers as",
        ),
        ({"bits": 4.0}, "'bits' parameter of Quantizer must be an int in [2, 16]"),
        ({"clip": 0.0}, "'clip' parameter of Quantizer must be a float in (0, 1]. Got 0.0 instead."),
        ({"clip": 1.1}, "'clip' parameter of Quantizer must be a float in (0, 1]. Got 1.1 instead."),
        (
            {"group_size": 1},
            "'group_size' parameter of Quantizer must be an int of at least 2, or None. Got 1",
        ),
        (
            {"group_size": 3},
            "'group_size' parameter of Quantizer must be a divisor of the width 8, or None. Got 3",
        ),
    ],
)
def test_parameters_outside_their_sets(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ParameterError) as error:
        fake_quant(torch.zeros(2, 8), **arguments)  # type: ignore[arg-type]
    assert message in str(error.value)
