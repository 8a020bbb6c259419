"""Classes as texts: names and templates become one unit vector each, and images are judged by the nearest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tunesmith.audit.backdoor.encoders import DualEncoder
from tunesmith.core.errors import DataError, ParameterError, nearest

__all__ = [
    "TEMPLATES",
    "check_classes",
    "check_images",
    "check_target",
    "image_features",
    "predict",
    "zero_shot_weights",
]

Template = str | Callable[[str], str]

TEMPLATES: tuple[str, ...] = ("a photo of a {}.", "a picture of a {}.", "an image of the {}.", "{}")
"""What a class name is put into where no templates are given."""

_BATCH = 256


def zero_shot_weights(
    model: DualEncoder, class_names: Sequence[str], templates: Sequence[Template] | None = None
) -> Tensor:
    """Return W, (C, D): for each class the normalised mean of its normalised prompt embeddings.

    All prompts of all classes are encoded once; time O(C P) texts, memory that of 256 texts.

    Args:
        model: its text tower is used, without gradients.
        class_names: C different names.
        templates: texts with ``{}`` for the name, or functions of it; default `TEMPLATES`.

    Raises:
        ParameterError: fewer than two classes, empty or equal names, no template or one without ``{}``.
    """
    check_classes(class_names, "zero_shot_weights")
    forms = TEMPLATES if templates is None else tuple(templates)
    if isinstance(templates, str) or not forms:
        raise ParameterError("templates", "zero_shot_weights", "a list of at least one template", templates)
    for form in forms:
        if not callable(form) and "{}" not in form:
            expected = "texts that have '{}' where the class name goes, or functions of the name"
            raise ParameterError("templates", "zero_shot_weights", expected, form)
    texts = [f(name) if callable(f) else f.replace("{}", name) for name in class_names for f in forms]
    with torch.no_grad():
        prompts = F.normalize(model.encode_text(texts), dim=-1)
        return F.normalize(prompts.view(len(class_names), len(forms), -1).mean(dim=1), dim=-1)


def image_features(model: DualEncoder, images: Tensor) -> Tensor:
    """Return n(F(x)), (N, D), without gradients, 256 images at a time.

    Args:
        model: the model.
        images: (N, 3, H, W), normalised.
    """
    with torch.no_grad():
        return torch.cat(
            [F.normalize(model.encode_image(part), dim=-1) for part in torch.split(images, _BATCH)], dim=0
        )


def predict(model: DualEncoder, images: Tensor, text_weights: Tensor) -> Tensor:
    """Return the index of the nearest class text of each image, (N,) int64.

    Args:
        model: the model.
        images: (N, 3, H, W), normalised.
        text_weights: W, (C, D).
    """
    return (image_features(model, images) @ text_weights.T).argmax(dim=1)


def check_classes(class_names: Sequence[str], owner: str) -> None:
    """Refuse a list of class names that names no choice.

    Raises:
        ParameterError: fewer than two, something that is no text, an empty or a repeated name.
    """
    if isinstance(class_names, str) or len(class_names) < 2:
        raise ParameterError("class_names", owner, "a list of at least two class names", class_names)
    seen = set()
    for name in class_names:
        if not isinstance(name, str) or not name.strip():
            raise ParameterError("class_names", owner, "texts that are not empty", name)
        if name in seen:
            raise ParameterError("class_names", owner, "different names", f"'{name}' more than once")
        seen.add(name)


def check_target(target: Any, class_names: Sequence[str], owner: str) -> int:
    """Return the index of a target given by index or by name.

    Raises:
        ParameterError: outside the list.
    """
    if isinstance(target, str):
        if target in class_names:
            return list(class_names).index(target)
        hint = nearest(target, class_names)
        raise ParameterError("target", owner, f"one of the {len(class_names)} class names{hint}", target)
    if isinstance(target, bool) or not hasattr(target, "__index__") or not 0 <= target < len(class_names):
        raise ParameterError(
            "target", owner, f"a class name or an int in [0, {len(class_names) - 1}]", target
        )
    return int(target)


def check_images(
    model: DualEncoder, images: Tensor, owner: str, name: str = "images", least: int = 1
) -> None:
    """Refuse images that the model was not made for.

    Raises:
        ParameterError: another size than the model's, or too few.
        DataError: values outside what pixels in [0, 1] become, not-a-numbers, or pixels that were not normalised.
    """
    size = model.image_size
    shape = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
    if not isinstance(images, Tensor) or images.dim() != 4 or tuple(images.shape[1:]) != (3, size, size):
        raise ParameterError(name, owner, f"a tensor of the shape (N, 3, {size}, {size})", shape)
    if len(images) < least:
        raise ParameterError(name, owner, f"at least {least} images", len(images))
    advice = "Pass model.normalise(pixels), with pixels in [0, 1]."
    for row, (low, high) in enumerate(_ranges(images)):
        outside = (low < model.low.flatten() - 1e-3) | (high > model.high.flatten() + 1e-3)
        if not bool((torch.isfinite(low) & torch.isfinite(high)).all()) or bool(outside.any()):
            channel = int(outside.int().argmax())
            valid = f"[{model.low[channel].item():.3f}, {model.high[channel].item():.3f}]"
            raise DataError(
                f"channel {channel} has values from {low[channel].item():.3f} to {high[channel].item():.3f}, outside "
                f"the normalised range {valid}. {advice}",
                source=name,
                row=row,
            )
    # Real photographs have pixels darker than the mean; a batch without one was most probably not normalised.
    dark = bool((model.low < -0.5).all())
    if dark and len(images) > 1 and float(images.min()) >= 0 and float(images.max()) <= 1:
        raise DataError(f"all values lie in [0, 1]: pixels that were not normalised. {advice}", source=name)


def _ranges(images: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    flat = images.detach().flatten(2)
    lows, highs = flat.amin(dim=2).cpu(), flat.amax(dim=2).cpu()
    return zip(lows, highs, strict=True)
