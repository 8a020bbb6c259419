"""The quickstart recipe over several seeds: does choosing beat chance?

    python benchmarks/quickstart.py [output=runs/quickstart-seeds] [seeds=0,1,2]

The seeds are those of the recipe's ``compare.seeds``; the pool and the test stay those of the demo. Continues where
a killed run stood, like any run.

A second run draws as many rows at random from the pool's sound originals alone, which only the maker of the pool
can tell: the room that choosing has in this mix. It is no method and enters no comparison.
"""

from __future__ import annotations

import sys
from pathlib import Path

import yaml

from _common import machine, save, versions
from tunesmith.core.files import read_json
from tunesmith.data import demo
from tunesmith.recipe import run

RECIPE = Path(__file__).resolve().parent.parent / "recipes" / "quickstart.yaml"


def main() -> None:
    """Run, print and save."""
    options = dict(argument.split("=", 1) for argument in sys.argv[1:])
    seeds = [int(seed) for seed in options.get("seeds", "0,1,2").split(",")]
    result = run(
        RECIPE,
        options.get("output", "runs/quickstart-seeds"),
        overrides=[f"compare.seeds={seeds}"],
        listeners=[show],
    )
    sound = sound_rows(f"{result.directory}-sound", seeds)
    compare = read_json(result.directory / "compare.json")
    table = [
        {"arm": arm, "mean": scores["task_score"]["mean"], "per seed": scores["task_score"]["per_seed"]}
        for arm, scores in compare["arms"].items()
    ]
    pairs = [
        {
            key: pair[key]
            for key in ("arm", "baseline", "delta", "low", "high", "p_value", "n_items", "n_seeds")
        }
        for pair in compare["pairs"]
    ]
    save(
        "benchmarks",
        "quickstart",
        {
            "title": "Choosing a tenth of a messy pool",
            "summary": "Task score in [0, 1] on the same clean test questions after training on as many rows each; "
            "intervals by a paired bootstrap over test questions and seeds.",
            "verdict": "; ".join(map(verdict, pairs)),
            "command": "python benchmarks/quickstart.py",
            "arms": table,
            "sound_rows_only": sound,
            "pairs": pairs,
            "machine": machine(),
            "environment": versions("torch", "transformers", "peft", "trl", "tunesmith"),
        },
    )


def sound_rows(output: str, seeds: list[int]) -> dict:
    """Train on random sound rows, as many as the recipe chooses, and return their scores."""
    pool = demo.load("messy")
    sound = pool.filter(lambda row: row["defect"] == "none")
    folder = Path(output)
    folder.parent.mkdir(parents=True, exist_ok=True)
    data = folder.parent / f"{folder.name}.jsonl"
    sound.select_columns(["messages", "task"]).to_json(data)
    recipe = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    recipe["data"]["train"] = str(data)
    recipe["select"] = {"type": "random", "budget": round(recipe["select"]["budget"] * len(pool))}
    del recipe["compare"]
    changed = folder.parent / f"{folder.name}.yaml"
    changed.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    found = []
    for seed in seeds:
        result = run(changed, f"{folder}-{seed}", overrides=[f"seed={seed}"], listeners=[show])
        scores = [
            read_json(path) for path in result.directory.rglob("scores.json") if "base" not in path.parts
        ]
        found += [score["task_score"]["value"] for score in scores]
    return {"rows": len(sound), "mean": sum(found) / len(found), "per seed": found}


def verdict(pair: dict) -> str:
    """Say in words what an interval says."""
    how = (
        "is better than"
        if pair["low"] > 0
        else "is worse than"
        if pair["high"] < 0
        else "is not told apart from"
    )
    return f"{pair['arm']} {how} {pair['baseline']} ({pair['delta']:+.3f}, {pair['low']:+.3f} to {pair['high']:+.3f})"


def show(event: dict) -> None:
    """Print what was finished."""
    if event["kind"] == "stage" and event.get("status") == "finished":
        print(event.get("arm", ""), event.get("seed", ""), event["stage"], event["seconds"], "s", flush=True)


if __name__ == "__main__":
    main()
