"""Did it help? The headline sentence, and the tables and forest plots behind it."""

from __future__ import annotations

from typing import Any

import numpy as np

from tunesmith.core.wording import count, difference_label, estimate, metric_label, number
from tunesmith.recipe.report import figures
from tunesmith.recipe.report.files import BASE, RunFiles
from tunesmith.recipe.report.style import arm_label, css_variable

__all__ = ["best_arm", "comparison", "headline", "higher_is_better", "metrics_of", "outcome"]


def outcome(files: RunFiles) -> tuple[str, str]:
    """Return how the run stands (``finished``, ``failed``, ``unfinished``) and a sentence on it."""
    runs = files.events_of("run")
    if not runs:
        return "unfinished", "The directory holds no event log, so it is not known how the run ended."
    last = runs[-1]
    if last.get("status") == "finished":
        return "finished", "The run finished."
    if last.get("status") == "failed":
        stage = next((e for e in reversed(files.events_of("stage")) if e.get("status") == "failed"), None)
        where = "" if stage is None else f" in the stage {stage.get('stage')}{_of_arm(stage)}"
        return "failed", f"The run failed{where}: {last.get('error', 'no reason was recorded')}"
    stage = next((e for e in reversed(files.events_of("stage")) if e.get("status") == "started"), None)
    where = "" if stage is None else f" Its last stage is {stage.get('stage')}{_of_arm(stage)}."
    return "unfinished", f"The run has not finished: it is still running, or was interrupted.{where}"


def _of_arm(event: dict[str, Any]) -> str:
    if not event.get("arm"):
        return ""
    seed = event.get("seed")
    return f" of {arm_label(event['arm'])}" + ("" if seed is None else f" (seed {seed})")


def metrics_of(files: RunFiles) -> list[str]:
    """Return the metrics in the recipe's order; the first one decides."""
    named = (files.compare or {}).get("metrics")
    if isinstance(named, list) and named:
        return [str(name) for name in named]
    found = [name for run in [files.base, *files.runs] for name in run.metrics]
    return list(dict.fromkeys(found))


def higher_is_better(files: RunFiles, metric: str) -> bool:
    """Return the direction of a metric, as its scores say."""
    for run in [files.base, *files.runs]:
        if metric in run.metrics:
            return bool(run.metrics[metric].get("higher_is_better", True))
    return True


def means(files: RunFiles, metric: str) -> dict[str, list[float]]:
    """Arm -> value per seed, for the arms that were scored."""
    found = {}
    for arm in [BASE, *files.arms]:
        if arm in files.ended:
            continue
        values = [float(run.metrics[metric]["value"]) for run in files.of_arm(arm) if metric in run.metrics]
        if values:
            found[arm] = values
    return found


def best_arm(files: RunFiles, metric: str) -> str | None:
    """Return the tuned arm with the best mean, the baseline only if it is alone."""
    scored = {arm: float(np.mean(v)) for arm, v in means(files, metric).items() if arm != BASE}
    rivals = [arm for arm in scored if arm != files.baseline] or list(scored)
    sign = 1.0 if higher_is_better(files, metric) else -1.0
    return max(rivals, key=lambda arm: sign * scored[arm], default=None)


def pair_of(files: RunFiles, arm: str, other: str, metric: str) -> dict[str, Any] | None:
    """Return the comparison of two arms, if it was made and is whole."""
    for pair in (files.compare or {}).get("pairs") or []:
        if (pair.get("arm"), pair.get("baseline"), pair.get("metric")) == (arm, other, metric) and all(
            isinstance(pair.get(key), (int, float)) for key in ("delta", "low", "high")
        ):
            return dict(pair)
    return None


def headline(files: RunFiles) -> dict[str, Any]:
    """Return the answer in one sentence, what qualifies it, and whether it is good news.

    Returns:
        ``sentence``, ``notes`` (list of sentences), ``tone`` (``better``, ``worse``, ``unclear``, ``none``).
    """
    metrics = metrics_of(files)
    metric = metrics[0] if metrics else None
    best = best_arm(files, metric) if metric else None
    if metric is None or best is None:
        sentence, reason = _no_answer(files)
        return {"sentence": sentence, "notes": reason, "tone": "none"}
    rows = _budget_text(files, best)
    base = pair_of(files, best, BASE, metric)
    against = files.baseline if files.baseline not in (None, best) else None
    pair = pair_of(files, best, against, metric) if against else None
    notes = []
    if pair is not None and against is not None:
        sentence, tone = _verdict(files, best, against, metric, pair, rows)
        if base is not None:
            notes.append(_verdict(files, best, BASE, metric, base, "")[0])
    elif base is not None:
        sentence, tone = _verdict(files, best, BASE, metric, base, rows)
        if against:
            notes.append(
                f"The comparison with {arm_label(against)} is missing: {files.why_missing('compare')}"
            )
    else:
        values = means(files, metric)
        most = max(len(v) for v in values.values())
        listed = ", ".join(
            f"{arm_label(arm)} {number(float(np.mean(v)))}"
            + (f" ({len(v)} of {most} seeds)" if arm != BASE and len(v) < most else "")
            for arm, v in values.items()
        )
        sentence = f"Mean {metric_label(metric)} so far: {listed}{rows}. No interval has been computed yet."
        tone = "none"
    used = pair or base
    if used is not None:
        notes.append(_basis(used))
        rivals = [arm for arm in files.arms if arm != files.baseline]
        if pair is not None and len(rivals) > 1:
            notes.append(
                f"{_start(arm_label(best))} is the best of {len(rivals)} methods tried; "
                "the interval is not widened for that choice."
            )
    if files.ended:
        names = ", ".join(arm_label(arm) for arm in files.ended)
        notes.append(
            f"Ended early and not compared: {names}. Early signals only say which run is likely to end worse; see "
            "the training section."
        )
    return {"sentence": sentence, "notes": notes, "tone": tone}


def _no_answer(files: RunFiles) -> tuple[str, list[str]]:
    if files.recipe and not files.recipe.get("evaluate"):
        return "The recipe has no evaluation, so this run cannot say whether it helped.", []
    return "There is no answer yet: no trained model was evaluated.", [
        files.why_missing("evaluate", "evaluate")
    ]


def _verdict(
    files: RunFiles, arm: str, other: str, metric: str, pair: dict[str, Any], rows: str
) -> tuple[str, str]:
    """Phrase one comparison: a win, a loss, or no clear difference."""
    up = pair.get("higher_is_better", higher_is_better(files, metric))
    delta, low, high = float(pair["delta"]), float(pair["low"]), float(pair["high"])
    name, rival = _start(arm_label(arm)), arm_label(other)
    if other == BASE:
        name, rival = f"The model tuned on the rows of {arm_label(arm)}", "the untuned base model"
    what = difference_label(metric)
    if low <= 0 <= high:
        text = (
            f"No clear difference: {name} differs from {rival} by {estimate(delta, low, high)} "
            f"in {what}{rows}, and the interval includes zero."
        )
        return text, "unclear"
    good = (delta > 0) == bool(up)
    verb = "beats" if good else "is worse than"
    size = estimate(abs(delta), *sorted((abs(low), abs(high))), sign=False)
    lower = "" if up else " (lower is better)"
    return f"{name} {verb} {rival} by {size} in {what}{lower}{rows}.", ("better" if good else "worse")


def _basis(pair: dict[str, Any]) -> str:
    items, seeds = pair.get("n_items"), pair.get("n_seeds")
    text = "95 % interval of a paired bootstrap"
    if isinstance(items, int):
        text += f" over {count(items, 'test item')}"
    if isinstance(seeds, int):
        text += f" and {count(seeds, 'seed')}"
        if seeds == 1:
            return text + "; another seed may move the result by more than the interval shows."
        if seeds < 3:
            return text + "; fewer than three seeds say little about the spread between seeds."
    return text + "."


def _budget_text(files: RunFiles, arm: str) -> str:
    sizes = {}
    for name in files.arms:
        selection = files.first(name).selection
        if selection is not None:
            sizes[name] = selection.get("n_selected")
    size = sizes.get(arm)
    if not isinstance(size, int):
        return ""
    equal = len(sizes) > 1 and len(set(sizes.values())) == 1
    return f" at {count(size, 'training row')}" + (" each" if equal else "")


def _start(text: str) -> str:
    return text[:1].upper() + text[1:]


def comparison(files: RunFiles, colours: dict[str, str], *, draw: bool = True) -> dict[str, Any]:
    """Return the before-and-after section: per metric a table and (``draw``) a forest plot, or why there is none."""
    blocks = []
    for number_, metric in enumerate(metrics_of(files)):
        values = means(files, metric)
        if not values:
            continue
        up = higher_is_better(files, metric)
        rows, bars = [], []
        for arm, seeds in values.items():
            cells: dict[str, dict[str, str]] = {}
            for other in dict.fromkeys([files.baseline, BASE]):
                pair = pair_of(files, arm, other, metric) if other else None
                if pair is None or other is None:
                    continue
                text = estimate(*(float(pair[key]) for key in ("delta", "low", "high")))
                p_value = pair.get("p_value")
                cells[other] = {"text": text, "p": "" if p_value is None else f"p = {number(p_value)}"}
                bars.append({**pair, "label": f"{arm_label(arm)} − {arm_label(other)}", "text": text})
            rows.append(
                {
                    "arm": arm_label(arm),
                    "colour": css_variable(colours[arm]),
                    "mean": number(float(np.mean(seeds))),
                    "seeds": ", ".join(number(v) for v in seeds) if len(seeds) > 1 else "",
                    "cells": cells,
                }
            )
        better = "higher is better" if up else "lower is better"
        name = f"forest-{number_ + 1}"
        others = [
            other
            for other in dict.fromkeys([files.baseline, BASE])
            if any(o == other for r in rows for o in r["cells"])
        ]
        blocks.append(
            {
                "metric": metric_label(metric),
                "better": better,
                "rows": rows,
                "others": [(other, arm_label(str(other))) for other in others],
                "several_seeds": any(row["seeds"] for row in rows),
                "figure": figures.forest(bars, colours, name, difference_label(metric), better)
                if bars and draw
                else None,
            }
        )
    missing = None
    if not blocks:
        missing = files.why_missing("evaluate", "evaluate")
    elif files.compare is None:
        missing = "Intervals are missing: compare.json was not written. " + _incomplete(files)
    return {"blocks": blocks, "missing": missing}


def _incomplete(files: RunFiles) -> str:
    left = [
        f"{arm_label(run.arm)} (seed {run.seed})"
        for run in files.runs
        if not run.metrics and run.arm not in files.ended
    ]
    return f"Not evaluated: {', '.join(left)}." if left else "The run ended before the comparison."
