"""The same test items answered by base, baseline and best arm: also those that got worse."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.core.wording import clip, difference_label
from tunesmith.recipe.report.answer import best_arm, higher_is_better, metrics_of
from tunesmith.recipe.report.files import BASE, ArmRun, RunFiles
from tunesmith.recipe.report.style import arm_label, css_variable

__all__ = ["examples"]

MAX_PROMPT, MAX_ANSWER = 700, 500
WANTED = (("better", 3), ("worse", 2), ("equal", 1))


def examples(files: RunFiles, colours: dict[str, str]) -> dict[str, Any]:
    """Return items that the best arm got better, worse and equally well, with every shown arm's answer.

    The items are the first of each kind in test order, so that nobody has picked them.
    """
    metric, runs = _shown(files)
    test = files.test
    if metric is None or not runs:
        return {"shown": [], "missing": files.why_missing("evaluate", "evaluate")}
    if test is None or not any(run.predictions for run in runs):
        return {
            "shown": [],
            "missing": "The test rows or the answers of the models are not in the run directory.",
        }
    n = min(len(test), *(len(_scores(run, metric)) for run in runs))
    table = {run.arm: _scores(run, metric)[:n] for run in runs}
    best = runs[-1]
    rival = runs[-2] if len(runs) > 1 else None
    sign = 1.0 if higher_is_better(files, metric) else -1.0
    gain = np.zeros(n) if rival is None else sign * (table[best.arm] - table[rival.arm])
    kinds = {
        "better": np.flatnonzero(gain > 1e-9),
        "worse": np.flatnonzero(gain < -1e-9),
        "equal": np.flatnonzero(np.abs(gain) <= 1e-9),
    }
    items = []
    for kind, wanted in WANTED:
        for index in kinds[kind][:wanted]:
            items.append(_item(files, test[int(index)], int(index), kind, runs, table, colours))
    summary = ""
    if rival is not None:
        summary = (
            f"Item by item on {difference_label(metric)}, {arm_label(best.arm)} is better than "
            f"{arm_label(rival.arm)} on {len(kinds['better'])}, worse on {len(kinds['worse'])} and equal on "
            f"{len(kinds['equal'])} of {n} test items (seed {best.seed}). Shown are the first of each kind "
            "in test order."
        )
    return {"shown": items, "summary": summary, "missing": None}


def _shown(files: RunFiles) -> tuple[str | None, list[ArmRun]]:
    """Return the first metric with answers, and the runs to show: base, baseline, best."""
    for metric in metrics_of(files):
        best = best_arm(files, metric)
        arms = dict.fromkeys(arm for arm in (BASE, files.baseline, best) if arm is not None)
        runs = [files.first(arm) for arm in arms]
        runs = [
            run for run in runs if metric in run.metrics and run.predictions and len(_scores(run, metric))
        ]
        if runs:
            return metric, runs
    return None, []


def _scores(run: ArmRun, metric: str) -> NDArray[np.float64]:
    return np.array(run.metrics[metric].get("scores") or [], dtype=np.float64)


def _item(
    files: RunFiles,
    row: dict[str, Any],
    index: int,
    kind: str,
    runs: list[ArmRun],
    table: dict[str, NDArray[np.float64]],
    colours: dict[str, str],
) -> dict[str, Any]:
    from tunesmith.data.rows import completion_text, prompt_text

    return {
        "index": index,
        "kind": kind,
        "prompt": clip(prompt_text(row), MAX_PROMPT),
        "expected": clip(completion_text(row), MAX_ANSWER),
        "answers": [
            {
                "arm": arm_label(run.arm),
                "colour": css_variable(colours[run.arm]),
                "score": f"{table[run.arm][index]:.3g}",
                "text": clip(run.predictions.get(index, "(no answer recorded)"), MAX_ANSWER)
                or "(empty answer)",
            }
            for run in runs
        ],
    }
