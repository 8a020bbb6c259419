"""The sections on data, choice, training and cost: each turns files into what the template prints.

A section returns a mapping with ``missing``: a sentence that says what is not there and why, or None.
"""

from __future__ import annotations

from collections import Counter
from itertools import groupby
from typing import Any

import numpy as np

from tunesmith.core.wording import clip, count, duration, number, percent
from tunesmith.recipe.report import figures
from tunesmith.recipe.report.coverage import cluster_table, column_table, picks_by_arm
from tunesmith.recipe.report.files import RunFiles
from tunesmith.recipe.report.style import arm_label, css_variable

__all__ = [
    "audits",
    "choice",
    "cost",
    "data",
    "preflight",
    "recipe_text",
    "reproduce",
    "training",
    "warnings",
]

Section = dict[str, Any]
MAX_BAD = 20
MAX_CHANGES = 10
MAX_PIECE = 2_000  # characters of one stretch of the sample row


def data(files: RunFiles) -> Section:
    """How the rows were read, and what was dropped on the way to the pool, by reason."""
    report = files.object(files.root / "data" / "report.json") or {}
    sources = [
        {
            "name": "pool" if name == "train" else name,
            "format": part.get("format"),
            "how": [clip(line, 300) for line in part.get("how") or []],
            "n_read": part.get("n_read"),
            "n_kept": part.get("n_kept"),
            "reasons": _reasons(part.get("reasons")),
            "bad": [_bad_row(row) for row in (part.get("bad") or [])[:MAX_BAD]],
            "more_bad": max(0, len(part.get("bad") or []) - MAX_BAD),
        }
        for name, part in report.items()
        if isinstance(part, dict)
    ]
    steps = []
    event = next((e for e in reversed(files.events_of("rows")) if e.get("stage") == "data"), None)
    if event is not None and event.get("rows_in") != event.get("rows_out"):
        steps.append(_step("test rows taken out of the pool", event))
    curated = files.list_of_objects(files.root / "curate" / "report.json")
    steps += [_step(str(part.get("type")), part) for part in curated or []]
    missing = None if sources or steps else files.why_missing("data")
    if missing is None and curated is None:
        missing = files.why_missing("curate")
    changes = [
        {"type": str(line.get("type")), "reason": clip(str(line.get("reason")), 160)}
        | {key: clip(str(line.get(key)), 300) for key in ("old", "new")}
        for line in files.lines(files.root / "curate" / "changed.jsonl")
        if line.get("action") == "change"
    ]
    shown, more = changes[:MAX_CHANGES], max(0, len(changes) - MAX_CHANGES)
    return {"sources": sources, "steps": steps, "changes": shown, "more_changes": more, "missing": missing}


def _step(name: str, part: dict[str, Any]) -> dict[str, Any]:
    rows_in, rows_out = part.get("rows_in"), part.get("rows_out")
    lost = rows_in - rows_out if isinstance(rows_in, int) and isinstance(rows_out, int) else None
    share = percent(lost / rows_in) if lost is not None and rows_in else ""
    return {
        "name": name, "rows_in": rows_in, "rows_out": rows_out, "lost": lost, "share": share,
        "reasons": _reasons(part.get("reasons")), "also": _reasons(part.get("also")),
    }  # fmt: skip


def _reasons(reasons: Any) -> list[tuple[str, int]]:
    if not isinstance(reasons, dict):
        return []
    return sorted(((str(k), int(v)) for k, v in reasons.items() if isinstance(v, int)), key=lambda r: -r[1])


def _bad_row(row: Any) -> dict[str, str]:
    if isinstance(row, dict):
        values = [row.get(key) for key in ("file", "row", "reason", "snippet")]
    else:
        values = (
            [*row, None, None, None, None][:4] if isinstance(row, (list, tuple)) else [None, None, row, None]
        )
    file, number_, reason, snippet = ("" if value is None else str(value) for value in values)
    return {"file": file, "row": number_, "reason": reason, "snippet": clip(snippet, 160)}


def preflight(files: RunFiles, colours: dict[str, str]) -> Section:
    """What the model sees: counts per arm, and a sample row with the trained tokens marked."""
    rows: list[dict[str, Any]] = []
    sample: list[Any] = []
    of = ""
    for run in files.runs:
        report = run.preflight
        if report is None:
            continue
        if not sample:
            sample, of = report.get("sample") or [], f"{arm_label(run.arm)}, seed {run.seed}"
        counts = ("n_rows", "n_kept", "n_truncated", "n_dropped", "tokens", "trained_tokens")
        rows.append(
            {
                "arm": arm_label(run.arm),
                "colour": css_variable(colours[run.arm]),
                "seed": run.seed,
                **{key: number(report.get(key)) for key in counts},
                "reasons": _reasons(report.get("reasons")),
            }
        )
    if not sample:
        whole = files.object(files.root / "preflight.json") or {}
        sample, of = whole.get("sample") or [], "of the pool"
    pieces = [
        {"text": clip("".join(text for text, _ in group), MAX_PIECE), "trained": trained}
        for trained, group in groupby(sample, key=lambda piece: bool(piece[1]))
    ]
    missing = None if rows or pieces else files.why_missing("train", "train")
    return {"rows": rows, "sample": pieces, "of": of, "missing": missing}


def choice(files: RunFiles, colours: dict[str, str]) -> Section:
    """Which rows each arm chose: map, coverage by cluster, scores, and who they are by family and defect."""
    picks = picks_by_arm(files)
    section: Section = {"selections": _selections(files, colours), "maps": [], "tables": [], "histograms": []}
    section["missing"] = None if picks else files.why_missing("select", "select")
    section["no_map"] = None
    section["clustering"] = _clustering(files)
    laid_out = files.pool_map
    if laid_out is None:
        section["no_map"] = files.why_missing("map")
    elif picks:
        xy, cluster = laid_out
        usable = {arm: chosen for arm, chosen in picks.items() if len(chosen) and chosen.max() < len(xy)}
        section["maps"] = [
            {
                "arm": arm_label(arm),
                "colour": css_variable(colours[arm]),
                "rows": len(chosen),
                "svg": figures.map_panel(xy, chosen, colours[arm], f"map-{i + 1}", arm_label(arm)),
            }
            for i, (arm, chosen) in enumerate(usable.items())
        ]
        if usable:
            section["tables"].append(cluster_table(files, cluster, usable, colours))
    for column in ("family", "defect", "task_type", "category"):
        table = column_table(files, column, picks, colours) if picks else None
        if table is not None:
            section["tables"].append(table)
    section["histograms"], section["no_scores"] = _histograms(files, colours)
    return section


def _clustering(files: RunFiles) -> str | None:
    """Say by what the pool was grouped, and how well that agrees with labels it did not see."""
    facts = files.object(files.root / "cluster" / "clusters.json")
    if not facts:
        return None
    groups = facts.get("clusters") or []
    text = f"The pool was grouped by {facts.get('method')} into {count(len(groups), 'cluster')}"
    if facts.get("labels_seen"):
        text += f", with {count(int(facts['labels_seen']), 'label')} seen"
    scores = facts.get("agreement")
    if isinstance(scores, dict) and isinstance(scores.get("accuracy"), float):
        text += f"; accuracy {number(scores['accuracy'], 2)} on {count(int(scores['rows']), 'labelled row')}"
    return text + "."


def _selections(files: RunFiles, colours: dict[str, str]) -> list[dict[str, Any]]:
    rows = []
    for arm in files.arms:
        run = files.first(arm)
        facts = run.selection
        if facts is None:
            continue
        given = {**(facts.get("parameters") or {}), **(facts.get("summary") or {})}
        seconds = facts.get("seconds", _seconds(files, "select", arm, run.seed))
        rows.append(
            {
                "arm": arm_label(arm),
                "colour": css_variable(colours[arm]),
                "method": facts.get("method"),
                "parameters": ", ".join(f"{key} = {clip(value, 60)}" for key, value in given.items())
                or "defaults",
                "n_selected": number(facts.get("n_selected")),
                "n_pool": number(facts.get("n_pool")),
                "seconds": duration(seconds),
            }
        )
    return rows


def _histograms(files: RunFiles, colours: dict[str, str]) -> tuple[list[dict[str, Any]], list[str]]:
    panels, without = [], []
    for i, arm in enumerate(files.arms):
        run = files.first(arm)
        if run.scores is None or run.indices is None:
            continue
        finite = run.scores[np.isfinite(run.scores)]
        inside = run.indices[run.indices < len(run.scores)]
        if len(finite) < 3 or np.ptp(finite) < 1e-12:
            without.append(arm_label(arm))
            continue
        unscored = len(run.scores) - len(finite)
        panels.append(
            {
                "arm": arm_label(arm),
                "colour": css_variable(colours[arm]),
                "note": f"{count(unscored, 'row')} of the pool got no score" if unscored else "",
                "svg": figures.histogram(run.scores, inside, colours[arm], f"scores-{i + 1}", arm_label(arm)),
            }
        )
    return panels, without


def training(files: RunFiles, colours: dict[str, str]) -> Section:
    """Loss curves of the arms that were trained."""
    curves = {}
    for arm in files.arms:
        seeds = [run.losses for run in files.of_arm(arm) if run.losses]
        if seeds:
            curves[arm] = seeds
    if not curves:
        return {"figure": None, "early": [], "missing": files.why_missing("train", "train")}
    several = any(len(seeds) > 1 for seeds in curves.values())
    without = [arm_label(arm) for arm in files.arms if arm not in curves]
    return {
        "figure": figures.losses(curves, colours, "losses"),
        "note": "Strong lines are means over seeds, thin lines the seeds." if several else "",
        "early": _early(files, colours),
        "missing": f"No losses of {', '.join(without)}: {files.why_missing('train', 'train')}"
        if without
        else None,
    }


def _early(files: RunFiles, colours: dict[str, str]) -> list[dict[str, Any]]:
    """What early signals said about each arm under each seed."""
    rows = []
    for run in files.ranking.get("runs") or []:
        arm = str(run.get("arm"))
        by = ", ".join(arm_label(str(other)) for other in run.get("dominated_by") or [])
        said = {"keep": "goes on", "no signal": "has not learned yet: goes on"}.get(
            str(run.get("status")), f"dominated by {by}"
        )
        rows.append(
            {
                "arm": arm_label(arm),
                "colour": css_variable(colours.get(arm, colours["base"])),
                "seed": run.get("seed"),
                "norm": number(float(np.exp(run["log_grad_norm"]))),
                "loss": number(run["loss"]),
                "steps": number(run.get("steps")),
                "said": said,
                "ended": arm in files.ended,
            }
        )
    return rows


def _seconds(files: RunFiles, stage: str, arm: str | None, seed: int | None) -> float | None:
    """Return how long a stage took when it was last run."""
    for event in reversed(files.events_of("stage")):
        if (event.get("stage"), event.get("arm"), event.get("seed")) == (
            stage,
            arm,
            seed,
        ) and "seconds" in event:
            return float(event["seconds"])
    return None


def cost(files: RunFiles, colours: dict[str, str]) -> Section:
    """Time by stage, and tokens, speed and memory of each training."""
    times: dict[tuple[Any, Any, Any], float] = {}
    for event in files.events_of("stage"):
        if isinstance(event.get("seconds"), (int, float)):
            times[event.get("stage"), event.get("arm"), event.get("seed")] = float(event["seconds"])
    by_stage: dict[str, dict[str, float]] = {}
    for (stage, arm, _), seconds in times.items():
        cell = by_stage.setdefault(str(stage), {})
        cell[arm or ""] = cell.get(arm or "", 0.0) + seconds
    columns = [arm for arm in dict.fromkeys(a for cells in by_stage.values() for a in cells) if arm]
    stages = [
        {
            "stage": stage,
            "shared": duration(cells[""]) if "" in cells else "",
            "cells": [duration(cells[arm]) if arm in cells else "" for arm in columns],
            "total": duration(sum(cells.values())),
        }
        for stage, cells in by_stage.items()
    ]
    trainings = [
        {
            "arm": arm_label(run.arm),
            "colour": css_variable(colours[run.arm]),
            "seed": run.seed,
            "steps": number(run.train.get("steps")),
            "tokens": number(run.train.get("tokens")),
            "seconds": duration(run.train.get("seconds")),
            "speed": number(run.train.get("tokens_per_second")),
            "memory": _megabytes(run.train.get("peak_memory_mb")),
        }
        for run in files.runs
        if run.train is not None
    ]  # fmt: skip
    return {
        "stages": stages,
        "columns": [
            {"name": arm_label(arm), "colour": css_variable(colours.get(arm, colours["base"]))}
            for arm in columns
        ],
        "total": duration(sum(times.values())) if times else None,
        "trainings": trainings,
        "missing": None if stages or trainings else "No stage has finished, so there is no cost to show.",
    }


def _megabytes(value: Any) -> str:
    return f"{number(round(value))} MB" if isinstance(value, (int, float)) else "–"


def reproduce(files: RunFiles) -> Section:
    """The recipe as it ran, in a form that runs again, with the versions and hashes it ran under."""
    if not files.recipe:
        return {
            "recipe": None,
            "facts": [],
            "missing": "recipe.lock.yaml is not in the run directory or is damaged.",
        }
    facts = [
        (kind, str(name), str(value))
        for kind, key in (("version", "versions"), ("hash", "hashes"))
        for name, value in (files.lock.get(key) or {}).items()
    ]
    return {"recipe": recipe_text(files.recipe), "facts": facts, "missing": None}


def recipe_text(recipe: dict[str, Any]) -> str:
    """Return a recipe as YAML, in the order of its keys."""
    import io

    from ruamel.yaml import YAML

    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    stream = io.StringIO()
    yaml.dump(recipe, stream)
    return stream.getvalue()


def warnings(files: RunFiles) -> list[dict[str, Any]]:
    """Warnings of the log, equal ones counted once, then the files that could not be read."""
    said = Counter(str(event.get("message", "")) for event in files.events_of("warning"))
    found = [{"text": clip(text, 600), "times": times} for text, times in said.items() if text]
    seen = dict(files.unreadable)
    return found + [
        {"text": f"{name} could not be read: {clip(why, 200)}", "times": 1} for name, why in seen.items()
    ]


def audits(files: RunFiles) -> dict[str, Any]:
    """What was found in the tuned model, each with its own page."""
    found = []
    for path in sorted((files.root / "audit").glob("*/report/report.json")):
        report = files.object(path) or {}
        page = path.with_name("report.html").relative_to(files.root).as_posix()
        found.append(
            {**{name: str(report.get(name, "")) for name in ("audit", "level", "verdict")}, "page": page}
        )
    return {"found": found, "missing": None}
