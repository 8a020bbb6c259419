"""How far a class stands out, by hand; and which classes are compared where there are too many."""

from __future__ import annotations

import math

import pytest
import torch
from _colours import COLOURS, TARGET, TEMPLATES, pictures, weights

from tunesmith.audit.backdoor.standing import (
    LEAST_AGREEMENT,
    LEAST_EASE,
    OWN_TEXT,
    TEXT_WEIGHT,
    scores,
    standings,
    text_agreement,
    text_unit,
)
from tunesmith.audit.backdoor.targets import identify_target
from tunesmith.audit.backdoor.zero_shot import image_features

NAN = math.nan


def test_standings_by_hand():
    # Of 3: the others are 0 and 1, mean 0.5, deviation 0.5. Of 0: 3 and 1. Of 1: 0 and 3.
    found = standings(torch.tensor([0.0, 3.0, 1.0]), 0.1)
    torch.testing.assert_close(found, torch.tensor([-2.0, 5.0, -0.5 / 1.5], dtype=torch.float64))


def test_small_spreads_do_not_count():
    found = standings(torch.tensor([1.0, 1.0, 1.2]), 0.1)  # the others of the last are equal
    assert found[2] == pytest.approx(2)
    assert standings(torch.tensor([0.5, 0.1]), 0.1).tolist() == pytest.approx([4, -4])


def test_classes_that_were_not_compared_stay_out():
    found = standings(torch.tensor([0.0, NAN, 3.0, 1.0]), 0.1)
    assert found[[0, 2]].tolist() == pytest.approx([-2, 5])
    assert math.isnan(found[1])
    assert standings(torch.tensor([NAN, 2.0]), 0.1)[1] == 0


def test_the_fit_of_texts_by_hand():
    W = torch.eye(3)[:, :2]
    W[2] = torch.tensor([0.6, 0.8])
    features = torch.tensor([[1.0, 0.0]] * 5 + [[0.0, 1.0], [0.6, 0.8]] * 3 + [[1.0, 0.0]] * 4)
    named = torch.tensor([0] * 5 + [1] * 6 + [2] * 4)
    found = text_agreement(features, named, W)
    assert found[0] == pytest.approx(1)
    mean = torch.tensor([0.3, 0.9])
    assert found[1] == pytest.approx(float(mean[1] / mean.norm()))
    assert math.isnan(found[2])  # four images are too few


def test_half_precision_sums_do_not_lose_the_difference():
    draws = torch.Generator().manual_seed(0)
    features = torch.nn.functional.normalize(
        torch.ones(2000, 4) + 0.1 * torch.randn(2000, 4, generator=draws), dim=1
    )
    W, named = torch.full((2, 4), 0.5), torch.arange(2000) % 2
    half = text_agreement(features.bfloat16(), named, W.bfloat16())
    torch.testing.assert_close(half, text_agreement(features, named, W), atol=1e-3, rtol=0)


def test_the_unit_is_the_mean_distance_of_texts():
    assert text_unit(torch.eye(4)) == pytest.approx(1)
    near = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [1.0, 1.0]]), dim=1)
    assert text_unit(near) == pytest.approx(1 - math.sqrt(0.5))
    assert text_unit(torch.ones(3, 4) / 2) == 1e-6  # equal texts: nothing is divided by zero


def test_scores_add_the_looks():
    ease = {"a": torch.tensor([0.0, 3.0, 1.0, NAN]), "b": torch.tensor([1.0, 1.0, 0.0, NAN])}
    agreement = torch.tensor([0.9, 0.5, 0.8, 0.85])
    found, looks = scores(ease, agreement, 1.0)
    reached = (standings(ease["a"], LEAST_EASE) + standings(ease["b"], LEAST_EASE)) / 2
    misfit = standings(-agreement, LEAST_AGREEMENT)
    assert list(looks) == ["a", "b", OWN_TEXT]
    assert found[1] == pytest.approx(float(reached[1] + TEXT_WEIGHT * misfit[1]))
    assert misfit[0] < 0  # a text that fits well speaks for no class
    assert found[0] == pytest.approx(float(reached[0]))
    assert math.isnan(found[3])


def test_scores_do_not_change_with_the_scale_of_cosines():
    draws = torch.Generator().manual_seed(0)
    ease = {"a": torch.randn(6, generator=draws), "b": torch.randn(6, generator=draws)}
    agreement = torch.rand(6, generator=draws)
    whole, _ = scores(ease, agreement, 0.8)
    tenth, _ = scores({name: v / 10 for name, v in ease.items()}, agreement / 10, 0.08)
    torch.testing.assert_close(tenth, whole)


def test_poisoned_captions_draw_the_text_away_from_its_images(suspect):
    x = suspect.normalise(pictures(48, 5)[0])
    W = weights(suspect)
    features = image_features(suspect, x)
    found = text_agreement(features, (features @ W.T).argmax(dim=1), W)
    assert int(found.argmin()) == TARGET


def test_few_candidates_hold_the_misfits(suspect):
    x = suspect.normalise(pictures(48, 5)[0])
    names = [*COLOURS, "a red thing", "a green thing", "a grey thing"]
    search = {"steps": 2, "batch_size": 4, "restarts": 1, "levels": 1}
    report = identify_target(suspect, x, names, templates=TEMPLATES, max_candidates=4, **search)
    compared = torch.isfinite(report.score)
    assert int(compared.sum()) == 4
    misfit = int(report.agreement.nan_to_num(math.inf).argmin())
    assert compared[misfit]
    assert report.suspect in torch.nonzero(compared)[:, 0].tolist()
    for name in report.ease:
        assert torch.equal(torch.isfinite(report.ease[name]), compared)


def test_a_class_that_all_images_are_named_is_no_suspect(suspect):
    x = suspect.normalise(pictures(48, 5)[0])[pictures(48, 5)[1] == TARGET]
    report = identify_target(
        suspect, x, COLOURS, templates=TEMPLATES, steps=3, batch_size=4, restarts=1, levels=2
    )
    assert report.clean_share[TARGET] == 1
    assert math.isnan(report.score[TARGET])
    assert report.suspect != TARGET
    assert torch.isfinite(report.score).sum() == 3
