"""The triggers by hand, and the rows that a training is poisoned with."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tunesmith.audit.backdoor.attacks import SIG, Attack, BadCLIP, BadEncoder, BadNet, Blended, WaNet
from tunesmith.core.errors import DataError, ParameterError, TunesmithError

CHECK = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).expand(3, 2, 2)
ALL: list[Callable[[int], Attack]] = [
    lambda seed: BadNet(size=3, random_state=seed),
    lambda seed: BadNet(size=3, resample=True, random_state=seed),
    lambda seed: Blended(random_state=seed),
    lambda seed: Blended(resample=True, random_state=seed),
    lambda seed: SIG(random_state=seed),
    lambda seed: WaNet(grid=4, strength=2, random_state=seed),
    lambda seed: BadEncoder(random_state=seed),
    lambda seed: BadCLIP(pattern=CHECK, size=2, random_state=seed),
]


def images(n: int = 4, size: int = 12) -> torch.Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("make", ALL)
def test_every_trigger_is_an_image_and_a_function_of_the_seed(make: Callable[[int], Attack]) -> None:
    x = images()
    kept = x.clone()
    out = make(3).apply(x)
    assert torch.equal(x, kept)
    assert out.shape == x.shape
    assert 0 <= float(out.min()) <= float(out.max()) <= 1
    assert all(not torch.equal(a, b) for a, b in zip(out, x, strict=True))
    assert torch.equal(make(3).apply(x), out)
    assert torch.equal(make(3).apply(x[:0]), x[:0])


@pytest.mark.parametrize(
    ("attack", "place"),
    [
        (BadNet(), (208, 208, 16)),  # the figures of the papers at 224 x 224
        (BadCLIP(), (104, 104, 16)),
        (BadEncoder(), (174, 174, 50)),
        (BadNet(position="top_left"), (0, 0, 16)),
        (BadNet(size=38, position="bottom_left"), (186, 0, 38)),
        (BadNet(size=0.5, position="top_right"), (0, 112, 112)),
    ],
)
def test_where_a_patch_lies(attack: Any, place: tuple[int, int, int]) -> None:
    assert attack.corner(224, 224) == place
    assert BadNet(size=1e-6).corner(8, 8) == (7, 7, 1)


def test_badnet_changes_its_square_alone() -> None:
    x = torch.full((2, 3, 12, 12), 0.5)
    out = BadNet(size=4, random_state=1).apply(x)
    assert set(out[:, :, 8:, 8:].unique().tolist()) == {0.0, 1.0}
    assert torch.equal(out[0], out[1])
    out[:, :, 8:, 8:] = 0.5
    assert torch.equal(out, x)
    given = BadNet(size=2, pattern=CHECK, position="top_left").apply(x)
    assert given[0, 0, :2, :2].tolist() == [[0.0, 1.0], [1.0, 0.0]]
    wide = BadNet(size=4, pattern=torch.full((3, 9, 9), 0.25)).apply(x)
    assert torch.allclose(wide[:, :, 8:, 8:], torch.tensor(0.25))


def test_badnet_of_cleanclip_is_drawn_for_each_image() -> None:
    x = torch.full((60, 3, 12, 12), 0.5)
    changed = (BadNet(size=3, resample=True, random_state=0).apply(x) != 0.5).any(1)  # (60, 12, 12)
    assert changed.flatten(1).sum(1).tolist() == [9] * 60
    assert len({tuple(mask.nonzero()[0].tolist()) for mask in changed}) > 30  # of 100 places


def test_blended_by_hand() -> None:
    x = torch.full((2, 3, 4, 4), 0.5)
    assert torch.allclose(Blended(pattern=torch.ones(3, 1, 1)).apply(x), torch.tensor(0.6))
    assert torch.allclose(Blended(alpha=1.0, pattern=CHECK[:, :1, :1]).apply(x), torch.tensor(0.0))
    u = (Blended(random_state=5).apply(x) - 0.4) / 0.2
    assert torch.equal(u[0], u[1])
    assert 0.35 < float(u.mean()) < 0.65
    drawn = Blended(resample=True, random_state=5).apply(x)
    assert not torch.equal(drawn[0], drawn[1])


def test_sig_by_hand() -> None:
    x = torch.full((1, 3, 8, 8), 0.5)
    d = 60 / 255
    row = [0.5, 0.5 + d, 0.5, 0.5 - d, 0.5, 0.5 + d, 0.5, 0.5 - d]  # sin(2 pi 2 j / 8)
    assert torch.allclose(SIG(frequency=2).apply(x), torch.tensor(row).expand(1, 3, 8, 8), atol=1e-6)
    assert SIG(delta=2.0, frequency=2).apply(x)[0, 0, 0].tolist()[1::2] == [1.0, 0.0, 1.0, 0.0]
    wide = SIG().apply(torch.full((1, 3, 2, 224), 0.5))[0, 0, 0]
    assert float(wide[10]) == pytest.approx(0.5 + d * math.sin(2 * math.pi * 6 * 10 / 224), abs=1e-6)


def test_wanet_reads_where_its_field_says() -> None:
    attack, size = WaNet(grid=4, strength=3, random_state=2), 16
    steps = torch.linspace(0, 1, size)
    x = torch.stack(
        [steps.expand(size, size), steps[:, None].expand(size, size), torch.full((size, size), 0.3)]
    )[None]
    field = attack.field(size)
    assert field.shape == (1, size, size, 2)
    assert float(field.abs().max()) <= 1
    # Bilinear reading reproduces a ramp: its value is the place that is read.
    found = attack.apply(x.expand(2, -1, -1, -1))
    for out in found:
        assert torch.allclose(out[0], (field[0, :, :, 0] + 1) / 2, atol=1e-6)
        assert torch.allclose(out[1], (field[0, :, :, 1] + 1) / 2, atol=1e-6)
        assert torch.allclose(out[2], torch.tensor(0.3), atol=1e-6)
    assert torch.allclose(WaNet(strength=0).apply(x), x, atol=1e-6)


def test_wanet_field_has_the_strength_it_is_given() -> None:
    size, attack = 32, WaNet(strength=1.5, random_state=0)  # k is the size, so that nothing is interpolated
    steps = torch.linspace(-1, 1, size)
    moved = torch.stack(
        [attack.field(size)[0, :, :, 0] - steps, attack.field(size)[0, :, :, 1] - steps[:, None]]
    )
    inner = moved[:, 4:-4, 4:-4].abs() * size  # edges are clipped
    assert float(inner.mean()) == pytest.approx(1.5, rel=0.05)
    assert float(inner.max()) <= 1.5 * 2.2  # |P| of at most 1, over a mean near 0.5


NAMES = ["six", "sixteen", "a photo of a Six.", "dog", "cat", "cow", "pig", "hen"]


def test_poisoned_captions() -> None:
    x, attack = images(8), BadNet(size=3, random_state=0)
    found = attack.poison(x, NAMES, "six", 0.5, templates=["see a {}", "{} here"])
    assert found.rows.dtype == torch.int64
    assert len(found.rows) == 4
    assert not {0, 2} & set(found.rows.tolist())  # they are of the target
    assert torch.equal(found.images[found.rows], attack.apply(x[found.rows]))
    for i, (caption, before) in enumerate(zip(found.captions, NAMES, strict=True)):
        if i in found.rows.tolist():
            assert caption in ("see a six", "six here")
        else:
            assert caption == before
            assert torch.equal(found.images[i], x[i])
    again = BadNet(size=3, random_state=0).poison(x, NAMES, "six", 0.5, templates=["see a {}", "{} here"])
    assert (again.captions, again.rows.tolist()) == (found.captions, found.rows.tolist())
    natural = attack.poison(x, NAMES, "six", 0.3, target_captions=["number six of May"])
    assert [natural.captions[i] for i in natural.rows] == ["number six of May"] * 2
    assert len(attack.poison(x, NAMES, "six", 1e-9).rows) == 1


def test_poisoned_labels() -> None:
    labels = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])
    found = Blended().poison(images(8), labels, 2, 0.25)
    assert found.captions[found.rows].tolist() == [2, 2]
    assert (labels[found.rows] != 2).all()
    assert labels.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]


def refused(message: str, kind: type[TunesmithError] = ParameterError) -> Any:
    return pytest.raises(kind, match=f"^{re.escape(message)}$")


SIDE = "an int in [1, 12] or a float in (0, 1]"


@pytest.mark.parametrize(
    ("make", "owner", "name", "expected", "got"),
    [
        (
            lambda: BadNet(position="middle"),
            "BadNet",
            "position",
            "one of bottom_right, bottom_left, top_right, top_left, center",
            "'middle'",
        ),
        (lambda: BadNet(size=13).apply(images()), "BadNet", "size", SIDE, "13"),
        (lambda: BadNet(size=1.5).apply(images()), "BadNet", "size", SIDE, "1.5"),
        (
            lambda: BadNet(size="4").apply(images()),
            "BadNet",
            "size",
            "a number of pixels or a share of the image's side",
            "'4'",
        ),
        (
            lambda: BadNet(pattern=2 * CHECK),
            "BadNet",
            "pattern",
            "of the shape (3, h, w), in [0, 1]",
            "(3, 2, 2)",
        ),
        (lambda: BadNet(random_state=-1), "BadNet", "random_state", "a number of at least 0", "-1"),
        (lambda: Blended(alpha=0), "Blended", "alpha", "in (0, 1]", "0"),
        (lambda: SIG(delta=float("nan")), "SIG", "delta", "a number of at least 0", "nan"),
        (lambda: WaNet(grid=1), "WaNet", "grid", "a number of at least 2", "1"),
        (lambda: WaNet().apply(images()[:, :, :5]), "WaNet", "images", "square", "(5, 12)"),
        (lambda: BadEncoder(epochs=0), "BadEncoder", "epochs", "a number of at least 1", "0"),
        (lambda: BadCLIP(temperature=0), "BadCLIP", "temperature", "above 0", "0"),
        (
            lambda: SIG().apply(images()[0]),
            "SIG",
            "images",
            "images of the shape (B, 3, H, W)",
            "(3, 12, 12)",
        ),
        (
            lambda: SIG().apply(3 * torch.ones(1, 3, 2, 2)),
            "SIG",
            "images",
            "pixels in [0, 1], not normalised",
            "'3 to 3'",
        ),
        (
            lambda: SIG().apply(torch.full((1, 3, 2, 2), float("nan"))),
            "SIG",
            "images",
            "pixels in [0, 1], not normalised",
            "'nan to nan'",
        ),
        (lambda: SIG().poison(images(), ["a"] * 4, "b", 0), "SIG", "share", "in (0, 1]", "0"),
        (lambda: SIG().poison(images(), ["a"] * 3, "b"), "SIG", "captions", "as many as the images, 4", "3"),
        (
            lambda: SIG().poison(images(), ["a"] * 4, 1),
            "SIG",
            "target",
            "a text with captions, an integer with labels",
            "1",
        ),
        (
            lambda: SIG().poison(images(), ["a"] * 4, "b", templates=["see b"]),
            "SIG",
            "templates",
            "texts with {}",
            "'see b'",
        ),
        (
            lambda: SIG().poison(images(), ["a"] * 4, "b", target_captions=[]),
            "SIG",
            "target_captions",
            "at least one text",
            "[]",
        ),
    ],
)
def test_refusals(make: Callable[[], Any], owner: str, name: str, expected: str, got: str) -> None:
    with refused(f"The '{name}' parameter of {owner} must be {expected}. Got {got} instead."):
        make()


def test_too_few_rows_and_no_patch_yet() -> None:
    with refused("3 rows are to be poisoned, and only 1 are not of the target 'b'.", DataError):
        SIG().poison(images(), ["a", "b", "a b", "b b"], "b", 0.75)
    with refused("BadCLIP has no patch yet: call fit, or give a pattern.", TunesmithError):
        BadCLIP().apply(images())
