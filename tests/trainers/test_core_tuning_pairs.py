"""Hard pairs of Core-tuning: formulas by hand, and what holds for every batch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy, linear, normalize

from tunesmith.trainers.core_tuning import hard_pair_mixup

SQUARE = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]], dtype=torch.float64)
PAIRS = torch.tensor([0, 0, 1, 1])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def same(y: torch.Tensor) -> torch.Tensor:
    return y[:, None] == y[None]


def batch(seed: int, B: int, d: int, C: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = generator(seed)
    return torch.randn(B, d, generator=g), torch.randint(C, (B,), generator=g)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6), B=st.integers(2, 12), C=st.integers(2, 4), shift=st.sampled_from([-2.0, 0, 2])
)
def test_what_holds_for_every_batch(seed: int, B: int, C: int, shift: float) -> None:
    z, y = batch(seed, B, 3, C)
    z = z + shift  # also where all similarities are far from 0, on one side
    found = hard_pair_mixup(z, y, C, generator=generator(seed))
    assert found.features.shape == (3 * B, 3)
    assert (found.labels >= 0).all()
    assert torch.allclose(found.labels.sum(1), torch.ones(3 * B), atol=1e-6)
    assert ((found.lambda_neg >= torch.tensor(0.8)) & (found.lambda_neg <= 1)).all()
    assert (y[found.hp] == y).all()
    alone = same(y).sum(1) == 1
    assert ((found.hp == torch.arange(B)) == alone).all()
    s = normalize(z, dim=1) @ normalize(z, dim=1).T
    if len(y.unique()) > 1:
        assert (y[found.hn] != y).all()
        assert (y[found.n] != y).all()
        for i in range(B):
            assert s[i, found.hn[i]] == s[i][y != y[i]].max()
            if not alone[i]:
                rest = same(y)[i] & (torch.arange(B) != i)
                assert s[i, found.hp[i]] == s[i][rest].min()
    else:
        assert not found.mixed
        assert torch.equal(found.features, z.repeat(3, 1))


def test_formulas_by_hand() -> None:
    z, y = SQUARE.float(), PAIRS
    found = hard_pair_mixup(
        z,
        y,
        partner=torch.tensor([2, 3, 0, 1]),
        lambda_neg=torch.tensor([0.9, 0.5, 1.0, 0.8]),
        lambda_pos=torch.tensor([0.25, 1.0, 0.0, 0.5]),
    )
    assert found.hp.tolist() == [1, 0, 3, 2]
    assert found.hn.tolist() == [3, 2, 1, 0]  # the neighbours on the circle
    expected = [
        *z.tolist(),
        [-0.8, 0], [0, -0.6], [1, 0], [0, 0.6],  # in the second the drawn 0.5 is raised to 0.8
        [0, -0.5], [1, 0], [0, 1], [0, 0],
    ]  # fmt: skip
    assert torch.allclose(found.features, torch.tensor(expected), atol=1e-6)
    one, two = [1.0, 0.0], [0.0, 1.0]
    labels = [one, one, two, two, [0.1, 0.9], [0.2, 0.8], one, [0.8, 0.2], [0.25, 0.75], one, one, [0.5, 0.5]]
    assert torch.allclose(found.labels, torch.tensor(labels), atol=1e-6)


def test_partners_are_drawn_evenly_from_other_classes() -> None:
    y = torch.tensor([0, 1, 2, 0, 1, 0])
    counts = torch.zeros(6, 6)
    g = generator()
    z = torch.randn(6, 2, generator=g)
    for _ in range(900):
        counts[torch.arange(6), hard_pair_mixup(z, y, 3, generator=g).n] += 1
    others = (~same(y)).float()
    expected = 900 * others / others.sum(1, keepdim=True)
    assert (counts[~same(y)] > 0).all()
    assert ((counts - expected).abs() < 5 * expected.sqrt()).masked_fill(expected == 0, True).all()
    assert not counts[same(y)].any()


def test_lambdas_follow_the_beta_distribution() -> None:
    z, y = torch.randn(1500, 2, generator=generator()), torch.arange(1500) % 2
    for alpha in (0.2, 1.0, 2.0):
        drawn = hard_pair_mixup(z, y, 2, alpha=alpha, clip=0.0, generator=generator(1))
        for value in (drawn.lambda_pos, drawn.lambda_neg):
            assert float(value.mean()) == pytest.approx(0.5, abs=0.03)
            assert float(value.var()) == pytest.approx(1 / (4 * (2 * alpha + 1)), abs=0.01)
    uniform = hard_pair_mixup(z, y, 2, generator=generator(1)).lambda_neg
    assert float((uniform == torch.tensor(0.8)).float().mean()) == pytest.approx(0.8, abs=0.03)


def test_draws_are_those_of_the_generator_alone() -> None:
    z, y = batch(0, 8, 3, 3)
    before = torch.get_rng_state()
    first, again, other = (hard_pair_mixup(z, y, 3, generator=generator(s)).features for s in (5, 5, 6))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_half_precision_stays_half() -> None:
    z, y = batch(0, 8, 3, 3)
    found = hard_pair_mixup(z.bfloat16(), y, 3, generator=generator())
    assert found.features.dtype == torch.bfloat16
    assert found.labels.dtype == torch.float32
    whole = hard_pair_mixup(z.bfloat16().float(), y, 3, generator=generator())
    assert torch.allclose(found.features.float(), whole.features, rtol=1e-2, atol=1e-2)


def test_gradient_of_a_row_that_nobody_mixes_in() -> None:
    z, y = batch(2, 24, 3, 2)
    z.requires_grad_()
    W = torch.randn(2, 3, generator=generator(9))
    lambdas = torch.rand(24, generator=generator(4)).where(torch.arange(24) % 3 > 0, 1.0)
    found = hard_pair_mixup(z, y, 2, detach_originals=True, lambda_neg=lambdas, generator=generator(0))
    rows = found.features
    rows.retain_grad()
    cross_entropy(linear(rows, W), found.labels).backward()
    used = {int(j) for group in (found.hp, found.hn, found.n) for j in group}
    free = [i for i in range(24) if i not in used]
    assert any(found.lambda_neg[i] == 1 for i in free)
    assert any(found.lambda_neg[i] < 1 for i in free)
    assert z.grad is not None
    assert rows.grad is not None
    for i in free:
        expected = (1 - found.lambda_neg[i]) * rows.grad[24 + i]
        assert torch.allclose(z.grad[i], expected, rtol=1e-5, atol=1e-9)
        if found.lambda_neg[i] == 1:
            assert not z.grad[i].any()
