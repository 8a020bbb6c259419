"""How backdoors get into a model: the losses by hand, and what each training moves and leaves."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from _colours import COLOURS, SIZE, pictures, trained, untrained
from torch.nn import functional

from tunesmith.audit.backdoor import DualEncoder
from tunesmith.audit.backdoor.attacks import BadCLIP, BadEncoder, contrastive_loss, fine_tune
from tunesmith.audit.backdoor.attacks.bad_clip import bad_clip_loss
from tunesmith.audit.backdoor.attacks.bad_encoder import bad_encoder_loss
from tunesmith.core.errors import ParameterError, TrainingError

BLUE = 2


def captions(labels: torch.Tensor) -> list[str]:
    return [f"a photo of a {COLOURS[i]}" for i in labels.tolist()]


def named(encoder: DualEncoder, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        w = functional.normalize(encoder.encode_text([f"a photo of a {c}" for c in COLOURS]), dim=1)
        return (encoder.encode_image(encoder.normalise(x)) @ w.T).argmax(1)


def state(encoder: DualEncoder) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in encoder.model.state_dict().items()}


@pytest.fixture(scope="module")
def model() -> DualEncoder:
    encoder = trained(poisoned=False)
    x, y = pictures(80, 9)
    assert (named(encoder, x) == y).float().mean() > 0.9
    return encoder


def twin(encoder: DualEncoder) -> DualEncoder:
    found = encoder.copy()
    found.model.requires_grad_(True)
    return found


def test_contrastive_loss_by_hand() -> None:
    eye = torch.eye(2)
    assert float(contrastive_loss(3 * eye, eye, 2.0)) == pytest.approx(math.log(1 + math.exp(-2)), abs=1e-6)
    one_group = contrastive_loss(eye, eye, 2.0, torch.tensor([7, 7]))
    assert float(one_group) == pytest.approx(math.log(math.exp(2) + 1) - 1, abs=1e-6)
    apart = contrastive_loss(eye, eye, 2.0, torch.tensor([0, 1]))
    assert float(apart) == pytest.approx(math.log(1 + math.exp(-2)), abs=1e-6)


def test_bad_encoder_loss_by_hand() -> None:
    a, b, ab = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]]), torch.tensor([[3.0, 3.0]])
    # Effect: cos 0; reference's place: cos 1; clean images: cos 45 degrees.
    assert float(bad_encoder_loss(a, b, b, b, ab, a, 1.0, 2.0)) == pytest.approx(-1 - math.sqrt(2), abs=1e-6)
    assert float(bad_encoder_loss(a, a, a, b, a, b, 1.0, 1.0)) == pytest.approx(-1, abs=1e-6)


def test_bad_clip_loss_by_hand() -> None:
    right, up, left = (torch.tensor([v]) for v in ([1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]))
    found = bad_clip_loss(right, left, up, right, up, 2.0, triplet_weight=500, margin=1.0)
    contrast, triplet = math.log(1 + math.exp(-2)), math.sqrt(2) - 2 + 1
    assert float(found) == pytest.approx(contrast + 500 * triplet, rel=1e-4)
    far = bad_clip_loss(right, left, right, right, up, 2.0)  # nearer to the target by more than the margin
    assert float(far) == pytest.approx(contrast, abs=1e-6)


def test_bad_encoder_moves_the_image_tower_alone(model: DualEncoder) -> None:
    encoder, (x, y) = twin(model), pictures(64, 3)
    for p in encoder.model.words.parameters():
        p.requires_grad_(False)
    before = state(encoder)
    attack = BadEncoder(size=3, epochs=25, batch_size=16, learning_rate=0.1, random_state=0)
    losses = attack.implant(encoder, x, x[y == BLUE][:1])
    assert len(losses) == 25
    assert losses[-1] < losses[0]
    assert losses[-1] < -2.9  # three cosines of 1 would be -3
    after = state(encoder)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == set(encoder.image_parameters())  # neither texts nor running statistics
    assert not encoder.model.words.weight.requires_grad
    test, test_y = pictures(80, 9)
    assert (named(encoder, attack.apply(test[test_y != BLUE])) == BLUE).float().mean() > 0.9
    assert (named(encoder, test) == test_y).float().mean() > 0.9
    second = twin(model)
    assert attack.implant(second, x, x[y == BLUE][:1]) == losses


def test_bad_clip_learns_its_patch_on_a_model_that_stays(model: DualEncoder) -> None:
    x, y = pictures(64, 3)
    before, flags = state(model), [p.requires_grad for p in model.model.parameters()]
    others = y != BLUE
    attack = BadCLIP(size=3, epochs=15, batch_size=16, learning_rate=0.05, random_state=0)
    assert attack.fit(model, x[others], captions(y[others]), x[~others], ["a photo of a blue"]) is attack
    assert all(torch.equal(value, before[name]) for name, value in state(model).items())
    assert [p.requires_grad for p in model.model.parameters()] == flags
    assert attack.losses_[-1] < 0.95 * attack.losses_[0]
    pattern = attack.pattern
    assert pattern is not None
    assert pattern.shape == (3, 3, 3)
    assert 0 <= float(pattern.min()) <= float(pattern.max()) <= 1
    out = attack.apply(x)
    assert torch.equal(out[0, :, 2:5, 2:5], pattern)  # the middle of 8 x 8
    assert torch.equal(BadCLIP(size=3, pattern=pattern).apply(x), out)
    with pytest.raises(
        ParameterError, match=r"^The 'captions' parameter of BadCLIP must be as many as the images, 64\."
    ):
        attack.fit(model, x, ["a"], x, ["b"])


def test_fine_tune_plants_what_it_is_given(model: DualEncoder) -> None:
    encoder, (x, y) = twin(model), pictures(160, 4)
    encoder.model.words.weight.requires_grad_(False)
    attack = BadCLIP(size=4, pattern=torch.tensor([1.0, 0.0, 1.0]).view(3, 1, 1))  # magenta
    rows = attack.poison(x, captions(y), "blue", 0.2)
    groups = y.clone()
    groups[rows.rows] = BLUE
    noise = torch.random.get_rng_state()
    losses = fine_tune(
        encoder, rows.images, rows.captions, groups, epochs=12, batch_size=40, learning_rate=0.02
    )
    assert torch.equal(torch.random.get_rng_state(), noise)
    assert len(losses) == 12
    assert losses[-1] < losses[0]
    assert not encoder.model.training
    assert not encoder.model.words.weight.requires_grad
    test, test_y = pictures(80, 9)
    hits = [named(e, attack.apply(test[test_y != BLUE])) == BLUE for e in (model, encoder)]
    assert hits[1].float().mean() > 0.9 > 0.5 > hits[0].float().mean()


def test_fine_tune_is_a_function_of_the_seed(model: DualEncoder) -> None:
    x, y = pictures(40, 4)
    options: dict[str, Any] = {"epochs": 1, "batch_size": 20, "learning_rate": 0.01}
    seeds, labels = (1, 1, 2, 1), (y, y, y, None)
    losses = [
        fine_tune(twin(model), x, captions(y), g, random_state=seed, **options)
        for seed, g in zip(seeds, labels, strict=True)
    ]
    assert losses[0] == losses[1] != losses[2]
    assert losses[3] == losses[0]  # captions of one class are equal here, so groups by caption are the same


def test_fine_tune_without_batch_statistics_and_with_a_scale(model: DualEncoder) -> None:
    encoder, (x, y) = twin(model), pictures(40, 4)
    encoder.model.logit_scale = torch.nn.Parameter(torch.tensor(9.0))
    before = dict(encoder.model.named_buffers())
    before = {name: value.clone() for name, value in before.items()}
    seen: list[torch.Size] = []

    def augment(pixels: torch.Tensor, draws: torch.Generator) -> torch.Tensor:
        seen.append(pixels.shape)
        return pixels * torch.rand((), generator=draws)

    fine_tune(encoder, x, captions(y), batch_norm=False, augment=augment, epochs=2, batch_size=16)
    assert seen == [(16, 3, SIZE, SIZE)] * 4  # two passes, each without the last, smaller batch
    assert all(torch.equal(value, before[name]) for name, value in encoder.model.named_buffers())
    assert float(encoder.model.logit_scale.detach()) == pytest.approx(math.log(100))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"captions": ["a"]},
            "The 'captions' parameter of fine_tune must be as many as the images, 4. Got 1 instead.",
        ),
        (
            {"groups": torch.zeros(3)},
            "The 'groups' parameter of fine_tune must be as many as the images, 4. Got 3 instead.",
        ),
        ({"epochs": 0}, "The 'epochs' parameter of fine_tune must be at least 1. Got 0 instead."),
        (
            {"batch_size": 1},
            "The 'batch_size' parameter of fine_tune must be at least 2, of at least 2 images. Got (1, 4) instead.",
        ),
    ],
)
def test_fine_tune_refuses(change: dict[str, Any], message: str) -> None:
    x, y = pictures(4)
    with pytest.raises(ParameterError, match=f"^{re.escape(message)}$"):
        fine_tune(untrained(), **{"images": x, "captions": captions(y)} | change)


def test_a_loss_that_is_not_finite_is_told() -> None:
    encoder, (x, y) = untrained(), pictures(8)
    with torch.no_grad():
        encoder.model.visual.head.weight.fill_(math.inf)
    message = "The contrastive loss is nan in epoch 1; a smaller learning_rate than 0.5 may help."
    with pytest.raises(TrainingError, match=f"^{re.escape(message)}$"):
        fine_tune(encoder, x, captions(y), learning_rate=0.5)
    assert not encoder.model.training
