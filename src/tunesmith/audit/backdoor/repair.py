"""Stages 2 and 3 in rounds: what is erased is searched for again, until nothing of the kind is found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from tunesmith.audit.backdoor.encoders import DualEncoder
from tunesmith.audit.backdoor.inversion import invert_triggers
from tunesmith.audit.backdoor.triggers import Form, Trigger
from tunesmith.audit.backdoor.tuning import ActivationTuner
from tunesmith.audit.backdoor.zero_shot import zero_shot_weights
from tunesmith.core.errors import ParameterError, TrainingError
from tunesmith.core.seeds import child_seed

__all__ = ["FORMS", "Repair", "remove_backdoor"]

FORMS: tuple[Form, ...] = (
    Form(),
    Form(max_share=0.05),
    Form(max_mask=0.1),
    Form(max_mask=0.2),
    Form(max_mask=0.3),
    Form(max_mask=0.0, max_shift=2.0),
)
"""Patches large and small, patterns over the whole image, a warp."""


@dataclass
class Repair:
    """What was done to a model.

    Attributes:
        target: index of the class.
        triggers: of the first round, those of the suspect as it came.
        last_triggers: of the last round.
        rounds: for each round the success of each form's trigger before its tuning.
        tuners: the tuner of each round, with layers, masks and losses.
    """

    target: int
    triggers: list[Trigger]
    last_triggers: list[Trigger]
    rounds: list[list[float]] = field(default_factory=list)
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
    rounds: int = 4,
    tuner: dict[str, Any] | None = None,
    inversion: dict[str, Any] | None = None,
    templates: Sequence[Any] | None = None,
    text_weights: Tensor | None = None,
    min_success: float = 0.7,
    random_state: int = 0,
) -> Repair:
    """Invert triggers of several forms and tune their activations away, in rounds; the model changes in place.

    One round with one form is the paper. The rounds and forms are ours: a model has shorter ways to a class than the
    planted one, and a single inverted trigger often takes one of those, most of all where the planted one covers the
    whole image. When the short ways are closed, the next search finds the planted one. Features of clean images are
    held to those of the suspect in all rounds. It ends early when no form reaches ``min_success`` any more.

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
        tuner: parameters of `ActivationTuner` that differ from `TUNER`.
        inversion: parameters of `invert_triggers` that differ from `INVERSION`.
        templates: see `zero_shot_weights`.
        text_weights: W (C, D), if it is there already.
        min_success: a trigger below it is not tuned on.
        random_state: of everything drawn.

    Raises:
        ParameterError: as `invert_triggers`; no round.
        DataError: values outside the normalised range.
        TrainingError: in the first round no trigger reaches ``min_success``: there is nothing to tune on.
    """
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
        raise ParameterError("rounds", "remove_backdoor", "an int of at least 1", rounds)
    W = zero_shot_weights(model, class_names, templates) if text_weights is None else text_weights
    original = model.copy()
    repair: Repair | None = None
    for i in range(rounds):
        triggers = invert_triggers(
            model, images, target, class_names, forms=forms, text_weights=W,
            random_state=child_seed(random_state, "round", i), **{**INVERSION, **(inversion or {})},
        )  # fmt: skip
        c = triggers[0].target
        if repair is None:
            repair = Repair(c, triggers, triggers)
        repair.last_triggers = triggers
        repair.rounds.append([t.success for t in triggers])
        working = [t for t in triggers if t.success >= min_success]
        if not working:
            break
        settings = {**TUNER, **(tuner or {}), "min_success": min_success}
        repair.tuners.append(
            ActivationTuner(**settings).fit(model, working, tuning_images, reference=original)
        )
    assert repair is not None
    if not repair.tuners:
        best = 100 * max(repair.rounds[0])
        raise TrainingError(
            f"No inverted trigger turns more than {best:.0f} % of held-out images into '{class_names[repair.target]}' "
            f"(min_success is {100 * min_success:.0f} %), so there is nothing to tune on: the target may be another."
        )
    return repair


INVERSION: dict[str, Any] = {
    "weights": (5.0, 0.5, 0.0, 0.01), "steps": 40, "batch_size": 24, "learning_rate": 0.1, "check_every": 40,
}  # fmt: skip
"""Short searches: several rounds of them find more than one long search does. SSIM is left out: it hardly changes
where the search ends, and costs a third of the time of small images."""

TUNER: dict[str, Any] = {"steps": 25, "keep_best": False, "schedule": "constant"}
