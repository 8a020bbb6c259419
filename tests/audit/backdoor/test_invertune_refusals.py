"""Bad input to the defence: each case with its message."""

from __future__ import annotations

import re

import pytest
import torch
from _colours import COLOURS, SIZE, pictures, untrained

from tunesmith.audit.backdoor.auditing import audit_backdoor
from tunesmith.audit.backdoor.inversion import invert_trigger, invert_triggers
from tunesmith.audit.backdoor.metrics import attack_success_rate, clean_accuracy
from tunesmith.audit.backdoor.repair import remove_backdoor
from tunesmith.audit.backdoor.targets import identify_target
from tunesmith.audit.backdoor.triggers import Form, Trigger
from tunesmith.audit.backdoor.tuning import ActivationTuner
from tunesmith.audit.backdoor.zero_shot import zero_shot_weights
from tunesmith.core.errors import DataError, ParameterError, TrainingError, UnknownNameError

NAMES = ("identify_target", "invert_triggers", "audit_backdoor")


@pytest.fixture(scope="module")
def model():
    return untrained()


def calls(model, x, classes):
    return {
        "identify_target": lambda: identify_target(model, x, classes),
        "invert_triggers": lambda: invert_trigger(model, x, 0, classes),
        "audit_backdoor": lambda: audit_backdoor(model, x, classes),
    }


def images(model, n=32):
    return model.normalise(pictures(n)[0])


def refused(message, error=ParameterError):
    return pytest.raises(error, match=re.escape(message))


@pytest.mark.parametrize("name", NAMES)
def test_images_of_another_size(model, name):
    with refused(
        f"The 'images' parameter of {name} must be a tensor of the shape (N, 3, 8, 8). Got (32, 3, 9, 9) instead."
    ):
        calls(model, torch.zeros(32, 3, 9, 9), COLOURS)[name]()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["red"], "must be a list of at least two class names. Got ['red'] instead."),
        ("red", "must be a list of at least two class names. Got 'red' instead."),
        (["red", "blue", "red"], "must be different names. Got \"'red' more than once\" instead."),
        (["red", " "], "must be texts that are not empty. Got ' ' instead."),
        (["red", 3], "must be texts that are not empty. Got 3 instead."),
    ],
)
def test_classes_that_are_no_choice(model, name, classes, message):
    with refused(f"The 'class_names' parameter of {name} {message}"):
        calls(model, images(model), classes)[name]()


def test_targets_outside_the_list(model):
    x = images(model)
    with refused(
        "The 'target' parameter of invert_triggers must be a class name or an int in [0, 3]. Got 4 instead."
    ):
        invert_trigger(model, x, 4, COLOURS)
    with refused(
        "The 'target' parameter of audit_backdoor must be one of the 4 class names Did you mean 'green'?. Got 'gren'"
    ):
        audit_backdoor(model, x, COLOURS, target="gren")
    with refused("The 'target' parameter of attack_success_rate must be an int in [0, 3]. Got 7 instead."):
        attack_success_rate(model, x, None, lambda p: p, 7, zero_shot_weights(model, COLOURS))


def test_values_outside_the_normalised_range(model):
    x = images(model)
    x[3, 1, 0, 0] = 2.5
    message = (
        "images, row 3: channel 1 has values from -0.805 to 2.500, outside the normalised range [-1.333, 2.000]. Pass "
        "model.normalise(pixels), with pixels in [0, 1]."
    )
    low = float(x[3, 1].min())
    with refused(message.replace("-0.805", f"{low:.3f}"), DataError):
        identify_target(model, x, COLOURS)
    with refused("clean_images, row 0: channel 0 has values from 0.000 to 42.000", DataError):
        ActivationTuner().fit(model, trigger(), torch.linspace(0, 255, 384).view(2, 3, SIZE, SIZE).round())
    x[0, 0, 0, 0] = float("nan")
    with refused("images, row 0: channel 0 has values from nan to nan", DataError):
        identify_target(model, x, COLOURS)


def test_pixels_that_were_not_normalised(model):
    with refused(
        "images: all values lie in [0, 1]: pixels that were not normalised. Pass model.normalise(pixels), with "
        "pixels in [0, 1].",
        DataError,
    ):
        identify_target(model, pictures(32)[0], COLOURS)


def trigger(success=1.0):
    return Trigger(torch.full((3, SIZE, SIZE), 0.5), torch.ones(3, SIZE, SIZE), 0, success)


def test_triggers_that_do_not_fit(model, tmp_path):
    with refused(
        "The 'images' parameter of Trigger.apply must be of the shape (B, 3, 8, 8). Got (2, 3, 9, 9) instead."
    ):
        trigger().apply(torch.zeros(2, 3, 9, 9))
    with refused(
        "The trigger turns only 40 % of held-out images into its target, below min_success = 70 %",
        TrainingError,
    ):
        ActivationTuner().fit(model, trigger(0.4), images(model))
    with refused(
        "The 'trigger' parameter of ActivationTuner must be a Trigger, or at least one of them. Got 'none'"
    ):
        ActivationTuner().fit(model, [], images(model))
    (tmp_path / "t.safetensors").write_bytes(b"no")
    with refused("t.safetensors: not a trigger in a safetensors file:", DataError):
        Trigger.load(tmp_path / "t.safetensors")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (
            {"variant": "new"},
            "'variant' parameter of ActivationTuner must be one of 'default', 'official', 'paper'",
        ),
        (
            {"alignment": "cosine"},
            "'alignment' parameter of ActivationTuner must be one of 'relative', 'mse'",
        ),
        (
            {"layer_rule": "all"},
            "'layer_rule' parameter of ActivationTuner must be one of 'top_k', 'mean_std'",
        ),
        (
            {"schedule": "linear"},
            "'schedule' parameter of ActivationTuner must be one of 'constant', 'cosine', 'rest",
        ),
        (
            {"variant": "official", "micro_batch": 8},
            "'micro_batch' parameter of ActivationTuner must be None with train_mode, where images of a pass see one "
            "another. Got 8 instead.",
        ),
        ({"steps": 0}, "'steps' parameter of ActivationTuner must be an int of at least 1. Got 0 instead."),
        (
            {"top_k": True},
            "'top_k' parameter of ActivationTuner must be an int of at least 1. Got True instead.",
        ),
        (
            {"learning_rate": -1},
            "'learning_rate' parameter of ActivationTuner must be a finite number of at least 0",
        ),
        (
            {"feature_weight": float("nan")},
            "'feature_weight' parameter of ActivationTuner must be a finite number of at least 0",
        ),
    ],
)
def test_parameters_of_the_tuner(parameters, message):
    with refused(f"The {message}"):
        ActivationTuner(**parameters)


def test_unknown_layers_and_losses_that_are_not_finite(model):
    with refused("There is no layer of the model named 'layer9'.", UnknownNameError):
        ActivationTuner(layers=["layer9"]).fit(model, trigger(), images(model))
    broken = untrained()
    with torch.no_grad():
        broken.model.visual.layer4[0].weight.fill_(float("nan"))
    tuner = ActivationTuner(layers=["visual.layer4"])
    with refused("The loss of activation tuning is nan in step 1; lower", TrainingError):
        tuner.fit(broken, trigger(), images(broken))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"forms": ()}, "'forms' parameter of invert_triggers must be at least one Form"),
        (
            {"forms": (Form(0.0),)},
            "'forms' parameter of invert_triggers must be bounds: max_mask in [0, 1] and max_shift",
        ),
        (
            {"variant": "old"},
            "'variant' parameter of invert_triggers must be 'default' or 'official'. Got 'old'",
        ),
        (
            {"weights": (1, 2)},
            "'weights' parameter of invert_triggers must be four finite numbers of at least 0",
        ),
        ({"held_out": 1.0}, "'held_out' parameter of invert_triggers must be in (0, 1). Got 1.0 instead."),
    ],
)
def test_parameters_of_the_inversion(model, parameters, message):
    with refused(f"The {message}"):
        invert_triggers(model, images(model), 0, COLOURS, **parameters)


def test_parameters_of_targets_texts_and_repair(model):
    x = images(model)
    with refused("The 'strength' parameter of identify_target must be in (0, 1]. Got 0 instead."):
        identify_target(model, x, COLOURS, strength=0)
    with refused(
        "The 'max_candidates' parameter of identify_target must be an int of at least 4. Got 2 instead."
    ):
        identify_target(model, x, COLOURS, max_candidates=2)
    with refused(
        "The 'searches' parameter of identify_target must be None, or at least one name with its bounds. Got {} "
        "instead."
    ):
        identify_target(model, x, COLOURS, searches={})
    with refused(
        "The 'templates' parameter of zero_shot_weights must be a list of at least one template. Got [] "
    ):
        zero_shot_weights(model, COLOURS, [])
    with refused(
        "must be texts that have '{}' where the class name goes, or functions of the name. Got 'a photo'"
    ):
        zero_shot_weights(model, COLOURS, ["a photo"])
    with refused("The 'rounds' parameter of remove_backdoor must be an int of at least 1. Got 0 instead."):
        remove_backdoor(model, x, x, 0, COLOURS, rounds=0)
    with refused("The 'budget' parameter of remove_backdoor must be in [0, 1]. Got 2 instead."):
        remove_backdoor(model, x, x, 0, COLOURS, budget=2)
    with refused("The 'mixes' parameter of remove_backdoor must be an int of at least 0. Got -1 instead."):
        remove_backdoor(model, x, x, 0, COLOURS, mixes=-1)
    with refused("The 'tuning_images' parameter of remove_backdoor must be "):
        remove_backdoor(model, x, x[..., 1:], 0, COLOURS)
    with refused("No inverted trigger turns more than", TrainingError):
        remove_backdoor(
            model, x, x, 1, COLOURS, forms=(Form(0.001),), inversion={"steps": 1}, min_success=0.99
        )


def test_images_and_labels_of_the_metrics(model):
    x = images(model, 8)
    W = zero_shot_weights(model, COLOURS)
    with refused(
        "The 'labels' parameter of clean_accuracy must be of the length of images (8). Got 3 instead."
    ):
        clean_accuracy(model, x, torch.zeros(3), W)
    with refused(
        "The 'images' parameter of attack_success_rate must be also of other classes than the target. Got"
    ):
        attack_success_rate(model, x, torch.zeros(8), lambda p: p, 0, W)
    with refused(
        "The 'trigger' parameter of attack_success_rate must be a Trigger, an attack, or a function of pixels"
    ):
        attack_success_rate(model, x, None, 3, 0, W)
    with refused("The 'images' parameter of audit_backdoor must be at least 30 images. Got 8 instead."):
        audit_backdoor(model, x, COLOURS)
    with refused(
        "The 'labels' parameter of audit_backdoor must be of the length of images (32). Got 3 instead."
    ):
        audit_backdoor(model, images(model), COLOURS, labels=torch.zeros(3))
    with torch.no_grad():
        only = model.encode_image(x[:2])
    with refused("The 'images' parameter of invert_triggers must be also of other classes than the target"):
        invert_trigger(model, x[:2], 0, COLOURS, text_weights=torch.stack([only[0], *-only[[0, 0, 0]]]))
