"""The claim of InverTune at small scale: six attacks on two towers of small CLIP-type models of digits.

    python benchmarks/claims/invertune.py [seed ...]       (repeat until it says that nothing is missing)

Models, splits and attacks are those of _clip_bench.py; the target is drawn per seed. The defence gets the 150 images
for inversion and the 150 for tuning, no labels; attack success and accuracy are measured on 497 test images that it
never saw. "InverTune, target given" is remove_backdoor on the true target; "target looked for" on the class that
identify_target names (none: nothing is done). "Without the feature term" is the same with feature_weight 0, on
seed 6. "One trigger, one round" is the paper's chain with the alignment of the authors' code on 64 images,
given the true target; "MSE, masked" is the same with the paper's alignment, layer rule and gradient mask. Controls:
contrastive fine-tuning on the tuning images with their captions at two learning rates; in place of the inverted
triggers random ones with the same sums of masks, tuned on in up to three rounds; the planted trigger itself in one
round of 50 steps (upper bound). Settings were chosen on seeds 100 on, after an earlier version had been measured on
seeds 1 to 5: these are left out, like seed 0, and 6 to 10 are fresh. Naming was measured on all of these with an
earlier version, changed on seeds 100 on and looked at on some of 11 to 14: 16 to 20 are fresh for it. Clean models of
more seeds are added, for a share of 5 % is not seen in ten models.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from dataclasses import replace
from statistics import fmean
from typing import Any

import torch
from _claim import save
from _clip_bench import ATTACKS, CLASSES, TEMPLATES, TOWERS, captions, clean, poisoned, split, target_of
from _invertune_figures import (
    ACCUSED,
    ALONE,
    BOTH,
    FRESH,
    MSE,
    NAMED,
    NONE,
    ONE,
    OURS,
    PLAIN,
    RANDOM,
    RATES,
    SEEDS,
    TRUE,
    says,
    summary,
)
from _parts import RUNS, stretch

from tunesmith.audit.backdoor import (
    ActivationTuner,
    attack_success_rate,
    attacks,
    clean_accuracy,
    identify_target,
    invert_trigger,
    remove_backdoor,
    zero_shot_weights,
)
from tunesmith.audit.backdoor.repair import TUNER
from tunesmith.core.errors import TrainingError
from tunesmith.core.seeds import child_seed


class Planted:
    """The planted trigger in the place of an inverted one."""

    success = 1.0

    def __init__(self, model: Any, attack: Any) -> None:
        self.model, self.attack = model, attack

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """Return normalised images with the trigger."""
        return self.model.normalise(self.attack.apply(self.model.denormalise(x).clamp(0, 1)))


def at_random(trigger: Any, model: Any, seed: int) -> Any:
    """Return a trigger of the same form and the same sum of its mask, otherwise drawn."""
    draws = torch.Generator().manual_seed(seed)
    most = trigger.form.max_mask
    mask = most * torch.rand(trigger.mask.shape, generator=draws).pow(4)  # sparse, as inverted masks are
    if float(trigger.mask.sum()) > 0:
        for _ in range(20):  # entries at the bound take no more
            mask = (mask * trigger.mask.sum() / mask.sum()).clamp(max=most)
    pattern = model.low + (model.high - model.low) * torch.rand(mask.shape, generator=draws)
    shifts = trigger.shifts
    if shifts is not None:
        drawn = torch.randn(shifts.shape, generator=draws)
        shifts = drawn * shifts.abs().mean() / drawn.abs().mean()
    return replace(trigger, mask=mask, pattern=pattern, shifts=shifts, success=1.0)


class Case:
    """One model with its attack (None: clean), its class texts and its images, normalised."""

    def __init__(self, job: str) -> None:
        seed, tower, attack = job.removesuffix(NAMED).split("/")
        self.seed, self.target, self.data = int(seed), target_of(int(seed)), split(int(seed))
        self.attack: Any = None
        if attack == "clean":
            self.model = clean(tower, self.seed)
        else:
            self.model, self.attack = poisoned(tower, attack, self.seed)
        self.W = zero_shot_weights(self.model, CLASSES, TEMPLATES)
        parts = (self.data.inversion, self.data.tuning, self.data.test)
        self.search, self.tune, self.test = (self.model.normalise(x) for x in parts)

    def judged(self, tuned: Any, text_weights: torch.Tensor | None = None) -> list[float]:
        """Return accuracy and attack success of a model on the test images."""
        W = self.W if text_weights is None else text_weights
        y = self.data.test_y
        found = (
            clean_accuracy(tuned, self.test, y, W),
            attack_success_rate(tuned, self.test, y, self.attack, self.target, W),
        )
        return [round(value, 4) for value in found]

    def removed(self, target: int, **parameters: Any) -> tuple[Any, Any]:
        """Return a copy that was repaired for a target, and the Repair."""
        tuned = self.model.copy()
        return tuned, remove_backdoor(
            tuned, self.search, self.tune, target, CLASSES, text_weights=self.W, random_state=self.seed, **parameters
        )  # fmt: skip


def named(job: str) -> dict[str, Any]:
    """One model: which class is named, and where that is another than the target, what its removal does."""
    case = Case(job)
    begin = time.process_time()
    report = identify_target(case.model, case.search, CLASSES, text_weights=case.W, random_state=case.seed)
    found: dict[str, Any] = {
        "suspect": report.suspect, "named": report.target, "margin": round(report.margin, 3), "search": report.search,
        "standing": {name: round(float(v[report.suspect]), 3) for name, v in report.standing.items()},
        "votes": report.votes, "target": case.target, "identify_s": round(time.process_time() - begin, 1),
    }  # fmt: skip
    if case.attack is not None and case.seed in SEEDS and report.target not in (None, case.target):
        try:
            found[ALONE] = case.judged(case.removed(report.target)[0])
        except TrainingError as error:  # no trigger leads to that class: nothing was done
            found["misled"], found[ALONE] = str(error), case.judged(case.model)
    return found


def run(job: str) -> dict[str, Any]:
    """One model: what the defence and the controls do to it."""
    if job.endswith(NAMED):
        return named(job)
    case = Case(job)
    model, attack, data, seed, target = case.model, case.attack, case.data, case.seed, case.target
    W, search, tune, test, judged = case.W, case.search, case.tune, case.test, case.judged
    trigger = invert_trigger(model, search, target, CLASSES, text_weights=W, random_state=seed)
    found: dict[str, Any] = {"mask_l1": round(trigger.mask_l1, 1), "inverted": round(trigger.success, 4)}
    if attack is None:
        return found

    arms = {NONE: judged(model)}
    begin = time.process_time()
    fixed, done = case.removed(target)
    found["remove_s"] = round(time.process_time() - begin, 1)
    arms[OURS] = judged(fixed)
    if seed in BOTH:
        arms[PLAIN] = judged(case.removed(target, tuner={"feature_weight": 0.0})[0])
    found["rounds"] = [[round(share, 3) for share in row] for row in done.rounds]
    found["weights"] = done.weights
    found["inverted"] = round(attack_success_rate(model, test, data.test_y, trigger, target, W), 4)
    once: dict[str, Any] = {"steps": 100, "min_success": 0, "learning_rate": "auto"}
    for name, tuner in {
        ONE: ActivationTuner(**once),
        MSE: ActivationTuner("paper", **once),
    }.items():
        tuned = model.copy()
        tuner.fit(tuned, trigger, tune[:64])
        arms[name] = judged(tuned)
    tuned = model.copy()
    ActivationTuner(**{**TUNER, **once, "steps": 50}).fit(tuned, [Planted(model, attack)], tune)  # type: ignore[list-item]
    arms[TRUE] = judged(tuned)
    tuned = model.copy()
    for i in range(min(3, len(done.tuners))):
        drawn = [at_random(t, model, child_seed(seed, "random", i, j)) for j, t in enumerate(done.triggers)]
        ActivationTuner(**TUNER).fit(tuned, drawn, tune, reference=model)
    arms[RANDOM] = judged(tuned)
    for name, rate in RATES.items():
        tuned = model.copy()
        tuned.model.requires_grad_(True)
        attacks.fine_tune(
            tuned, data.tuning, captions(data.tuning_y, seed), data.tuning_y, epochs=30, batch_size=50,
            learning_rate=rate, random_state=seed,
        )  # fmt: skip
        # The texts move too: its own are used to judge it.
        arms[name] = judged(tuned, zero_shot_weights(tuned, CLASSES, TEMPLATES))
    found["arms"] = arms
    return found


def main() -> None:
    """Run what is missing; write docs/claims/invertune.json from all models that are done."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    chosen = [int(seed) for seed in sys.argv[1:]] or list(SEEDS)
    jobs = [
        f"{seed}/{tower}/{attack}{part}"
        for seed in chosen
        for tower in TOWERS
        for attack in ("clean", *ATTACKS)
        for part in ("", NAMED)
    ]
    jobs += [f"{seed}/{tower}/{attack}{NAMED}" for seed in FRESH for tower in TOWERS for attack in ATTACKS]
    jobs += [f"{seed}/{tower}/clean{NAMED}" for seed in ACCUSED for tower in TOWERS]
    stretch("invertune", jobs, run, limit_s=800)
    write(json.loads((RUNS / "invertune.json").read_text()))


def write(done: dict[str, Any]) -> None:
    """Write the claim."""
    s = summary(done)
    of_rows = {arm: [row for row in s["rows"] if row["arm"] == arm] for arm in (NONE, OURS)}
    met = [row for row in of_rows[OURS] if row["cut %"] >= 97 and row["accuracy lost"] <= 3]
    missed = [
        f"{row['attack']} on the {row['tower']} ({row['cut %']:.1f} %, {row['accuracy lost']:.1f} points)"
        for row in of_rows[OURS]
        if row not in met
    ]
    against = {row["arm"]: row["attack success minus InverTune's, points"] for row in s["against"]}
    holds = s["cut"] >= 0.97 and s["drop"] <= 0.03
    verdict = (
        f"Over {s['models']} poisoned models, their target given, attack success falls by {100 * s['cut']:.1f} % and "
        f"accuracy by {100 * s['drop']:.1f} points (the paper: 97.87 % and 3.07 points). Of {len(of_rows[OURS])} "
        f"rows of attack and tower {len(met)} reach 97 % at 3 points or less"
        + (f"; not: {', '.join(missed)}. " if missed else ". ")
        + f"The class that stands out most is the target in {says(s['foremost'])}; it stands out enough to be named in "
        f"{says(s['hits'])}, on fresh seeds in {says(s['fresh'])}; another class is named in {says(s['wrong'])}, and a "
        f"clean model is accused in {says(s['alarms'])}. More attack "
        f"success is left by {', '.join(f'{arm} ({value:+.1f} points)' for arm, value in against.items())}."
    )
    save(
        "invertune",
        {
            "title": "InverTune on small CLIP-type models of digits",
            "claim": "Inverting a trigger and tuning the activations it excites cuts attack success by 97.87 % on "
            "average at 3.07 points of clean accuracy, for six attacks.",
            "verdict": verdict,
            "holds": holds,
            "target": f"cut of at least 97 % at 3 points or less: {'met' if holds else 'missed'} on average; target "
            f"named in at least 95 %: {'met' if s['hits']['share'] >= 0.95 else 'missed'}; false alarms at most 5 %: "
            f"{'met' if s['alarms']['share'] <= 0.05 else 'missed'}",
            "setting": " ".join((__doc__ or "").split("\n\n")[2].split()),
            "seeds": s["seeds"],
            "target named": s["hits"],
            "target named, fresh seeds": s["fresh"],
            "another class named": s["wrong"],
            "the class that stands out most is the target": s["foremost"],
            "the untargeted probes' class is the target": s["paper"],
            "false alarms on clean models": s["alarms"],
            "named, attack by attack": s["by attack"],
            "seconds of the defence": f"{fmean(s['seconds']):.0f} on average, {max(s['seconds']):.0f} at most",
            "median sum of the inverted mask at the true target": [
                {"tower": tower, **row} for tower, row in s["masks"].items()
            ],
            "all models": s["whole"],
            "against": s["against"],
            "results": s["rows"],
            "command": "python benchmarks/claims/invertune.py",
        },
    )


if __name__ == "__main__":
    main()
