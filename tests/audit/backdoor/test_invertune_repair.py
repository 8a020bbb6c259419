"""Stage 3 and its rounds on a tiny model with a planted mark."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from _colours import COLOURS, SIZE, TARGET, TEMPLATES, mark, pictures, state, untrained, weights

from tunesmith.audit.backdoor import repair
from tunesmith.audit.backdoor.inversion import invert_trigger
from tunesmith.audit.backdoor.metrics import attack_success_rate, clean_accuracy
from tunesmith.audit.backdoor.rates import suggested_rate
from tunesmith.audit.backdoor.repair import believed, mixed, remove_backdoor, shortened
from tunesmith.audit.backdoor.triggers import Form, Trigger
from tunesmith.audit.backdoor.tuning import ActivationTuner
from tunesmith.audit.backdoor.zero_shot import predict


def erased(suspect, **parameters):
    model = suspect.copy()
    x = suspect.normalise(pictures(64, 5)[0])
    trigger = invert_trigger(model, x, TARGET, COLOURS, templates=TEMPLATES, steps=100)
    tune, _ = pictures(64, 6)
    tuner = ActivationTuner(**parameters)
    tuner.fit(model, trigger, model.normalise(tune))
    return model, tuner


def test_tuning_erases_the_mark_and_leaves_texts_and_buffers(suspect):
    before = state(suspect)
    model, tuner = erased(suspect)
    x, y = pictures(80, 9)
    W = weights(model)
    assert clean_accuracy(model, model.normalise(x), y, W) >= 0.9
    assert attack_success_rate(model, model.normalise(x), y, mark, TARGET, W) <= 0.3
    assert torch.equal(W, weights(suspect))
    learned = {name for name, _ in model.model.named_parameters() if name.startswith("visual.")}
    for name, value in model.model.state_dict().items():
        if name not in learned:
            assert torch.equal(value, before[name]), name
    assert len(tuner.critical_layers_) == 3
    critical = tuner.critical_layers_[0]
    assert tuner.impact_after_[critical] < tuner.impact_[critical]
    assert tuner.best_step_ % 10 == 0


def test_masked_gradients_move_critical_rows_only(suspect):
    before = state(suspect)
    model, tuner = erased(
        suspect, variant="paper", learning_rate=1e-3, steps=3, keep_best=False, weight_decay=0.1
    )
    masks = tuner.neuron_masks_[0]
    moved = 0
    for name, value in model.model.state_dict().items():
        layer = next((layer for layer in tuner.critical_layers_ if name.startswith(f"{layer}.")), None)
        learned = name in dict(model.model.named_parameters())
        rows = masks[layer].flatten(1).any(dim=1) if layer and learned else torch.zeros(0, dtype=torch.bool)
        if not learned or rows.shape != value.shape[:1]:
            assert torch.equal(value, before[name]), name
            continue
        assert torch.equal(value[~rows], before[name][~rows]), name
        moved += int((value[rows] != before[name][rows]).any())
    assert moved > 0


def test_the_rate_follows_the_size_of_the_weights():
    model = untrained()
    for p in model.image_parameters().values():
        if p.dim() > 1:
            torch.nn.init.constant_(p, 3e-4 * p[0].numel())
    assert suggested_rate(model) == pytest.approx(0.6 * 3e-4)
    for p in model.image_parameters().values():
        torch.nn.init.constant_(p, 100.0)
    assert suggested_rate(model) == 1e-3
    x = model.normalise(pictures(8, 6)[0])
    trigger = Trigger(torch.full((3, SIZE, SIZE), 0.5), torch.ones(3, SIZE, SIZE), TARGET)
    assert ActivationTuner(steps=1).fit(model, trigger, x).learning_rate_ == 1e-3


def test_a_reference_and_callbacks(suspect):
    model = suspect.copy()
    x = model.normalise(pictures(32, 6)[0])
    trigger = Trigger(torch.full((3, SIZE, SIZE), 0.5), torch.ones(3, SIZE, SIZE), TARGET)
    seen = []
    ActivationTuner(callbacks=[lambda step, row: seen.append(row["loss"]) or step == 3]).fit(
        model, trigger, x
    )
    assert len(seen) == 3
    tuner = ActivationTuner(steps=1).fit(model, trigger, x, reference=suspect)
    assert tuner.history_[0]["preservation"] > 0  # the model is no longer the suspect
    again = copy.deepcopy(suspect)
    ActivationTuner(steps=3, schedule="constant").fit(again, [trigger, trigger], x)
    one = ActivationTuner(steps=3, schedule="constant").fit(suspect.copy(), trigger, x)
    assert one.history_[0]["loss"] == pytest.approx(one.history_[0]["alignment"])
    few = ActivationTuner(steps=1, aligned=8).fit(suspect.copy(), trigger, x, reference=model)
    only = ActivationTuner(steps=1).fit(suspect.copy(), trigger, x[:8], reference=model)
    assert few.history_[0]["alignment"] == pytest.approx(only.history_[0]["alignment"], rel=1e-4)
    assert few.history_[0]["preservation"] > only.history_[0]["preservation"] > 0


def test_features_of_triggered_images_are_drawn_back(suspect):
    x = suspect.normalise(pictures(32, 6)[0])
    triggers = [
        Trigger(torch.full((3, SIZE, SIZE), share), torch.ones(3, SIZE, SIZE), TARGET, 1.0)
        for share in (0.3, 0.5)
    ]
    plain = ActivationTuner(steps=2).fit(suspect.copy(), triggers, x)
    assert [row["features"] for row in plain.history_] == [0, 0]
    model = suspect.copy()
    alone = {"alignment_weight": 0.0, "preservation_weight": 0.0, "keep_best": False, "learning_rate": 1e-3}
    tuner = ActivationTuner(feature_weight=2.0, steps=20, aligned=20, **alone).fit(model, triggers, x)
    first, last = tuner.history_[0], tuner.history_[-1]
    with torch.no_grad():
        clean = F.normalize(suspect.encode_image(x[:20]), dim=1)
        moved = [F.normalize(suspect.encode_image(t.apply(x[:20])), dim=1) for t in triggers]
    by_hand = torch.stack([(2 - 2 * (m * clean).sum(1)).mean() for m in moved]).mean()
    assert first["features"] == pytest.approx(float(by_hand), rel=1e-4)
    assert first["loss"] == pytest.approx(2 * first["features"])
    assert last["features"] < 0.5 * first["features"]


@pytest.mark.parametrize("alignment", ["relative", "mse", "scaled_mse"])
def test_groups_of_a_batch_are_the_batch(suspect, alignment):
    x = suspect.normalise(pictures(20, 5)[0])
    triggers = [Trigger(torch.full((3, SIZE, SIZE), 0.5), x[i], TARGET, 1.0) for i in (0, 1)]
    tuned = []
    for size in (None, 7):
        model = suspect.copy()
        tuner = ActivationTuner(
            alignment=alignment, feature_weight=0.5, steps=3, aligned=12, micro_batch=size, learning_rate=1e-3,
            keep_best=False,
        )  # fmt: skip
        tuner.fit(model, triggers, x)
        tuned.append((state(model), tuner.history_, tuner.impact_after_))
    whole, grouped = tuned
    for row, other in zip(whole[1], grouped[1], strict=True):
        assert other == pytest.approx(row, rel=1e-4, abs=1e-6)
    assert whole[2] == pytest.approx(grouped[2], rel=1e-4)
    before = state(suspect)
    moved = sum(float((v - before[name]).abs().sum()) for name, v in whole[0].items())
    apart = sum(float((v - grouped[0][name]).abs().sum()) for name, v in whole[0].items())
    assert apart < 1e-3 * moved


def test_rounds_stop_when_nothing_is_left(suspect):
    x = suspect.normalise(pictures(64, 5)[0])
    tune = suspect.normalise(pictures(64, 6)[0])
    model = suspect.copy()
    done = remove_backdoor(
        model, x, tune, TARGET, COLOURS, templates=TEMPLATES, forms=(Form(), Form(0.3)), rounds=3
    )
    assert done.target == TARGET
    assert (
        1
        <= len(done.tuners)
        == len(done.costs)
        == len(done.weights)
        == len(done.lengths)
        <= len(done.rounds)
        <= 3
    )
    # It ends early when nothing works any more, twice in a row.
    assert len(done.rounds) == 3 or max(max(row) for row in done.rounds[-2:]) < 0.1
    assert done.best.success == max(t.success for t in done.triggers)
    assert all(0 <= share <= 1 for row in done.rounds for share in row)
    unseen, labels = pictures(80, 9)
    rate = attack_success_rate(model, model.normalise(unseen), labels, mark, TARGET, weights(model))
    assert rate <= 0.3


def test_two_searches_without_a_find_end_it_and_mixes_are_held(suspect, monkeypatch):
    x = suspect.normalise(pictures(32, 5)[0])
    plain = Trigger(torch.full((3, SIZE, SIZE), 0.5), torch.ones(3, SIZE, SIZE), TARGET)
    shares = iter([1.0, 0.0, 0.5, 0.0, 0.05, 1.0])
    monkeypatch.setattr(repair, "invert_triggers", lambda *_, **__: [replace(plain, success=next(shares))])
    seen = []
    fit = ActivationTuner.fit
    monkeypatch.setattr(
        ActivationTuner,
        "fit",
        lambda self, m, t, images, **k: seen.append(images) or fit(self, m, t, images, **k),
    )
    given = {"text_weights": weights(suspect), "tuner": {"steps": 1}, "mixes": 7}
    done = remove_backdoor(suspect.copy(), x, x, TARGET, COLOURS, **given)
    assert done.rounds == [[1.0], [0.0], [0.5], [0.0], [0.05]]
    assert len(done.tuners) == 2
    of_target = x[predict(suspect, x, weights(suspect)) == TARGET]
    for images in seen:
        assert torch.equal(images[:32], x)
        assert len(images) == 32 + 7
        # Each mix lies between two images of the target, pixel by pixel.
        assert (images[32:] >= of_target.amin(dim=0) - 1e-5).all()
        assert (images[32:] <= of_target.amax(dim=0) + 1e-5).all()


def test_mixes_lie_between_their_images():
    draws = torch.Generator().manual_seed(0)
    x = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 3, 2, 2)
    values = mixed(x, 200, draws)[:, 0, 0, 0]
    assert values.shape == (200,)
    assert values.min() >= 0
    assert values.max() <= 1
    inner = values[(values > 0) & (values < 1)]
    assert 60 < len(inner) < 140  # half of the pairs are of two different images
    assert len(mixed(x[:0], 5, draws)) == 0


def test_a_round_that_costs_too_much_is_taken_back(suspect):
    x = suspect.normalise(pictures(32, 5)[0])
    model = suspect.copy()
    done = remove_backdoor(
        model, x, x, TARGET, COLOURS, templates=TEMPLATES, forms=(Form(),), rounds=2, budget=0.0,
        tuner={"learning_rate": 1.0, "steps": 3},
    )  # fmt: skip
    assert done.costs == done.lengths == [0.0, 0.0]
    assert done.weights == [1.0, 2.0]
    assert all(torch.equal(v, state(suspect)[name]) for name, v in state(model).items())


def test_a_step_is_shortened_to_its_budget(suspect):
    model = suspect.copy()
    x, W = model.normalise(pictures(32, 5)[0]), weights(model)
    belief = believed(model, x, W)
    assert torch.allclose(belief.sum(dim=1), torch.ones(32))
    assert bool((belief.argmax(dim=1) == predict(model, x, W)).all())
    moving = model.image_parameters()
    before = {name: p.detach().clone() for name, p in moving.items()}

    def cost(length):
        with torch.no_grad():
            for name, p in moving.items():
                p.copy_((1 - 3 * length) * before[name])  # a step far beyond zero: images change their names
        named = predict(model, x, W)
        return float((belief.amax(dim=1) - belief.gather(1, named[:, None])[:, 0]).mean())

    longer = {length: cost(length) for length in (1.0, 0.5, 0.25, 0.125, 0.0625)}
    assert longer[1.0] > 0.1
    cost(1.0)
    least, length = shortened(model, moving, before, x, W, belief, 0.1)
    assert length < 1
    assert least <= 0.1
    assert least == pytest.approx(longer.get(length, 0.0), abs=1e-6)
    assert all(value > 0.1 for other, value in longer.items() if other > length)
    for name, p in moving.items():
        assert torch.allclose(p, (1 - 3 * length) * before[name], atol=1e-6)
