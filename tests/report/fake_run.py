"""Write run directories as the runner leaves them, from generated numbers: finished and failed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

FAMILIES = ("function_call", "chain_sum", "leg_counting", "word_sorting", "story")
QUESTIONS = {
    "function_call": "What is the weather in Lisbon tomorrow, in celsius? Tools: get_weather(city, unit)",
    "chain_sum": "State the final answer to the arithmetic problem: 41 + 7 - 12 =",
    "leg_counting": "How many legs are there in total if you have 3 horses and 2 birds?",
    "word_sorting": "Sort these words in ascending order: pear, apple, fig, date",
    "story": "Tell me a story about a lighthouse keeper who is afraid of the dark",
}
DEFECTS = ("none", "duplicate", "corrupted", "off_topic")
# Markup and a formula in user text: the page must show both as they are.
HOSTILE = '<script>alert("x")</script> & $\\frac{1}{2}$ <b>bold</b>'


def write_run(
    root: Path,
    arms: Sequence[str] = ("random", "kmeans", "mig"),
    seeds: Sequence[int] = (0, 1, 2),
    gains: dict[str, float] | None = None,
    n_pool: int = 400,
    n_test: int = 60,
    budget: int = 40,
) -> Path:
    """Write a finished run and return its folder."""
    gains = gains or {"random": 0.12, "kmeans": 0.2, "mig": 0.33}
    rng = np.random.default_rng(0)
    events: list[dict[str, Any]] = [{"kind": "run", "status": "started", "name": "quickstart"}]
    _write(root / "recipe.lock.yaml", _recipe(arms, seeds))
    pool, test = _rows(rng, n_pool), _rows(rng, n_test)
    _data(root, pool, test, events)
    labels = np.array([FAMILIES.index(row["family"]) for row in pool])
    centres = np.array([[-0.6, 0.5], [0.5, 0.6], [0.6, -0.4], [-0.4, -0.6], [0.0, 0.05]])
    xy = np.clip(centres[labels] + rng.normal(scale=0.14, size=(n_pool, 2)), -1, 1).astype(np.float32)
    (root / "map").mkdir(parents=True)
    np.savez(root / "map" / "map.npz", xy=xy, cluster=labels.astype(np.int32))
    events.append({"kind": "stage", "stage": "map", "status": "finished", "seconds": 3.4})
    base = _evaluate(root / "arms" / "base" / "evaluate", rng, test, 0.05)
    events.append(
        {"kind": "stage", "stage": "evaluate", "status": "finished", "seconds": 61.0, "arm": "base"}
    )
    scores: dict[str, list[dict[str, Any]]] = {}
    for arm in arms:
        for seed in seeds:
            folder = root / "arms" / arm / f"seed-{seed}"
            context = {"arm": arm, "seed": seed}
            _select(folder / "select", rng, arm, pool, budget)
            _train(folder / "train", rng, gains[arm], budget)
            scores.setdefault(arm, []).append(_evaluate(folder / "evaluate", rng, test, 0.05 + gains[arm]))
            for stage, seconds in (("select", 1.2), ("train", 48.0), ("evaluate", 37.5)):
                events.append({"kind": "stage", "stage": stage, "status": "started", **context})
                events.append(
                    {"kind": "stage", "stage": stage, "status": "finished", "seconds": seconds, **context}
                )
    events.append({"kind": "warning", "message": "3 rows of the pool are also test rows."})
    events.append({"kind": "warning", "message": "3 rows of the pool are also test rows."})
    _compare(root, arms, seeds, scores, base)
    events.append({"kind": "run", "status": "finished"})
    write_events(root, events)
    return root


def write_events(root: Path, events: Sequence[dict[str, Any]]) -> None:
    """Write the event log."""
    _write(
        root / "events.jsonl", "".join(json.dumps({"t": 1.0 + i, **e}) + "\n" for i, e in enumerate(events))
    )


def read_events(root: Path) -> list[dict[str, Any]]:
    """Read the event log."""
    return [json.loads(line) for line in (root / "events.jsonl").read_text().splitlines()]


def fail_in_training(root: Path, arm: str, seed: int) -> Path:
    """Turn a finished run into one whose training of ``arm`` failed; everything after it is gone."""
    (root / "compare.json").unlink()
    for folder in sorted((root / "arms").glob("*/seed-*")):
        if (folder.parent.name, folder.name) == (arm, f"seed-{seed}"):
            (folder / "train" / "train.json").unlink()
            shutil.rmtree(folder / "evaluate")
    kept = []
    for event in read_events(root):
        if (event.get("arm"), event.get("seed"), event.get("stage")) == (arm, seed, "train"):
            break
        kept.append(event)
    error = "TrainingError: The loss is not finite (nan) at step 3."
    kept += [
        {"kind": "stage", "stage": "train", "status": "started", "arm": arm, "seed": seed},
        {"kind": "metric", "arm": arm, "seed": seed, "step": 1, "loss": 2.5},
        {"kind": "metric", "arm": arm, "seed": seed, "step": 2, "loss": 4.5},
        {"kind": "stage", "stage": "train", "status": "failed", "error": error, "arm": arm, "seed": seed},
        {"kind": "run", "status": "failed", "error": error},
    ]
    write_events(root, kept)
    return root


def _write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))


def _recipe(arms: Sequence[str], seeds: Sequence[int]) -> str:
    compare = (
        f"  compare:\n    select.type: [{', '.join(arms)}]\n    seeds: {list(seeds)}\n"
        if len(arms) > 1
        else ""
    )
    return (
        "recipe:\n  name: quickstart\n  seed: 0\n  model: {id: smollm2-135m-instruct}\n"
        "  data: {train: 'demo:messy', test: 'demo:test'}\n  curate: [{type: dedup}]\n"
        f"  select: {{type: {arms[-1]}, budget: 0.1}}\n  tuner: {{type: lora}}\n  train: {{type: sft}}\n"
        f"  evaluate: [{{type: task_score}}, {{type: perplexity}}]\n{compare}"
        "versions: {python: 3.11.7, torch: 2.13.0}\nhashes: {train: 0a1b2c, model: 3d4e5f}\n"
    )


def _rows(rng: np.random.Generator, n: int) -> list[dict[str, Any]]:
    rows = []
    for i in range(n):
        family = FAMILIES[int(rng.choice(len(FAMILIES), p=[0.4, 0.2, 0.15, 0.15, 0.1]))]
        defect = DEFECTS[int(rng.choice(len(DEFECTS), p=[0.6, 0.15, 0.15, 0.1]))]
        question = f"{QUESTIONS[family]} ({i})" + (f" {HOSTILE}" if i % 7 == 0 else "")
        answer = f'{{"name": "{family}", "arguments": {{"value": {i}}}}}'
        rows.append(
            {
                "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
                "family": family,
                "defect": defect,
            }
        )
    return rows


def _data(
    root: Path, pool: list[dict[str, Any]], test: list[dict[str, Any]], events: list[dict[str, Any]]
) -> None:
    from datasets import Dataset

    for rows, name in ((pool, "curate/dataset"), (test, "data/test")):
        Dataset.from_list(rows).save_to_disk(str(root / name))
    how = ["format messages: the column 'messages' holds role and content", "columns kept: family, defect"]
    bad = [
        ["pool.jsonl", 17, "not JSON", HOSTILE],
        ["pool.jsonl", 93, "the assistant's answer is empty", "{}"],
    ]
    part = {
        "format": "messages",
        "how": how,
        "n_read": 462,
        "n_kept": 460,
        "reasons": {"not JSON": 1, "empty answer": 1},
    }
    _write(
        root / "data" / "report.json",
        {"train": {**part, "bad": bad}, "test": {**part, "bad": [], "reasons": {}}},
    )
    _write(
        root / "curate" / "report.json",
        [
            {
                "type": "dedup",
                "rows_in": 457,
                "rows_out": len(pool),
                "reasons": {"exact copy": 31, "near copy": 26},
            }
        ],
    )
    events += [
        {
            "kind": "rows",
            "stage": "data",
            "rows_in": 460,
            "rows_out": 457,
            "reasons": {"also among the test rows": 3},
        },
        {"kind": "stage", "stage": "data", "status": "finished", "seconds": 2.2},
        {"kind": "stage", "stage": "curate", "status": "finished", "seconds": 0.8},
    ]


def _select(
    folder: Path, rng: np.random.Generator, arm: str, pool: list[dict[str, Any]], budget: int
) -> None:
    n = len(pool)
    folder.mkdir(parents=True)
    clean = np.array([row["defect"] == "none" for row in pool], dtype=float)
    scores = np.full(n, np.nan) if arm == "random" else rng.normal(size=n) + 1.5 * clean
    order = rng.permutation(n) if arm == "random" else np.argsort(-scores)
    np.save(folder / "indices.npy", order[:budget].astype(np.int64))
    np.save(folder / "scores.npy", scores)
    _write(
        folder / "selection.json",
        {"method": arm, "parameters": {"threshold": 0.9} if arm == "mig" else {}, "budget": 0.1, "n_pool": n,
         "n_selected": budget, "seconds": 1.1, "summary": {}},
    )  # fmt: skip


def _train(folder: Path, rng: np.random.Generator, gain: float, budget: int) -> None:
    steps = np.arange(1, 21)
    losses = 0.6 + 1.9 * np.exp(-steps * (0.1 + gain / 3)) + rng.normal(scale=0.05, size=len(steps))
    _write(
        folder / "train.json",
        {"steps": 20, "tokens": 6120, "trained_tokens": 1240, "seconds": 46.3, "tokens_per_second": 132.2,
         "peak_memory_mb": 1834,
         "losses": [[int(s), float(v), 1e-3] for s, v in zip(steps, losses, strict=True)]},
    )  # fmt: skip
    sample = [
        *([text, False] for text in ("<|im_start|>user\n", QUESTIONS["chain_sum"], HOSTILE, "<|im_end|>\n")),
        *([text, True] for text in ("<i>no</i>, ", "36", "<|im_end|>")),
        ["\n", False],
    ]
    _write(
        folder / "preflight.json",
        {"n_rows": budget, "n_kept": budget - 1, "n_truncated": 1, "n_dropped": 1, "n_without_labels": 1,
         "tokens": 6120, "trained_tokens": 1240, "reasons": {"no trained token": 1}, "sample": sample},
    )  # fmt: skip


def _evaluate(
    folder: Path, rng: np.random.Generator, test: list[dict[str, Any]], skill: float
) -> dict[str, Any]:
    hits = (rng.random(len(test)) < skill).astype(float)
    losses = 2.2 - skill + rng.normal(scale=0.3, size=len(test))
    metrics = {
        "task_score": {"value": float(hits.mean()), "scores": hits.tolist(), "higher_is_better": True},
        "perplexity": {
            "value": float(np.exp(losses.mean())),
            "scores": losses.tolist(),
            "higher_is_better": False,
        },
    }
    _write(folder / "scores.json", metrics)
    lines = [
        json.dumps(
            {"index": i, "prediction": row["messages"][1]["content"] if hit else f"I think it is {HOSTILE}"}
        )
        for i, (row, hit) in enumerate(zip(test, hits, strict=True))
    ]
    _write(folder / "predictions.jsonl", "\n".join(lines) + "\n")
    return metrics


def _compare(
    root: Path,
    arms: Sequence[str],
    seeds: Sequence[int],
    scores: dict[str, list[dict[str, Any]]],
    base: dict[str, Any],
) -> None:
    baseline = "random" if "random" in arms else arms[0]
    table: dict[str, Any] = {}
    pairs = []
    for metric in ("task_score", "perplexity"):
        for arm, runs in {"base": [base], **scores}.items():
            values = [run[metric]["value"] for run in runs]
            table.setdefault(arm, {})[metric] = {"mean": float(np.mean(values)), "per_seed": values}
        for arm in arms:
            for other in dict.fromkeys([baseline, "base"]):
                if arm == other:
                    continue
                theirs = [base] * len(seeds) if other == "base" else scores[other]
                d = np.array([r[metric]["scores"] for r in scores[arm]]) - [
                    r[metric]["scores"] for r in theirs
                ]
                half = 1.96 * d.mean(axis=0).std() / np.sqrt(d.shape[1])
                pairs.append(
                    {"arm": arm, "baseline": other, "metric": metric, "delta": float(d.mean()),
                     "low": float(d.mean() - half), "high": float(d.mean() + half), "p_value": 0.004,
                     "n_items": d.shape[1], "n_seeds": len(seeds), "higher_is_better": metric == "task_score"}
                )  # fmt: skip
    _write(
        root / "compare.json",
        {"baseline": baseline, "budget": 0.1, "seeds": list(seeds), "metrics": ["task_score", "perplexity"],
         "arms": table, "pairs": pairs},
    )  # fmt: skip
