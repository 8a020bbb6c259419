"""Arms of the claim of InverTune, and the rows and shares that its parts add up to."""

from __future__ import annotations

from statistics import fmean, median, stdev
from typing import Any

from _clip_bench import ATTACKS, TOWERS

from tunesmith.audit.backdoor.auditing import wilson
from tunesmith.metrics.bootstrap import paired_bootstrap

SEEDS, BOTH = range(6, 11), (6,)  # seeds that run with and without the feature term
FRESH, ACCUSED = range(16, 21), range(11, 36)  # seeds for naming alone: of poisoned models, and of clean ones
NONE, OURS, ALONE = "no defence", "InverTune, target given", "InverTune, target looked for"
NAMED = " named"  # the part of a model that looks for its target
PLAIN = "without the feature term"
ONE, MSE = "one trigger, one round", "MSE, masked, one round"
RANDOM, TRUE = "random triggers", "the planted trigger"
RATES = {"fine-tuning, 1e-4": 1e-4, "fine-tuning, 1e-3": 1e-3}
ARMS = (NONE, OURS, ALONE, PLAIN, ONE, MSE, *RATES, RANDOM, TRUE)


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
    naming = identified(done)
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
    return {
        "models": len(found),
        "cut": 1 - fmean(a[1] for a in after) / fmean(b[1] for b in before),
        "drop": fmean(b[0] for b in before) - fmean(a[0] for a in after),
        **naming,
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


def identified(done: dict[str, Any]) -> dict[str, Any]:
    """Return shares of targets that were named and of clean models that were accused."""
    looked = {job.removesuffix(NAMED): value for job, value in done.items() if job.endswith(NAMED)}
    clean_runs = [value for job, value in looked.items() if job.endswith("/clean")]
    found = {job: value for job, value in looked.items() if not job.endswith("/clean")}
    right = {job: value["named"] == value["target"] for job, value in found.items()}
    votes = [
        value["votes"][p] == value["target"] for value in found.values() for p in ("patch", "whole image")
    ]
    return {
        "hits": _share(list(right.values())),
        "fresh": _share([hit for job, hit in right.items() if int(job.split("/")[0]) in FRESH]),
        "wrong": _share([value["named"] not in (None, value["target"]) for value in found.values()]),
        "foremost": _share([value["suspect"] == value["target"] for value in found.values()]),
        "paper": _share(votes),
        "alarms": _share([value["named"] is not None for value in clean_runs]),
        "by attack": [
            {
                "attack": attack,
                **{
                    f"named, {tower}": f"{sum(hits)} of {len(hits)}"
                    for tower in TOWERS
                    if (hits := [hit for job, hit in right.items() if _is(job, tower, attack)])
                },
            }
            for attack in ATTACKS
        ],
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
    if not values:
        return {"of": 0, "share": 0.0, "low": 0.0, "high": 1.0}
    share, low, high = wilson(fmean(values), len(values))
    return {"of": len(values), "share": round(share, 3), "low": round(low, 3), "high": round(high, 3)}


def says(share: dict[str, Any]) -> str:
    """Return one share with its interval."""
    low, mid, high = (100 * share[key] for key in ("low", "share", "high"))
    return f"{mid:.0f} % of {share['of']} ({low:.0f} to {high:.0f})"
