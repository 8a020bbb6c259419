"""How well a model names clean images, and how often a trigger makes it say the target."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tunesmith.audit.backdoor.encoders import DualEncoder
from tunesmith.audit.backdoor.zero_shot import check_images, predict
from tunesmith.core.errors import ParameterError

__all__ = ["attack_success_rate", "clean_accuracy", "triggered"]


def clean_accuracy(model: DualEncoder, images: Tensor, labels: Tensor, text_weights: Tensor) -> float:
    """Return the share of images whose nearest class text is their label.

    Args:
        model: the model.
        images: (N, 3, H, W), normalised, not those of inversion or tuning.
        labels: (N,) indices of classes.
        text_weights: W, (C, D), see `zero_shot_weights`.

    Raises:
        ParameterError: images of another size, labels of another length.
        DataError: values outside the normalised range.
    """
    check_images(model, images, "clean_accuracy")
    _check_labels(labels, images, "clean_accuracy")
    return float((predict(model, images, text_weights) == labels.to(text_weights.device)).float().mean())


def attack_success_rate(
    model: DualEncoder,
    images: Tensor,
    labels: Tensor | None,
    trigger: Any,
    target: int,
    text_weights: Tensor,
    *,
    exclude_target: bool = True,
) -> float:
    """Return the share of triggered images that are named as the target.

    Args:
        model: the model.
        images: (N, 3, H, W), clean and normalised, not those of inversion or tuning.
        labels: (N,); with None no image is left out.
        trigger: a `Trigger`, an attack of `attacks`, or a function of pixels in [0, 1].
        target: index of the class.
        text_weights: W, (C, D).
        exclude_target: leave out images that are of the target class already; the authors' code counts them.

    Raises:
        ParameterError: images of another size, labels of another length, a target outside the list, no image left, or
            a trigger that is none.
        DataError: values outside the normalised range.
    """
    owner = "attack_success_rate"
    check_images(model, images, owner)
    if not 0 <= target < len(text_weights):
        raise ParameterError("target", owner, f"an int in [0, {len(text_weights) - 1}]", target)
    if labels is not None:
        _check_labels(labels, images, owner)
        if exclude_target:
            images = images[labels.to(images.device) != target]
            if not len(images):
                raise ParameterError("images", owner, "also of other classes than the target", "none")
    return float((predict(model, triggered(model, images, trigger), text_weights) == target).float().mean())


def triggered(model: DualEncoder, images: Tensor, trigger: Any) -> Tensor:
    """Return normalised images with the trigger put on them.

    A `Trigger` knows the normalised space; an attack or a function gets pixels in [0, 1].

    Raises:
        ParameterError: nothing that can be put on images.
    """
    from tunesmith.audit.backdoor.triggers import Trigger

    with torch.no_grad():
        if isinstance(trigger, Trigger):
            return trigger.apply(images)
        put: Callable[[Tensor], Tensor] | None = getattr(
            trigger, "apply", trigger if callable(trigger) else None
        )
        if put is None:
            raise ParameterError(
                "trigger", "attack_success_rate", "a Trigger, an attack, or a function of pixels", trigger
            )
        return model.normalise(put(model.denormalise(images).clamp(0, 1)))


def _check_labels(labels: Tensor, images: Tensor, owner: str) -> None:
    if len(labels) != len(images):
        raise ParameterError("labels", owner, f"of the length of images ({len(images)})", len(labels))
