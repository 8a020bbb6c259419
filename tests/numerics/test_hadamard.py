"""The fast Walsh-Hadamard transform against its matrix, and the rotations made of it."""

from __future__ import annotations

import math

import pytest
import torch

from tunesmith.core.errors import ParameterError
from tunesmith.numerics import RandomHadamard, hadamard_block, walsh_hadamard


def sylvester(n: int) -> torch.Tensor:
    """H_n by parity of common bits: another way than the code's."""
    return torch.tensor(
        [[(-1.0) ** (i & j).bit_count() for j in range(n)] for i in range(n)], dtype=torch.float64
    )


@pytest.mark.parametrize("n", [1, 2, 4, 16, 32, 64, 128, 256, 512])
def test_the_transform_is_the_product_with_sylvesters_matrix(n: int) -> None:
    x = torch.randn(3, n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(walsh_hadamard(x), x @ sylvester(n) / math.sqrt(n), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("width", "block"), [(576, 64), (1536, 512), (96, 32), (7, 1), (4096, 4096), (48, 16)]
)
def test_other_widths_are_rotated_in_blocks(width: int, block: int) -> None:
    assert hadamard_block(width) == block
    x = torch.randn(2, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    y = walsh_hadamard(x)
    torch.testing.assert_close(walsh_hadamard(y), x, rtol=0, atol=1e-12)
    torch.testing.assert_close(y[:, :block], walsh_hadamard(x[:, :block]), rtol=0, atol=1e-12)


def test_a_hand_worked_transform() -> None:
    x = torch.tensor([7, 0.4, 0.4, 0.4], dtype=torch.float64)
    assert walsh_hadamard(x).tolist() == pytest.approx([4.1, 3.3, 3.3, 3.3], abs=1e-12)
    assert walsh_hadamard(x, 2).tolist() == pytest.approx(
        [7.4 / 2**0.5, 6.6 / 2**0.5, 0.8 / 2**0.5, 0.0], abs=1e-12
    )


def test_the_transform_is_differentiable_and_its_own_adjoint() -> None:
    x = torch.randn(2, 24, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(walsh_hadamard, (x,))
    grad = torch.randn(2, 24, dtype=torch.float64)
    walsh_hadamard(x).backward(grad)
    torch.testing.assert_close(x.grad, walsh_hadamard(grad), rtol=0, atol=1e-12)


@pytest.mark.parametrize("block", [0, 3, 16, 64])
def test_a_block_that_does_not_fit_is_refused(block: int) -> None:
    with pytest.raises(ParameterError) as error:
        walsh_hadamard(torch.zeros(2, 24), block)
    assert str(error.value) == (
        "The 'block' parameter of walsh_hadamard must be a power of two that divides the width 24. "
        f"Got {block} instead."
    )


@pytest.mark.parametrize("width", [64, 576])
def test_a_random_rotation_is_orthogonal_and_undone_by_its_inverse(width: int) -> None:
    turn = RandomHadamard.drawn(width, seed=3)
    R = turn.matrix()
    torch.testing.assert_close(R @ R.T, torch.eye(width, dtype=torch.float64), rtol=0, atol=1e-12)
    x = torch.randn(5, width, dtype=torch.float64)
    torch.testing.assert_close(turn(x), x @ R, rtol=0, atol=1e-12)
    torch.testing.assert_close(turn.inverse(turn(x)), x, rtol=0, atol=1e-12)
    torch.testing.assert_close(turn.inverse(x), x @ R.T, rtol=0, atol=1e-12)


def test_signs_come_before_the_transform_and_depend_on_seed_and_width_alone() -> None:
    one, same, other = (RandomHadamard.drawn(64, s) for s in (0, 0, 1))
    assert torch.equal(one.signs, same.signs)
    assert not torch.equal(one.signs, other.signs)
    x = torch.randn(64, dtype=torch.float64)
    torch.testing.assert_close(one(x), walsh_hadamard(x * one.signs.double()), rtol=0, atol=1e-12)
    # Signs spread what the plain transform would gather: a constant vector.
    assert walsh_hadamard(torch.ones(64)).abs().max() == pytest.approx(8)
    assert one(torch.ones(64)).abs().max() < 4


def test_half_precision_is_rotated_in_float32() -> None:
    x = torch.randn(4, 32).bfloat16()
    turn = RandomHadamard.drawn(32, 0)
    assert turn(x).dtype == torch.float32
    wide = turn(x.float())
    assert torch.equal(turn(x), wide)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(turn(x), wide)
        assert turn.inverse(wide).dtype == torch.float32


def test_tables_made_in_inference_mode_serve_gradients_later() -> None:
    turn = RandomHadamard.drawn(8, 12345)
    with torch.inference_mode():
        turn(torch.zeros(1, 8, dtype=torch.float64))
    x = torch.randn(2, 8, dtype=torch.float64, requires_grad=True)
    turn(x).sum().backward()
    torch.testing.assert_close(x.grad, turn.inverse(torch.ones_like(x)), rtol=0, atol=1e-12)


def test_several_vectors_one_behind_the_other_are_rotated_alike() -> None:
    turn = RandomHadamard.drawn(16, 0)
    x = torch.randn(3, 4, 16, dtype=torch.float64)
    torch.testing.assert_close(turn.repeated(4)(x.flatten(1)), turn(x).flatten(1), rtol=0, atol=1e-12)
    assert len(turn.repeated(4)) == 64
