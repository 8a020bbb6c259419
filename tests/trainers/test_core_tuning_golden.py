"""Parity with the authors' code (Vanint/Core-tuning, Core-tuning.py) on tests/golden/core-tuning.json."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import linear, normalize
from torch.testing import assert_close

from _golden import cases
from tunesmith.trainers.core_tuning import (
    core_tuning_loss,
    exact_label_positives,
    focal_supcon_loss,
    hard_pair_mixup,
)

CASES = cases("core-tuning")


def close(found: torch.Tensor, expected: torch.Tensor | float, tolerance: float) -> None:
    assert_close(found, torch.as_tensor(expected), atol=tolerance, rtol=tolerance, check_dtype=False)


def mixed(case: dict[str, Any], z: torch.Tensor, **settings: Any) -> Any:
    x = case["inputs"]
    return hard_pair_mixup(
        z,
        x["y"],
        case["params"]["num_classes"],
        alpha=case["params"]["alpha"],
        clip=case["params"]["clip"],
        partner=x["negative_partner"],
        lambda_neg=x["lambda_neg_raw"],
        lambda_pos=x["lambda_pos"],
        **settings,
    )


@pytest.mark.parametrize("name", ["mixup_relu_features", "mixup_signed_features"])
def test_mixup(name: str) -> None:
    case = CASES[name]
    x, out, tolerance = case["inputs"], case["outputs"], case["tolerance"]
    z = x["z"].requires_grad_()
    found = mixed(case, z, variant="official", detach_originals=True)
    close(found.features, out["Z_official"], tolerance)
    close(found.labels, out["Y_official"], tolerance)
    assert found.hp.tolist() == out["hp_official"].tolist()
    assert found.hn.tolist() == out["hn_official"].tolist()
    (x["probe_weights"] * found.features).sum().backward()
    close(z.grad, out["grad_z_of_sum_probe_times_Z_official"], tolerance)

    found = mixed(case, z.detach())
    close(found.features, out["Z_correct"], tolerance)
    close(found.labels, out["Y_correct"], tolerance)
    assert found.hp.tolist() == out["hp_correct"].tolist()
    assert found.hn.tolist() == out["hn_correct"].tolist()


def test_mixup_of_two_dimensions() -> None:
    # The fixture's name says that official and correct rows agree here; the official ones mix rows of one class.
    case = CASES["mixup_official_equals_correct"]
    found = mixed(case, case["inputs"]["z"], variant="official")
    for name in ("features", "labels"):
        close(getattr(found, name), case["outputs"][{"features": "Z", "labels": "Y"}[name]], 1e-5)
    assert found.hp.tolist() == case["outputs"]["hp"].tolist() == [0, 3, 1, 1]
    assert found.hn.tolist() == case["outputs"]["hn"].tolist() == [1, 2, 1, 1]
    correct = mixed(case, case["inputs"]["z"])
    assert correct.hp.tolist() == [2, 3, 0, 1]
    assert correct.hn.tolist() == [1, 2, 1, 0]


def same(y: torch.Tensor) -> torch.Tensor:
    return y[:, None] == y[None]


@pytest.mark.parametrize("which", ["eight_rows", "with_lonely_rows"])
def test_contrast_of_hard_labels(which: str) -> None:
    case = CASES[f"focal_supcon_hard_labels_{which}"]
    v, out = case["inputs"]["v"], case["outputs"]
    mask = same(case["inputs"]["y"])
    for form, settings, dtype in (
        ("official", {"normalise": "rows"}, torch.float32),
        ("normalised", {}, torch.float64),
    ):
        leaf = v.detach().to(dtype).requires_grad_()
        loss = focal_supcon_loss(leaf, mask, case["params"]["tau"], **settings)
        loss.backward()
        close(loss, out[f"L_con_{form}"], case["tolerance"])
        close(leaf.grad, out[f"grad_{form}"], case["tolerance"])
    plain = focal_supcon_loss(v.double(), mask, case["params"]["tau"], focal=False)
    close(plain, out["supcon_without_focal"], case["tolerance"])


def test_contrast_of_an_asymmetric_mask() -> None:
    case = CASES["focal_supcon_explicit_mask"]
    v, mask = case["inputs"]["v"], case["inputs"]["pos_mask"]
    close(focal_supcon_loss(v, mask, normalise="rows"), case["outputs"]["L_con_official"], 1e-5)
    close(focal_supcon_loss(v.double(), mask), case["outputs"]["L_con_normalised"], 1e-5)


def test_contrast_of_collapsed_classes_and_of_none() -> None:
    case = CASES["focal_supcon_collapsed"]
    found = focal_supcon_loss(case["inputs"]["v"], same(case["inputs"]["y"]), normalise="rows")
    close(found, case["outputs"]["L_con_official"], 1e-6)
    case = CASES["focal_supcon_no_positive"]
    v = case["inputs"]["v"].requires_grad_()
    found = focal_supcon_loss(v, same(case["inputs"]["y"]))
    close(found, case["outputs"]["L_con"], 0.0)
    found.backward()
    assert v.grad is not None
    assert not v.grad.any()


@pytest.mark.parametrize("which", ["s_ten_classes", "s_three_classes", "_collision"])
def test_contrast_of_equal_soft_labels(which: str) -> None:
    case = CASES[f"focal_supcon_soft_label{which}"]
    v, Y, out = case["inputs"]["v"], case["inputs"]["Y_soft"], case["outputs"]
    mask = exact_label_positives(Y)
    assert (mask.fill_diagonal_(False) == out["pos_mask_exact"].bool()).all()
    found = focal_supcon_loss(v.double(), mask, normalise="rows")
    close(found, out["L_con_exact_comparison"], 1e-5)
    if which == "_collision":  # the code's hash takes two of these labels for one
        assert abs(float(found - out["L_con_official"])) > 5e-3
    else:
        close(found, out["L_con_official"], 1e-5)


def test_contrast_of_66_classes() -> None:
    case = CASES["focal_supcon_soft_labels_66_classes"]
    y = case["inputs"]["class_ids"]
    mask = exact_label_positives(torch.nn.functional.one_hot(y, 66).float())
    found = focal_supcon_loss(case["inputs"]["v"].double(), mask, normalise="rows")
    close(found, case["outputs"]["L_con_exact_comparison"], 1e-5)
    hashed = torch.where(y > 63, 0, y)  # the code's hash: classes from 64 up are one
    found = focal_supcon_loss(case["inputs"]["v"], same(hashed), normalise="rows")
    close(found, case["outputs"]["L_con_official"], 1e-5)


@pytest.mark.parametrize("name", ["full_loss_small", "full_loss_larger"])
def test_the_whole_official_loss(name: str) -> None:
    case = CASES[name]
    x, out, settings = case["inputs"], case["outputs"], case["params"]
    z, W = x["z"].requires_grad_(), x["W"].requires_grad_()
    G = {key: value.requires_grad_() for key, value in x["G"].items()}

    def projection(rows: torch.Tensor) -> torch.Tensor:
        hidden = linear(rows, G["input.weight"], G["input.bias"]).relu()
        return normalize(linear(hidden, G["output.weight"], G["output.bias"]), dim=1)

    found = core_tuning_loss(
        z,
        x["y"],
        lambda rows: linear(rows, W),
        projection,
        settings["num_classes"],
        eta=settings["eta"],
        tau=settings["tau"],
        clip=settings["clip"],
        variant="official",
        partner=x["negative_partner"],
        lambda_neg=x["lambda_neg_raw"],
        lambda_pos=x["lambda_pos"],
    )
    found.loss.backward()
    tolerance = case["tolerance"]
    close(found.ce, out["L_ce"], tolerance)
    close(found.contrast, out["L_con"], tolerance)
    close(found.loss, out["L"], tolerance)
    close(z.grad, out["grad_z"], tolerance)
    close(W.grad, out["grad_W"], tolerance)
    for key, value in G.items():
        close(value.grad, out["grad_G"][key], tolerance)
