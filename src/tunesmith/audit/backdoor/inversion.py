"""Stage 2: rebuild a trigger that makes a frozen model name any image as one class (arXiv 2506.12411)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tunesmith.audit.backdoor.encoders import DualEncoder
from tunesmith.audit.backdoor.search import WEIGHTS, frozen, optimise_triggers, success_rates
from tunesmith.audit.backdoor.triggers import PATCH, Form, Trigger
from tunesmith.audit.backdoor.zero_shot import (
    check_classes,
    check_images,
    check_target,
    image_features,
    zero_shot_weights,
)
from tunesmith.core.errors import ParameterError
from tunesmith.core.seeds import child_seed

__all__ = ["MASK_SIZE", "invert_trigger", "invert_triggers", "l1_scale", "official_anchors", "target_anchor"]

MASK_SIZE = 3 * 224 * 224  # entries of the mask that lambda_4 = 0.01 was set for


def l1_scale(entries: int) -> float:
    """Return sqrt(150528 / (3 H W)), the factor of lambda_4 for smaller images.

    The fewer entries a mask has, the more the loss hangs on each, roughly as one over the root of their number: with no
    factor the masks of small images stay full, with the factor 150528 / (3 H W) they collapse to nothing.

    Args:
        entries: 3 H W.
    """
    return math.sqrt(MASK_SIZE / entries)


def target_anchor(features: Tensor) -> Tensor:
    """Return z_t, (D,): the renormalised mean of the target images' features, whatever their number and order.

    Args:
        features: (K, D), rows of norm 1.
    """
    return F.normalize(features.mean(dim=0), dim=-1)


def official_anchors(features: Tensor, batch_size: int) -> Tensor:
    """Return z_t of the authors' code, (B, D): the features as they are, or the first repeated if their number differs.

    Args:
        features: (K, D), rows of norm 1.
        batch_size: B.
    """
    return features if len(features) == batch_size else features[:1].expand(batch_size, -1)


def invert_triggers(
    model: DualEncoder,
    images: Tensor,
    target: int | str,
    class_names: Sequence[str],
    *,
    forms: Sequence[Form] = (PATCH,),
    templates: Sequence[Any] | None = None,
    text_weights: Tensor | None = None,
    target_images: Tensor | None = None,
    weights: Sequence[float] = WEIGHTS,
    scale_l1: bool = True,
    temperature: float = 0.07,
    learning_rate: float = 0.05,
    steps: int = 200,
    batch_size: int = 32,
    check_every: int = 20,
    enough: float = 0.95,
    patience: int = 3,
    held_out: float = 0.25,
    random_state: int = 0,
    variant: str = "default",
) -> list[Trigger]:
    """Rebuild several triggers of one target at once, one for each form (stage 2).

    L = l1 CE(n(F(x~)) W^T / tau, y_t) + l2 ||n(F(x~)) - z_t||_F + l3 (1 - SSIM(x~, x)) + l4 ||m||_1, by Adam on mask
    and pattern; the model is frozen and left as it was. See `optimise_triggers` for checks, early stop and what is
    kept.

    A mask that may reach 1 finds patches; one bound to 0.1 to 0.3 must spread over the image, as the triggers of
    Blended and SIG do; shifts, which the paper's triggers do not have, follow a warp such as WaNet's. The texts are
    encoded once.

    Time: ``steps`` forward and backward passes of len(forms) x batch_size images.

    Args:
        model: the suspect.
        images: (N, 3, H, W), normalised, clean. Those that the model itself names as the target are left out.
        target: index or name.
        class_names: C names.
        forms: bounds of mask and shifts of each.
        templates: see `zero_shot_weights`.
        text_weights: W (C, D), if it is there already.
        target_images: (K, 3, H, W) clean ones of the target, for z_t; by default those of ``images`` that the model
            names so. Without any, z_t is the target's text.
        weights: lambda_1 to lambda_4.
        scale_l1: multiply lambda_4 by `l1_scale`, as 0.01 was set for 224 pixels.
        temperature: tau.
        learning_rate: of Adam.
        steps: at most.
        batch_size: images of a step.
        check_every: steps between measurements of success.
        enough: success above which states count as equal, and the later is kept.
        patience: measurements without a rise after which to stop.
        held_out: share of the images that success is measured on, never searched on.
        random_state: of starts and order.
        variant: ``"official"``: SSIM of normalised images, one range for all channels, starts from U(0, 1), z_t a
            single image repeated where numbers differ, lambda_4 as it is, no early stop, the last state.

    Returns:
        One trigger for each form.

    Raises:
        ParameterError: a target outside the list, a bound outside its set, images of another size or all of the target.
        DataError: values outside the normalised range.
    """
    owner = "invert_triggers"
    check_classes(class_names, owner)
    c = check_target(target, class_names, owner)
    check_images(model, images, owner, least=2)
    for form in forms:
        if (
            not 0 <= form.max_mask <= 1
            or not form.max_shift >= 0
            or not any(form[:2])
            or not 0 < form.max_share <= 1
        ):
            expected = "bounds: max_mask in [0, 1] and max_shift from 0 on, not both 0, max_share in (0, 1]"
            raise ParameterError("forms", owner, expected, form)
    if not forms:
        raise ParameterError("forms", owner, "at least one Form", forms)
    if variant not in ("default", "official"):
        raise ParameterError("variant", owner, "'default' or 'official'", variant)
    if len(weights) != 4 or not all(math.isfinite(w) and w >= 0 for w in weights):
        raise ParameterError("weights", owner, "four finite numbers of at least 0", weights)
    if not 0 < held_out < 1:
        raise ParameterError("held_out", owner, "in (0, 1)", held_out)
    official = variant == "official"
    W = zero_shot_weights(model, class_names, templates) if text_weights is None else text_weights
    x = images.to(model.device, model.dtype)
    features = image_features(model, x)
    named = (features @ W.T).argmax(dim=1) == c
    if target_images is not None:
        check_images(model, target_images, owner, "target_images")
        of_target = image_features(model, target_images)
    else:
        of_target = features[named] if bool(named.any()) else W[c : c + 1]
    x = x[~named]
    if len(x) < 2:
        raise ParameterError("images", owner, "also of other classes than the target", f"{len(x)} of them")
    draws = torch.Generator().manual_seed(child_seed(random_state, "inversion"))
    x = x[torch.randperm(len(x), generator=draws)]
    aside = max(1, round(held_out * len(x)))
    searched, judged = (x, x) if official else (x[aside:], x[:aside])
    size = min(batch_size, len(searched))
    count = len(forms)
    anchor = official_anchors(of_target, size) if official else target_anchor(of_target)
    factor = l1_scale(x[0].numel()) if scale_l1 and not official else 1.0
    start = None
    if official:
        first = torch.rand((2, count, *x.shape[1:]), generator=draws).to(x)
        start = (first[0], first[1])
    labels = torch.full((count,), c)
    with frozen(model):
        found = optimise_triggers(
            model, searched, W, labels, anchor.expand(count, *anchor.shape), forms=forms, start=start,
            held_out=None if official else judged, weights=(*weights[:3], weights[3] * factor),
            temperature=temperature, learning_rate=learning_rate, steps=steps, batch_size=batch_size,
            check_every=check_every, enough=enough, patience=patience, variant=variant, generator=draws,
        )  # fmt: skip
        success = found.success
        if official:
            success = success_rates(model, judged, found.masks, found.patterns, labels, W)
    return [
        Trigger(
            found.masks[i], found.patterns[i], c, float(success[i]), form,
            found.shifts[i] if found.shifts is not None and form.max_shift else None, found.history[i],
        )
        for i, form in enumerate(forms)
    ]  # fmt: skip


def invert_trigger(
    model: DualEncoder,
    images: Tensor,
    target: int | str,
    class_names: Sequence[str],
    *,
    form: Form = PATCH,
    **parameters: Any,
) -> Trigger:
    """Rebuild one trigger of a target (stage 2); `invert_triggers` with a single form.

    Args:
        model: the suspect, left as it was.
        images: (N, 3, H, W), normalised, clean.
        target: index or name.
        class_names: C names.
        form: bounds of mask and shifts.
        **parameters: the others of `invert_triggers`.

    Raises:
        ParameterError: as there.
        DataError: as there.
    """
    return invert_triggers(model, images, target, class_names, forms=(form,), **parameters)[0]
