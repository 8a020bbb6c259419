"""Stages 2 and 3 in rounds: what is erased is searched for again, until nothing of the kind is found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tunesmith.audit.backdoor.encoders import DualEncoder
from tunesmith.audit.backdoor.inversion import invert_triggers
from tunesmith.audit.backdoor.triggers import Form, Trigger
from tunesmith.audit.backdoor.tuning import ActivationTuner
from tunesmith.audit.backdoor.zero_shot import check_images, image_features, predict, zero_shot_weights
from tunesmith.core.errors import ParameterError, TrainingError
from tunesmith.core.seeds import child_seed

__all__ = ["FORMS", "Repair", "remove_backdoor"]

FORMS: tuple[Form, ...] = (
    Form(),
    Form(max_share=0.05),
    Form(max_mask=0.1),
    Form(max_mask=0.2),
    Form(max_mask=0.0, max_shift=2.0),
    Form(max_mask=0.0, max_shift=4.0),
)
"""The paper's mask, a patch, two strengths of a pattern over the whole image, two of a warp."""


@dataclass
class Repair:
    """What was done to a model.

    Attributes:
        target: index of the class.
        triggers: of the first round, those of the suspect as it came.
        last_triggers: of the last round.
        rounds: for each round the success of each form's trigger before its tuning.
        costs: for each round that was tuned, the accuracy lost so far by the suspect's own belief.
        weights: for each of them, the preservation weight.
        lengths: for each of them, the share of its change that was kept.
        tuners: the tuner of each round, with layers, masks and losses.
    """

    target: int
    triggers: list[Trigger]
    last_triggers: list[Trigger]
    rounds: list[list[float]] = field(default_factory=list)
    costs: list[float] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    lengths: list[float] = field(default_factory=list)
    tuners: list[ActivationTuner] = field(default_factory=list, repr=False)

    @property
    def best(self) -> Trigger:
        """The trigger of the first round that works best; of equal ones that of the smallest mask."""
        return max(self.triggers, key=lambda t: (round(t.success, 2), -t.mask_l1))


def remove_backdoor(
    model: DualEncoder,
    images: Tensor,
    tuning_images: Tensor,
    target: int | str,
    class_names: Sequence[str],
    *,
    forms: Sequence[Form] = FORMS,
    rounds: int = 12,
    budget: float = 0.05,
    mixes: int = 60,
    tuner: dict[str, Any] | None = None,
    inversion: dict[str, Any] | None = None,
    templates: Sequence[Any] | None = None,
    text_weights: Tensor | None = None,
    min_success: float = 0.4,
    random_state: int = 0,
) -> Repair:
    """Invert triggers of several forms and tune their activations away, in rounds; the model changes in place.

    One round with one form is the paper. The rounds and forms are ours: a model has shorter ways to a class than the
    planted one, and a single inverted trigger often takes one of those, most of all where the planted one covers the
    whole image. When the short ways are closed, the next search finds the planted one. Features of clean images are
    held to those of the suspect in all rounds, and how firmly is decided by what that costs. The cost is the accuracy
    that is lost if the suspect's own probabilities are right, mean_i p(old name of i) - p(new name of i): no labels are
    needed, and an image that hung in the balance counts little. Where it is above ``budget``, the round's change of the
    weights is halved until it is not (up to four times, then it is taken back) and beta is doubled; below half of it,
    beta is halved, but never below half of its first value. It ends early when two searches in a row find no form that
    works on a tenth of the images.

    What a repair unlearns first is the target's class itself, of which the tuning images hold few. So the features of
    mixes x = l x1 + (1 - l) x2 are held too, x1 and x2 tuning images that the suspect names as the target, l from
    U(1/2, 1).

    Time: ``rounds`` times that of `invert_triggers` and of `ActivationTuner.fit`. Memory: one frozen copy.

    Args:
        model: the suspect; its image tower changes.
        images: (N, 3, H, W), normalised, clean: for the inversion.
        tuning_images: (M, 3, H, W) other ones of all classes, for the tuning; the target's too, or the model
            unlearns it.
        target: index or name.
        class_names: C names.
        forms: of the triggers.
        rounds: at most.
        budget: accuracy that may be lost by that estimate, in [0, 1]. It errs upwards: where the suspect was sure and
            wrong, a right name counts as a loss.
        mixes: number of those of the target.
        tuner: parameters of `ActivationTuner` that differ from `TUNER`.
        inversion: parameters of `invert_triggers` that differ from `INVERSION`.
        templates: see `zero_shot_weights`.
        text_weights: W (C, D), if it is there already.
        min_success: a trigger of the first round below it is not tuned on.
        random_state: of everything drawn.

    Raises:
        ParameterError: as `invert_triggers`; tuning images of another size, no round, a budget outside [0, 1], a
            negative number of mixes.
        DataError: values outside the normalised range.
        TrainingError: in the first round no trigger reaches ``min_success``: there is nothing to tune on.
    """
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
        raise ParameterError("rounds", "remove_backdoor", "an int of at least 1", rounds)
    if not 0 <= budget <= 1:
        raise ParameterError("budget", "remove_backdoor", "in [0, 1]", budget)
    if isinstance(mixes, bool) or not isinstance(mixes, int) or mixes < 0:
        raise ParameterError("mixes", "remove_backdoor", "an int of at least 0", mixes)
    if (tuner or {}).get("check_range", True):
        check_images(model, tuning_images, "remove_backdoor", "tuning_images", least=2)
    W = zero_shot_weights(model, class_names, templates) if text_weights is None else text_weights
    original = model.copy()
    belief = believed(original, images, W)
    weak = min(WEAK, min_success)
    settings = {**TUNER, **(tuner or {}), "min_success": weak}
    # Mixes are held, never triggered and aligned.
    settings["aligned"] = min(settings["aligned"] or len(tuning_images), len(tuning_images))
    beta = settings.pop("preservation_weight")
    least = beta / 2
    parameters = model.image_parameters()
    repair: Repair | None = None
    idle = 0
    for i in range(rounds):
        triggers = invert_triggers(
            model, images, target, class_names, forms=forms, text_weights=W,
            random_state=child_seed(random_state, "round", i), **{**INVERSION, **(inversion or {})},
        )  # fmt: skip
        if repair is None:
            c = triggers[0].target
            repair = Repair(c, triggers, triggers)
            of_target = tuning_images[(predict(model, tuning_images, W) == c).to(tuning_images.device)]
            draws = torch.Generator().manual_seed(child_seed(random_state, "mixes"))
            held = torch.cat([tuning_images, mixed(of_target, mixes, draws)])
        repair.last_triggers = triggers
        repair.rounds.append([t.success for t in triggers])
        working = [t for t in triggers if t.success >= (weak if i else min_success)]
        idle = 0 if working else idle + 1
        if idle == IDLE or not (working or repair.tuners):
            break
        if not working:
            continue
        before = {name: p.detach().clone() for name, p in parameters.items()}
        step = ActivationTuner(**settings, preservation_weight=beta)
        repair.tuners.append(step.fit(model, working, held, reference=original))
        cost, length = shortened(model, parameters, before, images, W, belief, budget)
        repair.costs.append(cost)
        repair.weights.append(beta)
        repair.lengths.append(length)
        if length < 1:
            beta *= 2
        elif cost < budget / 2:
            beta = max(beta / 2, least)
    assert repair is not None
    if not repair.tuners:
        best = 100 * max(repair.rounds[0])
        raise TrainingError(
            f"No inverted trigger turns more than {best:.0f} % of held-out images into '{class_names[repair.target]}' "
            f"(min_success is {100 * min_success:.0f} %), so there is nothing to tune on: the target may be another."
        )
    return repair


def mixed(images: Tensor, number: int, draws: torch.Generator) -> Tensor:
    """Return l x1 + (1 - l) x2 for pairs that are drawn, l from U(1/2, 1): (number, 3, H, W), or none of no images.

    Args:
        images: (K, 3, H, W).
        number: of mixes.
        draws: random numbers.
    """
    if not len(images):
        return images
    first, second = torch.randint(len(images), (2, number), generator=draws).to(images.device)
    share = (1 + torch.rand((number, 1, 1, 1), generator=draws).to(images)) / 2
    return share * images[first] + (1 - share) * images[second]


def believed(model: DualEncoder, images: Tensor, text_weights: Tensor) -> Tensor:
    """Return the model's probabilities (N, C) for each image, at its own temperature or, without one, at 0.07."""
    scale = getattr(model.model, "logit_scale", None)
    heat = 1 / 0.07 if scale is None else float(scale.detach().float().exp())
    return (heat * image_features(model, images) @ text_weights.T).softmax(dim=1)


def shortened(
    model: DualEncoder,
    parameters: Mapping[str, Tensor],
    before: Mapping[str, Tensor],
    images: Tensor,
    text_weights: Tensor,
    belief: Tensor,
    budget: float,
) -> tuple[float, float]:
    """Shorten the step from ``before`` to the parameters until it costs no more than the budget.

    Returns:
        The accuracy that is lost by the suspect's own belief, and the share of the step: 1, 1/2, 1/4, 1/8, 1/16 or 0.
    """
    after = {name: p.detach().clone() for name, p in parameters.items()}
    most = belief.amax(dim=1)
    for length in LENGTHS:
        with torch.no_grad():
            for name, p in parameters.items():
                p.copy_(torch.lerp(before[name], after[name], length))
        named = predict(model, images, text_weights)
        cost = float((most - belief.gather(1, named[:, None])[:, 0]).mean())
        if cost <= budget:
            break
    return cost, length


WEAK = 0.1  # in later rounds a trigger that works on fewer images is not tuned on
IDLE = 2  # searches in a row, from other starts, that find nothing: then it is over
LENGTHS = (1.0, 0.5, 0.25, 0.125, 0.0625, 0.0)

INVERSION: dict[str, Any] = {
    "weights": (5.0, 0.5, 0.0, 0.01), "steps": 40, "batch_size": 24, "learning_rate": 0.1, "check_every": 40,
}  # fmt: skip
"""Short searches: several rounds of them find more than one long search does. SSIM is left out: it hardly changes
where the search ends, and costs a third of the time of small images."""

TUNER: dict[str, Any] = {
    "alignment": "scaled_mse", "alignment_weight": 0.6, "preservation_weight": 1.0, "feature_weight": 1.0,
    "steps": 40, "schedule": "cosine", "keep_best": False, "aligned": 48,
}  # fmt: skip
"""The paper's alignment, of every image, free of scale, with all layers and weights of the default: means over images,
as in the authors' code, leave single images of a transformer tower where they were, and cost it more accuracy. The
embedding is aligned like a layer: without it a repaired tower keeps ways around its critical layers."""
