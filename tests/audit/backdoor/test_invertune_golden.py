"""The authors' numbers (tests/golden/invertune.json, from Goodman-liyu/InverTune) from our functions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from _golden import raw_cases, tensor
from tunesmith.audit.backdoor.encoders import DualEncoder
from tunesmith.audit.backdoor.inversion import official_anchors
from tunesmith.audit.backdoor.metrics import attack_success_rate, clean_accuracy
from tunesmith.audit.backdoor.objective import (
    blend,
    critical_layers,
    inversion_terms,
    layer_impact,
    share_changes,
    two_means,
)
from tunesmith.audit.backdoor.search import optimise_triggers
from tunesmith.audit.backdoor.targets import patch_square
from tunesmith.audit.backdoor.triggers import Trigger
from tunesmith.audit.backdoor.tuning import ActivationTuner

CASES = raw_cases("invertune")
CLIP = {
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
}


class Pooled(nn.Module):
    """tanh(A avgpool(x)), flattened in the order channel, row, column; rows of E are the texts' features."""

    def __init__(self, A: Tensor, E: Tensor) -> None:
        super().__init__()
        self.A, self.E = nn.Parameter(A), nn.Parameter(E)

    def encode_image(self, x: Tensor) -> Tensor:
        return torch.tanh(F.adaptive_avg_pool2d(x, 2).flatten(1) @ self.A.T)

    def encode_text(self, texts: list[str]) -> Tensor:
        return self.E[[int(text) for text in texts]]


@pytest.mark.parametrize("name", ["target_change_0", "target_change_1"])
def test_changes_of_shares(name: str) -> None:
    case = CASES[name]
    counts = (torch.tensor(case["inputs"][key]) for key in ("clean_counts", "adversarial_counts"))
    change, relative = share_changes(*counts)
    expected = case["outputs"]
    assert (100 * change).tolist() == pytest.approx(
        expected["absolute_change_percentage_points"], abs=case["tolerance"]
    )
    wanted = [float(v) for v in expected["relative_change_percent"]]
    assert (100 * relative).tolist() == pytest.approx(wanted, abs=case["tolerance"])
    assert int(change.argmax()) == expected["target"]


def test_where_the_patch_lies() -> None:
    expected = CASES["patch_geometry"]["outputs"]
    assert patch_square(224, 0.03) == (expected["row0"], expected["col0"], expected["side"])
    assert 3 * expected["side"] ** 2 == expected["mask_sum_all_channels"]


@pytest.mark.parametrize("name", ["inversion_same_number", "inversion_repeated_target_feature"])
def test_two_steps_of_inversion(name: str) -> None:
    case = CASES[name]
    given = {key: tensor(value) for key, value in case["inputs"].items()}
    p, tolerance = case["params"], case["tolerance"]
    texts = F.normalize(given["text_embeddings"], dim=-1)
    model = DualEncoder.of(Pooled(given["A"], texts), image_size=12, **CLIP)
    model.model.requires_grad_(False)
    x, weights, target = given["clean_images"], p["weights_l1_l2_l3_l4"], p["target"]
    with torch.no_grad():
        wanted = F.normalize(model.encode_image(given["target_images"]), dim=-1)
    anchors = official_anchors(wanted, len(x))

    def terms(m: Tensor, t: Tensor) -> Any:
        mixed = blend(x, m, t)
        return inversion_terms(model.encode_image(mixed), texts, target, anchors, mixed, x, m, p["tau"])

    m, t = given["mask0"].requires_grad_(True), given["trigger0"].requires_grad_(True)
    states = [(m, t)]
    for steps in (1, 2):
        found = optimise_triggers(
            model,
            x,
            texts,
            torch.tensor([target]),
            anchors[None],
            start=(m.detach()[None], t.detach()[None]),
            weights=weights,
            temperature=p["tau"],
            learning_rate=p["lr"],
            steps=steps,
            batch_size=len(x),
            variant="official",
        )
        states.append((found.masks[0], found.patterns[0]))
    for state, expected in zip(states, case["outputs"]["terms_per_step"], strict=False):
        found = terms(*state)
        for key in ("cross_entropy", "embedding_norm", "one_minus_ssim", "mask_l1"):
            # A float32 sum of 432 entries near 217 depends on its order by about 1e-6 of itself.
            assert float(getattr(found, key)) == pytest.approx(expected[key], abs=tolerance, rel=1e-6)
        assert float(found.total(weights)) == pytest.approx(expected["total"], abs=5 * tolerance)
    grads = torch.autograd.grad(terms(m, t).total(weights), (m, t))
    outputs = {key: tensor(v) for key, v in case["outputs"].items() if isinstance(v, dict)}
    for grad, key in zip(
        grads, ("mask_gradient_step1_corner_rows0to2_cols0to3", "trigger_gradient_step1_corner"), strict=True
    ):
        torch.testing.assert_close(grad[:, :3, :4], outputs[key], atol=tolerance, rtol=0)
    torch.testing.assert_close(
        states[1][0][:, :3, :4], outputs["mask_after_step1_corner"], atol=tolerance, rtol=0
    )
    assert float(states[2][0].sum()) == pytest.approx(case["outputs"]["mask_sum_at_end"], abs=1e-3)
    assert float(states[2][1].sum()) == pytest.approx(case["outputs"]["trigger_sum_at_end"], abs=1e-3)


def test_impact_layers_and_neurons() -> None:
    case = CASES["layer_impact_and_neurons"]
    clean, triggered = (
        {name: tensor(v) for name, v in case["inputs"][key].items()}
        for key in ("clean_activations", "triggered_activations")
    )
    expected = case["outputs"]
    impact = layer_impact(clean, triggered)
    assert impact == pytest.approx(expected["impact"], abs=case["tolerance"])
    assert critical_layers(impact, "top_k", 3) == expected["critical_layers_in_order"]
    assert critical_layers(impact, "mean_std") == expected["mean_plus_std_rule_layers"]
    for name, mask in expected["neuron_masks"].items():
        change = (clean[name].mean(dim=0) - triggered[name].mean(dim=0)).abs()
        assert torch.equal(two_means(change), tensor(mask))


@pytest.mark.parametrize("name", ["two_means_dossier", "two_means_spread"])
def test_two_means(name: str) -> None:
    given = {key: tensor(v) for key, v in CASES[name]["inputs"].items()}
    assert two_means((given["clean"] - given["triggered"]).abs()).tolist() == CASES[name]["outputs"]["mask"]


class Layered(nn.Module):
    """Four 1 x 1 convolutions each with tanh behind it, mean over space, a linear projection."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.visual = nn.Module()
        for i in range(1, 5):
            w = weights[f"visual.layer{i}.weight"]
            self.visual.add_module(f"layer{i}", nn.Conv2d(w.shape[1], w.shape[0], 1))
        out, width = weights["visual.proj.weight"].shape
        self.visual.add_module("proj", nn.Linear(width, out, bias=False))
        self.text = nn.Embedding(2, out)
        self.double()
        self.load_state_dict({**weights, "text.weight": self.text.weight})

    def encode_image(self, x: Tensor) -> Tensor:
        for i in range(1, 5):
            x = torch.tanh(getattr(self.visual, f"layer{i}")(x))
        return self.visual.proj(x.mean(dim=(2, 3)))

    def encode_text(self, texts: list[str]) -> Tensor:
        return self.text(torch.tensor([len(text) % 2 for text in texts]))


def test_thirty_steps_of_tuning() -> None:
    case = CASES["activation_tuning_30_steps"]
    weights = {name: tensor(v) for name, v in case["inputs"]["weights"].items()}
    given = {key: tensor(case["inputs"][key]) for key in ("clean_images", "mask", "trigger")}
    model = DualEncoder.of(Layered(weights), image_size=4, **CLIP)
    p, expected = case["params"], case["outputs"]
    tuner = ActivationTuner(
        layers=[f"visual.layer{i}" for i in range(1, 5)],
        alignment="relative",
        schedule="restart",
        learning_rate=p["lr"],
        weight_decay=p["weight_decay"],
        steps=p["steps"],
        preservation_weight=p["preservation_weight"],
        check_range=False,
        min_success=0,
    )
    tuner.fit(model, Trigger(given["mask"], given["trigger"], 0), given["clean_images"])
    assert tuner.impact_ == pytest.approx(expected["impact"], abs=case["tolerance"])
    assert tuner.critical_layers_ == expected["critical_layers_in_order"]
    for name, mask in expected["neuron_masks"].items():
        if name in tuner.critical_layers_:
            assert torch.equal(tuner.neuron_masks_[0][name], tensor(mask))
    found = [[row["alignment"], row["preservation"], row["loss"]] for row in tuner.history_]
    torch.testing.assert_close(
        torch.tensor(found, dtype=torch.float64),
        torch.tensor(expected["align_feature_total_per_step"], dtype=torch.float64),
        atol=case["tolerance"],
        rtol=0,
    )
    assert tuner.history_[0]["gradient_norm"] == pytest.approx(
        expected["first_gradient_norm_before_clip"], abs=case["tolerance"]
    )
    assert tuner.best_step_ == expected["best_step"]
    now = dict(model.model.named_parameters())
    for name, change in expected["weight_change_of_best"].items():
        moved = now[name].detach() - weights[name]
        torch.testing.assert_close(moved, tensor(change), atol=case["tolerance"], rtol=0)


def test_success_rate_and_accuracy() -> None:
    case = CASES["success_rate_and_accuracy"]
    given = {key: tensor(v) for key, v in case["inputs"].items() if isinstance(v, dict)}
    labels = torch.tensor(case["inputs"]["labels"])
    model = DualEncoder.of(Pooled(given["A"], given["E"]), image_size=2, mean=(0.5,) * 3, std=(1 / 6,) * 3)
    trigger = Trigger(given["mask"], given["trigger"], 0)
    rates = [
        attack_success_rate(
            model, given["images"], labels, trigger, c, F.normalize(given["E"], dim=-1), exclude_target=False
        )
        for c in range(5)
    ]
    expected = case["outputs"]
    assert rates == pytest.approx(expected["success_rate_per_target_class"], abs=case["tolerance"])
    accuracy = clean_accuracy(model, given["images"], labels, F.normalize(given["E"], dim=-1))
    assert accuracy == pytest.approx(expected["clean_accuracy"], abs=case["tolerance"])
