"""Run an experiment over seeds and keep what it says about a claim in docs/claims/<slug>.json."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.core.files import write_json
from tunesmith.metrics.bootstrap import paired_bootstrap

DOCS = Path(__file__).resolve().parents[2] / "docs" / "claims"


def over_seeds(
    run: Callable[[int], dict[str, dict[str, float]]], seeds: Sequence[int]
) -> dict[str, dict[str, list[float]]]:
    """Return measure -> arm -> one value per seed, from ``run(seed) -> arm -> measure -> value``."""
    found: dict[str, dict[str, list[float]]] = {}
    for seed in seeds:
        for arm, measures in run(seed).items():
            for measure, value in measures.items():
                found.setdefault(measure, {}).setdefault(arm, []).append(float(value))
    return found


def summary(values: dict[str, list[float]]) -> dict[str, dict[str, Any]]:
    """Return arm -> mean, standard deviation over seeds, values."""
    return {
        arm: {
            "mean": round(float(np.mean(v)), 4),
            "sd": round(float(np.std(v, ddof=1)), 4),
            "values": [round(x, 4) for x in v],
        }
        for arm, v in values.items()
    }


def difference(values: dict[str, list[float]], arm: str, baseline: str) -> dict[str, Any]:
    """Return the mean difference between two arms with its 95 % interval, paired by seed."""
    found = paired_bootstrap(values[arm], values[baseline])
    return {
        "arm": arm,
        "baseline": baseline,
        **{key: round(found[key], 4) for key in ("delta", "low", "high")},
    }


def sign(interval: dict[str, Any]) -> str:
    """Say in words what an interval shows."""
    if interval["low"] > 0:
        return "better than"
    return "worse than" if interval["high"] < 0 else "not told apart from"


def says(interval: dict[str, Any]) -> str:
    """Return one clause: arm, relation, baseline, numbers in points."""
    low, mid, high = (100 * interval[key] for key in ("low", "delta", "high"))
    relation = f"{interval['arm']} is {sign(interval)} {interval['baseline']}"
    return f"{relation} ({mid:+.1f} points, {low:+.1f} to {high:+.1f})"


def count(intervals: list[dict[str, Any]]) -> str:
    """Say for how many comparisons the claim holds."""
    better = sum(interval["low"] > 0 for interval in intervals)
    return f"Holds in {better} of {len(intervals)} comparisons"


def save(slug: str, result: dict[str, Any]) -> None:
    """Write the file and print what it says."""
    packages = ("numpy", "scipy", "scikit-learn")
    versions = {"python": platform.python_version(), **{p: importlib.metadata.version(p) for p in packages}}
    write_json(DOCS / f"{slug}.json", {"slug": slug, **result, "versions": versions})
    print(json.dumps({key: result[key] for key in ("claim", "verdict")}, indent=2))
    for measure in ("arms", "arms_with_junk_inside"):
        for arm, row in result.get(measure, {}).items():
            print(f"{measure:24} {arm:36} {row['mean']:.4f}  sd {row['sd']:.4f}")
