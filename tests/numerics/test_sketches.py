"""Sketches keep lengths in expectation, within the stated variance, and are the same for a seed everywhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tunesmith.core.errors import ParameterError
from tunesmith.numerics import HartleySketch, SignSketch, SparseSketch, hartley

N, K = 96, 24
KINDS = [(SignSketch, 2.0), (SparseSketch, 2.0), (HartleySketch, 3.5)]


def vectors() -> torch.Tensor:
    """Unit vectors that are hard for one sketch or another: one place, two places, flat, dense."""
    rng = np.random.default_rng(0)
    x = np.zeros((5, N))
    x[0, 0] = 1
    x[1, [0, N // 2]] = 1
    x[2] = 1
    x[3] = rng.normal(size=N)
    x[4] = np.exp(-np.arange(N))
    return torch.tensor(x / np.linalg.norm(x, axis=1, keepdims=True), dtype=torch.float32)


@pytest.mark.parametrize(("kind", "factor"), KINDS)
def test_squared_length_is_kept_within_the_stated_variance(kind, factor):
    squares = np.stack([kind(N, K, seed)(vectors()).square().sum(-1).numpy() for seed in range(600)])
    bound = factor / K
    # the mean of 600 draws: five standard errors of the bound
    assert np.abs(squares.mean(axis=0) - 1).max() < 5 * (bound / 600) ** 0.5
    # the bound is on the variance itself; a sample's may stand above it by its own sampling error
    assert (squares.var(axis=0) < 1.25 * bound).all()


def test_signs_of_one_place_have_no_variance():
    # (2 / k) (1 - sum x^4) is 0 for a one-hot vector, and the column of a one-hot vector is its sketch
    sketch = SignSketch(N, K, 3)
    one = torch.zeros(N)
    one[7] = 1
    assert sketch(one).square().sum().item() == pytest.approx(1, abs=1e-6)
    assert torch.equal(sketch.unscaled(torch.tensor([7, 2]))[0], sketch.unscaled(one))


@pytest.mark.parametrize("kind", [k for k, _ in KINDS])
def test_linear_seeded_and_of_its_seed(kind):
    x, y = torch.randn(2, 3, N, generator=torch.Generator().manual_seed(0))
    sketch = kind(N, K, 1)
    assert sketch(x).shape == (3, K)
    torch.testing.assert_close(sketch(x - y), sketch(x) - sketch(y), atol=1e-5, rtol=1e-5)
    assert torch.equal(sketch(torch.zeros(N)), torch.zeros(K))
    assert torch.equal(sketch(x), kind(N, K, 1)(x))
    assert not torch.equal(sketch(x), kind(N, K, 2)(x))


@pytest.mark.parametrize("n", [1, 2, 7, 8])
def test_hartley_by_its_definition(n):
    x = torch.randn(3, n, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    angle = 2 * torch.pi * torch.outer(torch.arange(n), torch.arange(n)).double() / n
    expected = x @ (angle.cos() + angle.sin()) / n**0.5
    torch.testing.assert_close(hartley(x, torch.arange(n)), expected)
    torch.testing.assert_close(hartley(x.T, torch.arange(n), dim=0).T, expected)
    # its own inverse
    torch.testing.assert_close(hartley(expected, torch.arange(n)), x)


def test_hartley_of_all_frequencies_is_an_isometry():
    x = vectors()
    torch.testing.assert_close(HartleySketch(N, N, 0)(x).square().sum(-1), torch.ones(5))


def test_more_dimensions_than_there_are():
    squares = [HartleySketch(4, 9, seed)(torch.eye(4)).square().sum(-1) for seed in range(400)]
    assert torch.stack(squares).mean(0).sub(1).abs().max() < 5 * (3.5 / 9 / 400) ** 0.5


@pytest.mark.parametrize("kind", [k for k, _ in KINDS])
@pytest.mark.parametrize(("n", "k", "name"), [(0, 3, "n"), (3, 0, "k"), (3, 2.5, "k")])
def test_sizes_are_checked(kind, n, k, name):
    value = {"n": n, "k": k}[name]
    with pytest.raises(
        ParameterError, match=rf"'{name}' parameter of {kind.__name__} must be an int >= 1\. Got {value}"
    ):
        kind(n, k)
