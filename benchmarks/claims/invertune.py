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
seeds 1 to 5: these are left out, like seed 0, and 6 to 10 are fresh.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from dataclasses import replace
from statistics import fmean, median, stdev
from typing import Any

import torch
from _claim import save
from _clip_bench import ATTACKS, CLASSES, TEMPLATES, TOWERS, captions, clean, poisoned, split, target_of
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
from tunesmith.audit.backdoor.auditing import wilson
from tunesmith.audit.backdoor.repair import TUNER
from tunesmith.core.errors import TrainingError
from tunesmith.core.seeds import child_seed
from tunesmith.metrics.bootstrap import paired_bootstrap

SEEDS, BOTH = range(6, 11), (6,)  # seeds that run with and without the feature term
NONE, OURS, ALONE = "no defence", "InverTune, target given", "InverTune, target looked for"
NAMED = " named"  # the part of a model that looks for its target
PLAIN = "without the feature term"
ONE, MSE = "one trigger, one round", "MSE, masked, one round"
RANDOM, TRUE = "random triggers", "the planted trigger"
RATES = {"fine-tuning, 1e-4": 1e-4, "fine-tuning, 1e-3": 1e-3}
ARMS = (NONE, OURS, ALONE, PLAIN, ONE, MSE, *RATES, RANDOM, TRUE)


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
        "margins": {name: [c, round(m, 3)] for name, (c, m) in report.margins.items()}, "votes": report.votes,
        "target": case.target, "identify_s": round(time.process_time() - begin, 1),
    }  # fmt: skip
    if case.attack is not None and report.target not in (None, case.target):
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


def joined(done: dict[str, Any]) -> dict[str, Any]:
    """Return both parts of each model together, with the arm that has to look for its target."""
    models = {}
    for job, value in done.items():
        if job.endswith(NAMED) or job + NAMED not in done:
            continue
        looked = done[job + NAMED]
        models[job] = {**looked, **value}
        if "arms" in value:
            arms = value["arms"]
            right = arms[OURS] if looked["named"] == looked["target"] else arms[NONE]
            models[job]["arms"] = {**arms, ALONE: looked.get(ALONE, right)}
    return models


def summary(done: dict[str, Any]) -> dict[str, Any]:
    """Return rows and figures of all models that are done."""
    done = joined(done)
    found = {job: value for job, value in done.items() if not job.endswith("/clean")}
    seeds = sorted({job.split("/")[0] for job in found}, key=int)
    rows = []
    for tower in TOWERS:
        for attack in ATTACKS:
            runs = [
                found[f"{seed}/{tower}/{attack}"] for seed in seeds if f"{seed}/{tower}/{attack}" in found
            ]
            for arm in ARMS:
                of_arm = [r["arms"] for r in runs if arm in r["arms"]]
                if of_arm:
                    rows.append({"tower": tower, "attack": attack, "arm": arm, **_row(of_arm, arm)})
    whole = [
        {"arm": arm, "models": len(runs), **_row(runs, arm)}
        for arm in ARMS
        if (runs := [r["arms"] for r in found.values() if arm in r["arms"]])
    ]
    before, after = ([r["arms"][arm] for r in found.values()] for arm in (NONE, OURS))
    against = []
    for arm in (*RATES, RANDOM, PLAIN, ONE, MSE):
        both = [r["arms"] for r in found.values() if arm in r["arms"]]
        if not both:
            continue
        pairs = paired_bootstrap([arms[arm][1] for arms in both], [arms[OURS][1] for arms in both])
        against.append(
            {
                "arm": arm,
                "models": len(both),
                "attack success minus InverTune's, points": round(100 * pairs["delta"], 1),
                "low": round(100 * pairs["low"], 1),
                "high": round(100 * pairs["high"], 1),
            }
        )
    clean_runs = [value for job, value in done.items() if job.endswith("/clean")]
    alarms = [value["named"] is not None for value in clean_runs]
    hits = [value["named"] == value["target"] for value in found.values()]
    easiest = [value["suspect"] == value["target"] for value in found.values()]
    paper = [
        value["votes"][probe] == value["target"]
        for value in found.values()
        for probe in ("patch", "whole image")
    ]
    return {
        "models": len(found),
        "cut": 1 - fmean(a[1] for a in after) / fmean(b[1] for b in before),
        "drop": fmean(b[0] for b in before) - fmean(a[0] for a in after),
        "hits": _share(hits),
        "easiest": _share(easiest),
        "paper": _share(paper),
        "alarms": _share(alarms),
        "masks": {
            tower: {
                name: round(
                    median(value["mask_l1"] for job, value in done.items() if _is(job, tower, name)), 1
                )
                for name in ("clean", *ATTACKS)
                if any(_is(job, tower, name) for job in done)
            }
            for tower in TOWERS
        },
        "seconds": [value["identify_s"] + value["remove_s"] for value in found.values()],
        "rows": rows,
        "whole": whole,
        "against": against,
        "seeds": [int(seed) for seed in seeds],
    }


def _is(job: str, tower: str, name: str) -> bool:
    return job.split("/")[1:] == [tower, name]


def _row(runs: list[dict[str, list[float]]], arm: str) -> dict[str, Any]:
    accuracy, success = ([100 * run[arm][i] for run in runs] for i in (0, 1))
    cut = 1 - fmean(success) / fmean(100 * run[NONE][1] for run in runs)
    return {
        "accuracy": round(fmean(accuracy), 1),
        "attack success": round(fmean(success), 1),
        "sd": round(stdev(success), 1) if len(success) > 1 else None,
        "most": round(max(success), 1),
        "cut %": round(100 * cut, 1),
        "accuracy lost": round(fmean(100 * run[NONE][0] for run in runs) - fmean(accuracy), 1),
    }


def _share(values: list[bool]) -> dict[str, Any]:
    share, low, high = wilson(fmean(values), len(values))
    return {"of": len(values), "share": round(share, 3), "low": round(low, 3), "high": round(high, 3)}


def says(share: dict[str, Any]) -> str:
    """Return one share with its interval."""
    low, mid, high = (100 * share[key] for key in ("low", "share", "high"))
    return f"{mid:.0f} % of {share['of']} ({low:.0f} to {high:.0f})"


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
        + f"The target is named in {says(s['hits'])}; a clean model is accused in {says(s['alarms'])}. More attack "
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
            "easiest class is the target": s["easiest"],
            "the untargeted probes' class is the target": s["paper"],
            "false alarms on clean models": s["alarms"],
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
