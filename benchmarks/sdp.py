"""K-means SDP and LA-SDP: the default solver against cvxpy with SCS, and 2,000 rows.

    python benchmarks/sdp.py [part ...]        (parts: kmeans-200 la-200 kmeans-500 la-500 kmeans-2000 la-2000)

Each part runs alone in a process with one thread; its processor time counts, so that the figures do not depend on what
else the machine does. Results of parts are kept in the JSON file, so that a long run can go in stretches; without an
argument all run. SCS works at cvxpy's default accuracy; ``la-500`` gives it up to SCS_LIMIT seconds. The points are
heterogeneous Gaussians, two groups in six columns as in the claim; the K-means program there is not tight, so that it
has to be solved to its end. ``agrees`` compares the two objectives; the bound is proven for both.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from typing import Any

import numpy as np

from _common import DOCS, isolated, machine, save, serve_part, timed, versions

PARTS = ("kmeans-200", "la-200", "kmeans-500", "la-500", "kmeans-2000", "la-2000")
SCS_LIMIT = 300.0


def program(kind: str, n: int) -> tuple[np.ndarray[Any, Any], Any]:
    """The objective A (g, n, n) of two heterogeneous Gaussians, and the points."""
    from tunesmith.cluster.sdp import affinities
    from tunesmith.cluster.sdp.likelihood import distances

    rng = np.random.default_rng(0)
    groups, covariances = [], []
    for k in range(2):
        variance, centre = np.full(6, 0.3), np.zeros(6)
        variance[k], centre[:3] = 12.0, 2.0 * k
        groups.append(centre + np.sqrt(variance) * rng.standard_normal((n // 2, 6)))
        covariances.append(np.diag(variance))
    X = np.vstack(groups)
    return (-0.5 * distances(X)[None] if kind == "kmeans" else affinities(X, np.stack(covariances))), X


def ours(kind: str, n: int) -> dict[str, Any]:
    """solve_admm at the estimators' default tolerance."""
    from tunesmith.cluster.sdp import argmax_rounding, solve_admm

    small, _ = program(kind, 200)
    solve_admm(small, 2, max_iter=25)  # compile
    A, _ = program(kind, n)
    candidate = argmax_rounding if kind == "la" else None
    seconds, found = timed(
        lambda: solve_admm(A, 2, tol=1e-4, candidate=candidate, max_iter=10_000), clock=time.process_time
    )
    return {
        "seconds": seconds,
        "value": found.value,
        "bound": found.bound,
        "infeasibility": found.infeasibility,
        "iterations": found.n_iter,
        "converged": found.converged,
        "proven_partition": found.labels is not None,
    }


def scs(kind: str, n: int, limit: float) -> dict[str, Any]:
    """The same program through cvxpy and SCS."""
    from tunesmith.cluster.sdp import solve_cvxpy
    from tunesmith.core.errors import TunesmithError

    A, _ = program(kind, n)
    warnings.simplefilter("ignore")
    begin = time.process_time()
    try:
        found = solve_cvxpy(A, 2, time_limit_secs=limit)
    except TunesmithError as error:
        return {"seconds": time.process_time() - begin, "converged": False, "ended": str(error)}
    return {
        "seconds": time.process_time() - begin,
        "value": found.value,
        "bound": found.bound,
        "infeasibility": found.infeasibility,
        "iterations": found.n_iter,
        "converged": found.converged,
    }


def measure(part: str) -> dict[str, Any]:
    """One row of the result."""
    kind, rows = part.split("-")
    n = int(rows)
    row: dict[str, Any] = {"rows": n, "blocks": 1 if kind == "kmeans" else 2}
    row["ours"] = isolated(__file__, "ours", one_core=True, kind=kind, n=n)
    if n <= 500:
        row["scs"] = isolated(__file__, "scs", one_core=True, kind=kind, n=n, limit=SCS_LIMIT)
        row["ratio"] = row["scs"]["seconds"] / row["ours"]["seconds"]
        if row["scs"]["converged"]:
            row["difference"] = abs(row["ours"]["value"] - row["scs"]["value"]) / abs(row["scs"]["value"])
    return row


def sentence(part: str, row: dict[str, Any]) -> str:
    """One part in words."""
    kind = "K-means SDP" if part.startswith("kmeans") else "LA-SDP"
    mine = row["ours"]
    text = f"{kind}, {row['rows']:,} rows: {mine['seconds']:.1f} s, {mine['peak_gib']:.2f} GiB at the peak"
    if "scs" not in row:
        return text
    if not row["scs"]["converged"]:
        return f"{text}; SCS had not converged after {row['scs']['seconds']:.0f} s, {row['ratio']:.0f} times as long"
    return (
        f"{text}; SCS {row['scs']['seconds']:.1f} s, {row['ratio']:.0f} times as long, objectives "
        f"{row['difference']:.1e} apart"
    )


def main() -> None:
    """Run the parts asked for and save docs/benchmarks/sdp.json with all that are known."""
    path = DOCS / "benchmarks" / "sdp.json"
    parts: dict[str, Any] = {}
    if sys.argv[1:] and path.exists():
        parts = json.loads(path.read_text(encoding="utf-8"))["parts"]
    for part in sys.argv[1:] or PARTS:
        parts[part] = measure(part)
        parts = {name: parts[name] for name in PARTS if name in parts}
        save(
            "benchmarks",
            "sdp",
            {
                "title": "K-means SDP and LA-SDP",
                "summary": "One thread, processor time. "
                + ". ".join(sentence(*item) for item in parts.items())
                + ".",
                "parts": parts,
                "targets": {"difference": 1e-3, "ratio_at_500": 10, "peak_gib_at_2000": 4.0},
                "command": "python benchmarks/sdp.py",
                "machine": machine(),
                "versions": versions("numpy", "scipy", "numba", "cvxpy", "scs"),
            },
        )


if __name__ == "__main__" and not serve_part({"ours": ours, "scs": scs}):
    main()
