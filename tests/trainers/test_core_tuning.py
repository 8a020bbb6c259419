"""Core-tuning's losses: values by hand, and what holds for every batch."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy, normalize

from tunesmith.trainers.core_tuning import (
    ProjectionHead,
    class_positives,
    core_tuning_loss,
    exact_label_positives,
    focal_supcon_loss,
    hard_pair_mixup,
)

SQUARE = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]], dtype=torch.float64)
ANTIPODES = torch.tensor([[1.0, 0], [1, 0], [-1, 0], [-1, 0]], dtype=torch.float64)
PAIRS = torch.tensor([0, 0, 1, 1])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def same(y: torch.Tensor) -> torch.Tensor:
    return y[:, None] == y[None]


def batch(seed: int, B: int, d: int, C: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = generator(seed)
    return torch.randn(B, d, generator=g), torch.randint(C, (B,), generator=g)


# The contrastive loss.


def test_square_by_hand() -> None:
    p = 1 / (2 + math.exp(-1))
    assert p == pytest.approx(0.42232, abs=5e-6)
    loss = {
        "supcon": focal_supcon_loss(SQUARE, same(PAIRS), 1.0, focal=False),
        "focal": focal_supcon_loss(SQUARE, same(PAIRS), 1.0),
        "rows": focal_supcon_loss(SQUARE, same(PAIRS), 1.0, normalise="rows"),
    }
    assert float(loss["supcon"]) == pytest.approx(0.86199, abs=5e-6)
    assert float(loss["focal"]) == pytest.approx((1 - 0.42232) * 0.86199, abs=1e-5)
    assert float(loss["focal"]) == pytest.approx(0.49796, abs=5e-6)
    assert float(loss["rows"]) == pytest.approx(0.12449, abs=5e-6)


def test_collapsed_antipodal_classes_by_hand() -> None:
    focal, supcon = (focal_supcon_loss(ANTIPODES, same(PAIRS), focal=f) for f in (True, False))
    p = 1 / (1 + 2 * math.exp(-2 / 0.07))
    assert float(supcon) == pytest.approx(2 * math.exp(-2 / 0.07), rel=1e-2)
    assert float(supcon) == pytest.approx(8e-13, rel=0.05)
    assert float(focal) == pytest.approx(2 * math.exp(-2 / 0.07) * (1 - p), rel=1e-2)
    assert float(focal) == pytest.approx(6e-25, rel=0.1)
    assert 0 <= float(focal_supcon_loss(ANTIPODES.float(), same(PAIRS))) < 1e-6
    assert 0 <= float(focal_supcon_loss(ANTIPODES.float(), same(PAIRS), focal=False)) < 1e-6
    assert float(focal_supcon_loss(ANTIPODES, same(PAIRS), 1.0)) == pytest.approx(0.05103, abs=5e-6)
    supcon = focal_supcon_loss(ANTIPODES, same(PAIRS), 1.0, focal=False)
    assert float(supcon) == pytest.approx(0.23954, abs=5e-6)


def supcon_reference(v: torch.Tensor, y: torch.Tensor, tau: float) -> torch.Tensor:
    """SupCon (Khosla et al. 2020, equation 2), row by row, one view."""
    losses = []
    for i in range(len(y)):
        others = [k for k in range(len(y)) if k != i]
        positives = [k for k in others if y[k] == y[i]]
        if positives:
            bottom = torch.stack([(v[i] @ v[k] / tau).exp() for k in others]).sum()
            losses.append(
                -torch.stack([((v[i] @ v[j] / tau).exp() / bottom).log() for j in positives]).mean()
            )
    return torch.stack(losses).mean()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), B=st.integers(2, 9), tau=st.sampled_from([0.07, 0.2, 1.0]))
def test_what_holds_for_every_contrast(seed: int, B: int, tau: float) -> None:
    z, y = batch(seed, B, 4, 3)
    v = normalize(z.double(), dim=1)
    mask = same(y)
    focal, supcon = (float(focal_supcon_loss(v, mask, tau, focal=f)) for f in (True, False))
    if bool((mask.sum(1) > 1).any()):
        assert supcon == pytest.approx(float(supcon_reference(v, y, tau)), rel=1e-9, abs=1e-12)
    assert 0 <= focal <= supcon
    assert focal < supcon or supcon < 1e-9

    order = torch.randperm(B, generator=generator(seed))
    assert float(focal_supcon_loss(v[order], mask[order][:, order], tau)) == pytest.approx(focal, abs=1e-9)
    turn = torch.linalg.qr(torch.randn(4, 4, generator=generator(seed), dtype=torch.float64))[0]
    assert float(focal_supcon_loss(v @ turn, mask, tau)) == pytest.approx(focal, abs=1e-9)


def test_weights_lie_between_0_and_1() -> None:
    # With one positive j for row i alone the loss is w_ij times the SupCon loss: their ratio is the weight.
    z, _ = batch(3, 6, 3, 2)
    v = normalize(z.double(), dim=1)
    p = (v @ v.T / 0.07).fill_diagonal_(-math.inf).softmax(1)
    for i, j in ((0, 1), (2, 5), (4, 3)):
        only = torch.zeros(6, 6)
        only[i, j] = 1
        w = float(focal_supcon_loss(v, only) / focal_supcon_loss(v, only, focal=False))
        assert 0 <= w <= 1
        assert w == pytest.approx(1 - float(p[i, j]), rel=1e-9)


def test_half_precision_and_autocast_compute_in_float32() -> None:
    v = normalize(torch.randn(8, 4, generator=generator()), dim=1)
    mask = same(torch.arange(8) % 2)
    exact = focal_supcon_loss(v, mask)
    with torch.autocast("cpu", torch.bfloat16):
        assert float(focal_supcon_loss(v, mask)) == float(exact)
    half = focal_supcon_loss(v.half(), mask)  # exp(1 / 0.07) is beyond float16
    assert half.dtype == torch.float32
    assert float(half) == pytest.approx(float(exact), rel=2e-2)


# Which rows are positives, and the whole loss.


def test_positives_by_class() -> None:
    mask = class_positives(torch.tensor([0, 1, 0]))
    assert mask.shape == (9, 9)
    assert mask[0].nonzero()[:, 0].tolist() == [0, 2, 6, 8]
    assert mask[7].nonzero()[:, 0].tolist() == [1, 7]
    assert not mask[3:6].any()
    assert not mask[:, 3:6].any()


def test_how_many_rows_have_equal_soft_labels() -> None:
    # C = 10, B = 64, alpha = 1: about 202 pairs original-original, 60 original-z⁻, 14 z⁻-z⁻ on average; 38 % of the
    # z⁻ have a positive. With the code's partners, which may be of the same class.
    found = torch.zeros(4)
    for seed in range(60):
        z, y = batch(seed, 64, 8, 10)
        Y = hard_pair_mixup(z, y, 10, variant="official", generator=generator(seed)).labels[:128]
        pairs = exact_label_positives(Y).fill_diagonal_(False).float()
        negatives = pairs[64:]
        found += torch.tensor(
            [pairs[:64, :64].sum() / 2, pairs[:64, 64:].sum(), negatives[:, 64:].sum() / 2,
             (negatives.sum(1) > 0).float().mean()]
        ) / 60  # fmt: skip
    assert float(found[0]) == pytest.approx(202, rel=0.05)
    assert float(found[1]) == pytest.approx(60, rel=0.1)
    assert float(found[2]) == pytest.approx(14, rel=0.2)
    assert float(found[3]) == pytest.approx(0.38, abs=0.03)


def network(d: int = 3, C: int = 3) -> tuple[nn.Linear, ProjectionHead]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Linear(d, C, bias=False), ProjectionHead(d, 4)


def test_without_contrast_and_mixing_it_is_cross_entropy() -> None:
    z, y = batch(0, 12, 3, 3)
    head, G = network()
    found = core_tuning_loss(z, y, head, G, 3, eta=0.0, mixup=False)
    assert float(found.loss) == pytest.approx(float(cross_entropy(head(z), y)), abs=1e-6)


def test_without_weights_and_mixing_it_is_cross_entropy_with_supcon() -> None:
    z, y = batch(0, 12, 3, 3)
    head, G = network()
    found = core_tuning_loss(z, y, head, G, 3, eta=0.5, tau=0.2, mixup=False, focal=False)
    expected = cross_entropy(head(z), y) + 0.5 * supcon_reference(G(z).double(), y, 0.2)
    assert float(found.loss) == pytest.approx(float(expected), abs=1e-5)
    assert int(found.anchors) == int((same(y).sum(1) > 1).sum())


def test_the_whole_loss_is_the_sum_of_its_parts() -> None:
    z, y = batch(1, 10, 3, 3)
    head, G = network()
    found = core_tuning_loss(z, y, head, G, 3, eta=2.0, tau=0.1, alpha=0.5, generator=generator(3))
    made = hard_pair_mixup(z, y, 3, alpha=0.5, generator=generator(3))
    ce = -(made.labels * head(made.features).log_softmax(1)).sum() / 30
    contrast = focal_supcon_loss(G(made.features), class_positives(y), 0.1)
    assert float(found.ce) == pytest.approx(float(ce), rel=1e-5)
    assert float(found.contrast) == pytest.approx(float(contrast), rel=1e-5)
    assert float(found.loss) == pytest.approx(float(ce + 2 * contrast), rel=1e-5)


def test_a_batch_of_one_class_is_not_mixed() -> None:
    z, _ = batch(1, 5, 3, 3)
    y = torch.full((5,), 2)
    head, G = network()
    for variant in ("paper", "official"):
        found = core_tuning_loss(z, y, head, G, 3, eta=1.0, variant=variant, normalise="positives")
        plain = cross_entropy(head(z), y) + focal_supcon_loss(G(z), same(y))
        assert float(found.loss) == pytest.approx(float(plain), rel=1e-5)


def test_a_class_with_one_example_is_its_own_hardest_positive() -> None:
    z, _ = batch(1, 5, 3, 3)
    y = torch.tensor([0, 0, 1, 2, 2])
    head, G = network()
    made = hard_pair_mixup(z, y, 3, generator=generator())
    assert made.hp.tolist() == [1, 0, 2, 4, 3]
    found = core_tuning_loss(z, y, head, G, 3, eta=1.0, generator=generator())
    assert int(found.anchors) == 10  # with its z⁺ it has a positive
    assert torch.isfinite(found.loss)
    alone = core_tuning_loss(z, torch.arange(5), nn.Linear(3, 5), G, 5, mixup=False)
    assert int(alone.anchors) == 0
    assert float(alone.contrast.detach()) == 0.0
