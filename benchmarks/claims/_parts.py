"""Long claims in stretches: each part is kept when it is done, and a stretch ends before its limit."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from tunesmith.core.files import write_json

RUNS = Path(__file__).resolve().parents[2] / "runs" / "claims"


def table(found: dict[str, dict[str, dict[str, list[float]]]]) -> list[dict[str, Any]]:
    """Return one row per data set and arm from data -> measure -> arm -> one value per seed.

    The first measure gets its standard deviation and all values too.
    """
    rows = []
    for data, measures in found.items():
        first = next(iter(measures))
        for arm, values in measures[first].items():
            row: dict[str, Any] = {"data": data, "arm": arm}
            for measure, of_arm in measures.items():
                if arm in of_arm:
                    row[measure] = round(fmean(of_arm[arm]), 4)
            row |= {f"sd of {first}": round(stdev(values), 4), "values": [round(v, 4) for v in values]}
            rows.append(row)
    return rows


def stretch(
    slug: str, jobs: Sequence[str], run: Callable[[str], dict[str, Any]], limit_s: float = 520
) -> dict[str, dict[str, Any]]:
    """Run the jobs that are not kept in runs/claims/<slug>.json yet; leave the program if time is up before the end.

    Args:
        slug: name of the file.
        jobs: names, in order.
        run: a job -> JSON object.
        limit_s: start no job that would probably end later than this after the beginning.
    """
    path = RUNS / f"{slug}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    done: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}
    begin, longest = time.monotonic(), 0.0
    for job in jobs:
        if job in done:
            continue
        if time.monotonic() - begin + 1.2 * longest > limit_s:
            missing = sum(job not in done for job in jobs)
            print(f"{missing} of {len(jobs)} parts are missing: run again")
            sys.exit(3)
        start = time.monotonic()
        done[job] = run(job)
        longest = max(longest, time.monotonic() - start)
        write_json(path, done)
        print(job, done[job], flush=True)
    return {job: done[job] for job in jobs}
