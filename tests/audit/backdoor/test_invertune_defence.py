"""Targets, triggers and repair of a tiny model with a planted mark, and of one without."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from _colours import COLOURS, SIZE, TARGET, TEMPLATES, mark, pictures, state, weights

from tunesmith.audit.backdoor.auditing import audit_backdoor, wilson
from tunesmith.audit.backdoor.inversion import invert_trigger, invert_triggers
from tunesmith.audit.backdoor.metrics import attack_success_rate, clean_accuracy
from tunesmith.audit.backdoor.search import frozen, optimise_triggers, within
from tunesmith.audit.backdoor.standing import OWN_TEXT
from tunesmith.audit.backdoor.targets import identify_target
from tunesmith.audit.backdoor.triggers import Form, Trigger, bend


def test_the_mark_works_and_the_model_is_accurate(suspect):
    x, y = pictures(80, 9)
    W = weights(suspect)
    assert clean_accuracy(suspect, suspect.normalise(x), y, W) >= 0.95
    assert attack_success_rate(suspect, suspect.normalise(x), y, mark, TARGET, W) >= 0.9


# The mark is 0.14 of these small images.
PROBE = {
    "searches": {"patch": Form(max_share=0.15)},
    "steps": 40,
    "batch_size": 12,
    "restarts": 1,
    "levels": 1,
}


def test_the_target_is_named(suspect):
    x = suspect.normalise(pictures(48, 5)[0])
    before = state(suspect)
    report = identify_target(suspect, x, COLOURS, templates=TEMPLATES, **PROBE)
    assert report.suspect == TARGET
    assert (report.target, report.name) == (TARGET, "blue")
    assert str(report).startswith("'blue' is the suspected target (margin ")
    assert set(report.standing) == {"patch 0.15", OWN_TEXT}
    assert report.search == max(report.standing, key=lambda look: report.standing[look][TARGET])
    assert report.margin == report.score[TARGET] == report.score.max()
    again = identify_target(suspect, x, COLOURS, templates=TEMPLATES, **PROBE)
    assert again.margin == report.margin  # the seed decides everything
    assert all(torch.equal(value, before[name]) for name, value in suspect.model.state_dict().items())
    assert all(p.requires_grad for p in suspect.model.parameters())
    assert report.clean_share.sum() == pytest.approx(1)
    for probe, change in report.change.items():
        assert float(change.sum()) == pytest.approx(0, abs=1e-9), probe
    assert set(report.votes) == {"patch", "whole image"}
    cautious = replace(report, target=None)
    assert cautious.name is None
    assert str(cautious).startswith("No single target found: 'blue' stands out most, but not by far (margin ")
    assert str(replace(report, search=OWN_TEXT)).endswith("most in its own text).")


def test_projection_by_hand():
    masks = torch.tensor([[3.0, 1.0, 0.5], [0.2, -1.0, 0.1]])
    # 3 and 1 lose one each to sum to 2, 0.5 is cut; the second row is within its bound.
    found = within(masks, torch.tensor([2.0, 1.0]))
    torch.testing.assert_close(found, torch.tensor([[2.0, 0.0, 0.0], [0.2, 0.0, 0.1]]))
    found = within(torch.tensor([[2.0, 1.5, 0.1]]), torch.tensor([2.5]))
    torch.testing.assert_close(found, torch.tensor([[1.5, 1.0, 0.0]]))


@pytest.mark.parametrize("form", [Form(1.0), Form(0.2), Form(0.0, 2.0), Form(0.3, 1.0)])
def test_bounds_hold_after_every_step(suspect, form):
    x = suspect.normalise(pictures(16, 5)[0])
    W = weights(suspect)
    start, draws = None, torch.Generator().manual_seed(0)
    with frozen(suspect):
        for _ in range(4):
            found = optimise_triggers(
                suspect, x, W, torch.tensor([TARGET]), W[[TARGET]], forms=[form], start=start,
                steps=1, learning_rate=0.7, batch_size=8, generator=draws,
            )  # fmt: skip
            start = (found.masks, found.patterns)
            assert 0 <= float(found.masks.min()) <= float(found.masks.max()) <= form.max_mask + 1e-6
            pixels = suspect.denormalise(found.patterns)
            assert -1e-6 <= float(pixels.min()) <= float(pixels.max()) <= 1 + 1e-6
            if form.max_shift:
                assert float(found.shifts.abs().max()) <= form.max_shift
            else:
                assert found.shifts is None


def test_searches_in_one_batch_are_the_searches_alone(suspect):
    x = suspect.normalise(pictures(16, 5)[0])
    W = weights(suspect)
    start = torch.rand(2, 2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    targets = torch.tensor([0, TARGET])
    with frozen(suspect):
        both = optimise_triggers(suspect, x, W, targets, W[targets], start=(start[0], start[1]), steps=5)
        for r in range(2):
            alone = optimise_triggers(
                suspect, x, W, targets[[r]], W[targets[[r]]], start=(start[0][[r]], start[1][[r]]), steps=5
            )
            torch.testing.assert_close(alone.masks[0], both.masks[r], atol=1e-4, rtol=0)


def test_groups_that_fit_into_memory_change_nothing(suspect, monkeypatch):
    x = suspect.normalise(pictures(16, 5)[0])
    forms = (Form(), Form(0.2), Form(0.0, 2.0))
    whole = invert_triggers(suspect, x, TARGET, COLOURS, templates=TEMPLATES, forms=forms, steps=5)
    monkeypatch.setattr("tunesmith.audit.backdoor._passes.PIXELS", 1)
    single = invert_triggers(suspect, x, TARGET, COLOURS, templates=TEMPLATES, forms=forms, steps=5)
    for a, b in zip(whole, single, strict=True):
        torch.testing.assert_close(a.mask, b.mask, atol=1e-4, rtol=0)


def test_an_inverted_trigger_reaches_the_target(suspect, tmp_path):
    x, _ = pictures(64, 5)
    before = state(suspect)
    trigger = invert_trigger(suspect, suspect.normalise(x), "blue", COLOURS, templates=TEMPLATES, steps=100)
    assert trigger.target == TARGET
    assert trigger.success >= 0.9
    assert all(torch.equal(value, before[name]) for name, value in suspect.model.state_dict().items())
    unseen, labels = pictures(60, 11)
    rate = attack_success_rate(suspect, suspect.normalise(unseen), labels, trigger, TARGET, weights(suspect))
    assert rate >= 0.9
    assert trigger.history[-1]["mask_l1"] == pytest.approx(trigger.mask_l1, rel=1e-4)
    read = Trigger.load(trigger.save(tmp_path / "trigger.safetensors"))
    assert torch.equal(read.mask, trigger.mask)
    assert (read.target, read.success, read.form) == (trigger.target, trigger.success, trigger.form)
    assert read.shifts is None


def test_the_search_stops_when_it_has_enough(suspect):
    x = suspect.normalise(pictures(64, 5)[0])
    trigger = invert_trigger(suspect, x, TARGET, COLOURS, templates=TEMPLATES, steps=400, check_every=5)
    assert trigger.history[-1]["step"] < 400
    official = invert_trigger(
        suspect, x, TARGET, COLOURS, templates=TEMPLATES, steps=20, variant="official", batch_size=64
    )
    assert official.history == []
    assert 0 <= official.success <= 1


def test_a_warp_is_kept_with_the_trigger(suspect, tmp_path):
    x = suspect.normalise(pictures(32, 5)[0])
    triggers = invert_triggers(
        suspect, x, TARGET, COLOURS, templates=TEMPLATES, forms=(Form(0.0, 1.5), Form(0.2)), steps=10
    )
    assert triggers[0].shifts.shape == (2, 4, 4)
    assert triggers[1].shifts is None
    assert torch.equal(triggers[0].apply(x), bend(x, triggers[0].shifts))
    read = Trigger.load(triggers[0].save(tmp_path / "t.safetensors"))
    assert torch.equal(read.shifts, triggers[0].shifts)
    assert read.form == Form(0.0, 1.5)


def test_a_field_of_one_shift_moves_the_image():
    x = torch.rand(2, 3, 17, 17)
    right = torch.zeros(2, 4, 4)
    right[0] = 1.0  # a sixteenth of the side, here one pixel
    torch.testing.assert_close(bend(x, right)[..., :-1], x[..., 1:], atol=1e-5, rtol=0)
    torch.testing.assert_close(bend(x, 0 * right), x, atol=1e-6, rtol=0)


def test_audits(suspect, tmp_path):
    pixels, labels = pictures(150, 7)
    settings = PROBE
    model = suspect.copy()
    report = audit_backdoor(
        model, model.normalise(pixels), COLOURS, labels=labels, templates=TEMPLATES, trigger=mark,
        identify=settings, removal={"forms": (Form(),), "rounds": 2}, subject="colours",
    )  # fmt: skip
    assert report.level == "suspicious"
    assert report.verdict.startswith("'blue' is a suspected hidden target: a rebuilt trigger turns ")
    before, after = (report.numbers[f"planted trigger: success {when}"][0] for when in ("before", "after"))
    assert before >= 0.9
    assert after <= 0.3
    assert [table.title for table in report.tables] == ["Classes", "Layers", "Rounds"]
    assert len(report.pictures) == 3
    assert all(picture[:4] == b"\x89PNG" for picture in report.pictures.values())
    assert sorted(p.name for p in report.save(tmp_path / "audit").iterdir())[-2:] == [
        "report.html",
        "report.json",
    ]
    untouched = suspect.copy()
    report = audit_backdoor(
        untouched, model.normalise(pixels), COLOURS, templates=TEMPLATES, target="blue", repair=False,
        identify={**settings, "steps": 5}, removal={"forms": (Form(),)},
    )  # fmt: skip
    assert report.verdict.startswith("'blue' is the target that was given: a rebuilt trigger turns ")
    assert all(torch.equal(v, state(suspect)[name]) for name, v in state(untouched).items())


def test_a_clean_model_is_not_accused(harmless):
    report = audit_backdoor(
        harmless, harmless.normalise(pictures(60, 7)[0]), COLOURS, templates=TEMPLATES,
        identify=PROBE,
    )  # fmt: skip
    assert report.level == "clean"
    assert report.verdict.startswith("No single target found")
    assert report.notes[0].startswith("Nothing found is no proof that nothing is there")


def test_intervals_by_hand():
    share, low, high = wilson(0.5, 100)
    assert (share, low, high) == (0.5, pytest.approx(0.4038, abs=1e-4), pytest.approx(0.5962, abs=1e-4))
    assert wilson(0.0, 20)[1:] == (0, pytest.approx(0.1611, abs=1e-4))
    assert wilson(1.0, 0) == (1.0, 0.0, 1.0)
