"""Put the arms of a run side by side: means over seeds, and paired bootstrap intervals over test items."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunesmith.core.events import EventLog
from tunesmith.core.files import read_json, write_json
from tunesmith.core.seeds import child_seed
from tunesmith.recipe.schema import Recipe

__all__ = ["baseline_arm", "compare_arms"]

BASE = "base"


def compare_arms(
    root: Path,
    recipe: Recipe,
    arms: list[str],
    seeds: list[int],
    log: EventLog,
    ended: dict[str, Any] | None = None,
) -> tuple[list[dict[str, Any]], str]:
    """Write ``compare.json`` and return the summary rows and the best arm.

    Every pair is compared item by item on the same test rows: each arm with the baseline arm (``random`` unless
    the recipe names another), and each arm with the untuned base model. With several seeds the bootstrap resamples
    items and seeds.

    Args:
        root: the run directory.
        recipe: the recipe that ran.
        arms: arm names in order.
        seeds: seeds of each arm.
        log: receives a warning when fewer than three seeds stand behind a comparison.
        ended: arms that were ended early and why (`early.ended_arms`): they have no scores. None without
            ``compare.early_stop``.

    Returns:
        One row per arm (the base model first), and the arm with the best first metric.
    """
    every = arms
    arms = [arm for arm in arms if arm not in (ended or {})]
    scores = {
        arm: [_scores(root / "arms" / arm / f"seed-{seed}" / "evaluate") for seed in seeds] for arm in arms
    }
    base = _scores(root / "arms" / BASE / "evaluate")
    metrics = [spec.type for spec in recipe.evaluate]
    if recipe.compare is not None and metrics and len(seeds) < 3:
        log.warn(
            f"The comparison stands on {len(seeds)} seed{'s' if len(seeds) > 1 else ''}: its intervals cover the "
            "choice of test items but hardly that of seeds. Set compare.seeds to at least three for a claim."
        )
    baseline = baseline_arm(recipe, arms)
    table: dict[str, dict[str, Any]] = {}
    if base is not None:
        table[BASE] = {m: {"mean": base[m]["value"], "per_seed": [base[m]["value"]]} for m in metrics}
    for arm, runs in scores.items():
        finished = [run for run in runs if run is not None]
        if finished:
            table[arm] = {
                m: {
                    "mean": sum(run[m]["value"] for run in finished) / len(finished),
                    "per_seed": [run[m]["value"] for run in finished],
                }
                for m in metrics
            }
    seed = child_seed(recipe.seed, "bootstrap")
    pairs = []
    for metric in metrics:
        for arm in arms:
            for other in dict.fromkeys([baseline, BASE]):
                theirs = [base] * len(seeds) if other == BASE else scores.get(other, [])
                pair = _pair(scores[arm], theirs, metric, seed) if arm != other else None
                if pair is not None:
                    pairs.append({"arm": arm, "baseline": other, "metric": metric, **pair})
    best = _best(table, arms, metrics, base)
    write_json(
        root / "compare.json",
        {
            "best": best,
            "baseline": baseline,
            "budget": recipe.select.budget if recipe.select else None,
            "seeds": seeds,
            "metrics": metrics,
            "arms": table,
            "pairs": pairs,
            **({} if ended is None else {"ended": ended}),
        },
    )
    return _summary(root, every, seeds, table, ended or {}), best


def _scores(folder: Path) -> dict[str, Any] | None:
    path = folder / "scores.json"
    return dict(read_json(path)) if path.exists() else None


def baseline_arm(recipe: Recipe, arms: list[str]) -> str:
    """Return the arm that others are compared with."""
    if recipe.compare is not None and recipe.compare.baseline is not None:
        return recipe.compare.baseline
    return "random" if "random" in arms else arms[0]


def _pair(ours: list[Any], theirs: list[Any], metric: str, seed: int) -> dict[str, Any] | None:
    """Compare two arms on one metric over the items that both scored."""
    import numpy as np

    from tunesmith.metrics.bootstrap import paired_bootstrap

    if not ours or len(ours) != len(theirs) or any(run is None for run in [*ours, *theirs]):
        return None
    a = np.array([run[metric]["scores"] for run in ours], dtype=np.float64)
    b = np.array([run[metric]["scores"] for run in theirs], dtype=np.float64)
    result = paired_bootstrap(a, b, seed=seed)
    return {
        "delta": result["delta"],
        "low": result["low"],
        "high": result["high"],
        "p_value": result["p_value"],
        "n_items": a.shape[1],
        "n_seeds": a.shape[0],
        "higher_is_better": ours[0][metric]["higher_is_better"],
    }


def _summary(
    root: Path, arms: list[str], seeds: list[int], table: dict[str, Any], ended: dict[str, Any]
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    if BASE in table:
        rows.append({"arm": BASE, "rows": 0, **{m: v["mean"] for m, v in table[BASE].items()}})
    for arm in arms:
        folder = root / "arms" / arm / f"seed-{seeds[0]}"
        row: dict[str, Any] = {"arm": arm, "seeds": len(seeds)}
        if (path := folder / "select" / "selection.json").exists():
            row["rows"] = read_json(path)["n_selected"]
        if arm in ended:
            row["ended"] = f"dominated by {', '.join(ended[arm]['dominated_by'])}"
        elif (path := folder / "train" / "train.json").exists():
            facts = read_json(path)
            row |= {"trained_tokens": facts["trained_tokens"], "train_seconds": facts["seconds"]}
        rows.append(row | {m: v["mean"] for m, v in table.get(arm, {}).items()})
    return rows


def _best(table: dict[str, Any], arms: list[str], metrics: list[str], base: Any) -> str:
    if not metrics or not any(arm in table for arm in arms):
        return arms[0]
    metric = metrics[0]
    sign = -1.0 if base is not None and not base[metric]["higher_is_better"] else 1.0
    return max((arm for arm in arms if arm in table), key=lambda arm: sign * table[arm][metric]["mean"])
