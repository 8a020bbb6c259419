"""Stage 1: which class does the model fall into when it is pushed? (arXiv 2506.12411, section on target identification)

Three looks. The paper's: universal perturbations that only push images away from what they are; on a poisoned
model they fall into the backdoor's class. For candidates, a comparison in the manner of Neural Cleanse (Wang et
al. 2019): how easily does one small mask, one faint pattern, or one slight warp turn all images into this class? And
how well does the text of a class fit its own clean images? The planted class is easier than the rest, and where the
texts were trained too, its text has moved towards the trigger: see `tunesmith.audit.backdoor.standing`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tunesmith.audit.backdoor.encoders import DualEncoder
from tunesmith.audit.backdoor.objective import blend, class_logits, share_changes
from tunesmith.audit.backdoor.search import Found, frozen, optimise_triggers
from tunesmith.audit.backdoor.standing import OWN_TEXT, scores, text_agreement, text_unit
from tunesmith.audit.backdoor.triggers import Form, bend
from tunesmith.audit.backdoor.zero_shot import check_classes, check_images, image_features, zero_shot_weights
from tunesmith.core.errors import ParameterError
from tunesmith.core.seeds import child_seed

__all__ = ["TargetReport", "identify_target", "patch_square", "universal_probes"]

PROBES = ("patch", "whole image")


SEARCHES: dict[str, Form] = {
    "patch": Form(max_share=0.02),
    "pattern": Form(max_mask=0.1),
    "warp": Form(max_mask=0.0, max_shift=2.0),
    "slight warp": Form(max_mask=0.0, max_shift=1.0),
}
"""A small mask anywhere, a faint pattern over the whole image, a bent image: the bounds that are tried first."""

# Where a bound tells classes apart, half of them are reached by a cosine margin between these, in units of `text_unit`:
# above, a model is so brittle that the bound is halved; below, nothing moves and it is doubled.
TELLING = (0.3, -0.7)

WARP_EFFORT = 2  # times the steps and images of the other searches: fewer end before they find a warp at all


@dataclass(frozen=True)
class TargetReport:
    """What the probes say about each class.

    Attributes:
        target: index of the suspected class, None where no single one stands out.
        class_names: C names.
        margin: how far ``suspect`` stands out: its entry of ``score``.
        threshold: what ``margin`` has to exceed.
        suspect: index of the class of the largest score, whether or not it is named.
        search: the look that it stands out most in: a search, or ``"own text"``.
        score: (C,) suspicion of each class, see `standing.scores`; not-a-number if not compared.
        standing: look -> (C,) how far each class lies above the mean of the others, in their standard deviations.
        agreement: (C,) cosine of each class's text to the mean of the images named so; not-a-number below five images.
        ease: search -> (C,) how easily each class is reached: the mean over images of other classes, under the trigger
            found for it, of the cosine to its text minus that to the nearest other; not-a-number if not compared.
        clean_share: (C,) share of top-1 predictions on clean images.
        adversarial_share: probe -> (C,) the same under the universal, untargeted perturbation.
        change: probe -> (C,) adversarial minus clean share; the paper's target is its largest entry.
        relative_change: probe -> (C,) ``change`` over the clean share.
    """

    target: int | None
    class_names: list[str]
    margin: float
    threshold: float
    suspect: int
    search: str
    score: Tensor = field(repr=False)
    standing: dict[str, Tensor] = field(repr=False)
    agreement: Tensor = field(repr=False)
    ease: dict[str, Tensor] = field(repr=False)
    clean_share: Tensor = field(repr=False)
    adversarial_share: dict[str, Tensor] = field(repr=False)
    change: dict[str, Tensor] = field(repr=False)
    relative_change: dict[str, Tensor] = field(repr=False)

    @property
    def name(self) -> str | None:
        """Name of the target."""
        return None if self.target is None else self.class_names[self.target]

    @property
    def votes(self) -> dict[str, int]:
        """Probe -> the class whose share it raised most: the paper's rule, which always names one."""
        return {probe: int(change.argmax()) for probe, change in self.change.items()}

    def __str__(self) -> str:
        foremost = self.class_names[self.suspect]
        look = self.search if self.search == OWN_TEXT else f"search '{self.search}'"
        figures = f"margin {self.margin:.1f}, threshold {self.threshold:.1f}, most in its {look}"
        if self.target is None:
            return f"No single target found: '{foremost}' stands out most, but not by far ({figures})."
        return f"'{foremost}' is the suspected target ({figures})."


def patch_square(size: int, share: float = 0.03) -> tuple[int, int, int]:
    """Return row, column and side of the universal patch: 14 of 224 pixels from the lower right corner.

    Args:
        size: height and width of the image.
        share: of its area.
    """
    side = max(1, math.floor(math.sqrt(share * size * size)))
    start = max(0, size - round(14 * size / 224) - side)
    return start, start, side


def universal_probes(
    model: DualEncoder,
    x: Tensor,
    text_weights: Tensor,
    masks: Tensor,
    *,
    steps: int = 60,
    learning_rate: float = 0.1,
    batch_size: int = 32,
    temperature: float = 0.07,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return R patterns (R, 3, H, W), each of which pushes images away from their own predictions under its mask.

    Adam on the pixels maximises CE(n(F(x~)) W^T / tau, argmax_c n(F(x)) W_c): untargeted, universal, and on the suspect
    model itself, for the effect that is used is that such a search falls into the planted class.

    Args:
        model: frozen by the caller.
        x: (N, 3, H, W), normalised.
        text_weights: (C, D).
        masks: (R, 3, H, W), fixed: a square, or a small constant over the whole image.
        steps: of Adam.
        learning_rate: of Adam, in normalised pixels.
        batch_size: images of a step.
        temperature: tau.
        generator: of the starts and the order.
    """
    own = (image_features(model, x) @ text_weights.T).argmax(dim=1)
    drawn = torch.rand(masks.shape, generator=generator).to(x)
    patterns = (model.low + (model.high - model.low) * drawn).requires_grad_(True)
    optimizer = torch.optim.Adam([patterns], lr=learning_rate)
    for _ in range(steps):
        rows = torch.randperm(len(x), generator=generator)[:batch_size]
        mixed = blend(x[rows][None], masks[:, None], patterns[:, None]).flatten(0, 1)
        logits = class_logits(model.encode_image(mixed), text_weights, temperature)
        loss = -F.cross_entropy(logits, own[rows].repeat(len(masks)))
        optimizer.zero_grad()
        torch.autograd.backward(loss, inputs=[patterns])
        optimizer.step()
        with torch.no_grad():
            patterns.copy_(torch.minimum(torch.maximum(patterns, model.low), model.high))
    return patterns.detach()


def identify_target(
    model: DualEncoder,
    images: Tensor,
    class_names: Sequence[str],
    *,
    templates: Sequence[Any] | None = None,
    text_weights: Tensor | None = None,
    searches: Mapping[str, Form] | None = None,
    strength: float = 0.1,
    patch_share: float = 0.03,
    restarts: int = 2,
    steps: int = 30,
    levels: int = 2,
    learning_rate: float = 0.2,
    batch_size: int = 16,
    temperature: float = 0.07,
    max_candidates: int = 16,
    threshold: float = 1.7,
    random_state: int = 0,
) -> TargetReport:
    """Name the class that a planted trigger leads to, or say that no single one stands out (stage 1).

    1. Universal untargeted probes, a patch and a faint pattern over the whole image, ``restarts`` of each: shares of
       top-1 predictions before and after, per class (the paper's statistic).
    2. Candidates: all classes, or ``max_candidates`` of them: a quarter whose texts fit their images worst, the others
       those whose share grew most under a probe. For each and in each search one trigger is learned that turns all
       images into it, under bounds that only part of the classes allow.
    3. The class that stands out most is named if its score exceeds ``threshold``: its ease above the mean of the
       others, in their standard deviations, averaged over the searches, plus 0.3 times how ill its own text fits.

    Time: ``steps`` passes of searches x levels x candidates x batch_size images (four times that for warps), and a
    forward pass of all images for each candidate in each search and for each probe.

    Args:
        model: is left as it was.
        images: (N, 3, H, W), normalised, clean, of several classes; labels are not needed.
        class_names: candidates, at least two.
        templates: see `zero_shot_weights`.
        text_weights: W (C, D), if it is there already.
        searches: name -> the bounds to begin with; default `SEARCHES`.
        strength: of the untargeted whole-image probe, in (0, 1]: the share of the pattern in the mix.
        patch_share: of the image's area, of the patch.
        restarts: of each untargeted probe.
        steps: of each search and of the untargeted probes.
        levels: bounds that are tried in each search, at most; see `TELLING`.
        learning_rate: of Adam, in normalised pixels.
        batch_size: images of a step; twice as many, and twice the steps, for warps.
        temperature: tau.
        max_candidates: classes that are compared, at least 4.
        threshold: of the score; set on clean models with ten classes. With two or three, differences that are natural
            pass it more often.
        random_state: of starts and order.

    Raises:
        ParameterError: fewer than two classes, equal names, images of another size, no search, a number outside its
            set.
        DataError: values outside the normalised range.
    """
    owner = "identify_target"
    check_classes(class_names, owner)
    check_images(model, images, owner, least=2)
    for name, value in {"strength": strength, "patch_share": patch_share}.items():
        if not 0 < value <= 1:
            raise ParameterError(name, owner, "in (0, 1]", value)
    if max_candidates < 4:
        raise ParameterError("max_candidates", owner, "an int of at least 4", max_candidates)
    if searches is not None and not searches:
        raise ParameterError("searches", owner, "None, or at least one name with its bounds", searches)
    names = list(class_names)
    W = zero_shot_weights(model, names, templates) if text_weights is None else text_weights
    x = images.to(model.device, model.dtype)
    draws = torch.Generator().manual_seed(child_seed(random_state, "probes"))
    common: dict[str, Any] = {"temperature": temperature, "generator": draws}
    unit = text_unit(W)
    with frozen(model):
        features = image_features(model, x)
        clean = (features @ W.T).argmax(dim=1)
        agreement = text_agreement(features, clean, W)
        counts = clean.bincount(minlength=len(names)).cpu()
        masks = _probe_masks(model, patch_share, strength, restarts).to(x)
        patterns = universal_probes(
            model, x, W, masks, steps=steps, learning_rate=learning_rate, batch_size=batch_size, **common
        )
        shares, changes, relatives = {}, {}, {}
        for i, probe in enumerate(PROBES):
            moved = torch.zeros_like(counts)
            for r in range(i * restarts, (i + 1) * restarts):
                features = image_features(model, blend(x, masks[r], patterns[r]))
                moved += (features @ W.T).argmax(dim=1).bincount(minlength=len(names)).cpu()
            changes[probe], relatives[probe] = share_changes(counts, moved)
            shares[probe] = moved.double() / moved.sum()
        growth = torch.stack(list(changes.values())).amax(dim=0)
        classes = _candidates(growth, agreement, max_candidates)
        ease: dict[str, Tensor] = {}
        for name, first in (SEARCHES if searches is None else searches).items():
            form, halved = first, False
            for _ in range(levels):
                effort = WARP_EFFORT if form.max_shift else 1
                found = optimise_triggers(
                    model, x, W, classes, W[classes], forms=[form] * len(classes), weights=(1.0, 0.0, 0.0, 0.0),
                    learning_rate=learning_rate, steps=effort * steps, batch_size=effort * batch_size,
                    learn_mask=form.max_share < 1, **common,
                )  # fmt: skip
                label, _ = _bound(form)
                ease[f"{name} {label:.3g}"] = _cosine_margins(model, x, W, clean, classes, found)
                middle = float(ease[f"{name} {label:.3g}"][classes].nanmedian())
                if middle > TELLING[0] * unit:
                    form, halved = _scaled(form, 0.5), True
                elif middle < TELLING[1] * unit and not halved and 2 * label <= _bound(form)[1]:
                    form = _scaled(form, 2.0)
                else:
                    break
    score, standing = scores(ease, agreement, unit)
    suspect = int(score.nan_to_num(-math.inf).argmax())
    margin = float(score[suspect])
    search = max(standing, key=lambda name: float(standing[name][suspect].nan_to_num(-math.inf)))
    return TargetReport(
        suspect if margin > threshold else None, names, margin, threshold, suspect, search, score, standing, agreement,
        ease, counts.double() / counts.sum(), shares, changes, relatives,
    )  # fmt: skip


def _candidates(growth: Tensor, agreement: Tensor, most: int) -> Tensor:
    """Return the classes to compare, sorted: all, or the least fitting texts and the shares that grew most."""
    if len(growth) <= most:
        return torch.arange(len(growth))
    misfits = agreement.nan_to_num(math.inf).argsort(stable=True)[: most // 4]
    rest = growth.clone()
    rest[misfits] = -math.inf
    grown = rest.argsort(descending=True, stable=True)[: most - len(misfits)]
    return torch.cat([misfits, grown]).sort().values


def _bound(form: Form) -> tuple[float, float]:
    """Return the bound that makes a form what it is, and the largest it may be."""
    if form.max_shift:
        return form.max_shift, 4.0
    return (form.max_share, 1.0) if form.max_share < 1 else (form.max_mask, 1.0)


def _scaled(form: Form, factor: float) -> Form:
    if form.max_shift:
        return form._replace(max_shift=factor * form.max_shift)
    if form.max_share < 1:
        return form._replace(max_share=factor * form.max_share)
    return form._replace(max_mask=factor * form.max_mask)


def _probe_masks(model: DualEncoder, patch_share: float, strength: float, restarts: int) -> Tensor:
    size = model.image_size
    row, column, side = patch_square(size, patch_share)
    patch = torch.zeros(3, size, size)
    patch[:, row : row + side, column : column + side] = 1
    return torch.stack([patch] * restarts + [torch.full_like(patch, strength)] * restarts)


def _cosine_margins(
    model: DualEncoder, x: Tensor, W: Tensor, clean: Tensor, classes: Tensor, found: Found
) -> Tensor:
    """Return the mean margin of each class on images of other classes under the trigger found for it, (C,).

    Not-a-number for classes that were not compared, and for one that the model names all images: none is left to turn.
    """
    ease = torch.full((len(W),), math.nan, dtype=torch.float64)
    for r, c in enumerate(classes.tolist()):
        others = x[clean != c]
        if not len(others):
            continue
        under = others if found.shifts is None else bend(others, found.shifts[r])
        cosines = image_features(model, blend(under, found.masks[r], found.patterns[r])) @ W.T
        rivals = cosines.clone()
        rivals[:, c] = -math.inf
        ease[c] = float((cosines[:, c] - rivals.amax(dim=1)).mean())
    return ease
