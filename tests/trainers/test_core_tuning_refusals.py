"""What Core-tuning's functions refuse, and in which words."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from tunesmith.core.errors import DataError, ParameterError
from tunesmith.trainers.core_tuning import (
    ProjectionHead,
    core_tuning_loss,
    focal_supcon_loss,
    hard_pair_mixup,
)

SQUARE = torch.eye(4)
PAIRS = torch.tensor([0, 0, 1, 1])


def same(y: torch.Tensor) -> torch.Tensor:
    return y[:, None] == y[None]


GOOD = (torch.zeros(3, 2), torch.tensor([0, 1, 1]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"alpha": 0.0},
            "The 'alpha' parameter of hard_pair_mixup must be a float above 0. Got 0.0 instead.",
        ),
        (
            {"alpha": math.inf},
            "The 'alpha' parameter of hard_pair_mixup must be a float above 0. Got inf instead.",
        ),
        (
            {"clip": 1.1},
            "The 'clip' parameter of hard_pair_mixup must be a float in [0, 1]. Got 1.1 instead.",
        ),
        (
            {"clip": -0.1},
            "The 'clip' parameter of hard_pair_mixup must be a float in [0, 1]. Got -0.1 instead.",
        ),
        (
            {"variant": "code"},
            "The 'variant' parameter of hard_pair_mixup must be 'paper' or 'official'. Got 'code' instead.",
        ),
    ],
)
def test_parameters_of_pairs(settings: dict, message: str) -> None:
    with pytest.raises(ParameterError) as error:
        hard_pair_mixup(*GOOD, 2, **settings)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"eta": -1.0},
            "The 'eta' parameter of core_tuning_loss must be a float of at least 0. Got -1.0 instead.",
        ),
        ({"tau": 0.0}, "The 'tau' parameter of core_tuning_loss must be a float above 0. Got 0.0 instead."),
        (
            {"positives": "label"},
            "The 'positives' parameter of core_tuning_loss must be 'class', 'exact-label' or None. "
            "Got 'label' instead.",
        ),
        (
            {"normalise": "row"},
            "The 'normalise' parameter of core_tuning_loss must be 'positives', 'rows' or None. Got 'row' instead.",
        ),
        (
            {"variant": "code"},
            "The 'variant' parameter of core_tuning_loss must be 'paper' or 'official'. Got 'code' instead.",
        ),
    ],
)
def test_parameters_of_the_loss(settings: dict, message: str) -> None:
    with pytest.raises(ParameterError) as error:
        core_tuning_loss(*GOOD, nn.Linear(2, 2), ProjectionHead(2), 2, **settings)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("v", "mask", "settings", "message"),
    [
        (
            SQUARE,
            same(PAIRS),
            {"tau": -1.0},
            "The 'tau' parameter of focal_supcon_loss must be a float above 0. Got -1.0 instead.",
        ),
        (
            SQUARE,
            same(PAIRS),
            {"normalise": "none"},
            "The 'normalise' parameter of focal_supcon_loss must be 'positives' or 'rows'. Got 'none' instead.",
        ),
        (
            SQUARE[:1],
            same(PAIRS)[:1, :1],
            {},
            "The 'embeddings' parameter of focal_supcon_loss must be a float tensor (M, k) with M of at least 2. "
            "Got (1, 4) instead.",
        ),
        (
            SQUARE,
            PAIRS,
            {},
            "The 'pos_mask' parameter of focal_supcon_loss must be of shape (4, 4). Got (4,) instead.",
        ),
    ],
)
def test_parameters_of_the_contrast(
    v: torch.Tensor, mask: torch.Tensor, settings: dict, message: str
) -> None:
    with pytest.raises(ParameterError) as error:
        focal_supcon_loss(v, mask, **settings)
    assert str(error.value) == message


CLASSES = (
    "The 'labels' parameter of hard_pair_mixup must be one integer class for each of the 3 rows; float or "
    "multi-label targets are no classes. "
)


@pytest.mark.parametrize(
    ("z", "y", "message"),
    [
        (GOOD[0], GOOD[1].float(), CLASSES + "Got 'float32 of shape (3,)' instead."),
        (GOOD[0], torch.zeros(3, 2, dtype=torch.int64), CLASSES + "Got 'int64 of shape (3, 2)' instead."),
        (GOOD[0], torch.tensor([True, False, True]), CLASSES + "Got 'bool of shape (3,)' instead."),
        (
            GOOD[0][:1],
            GOOD[1][:1],
            "The 'features' parameter of hard_pair_mixup must be a float tensor (B, d) with B of at least 2. "
            "Got 'float32 of shape (1, 2)' instead.",
        ),
        (GOOD[0], torch.tensor([0, 1, 2]), "row 2: label 2 is outside the 2 classes of the head, 0 to 1."),
        (
            GOOD[0],
            torch.tensor([0, -100, 1]),
            "row 1: label -100 is outside the 2 classes of the head, 0 to 1.",
        ),
    ],
)
def test_labels_that_are_no_classes(z: torch.Tensor, y: torch.Tensor, message: str) -> None:
    with pytest.raises((ParameterError, DataError)) as error:
        hard_pair_mixup(z, y, 2)
    assert str(error.value) == message


@pytest.mark.parametrize("mixup", [True, False])
def test_strict_wants_two_classes(mixup: bool) -> None:
    ones = torch.ones(3, dtype=torch.int64)
    with pytest.raises(DataError) as error:
        core_tuning_loss(GOOD[0], ones, nn.Linear(2, 2), ProjectionHead(2), 2, mixup=mixup, strict=True)
    assert str(error.value) == (
        "All 3 rows of the batch are of class 1, so there are no negatives to mix with. Use larger or class-balanced "
        "batches, or strict=False."
    )
