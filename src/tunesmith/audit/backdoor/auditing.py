"""The whole audit of a dual encoder: target, trigger, repair, and a report of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tunesmith.audit._report import Report, Table
from tunesmith.audit.backdoor.encoders import DualEncoder
from tunesmith.audit.backdoor.inversion import invert_triggers
from tunesmith.audit.backdoor.metrics import attack_success_rate, clean_accuracy
from tunesmith.audit.backdoor.pictures import draw_ease, draw_impact, draw_trigger
from tunesmith.audit.backdoor.repair import FORMS, INVERSION, Repair, remove_backdoor
from tunesmith.audit.backdoor.targets import TargetReport, identify_target
from tunesmith.audit.backdoor.triggers import Trigger
from tunesmith.audit.backdoor.zero_shot import (
    check_classes,
    check_images,
    check_target,
    predict,
    zero_shot_weights,
)
from tunesmith.core.errors import ParameterError, TrainingError
from tunesmith.core.seeds import child_seed

__all__ = ["audit_backdoor", "wilson"]

LEAST_IMAGES = 30


def audit_backdoor(
    model: DualEncoder,
    images: Tensor,
    class_names: Sequence[str],
    *,
    labels: Tensor | None = None,
    templates: Sequence[Any] | None = None,
    target: int | str | None = None,
    trigger: Any = None,
    repair: bool = True,
    identify: dict[str, Any] | None = None,
    removal: dict[str, Any] | None = None,
    random_state: int = 0,
    subject: str = "model",
) -> Report:
    """Look for a backdoor, rebuild its trigger, erase it, and report (InverTune, arXiv 2506.12411).

    The images are dealt into three equal parts: for the searches, for the tuning, and for the judgement, which shares
    no image with the others. Where a target is found and ``repair`` is set, the model's image tower is changed in
    place; save it by ``model.save(folder)`` and the report by ``report.save(folder)``.

    Args:
        model: the suspect.
        images: (N, 3, H, W), normalised, clean; at least 30, a few hundred are better.
        class_names: the classes that may be a target and that images are judged by.
        labels: (N,) indices of classes, or None: accuracy then is agreement with the suspect's own predictions.
        templates: see `zero_shot_weights`.
        target: index or name, if it is known; it is then not looked for.
        trigger: the planted trigger, if it is known (an attack or a function of pixels in [0, 1]): its success is
            measured before and after.
        repair: change the model.
        identify: further parameters of `identify_target`.
        removal: further parameters of `remove_backdoor`.
        random_state: of everything drawn.
        subject: the model's name in the report.

    Returns:
        A report of level ``"clean"``, ``"suspicious"``, or ``"unsure"`` where a class stands out but no trigger that
        leads to it can be rebuilt.

    Raises:
        ParameterError: too few images, images of another size, fewer than two or equal classes, a target outside.
        DataError: values outside the normalised range.
    """
    owner = "audit_backdoor"
    check_classes(class_names, owner)
    check_images(model, images, owner, least=LEAST_IMAGES)
    if labels is not None and len(labels) != len(images):
        raise ParameterError("labels", owner, f"of the length of images ({len(images)})", len(labels))
    known = None if target is None else check_target(target, class_names, owner)
    names = list(class_names)
    W = zero_shot_weights(model, names, templates)
    x = images.to(model.device, model.dtype)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(child_seed(random_state, "deal")))
    search, tune, judge = (x[part] for part in order.tensor_split(3))
    truth = predict(model, judge, W) if labels is None else labels[order.tensor_split(3)[2]].to(x.device)
    report = identify_target(
        model, search, names, text_weights=W, random_state=random_state, **(identify or {})
    )
    suspect = report.target if known is None else known
    page = Report(
        "backdoor", subject, "clean", str(report),
        numbers={"margin of the suspect": report.margin, "threshold": report.threshold,
                 "classes": len(names), "images": len(x)},
        tables=[_classes(report)], pictures={"What sets the suspect apart": draw_ease(report)},
    )  # fmt: skip
    if suspect is None:
        page.notes.append(
            "Nothing found is no proof that nothing is there: the searches know patches, faint patterns and smooth "
            "warps, and one target."
        )
        return page
    before = _measures(model, judge, truth, suspect, W, None, trigger)
    try:
        done, fixed = _removed(model, search, tune, suspect, names, W, repair, removal, random_state)
    except TrainingError as error:
        page.level, page.verdict = "unsure", f"{report} {error}"
        return page
    best = done.best
    others = judge[truth != suspect]
    # Judged on the suspect: the repaired weights are put back afterwards.
    stated = [(names[a], names[b]) for a, b in fixed["named"](best, others)]
    page.level = "suspicious"
    page.pictures["The rebuilt trigger, clean images and triggered ones"] = draw_trigger(
        model, best, others, stated
    )
    page.numbers["rebuilt trigger: success on unseen images"] = wilson(
        fixed["rate"](best, judge, truth), len(others)
    )
    found = 100 * fixed["rate"](best, judge, truth)
    page.verdict = (
        f"'{names[suspect]}' is {'the target that was given' if known is not None else 'a suspected hidden target'}: a "
        f"rebuilt trigger turns {found:.0f} % of unseen images into it."
    )
    if done.tuners:
        after = _measures(model, judge, truth, suspect, W, best, trigger)
        _tell(page, before, after, done, labels is not None, len(judge), len(others))
    page.notes.append(
        "The rebuilt trigger is a stand-in, not a picture of the planted one. Success today does not prove that later "
        "fine-tuning cannot wake the backdoor."
    )
    return page


def _removed(
    model: DualEncoder,
    search: Tensor,
    tune: Tensor,
    suspect: int,
    names: list[str],
    W: Tensor,
    repair: bool,
    removal: dict[str, Any] | None,
    seed: int,
) -> tuple[Repair, dict[str, Any]]:
    """Return what was done, and two functions that judge a trigger by the model as it came."""
    original = model.copy()
    if repair:
        done = remove_backdoor(
            model, search, tune, suspect, names, text_weights=W, random_state=seed, **(removal or {})
        )
    else:
        settings = {**INVERSION, **((removal or {}).get("inversion") or {})}
        triggers = invert_triggers(
            model, search, suspect, names, forms=(removal or {}).get("forms", FORMS), text_weights=W,
            random_state=seed, **settings,
        )  # fmt: skip
        done = Repair(suspect, triggers, triggers, [[t.success for t in triggers]])

    def named(trigger: Trigger, images: Tensor) -> list[tuple[int, int]]:
        pairs = (predict(original, part, W).tolist() for part in (images[:5], trigger.apply(images[:5])))
        return list(zip(*pairs, strict=True))

    def rate(trigger: Trigger, images: Tensor, truth: Tensor) -> float:
        return attack_success_rate(original, images, truth, trigger, suspect, W)

    return done, {"named": named, "rate": rate}


def _measures(
    model: DualEncoder, judge: Tensor, truth: Tensor, target: int, W: Tensor, rebuilt: Any, planted: Any
) -> dict[str, float]:
    found = {"accuracy": clean_accuracy(model, judge, truth, W)}
    for name, trigger in {"rebuilt": rebuilt, "planted": planted}.items():
        if trigger is not None:
            found[name] = attack_success_rate(model, judge, truth, trigger, target, W)
    return found


def _tell(
    page: Report,
    before: dict[str, float],
    after: dict[str, float],
    done: Repair,
    labelled: bool,
    n: int,
    others: int,
) -> None:
    """Add what the repair did."""
    accuracy = "accuracy on clean images" if labelled else "agreement with the suspect on clean images"
    page.numbers[f"{accuracy}, before"] = wilson(before["accuracy"], n)
    page.numbers[f"{accuracy}, after"] = wilson(after["accuracy"], n)
    page.numbers["rebuilt trigger: success after the repair"] = wilson(after["rebuilt"], others)
    if "planted" in after:
        page.numbers["planted trigger: success before"] = wilson(before["planted"], others)
        page.numbers["planted trigger: success after"] = wilson(after["planted"], others)
    page.verdict += (
        f" After the repair {100 * after['rebuilt']:.0f} %; {accuracy} went from {100 * before['accuracy']:.1f} % to "
        f"{100 * after['accuracy']:.1f} %."
    )
    if after["rebuilt"] > page.numbers["rebuilt trigger: success on unseen images"][0] / 2:
        page.verdict += " The repair failed: the rebuilt trigger still works."
        page.notes.append(
            "Each round renamed more clean images than the budget allows, and was shortened. More images to tune on, a "
            "lower learning rate, or a larger budget may help."
            if min(done.lengths) < 1
            else "More rounds, or more images to search and tune on, may help."
        )
    first, last = done.tuners[0], done.tuners[-1]
    page.pictures["What the rebuilt triggers do to each layer, in the first round"] = draw_impact(
        first.impact_, first.impact_after_, first.critical_layers_
    )
    page.tables.append(
        Table(
            "Layers",
            ["layer", "impact before", "after the first round", "in the last round", "after it", "critical"],
            [
                [
                    name, first.impact_[name], first.impact_after_[name], last.impact_[name],
                    last.impact_after_[name], name in first.critical_layers_,
                ]
                for name in first.impact_
            ],
            "Impact: change of the mean activations under the triggers, relative to their norm.",
        )
    )  # fmt: skip
    page.tables.append(
        Table(
            "Rounds",
            ["round", *(_form(t) for t in done.triggers)],
            [[i + 1, *row] for i, row in enumerate(done.rounds)],
            "Success of the triggers rebuilt at the beginning of each round, on images held out from the search.",
        )
    )


def _form(trigger: Trigger) -> str:
    form = trigger.form
    if form.max_shift and not form.max_mask:
        return f"warp {form.max_shift:g}"
    return f"mask to {form.max_mask:g}" + (f", mean to {form.max_share:g}" if form.max_share < 1 else "")


def _classes(report: TargetReport) -> Table:
    rows: list[list[Any]] = []
    for c in report.score.nan_to_num(-math.inf).argsort(descending=True, stable=True).tolist():
        changes = [float(change[c]) for change in report.change.values()]
        ease = [float(v[c]) for v in report.ease.values()]
        about = [float(report.score[c]), float(report.agreement[c]), float(report.clean_share[c])]
        rows.append([report.class_names[c], *about, *changes, *ease])
    columns = [
        "class",
        "score",
        "fit of its own text",
        "clean share",
        *(f"change: {p}" for p in report.change),
        *(f"ease: {s}" for s in report.ease),
    ]
    compared = int(torch.isfinite(report.score).sum())
    note = f"Probes, searches and texts; {compared} of {len(rows)} classes were compared. The first 50."
    return Table("Classes", columns, rows[:50], note)


def wilson(share: float, n: int, z: float = 1.96) -> tuple[float, float, float]:
    """Return a share with its 95 % interval (Wilson 1927).

    Args:
        share: in [0, 1].
        n: trials.
        z: normal quantile.
    """
    if n == 0:
        return share, 0.0, 1.0
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return share, max(0.0, middle - half), min(1.0, middle + half)
