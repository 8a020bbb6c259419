"""What must hold of InverTune's terms, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from _colours import COLOURS, SIZE, pictures, untrained

from tunesmith.audit.backdoor.inversion import target_anchor
from tunesmith.audit.backdoor.objective import (
    blend,
    class_logits,
    critical_layers,
    feature_alignment,
    inversion_terms,
    layer_impact,
    mse_alignment,
    preservation,
    relative_alignment,
    scaled_mse_alignment,
    share_changes,
    ssim,
    two_means,
)
from tunesmith.audit.backdoor.triggers import Trigger
from tunesmith.audit.backdoor.tuning import ActivationTuner
from tunesmith.audit.backdoor.zero_shot import zero_shot_weights
from tunesmith.core.errors import ParameterError


def images(n: int = 8):
    model = untrained()
    return model, model.normalise(pictures(n)[0])


def test_an_empty_mask_changes_nothing():
    model, x = images()
    nothing = Trigger(torch.zeros(3, SIZE, SIZE), torch.ones(3, SIZE, SIZE), 0)
    assert torch.equal(nothing.apply(x), x)
    assert 1 - ssim(model.denormalise(x), model.denormalise(x)) == pytest.approx(0, abs=1e-6)
    before = {name: p.detach().clone() for name, p in model.model.named_parameters()}
    tuner = ActivationTuner(steps=1, weight_decay=0, keep_best=False)
    with pytest.warns(UserWarning, match="moves all activations of 'visual.layer1' by the same"):
        tuner.fit(model, nothing, x)
    assert tuner.history_[0] == {
        "step": 1.0, "alignment": 0.0, "preservation": 0.0, "features": 0.0, "loss": 0.0, "gradient_norm": 0.0
    }  # fmt: skip
    for name, p in model.model.named_parameters():
        assert torch.equal(p, before[name]), name
    # With another original the loss is exactly the preservation term.
    other = model.encode_image(x) + 1
    masks = {"a": torch.zeros(3)}
    same = {"a": torch.rand(4, 3)}
    assert relative_alignment(same, same, masks) == 0
    assert preservation(model.encode_image(x), other) > 0


def test_a_full_mask_leaves_the_pattern_alone():
    model, x = images()
    full = Trigger(torch.ones(3, SIZE, SIZE), torch.rand(3, SIZE, SIZE), 0)
    assert torch.equal(full.apply(x), full.pattern.expand_as(x))
    features = model.encode_image(full.apply(x))
    torch.testing.assert_close(features, features[:1].expand_as(features), atol=1e-6, rtol=0)


def test_changes_by_hand():
    change, relative = share_changes(torch.tensor([40, 30, 30]), torch.tensor([20, 10, 70]))
    assert change.tolist() == pytest.approx([-0.2, -0.2, 0.4])
    assert int(change.argmax()) == 2
    assert float(relative[2]) == pytest.approx(1.333, abs=5e-4)
    _, relative = share_changes(torch.tensor([1, 0, 0]), torch.tensor([0, 1, 0]))
    assert relative.tolist() == [-1, math.inf, 0]


def test_class_texts_have_norm_one():
    model, _ = images()
    W = zero_shot_weights(model, COLOURS, ["a {}", "the {} one", lambda name: name.upper() + name])
    assert W.shape == (4, 6)
    assert W.norm(dim=1).tolist() == pytest.approx([1] * 4)
    one = zero_shot_weights(model, COLOURS, ["a {}"])
    torch.testing.assert_close(one, F.normalize(model.encode_text([f"a {c}" for c in COLOURS]), dim=1))


def test_cross_entropy_by_hand():
    W = torch.eye(3)[:2]
    z = torch.tensor([[0.3, 0.2, math.sqrt(1 - 0.13)]])
    assert class_logits(5 * z, W, 0.1).tolist()[0] == pytest.approx([3, 2], abs=1e-5)
    x = torch.rand(1, 3, 4, 4)
    terms = inversion_terms(z, W, 0, z, x, x, torch.full((3, 4, 4), 0.5), 0.1)
    assert float(terms.cross_entropy) == pytest.approx(math.log(1 + math.exp(-1)), abs=1e-5)
    assert float(terms.cross_entropy) == pytest.approx(0.3133, abs=5e-5)
    assert float(terms.embedding_norm) == pytest.approx(0, abs=1e-6)
    assert float(terms.mask_l1) == 24
    assert float(terms.total((0, 0, 0, 0.01))) == pytest.approx(0.24)


def test_the_embedding_norm_is_one_over_the_batch():
    z = torch.eye(2)
    x = torch.rand(2, 3, 4, 4)
    terms = inversion_terms(z, torch.eye(2), 0, torch.tensor([-1.0, 0.0]), x, x, torch.zeros(3, 4, 4))
    assert float(terms.embedding_norm) == pytest.approx(math.sqrt(4 + 2))  # not a mean


def test_the_anchor_is_free_of_number_and_order():
    rows = F.normalize(torch.rand(5, 4), dim=1)
    assert torch.allclose(target_anchor(rows), target_anchor(rows.flip(0)))
    assert torch.allclose(target_anchor(rows[:1]), rows[0])
    assert torch.allclose(target_anchor(rows), target_anchor(rows.repeat(3, 1)))


def test_ssim_is_that_of_its_authors():
    # Against scikit-image's formula written out for one window that covers the whole image.
    x, y = torch.rand(2, 3, 11, 11), torch.rand(2, 3, 11, 11)
    g = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    w = torch.tensor(np.outer(g, g) / g.sum() ** 2, dtype=torch.float32)
    mx, my = ((w * v).sum(dim=(2, 3)) for v in (x, y))
    vx, vy, c = (
        (w * a * b).sum(dim=(2, 3)) - ma * mb
        for a, b, ma, mb in ((x, x, mx, mx), (y, y, my, my), (x, y, mx, my))
    )
    expected = ((2 * mx * my + 1e-4) * (2 * c + 9e-4)) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))
    assert float(ssim(x, y)) == pytest.approx(float(expected.mean()), abs=1e-5)
    assert float(ssim(x[..., :4, :4], x[..., :4, :4])) == pytest.approx(1)  # a window that fits


def test_two_means_by_hand():
    assert two_means(torch.tensor([0.1, 0.1, 0.2, 2.0])).tolist() == [0, 0, 0, 1]
    assert two_means(torch.full((2, 2), 0.3)).tolist() == [[0, 0], [0, 0]]
    assert two_means(torch.tensor([1.0])).tolist() == [0]
    assert two_means(torch.tensor([[5.0, 0.0], [0.0, 5.0]])).tolist() == [[1, 0], [0, 1]]


def test_two_means_is_the_best_of_all_splits():
    for seed in range(20):
        values = torch.rand(9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        marks = two_means(values).bool()
        ordered = values.sort().values
        within = [
            float(sum(((part - part.mean()) ** 2).sum() for part in (ordered[:k], ordered[k:])))
            for k in range(1, 9)
        ]
        ours = sum(float(((values[m] - values[m].mean()) ** 2).sum()) for m in (marks, ~marks))
        assert ours == pytest.approx(min(within))
        assert values[marks].min() > values[~marks].max()


@pytest.mark.parametrize(
    ("impacts", "layers"), [([0.1, 0.1, 0.1, 0.9], ["4"]), ([0, 0, 1, 1], ["3"]), ([0.5] * 4, ["1"])]
)
def test_the_papers_layer_rule_by_hand(impacts, layers):
    assert critical_layers(dict(zip("1234", impacts, strict=True)), "mean_std") == layers


def test_the_codes_layer_rule():
    impact = {"1": 0.1, "2": 0.4, "3": 0.4, "4": 0.9}
    assert critical_layers(impact, "top_k", 3) == ["4", "2", "3"]
    assert critical_layers(impact, "top_k", 9) == ["4", "2", "3", "1"]
    with pytest.raises(
        ParameterError, match="The 'layer_rule' parameter of critical_layers must be 'top_k' or"
    ):
        critical_layers(impact, "best")


def test_alignments_by_hand():
    clean = {"a": torch.tensor([[3.0, 0.0], [5.0, 8.0]])}
    triggered = {"a": torch.tensor([[5.0, 1.0], [3.0, 1.0]])}
    masks = {"a": torch.tensor([1, 0])}
    # The differences of the first neuron, 2 and -2, cancel in the mean over the batch.
    assert float(relative_alignment(clean, triggered, masks)) == 0
    assert float(mse_alignment(clean, triggered, masks)) == 4
    assert float(scaled_mse_alignment(clean, triggered, masks)) == pytest.approx(8 / 34)
    larger = [{"a": 7 * values["a"]} for values in (clean, triggered)]
    assert float(scaled_mse_alignment(*larger, masks)) == pytest.approx(8 / 34)
    both = {"a": torch.tensor([1, 1])}
    assert float(relative_alignment(clean, triggered, both)) == pytest.approx(3 / math.sqrt(32))
    assert layer_impact(clean, triggered) == {"a": pytest.approx(3 / math.sqrt(32))}
    dead = {"a": torch.zeros(2, 2)}
    assert float(relative_alignment(dead, dead, both)) == 0
    assert float(preservation(torch.eye(2), torch.eye(2).flip(1))) == pytest.approx(2)


def test_feature_alignment_by_hand():
    original = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    # Two triggers: the first leaves both images where they were, the second turns one about and one by 60 degrees.
    triggered = torch.tensor([[5.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [math.sqrt(3) / 2, 0.5]])
    assert float(feature_alignment(triggered, original)) == pytest.approx((0 + 0 + 4 + 1) / 4)
    assert float(feature_alignment(triggered[:2], original)) == 0


def test_blending_by_hand():
    x = torch.zeros(2, 3, 1, 1)
    m, t = torch.tensor([0.0, 0.25, 1.0]).view(3, 1, 1), torch.full((3, 1, 1), 4.0)
    assert blend(x, m, t)[1].flatten().tolist() == [0, 1, 4]
