"""The claims of the recipe guide at small scale: stacked or phased data, batches, and what early signals foretell.

    python benchmarks/claims/sft_recipe_guide.py        (about 17 minutes; run again until done)

A decoder of 2 blocks (width 64, characters) is pre-trained on English prose and on copying, then learns three skills of
1,000 rows each: reverse a word, add two numbers, look up a key. 24,000 rows seen in every run, AdamW with betas 0.9 and
0.95, constant rate, gradients clipped to 1, 6 seeds. Accuracy: whole answers right, mean over the skills, 300 test rows
each. Data: stacked against phased (8,000 rows seen per phase, in that order; at each of 8 checkpoints the mean accuracy
on validation rows of the skills so far decides which one goes on), without replay and with 1 %; batch 16, rate 1e-3.
Sweep: rates 3e-4, 1e-3, 3e-3 with batches 16, 128 and 512. Window of the early signals: a quarter of the run, fixed
before any run. Forgetting: nats per character that held-out prose costs more than before.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from _claim import difference, save, says, summary
from _guide_skills import (
    GPT,
    HELD,
    ROWS,
    SKILLS,
    accuracy,
    loss_of,
    optimiser,
    pretrained,
    skill_rows,
    tensors,
    text_loss,
    texts,
)
from _parts import stretch
from scipy.stats import spearmanr

from tunesmith.data import phased, stacked
from tunesmith.trainers import rank_runs
from tunesmith.trainers.recipe_guide import samples_after

SEEDS = range(6)
SAMPLES, WINDOW = 24_000, 6_000
RATES, BATCHES = (3e-4, 1e-3, 3e-3), (16, 128, 512)
ARMS = {"stacked": 0.0, "phased": 0.0, "phased with 1 % replay": 0.01}  # arm -> replay
SWEEPS = {"16 and 512": (16, 512), "16 and 128": (16, 128), "all three": BATCHES}


def train(
    net: GPT,
    phases: list[Any],
    lr: float,
    batch: int,
    seed: int,
    samples: int,
    every: int = 0,
    look: Any = None,
) -> list[dict[str, float]]:
    """Train on stacked phases until ``samples`` rows are seen; return one record a step.

    ``look(net)`` is called whenever another ``every`` rows are seen.
    """
    step, records, seen, epoch = optimiser(net, lr), [], 0, 0
    while seen < samples:
        ids, labels = tensors(stacked(phases, seed=seed, epoch=epoch))
        for start in range(0, len(ids), batch):
            rows = slice(start, start + batch)
            loss = loss_of(net, ids[rows], labels[rows])
            step.zero_grad()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            step.step()
            before, seen = seen, samples_after(len(records) + 1, len(ids), batch)
            records.append({"samples_seen": seen, "loss": loss.item(), "grad_norm": float(norm), "lr": lr})
            if every and before // every < seen // every:
                look(net)
            if seen >= samples:
                break
        epoch += 1
    return records


class Best:
    """Keeps the weights with the best mean accuracy on some skills, and the accuracy at every look."""

    def __init__(self, skills: dict[str, Any]) -> None:
        self.skills, self.score = skills, -1.0
        self.state: dict[str, Any] = {}
        self.curve: list[float] = []

    def __call__(self, net: GPT) -> None:
        self.curve.append(float(np.mean([accuracy(net, rows) for rows in self.skills.values()])))
        if self.curve[-1] > self.score:
            self.score, self.state = self.curve[-1], copy.deepcopy(net.state_dict())


def begin(seed: int) -> tuple[GPT, list[Any], dict[str, Any], dict[str, Any], torch.Tensor]:
    """Return the pre-trained network, the phases, validation and test rows per skill, and the held-out text."""
    torch.set_num_threads(1)
    text, held = texts()
    phases, validation, test = [], {}, {}
    for skill in SKILLS:
        held_rows, prompts = skill_rows(skill, 2 * HELD, 1000 + seed)
        validation[skill] = tensors(held_rows.select(range(HELD)))
        test[skill] = tensors(held_rows.select(range(HELD, 2 * HELD)))
        phases.append(skill_rows(skill, ROWS, seed, prompts)[0])
    return pretrained(seed, text), phases, validation, test, held


def tested(net: GPT, test: dict[str, Any]) -> dict[str, float]:
    """Return the accuracy per skill, and their mean."""
    found = {skill: accuracy(net, rows) for skill, rows in test.items()}
    return {"mean": float(np.mean(list(found.values()))), **found}


def order_of_data(seed: int, arm: str) -> dict[str, Any]:
    """Train one arm of the comparison of stacked and phased data."""
    net, phases, validation, test, _ = begin(seed)
    if arm == "stacked":
        best = Best(validation)
        train(net, phases, 1e-3, 16, seed, SAMPLES, SAMPLES // 24, best)
        net.load_state_dict(best.state)
    else:
        for i, rows in enumerate(phased(phases, replay=ARMS[arm], seed=seed)):
            best = Best({skill: validation[skill] for skill in SKILLS[: i + 1]})
            train(net, [rows], 1e-3, 16, seed, SAMPLES // 3, SAMPLES // 24, best)
            net.load_state_dict(best.state)
    return {**tested(net, test), "curve": best.curve}


def sweep_of(seed: int, lr: float) -> dict[str, Any]:
    """Train the batches of one rate; keep the records of the window."""
    base, phases, _, test, held = begin(seed)
    start = torch.nn.utils.parameters_to_vector(base.parameters()).detach()
    before = text_loss(base, held)
    found: dict[str, Any] = {}
    for batch in BATCHES:
        net = copy.deepcopy(base)
        records = train(net, phases, lr, batch, seed, SAMPLES)
        weights = torch.nn.utils.parameters_to_vector(net.parameters()).detach()
        signal = rank_runs({"run": records}, WINDOW).runs[0]
        found[f"{lr:g}, {batch}"] = {
            "accuracy": tested(net, test)["mean"],
            "moved": float((weights - start).norm()),
            "forgetting": text_loss(net, held) - before,
            "gradient norm": float(np.exp(signal.g)),
            "loss in the window": signal.l,
            # and one after it, by which the ranking sees that the window is full
            "records": records[: 1 + sum(record["samples_seen"] <= WINDOW for record in records)],
        }
    return found


def run(job: str) -> dict[str, Any]:
    """Return what one part of one seed reached."""
    seed, part = job.split(": ")
    return order_of_data(int(seed), part) if part in ARMS else sweep_of(int(seed), float(part))


def seeds_of(done: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Put the parts of each seed together."""
    found = []
    for seed in SEEDS:
        sweep: dict[str, Any] = {}
        for lr in RATES:
            sweep |= done[f"{seed}: {lr:g}"]
        records = {name: row["records"] for name, row in sweep.items()}
        found.append(
            {
                "data": {arm: done[f"{seed}: {arm}"] for arm in ARMS},
                "sweep": sweep,
                "rankings": {name: ranked(records, sweep, batches) for name, batches in SWEEPS.items()},
            }
        )
    return found


def ranked(records: dict[str, Any], sweep: dict[str, Any], batches: tuple[int, ...]) -> dict[str, Any]:
    """Return what the early signals of a sweep said, and what came of it."""
    runs = {f"{lr:g}, {batch}": records[f"{lr:g}, {batch}"] for lr in RATES for batch in batches}
    final = {name: sweep[name]["accuracy"] for name in runs}
    order = rank_runs(runs, WINDOW, eps_g=1e9, eps_l=1e9).runs  # nothing is stopped: every run has a score
    scored = [run for run in order if run.score is not None]
    scores = [-float(run.score or 0) for run in scored]
    rule = rank_runs(runs, WINDOW)
    silent = len(set(scores)) < 2
    going_on = [name for name in runs if name not in rule.stopped]
    return {
        # a score that ties all runs foretells nothing
        "correlation": 0.0 if silent else float(spearmanr(scores, [final[r.run] for r in scored])[0]),
        "silent": silent,
        "stopped": rule.stopped,
        "best was stopped": max(final, key=lambda name: final[name]) in rule.stopped,
        "lost": max(final.values()) - max(final[name] for name in going_on),
    }


def by_arm(runs: list[dict[str, Any]], part: str, measure: str) -> dict[str, list[float]]:
    """Arm -> one value per seed."""
    return {arm: [run[part][arm][measure] for run in runs] for arm in runs[0][part]}


def main() -> None:
    """Run what is missing and write docs/claims/sft-recipe-guide.json."""
    jobs = [f"{seed}: {part}" for seed in SEEDS for part in (*ARMS, *(f"{lr:g}" for lr in RATES))]
    runs = seeds_of(stretch("sft-recipe-guide", jobs, run))
    mean, first = by_arm(runs, "data", "mean"), by_arm(runs, "data", SKILLS[0])
    versus = [difference(mean, "stacked", other) for other in mean if other != "stacked"]
    first_versus = difference(first, "stacked", "phased")
    reached = [
        next((i + 1 for i, value in enumerate(one["data"]["stacked"]["curve"])
              if value >= max(one["data"]["phased"]["curve"])), 0)
        for one in runs
    ]  # fmt: skip
    effects = []
    for measure in ("moved", "forgetting", "gradient norm", "loss in the window", "accuracy"):
        values = by_arm(runs, "sweep", measure)
        for lr in RATES:
            effects.append({"measure": measure, **difference(values, f"{lr:g}, 512", f"{lr:g}, 16")})
    less = [row for row in effects if row["measure"] in ("moved", "forgetting")]
    correlation = {name: [one["rankings"][name]["correlation"] for one in runs] for name in SWEEPS}
    foretold = {
        name: difference({name: values, "no order": [0.0] * len(values)}, name, "no order")
        for name, values in correlation.items()
    }
    stops = [
        {
            "batches": name,
            "runs": len(RATES) * len(SWEEPS[name]),
            "stopped per seed": float(np.mean([len(one["rankings"][name]["stopped"]) for one in runs])),
            "seeds in which the best run was stopped": sum(
                one["rankings"][name]["best was stopped"] for one in runs
            ),
            "accuracy lost": round(float(np.mean([one["rankings"][name]["lost"] for one in runs])), 4),
            "seeds in which all scores tied": sum(one["rankings"][name]["silent"] for one in runs),
            "correlation": round(float(np.mean(correlation[name])), 3),
            "low": foretold[name]["low"],
            "high": foretold[name]["high"],
        }
        for name in SWEEPS
    ]
    counted = sum(value > 0 for value in reached)
    sooner = f"in {counted} of {len(reached)} seeds stacked reached the best validation accuracy of phased"
    if counted:
        sooner += (
            f", after {1000 * float(np.mean([v for v in reached if v])):,.0f} of {SAMPLES:,} rows on average"
        )
    early = "; ".join(
        f"batches {row['batches']}: Spearman {row['correlation']:+.2f} ({row['low']:+.2f} to {row['high']:+.2f}), "
        f"{row['stopped per seed']:.1f} of {row['runs']} runs stopped, the best one in "
        f"{row['seeds in which the best run was stopped']} of {len(runs)} seeds"
        for row in stops
    )
    fewer = sum(row["high"] < 0 for row in less)
    save(
        "sft-recipe-guide",
        {
            "title": "The recipe guide on three small skills",
            "claim": "All data stacked beats the same data in phases. A large batch at the same rate and rows seen "
            "moves and forgets less. Among runs on the same data, a lower gradient norm and a higher loss early "
            "foretell a better end.",
            "verdict": f"Data: {'; '.join(says(row) for row in versus)}; on the first phase's skill "
            f"{says(first_versus)}; {sooner}. Batch 512 against 16 moves or forgets less in {fewer} of {len(less)} "
            f"comparisons. Early signals (final accuracy against the early score): {early}.",
            "holds": all(row["low"] > 0 for row in versus)
            and fewer == len(less)
            and all(row["low"] > 0 for row in stops),
            "setting": " ".join(" ".join((__doc__ or "").split("\n\n")[2:]).split()),
            "seeds": list(SEEDS),
            "arms": summary(mean),
            "accuracy on the first phase's skill": summary(first),
            "sweep (rate, batch), accuracy": summary(by_arm(runs, "sweep", "accuracy")),
            "sweep, gradient norm in the window": summary(by_arm(runs, "sweep", "gradient norm")),
            "sweep, loss in the window": summary(by_arm(runs, "sweep", "loss in the window")),
            "sweep, forgetting": summary(by_arm(runs, "sweep", "forgetting")),
            "intervals": [*versus, {"setting": "first skill", **first_versus}],
            "batch 512 against 16": effects,
            "early signals": stops,
            "command": "python benchmarks/claims/sft_recipe_guide.py",
        },
    )


if __name__ == "__main__":
    main()
