"""k-means for large pools against scikit-learn and FAISS: processor time of one core, inertia, peak memory.

    python benchmarks/kmeans.py [rows] [clusters] [patience]        (default 1000000 1024 6)

scikit-learn runs in stretches of ten iterations, each from the centres of the last, until it converges by its own
tolerance or has taken ``patience`` times our time; an infinite patience (``inf``) is most of an hour at 10^6 rows. Its
inertia after each stretch says when it passed ours. Every library has one thread and its processor time counts, so
that the figures do not depend on what else the machine does.

Data: 384 columns like sentence embeddings: 3,000 overlapping components with Zipf-distributed weights, noise
as large as the spread of the centres, a falling spectrum, rows of length 1. All run with one seeding and
their defaults otherwise; FAISS by default sees 256 rows per cluster while it learns, and its time includes
the nearest centre of every row afterwards.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from _common import isolated, machine, save, serve_part, timed, versions

COLUMNS, COMPONENTS, STRETCH = 384, 3000, 10


def embeddings(n: int, seed: int = 0) -> NDArray[np.float32]:
    """Rows of length 1 that are not trivially separable."""
    rng = np.random.default_rng(seed)
    weights = 1 / np.arange(1, COMPONENTS + 1) ** 0.7
    spectrum = (np.arange(1, COLUMNS + 1) ** -0.5).astype(np.float32)
    centers = rng.standard_normal((COMPONENTS, COLUMNS), dtype=np.float32) * spectrum
    component = rng.choice(COMPONENTS, n, p=weights / weights.sum())
    out = np.empty((n, COLUMNS), dtype=np.float32)
    for start in range(0, n, 10_000):
        block = centers[component[start : start + 10_000]]
        block = block + rng.standard_normal(block.shape, dtype=np.float32) * spectrum
        out[start : start + 10_000] = block / np.linalg.norm(block, axis=1, keepdims=True)
    return out


def ours(n: int, k: int) -> dict[str, Any]:
    """tunesmith.numerics.kmeans with its defaults."""
    from tunesmith.numerics import kmeans

    X = embeddings(n)
    seconds, result = timed(lambda: kmeans(X, k, random_state=0), clock=time.process_time)
    return {"library": "tunesmith", "seconds": seconds, "inertia": result.inertia, "steps": result.n_iter}


def scikit_learn(n: int, k: int, limit: float) -> dict[str, Any]:
    """sklearn.cluster.KMeans, one seeding, in stretches of ``STRETCH`` iterations."""
    from sklearn.cluster import KMeans

    X = embeddings(n)
    start: Any = "k-means++"
    path, seconds, steps = [], 0.0, 0
    while True:
        model = KMeans(k, init=start, n_init=1, random_state=0, max_iter=STRETCH)
        begin = time.process_time()
        model.fit(X)
        took = time.process_time() - begin
        seconds, steps, start = seconds + took, steps + model.n_iter_, model.cluster_centers_
        path.append((seconds, float(model.inertia_)))
        converged = model.n_iter_ < STRETCH
        if converged or seconds >= limit or steps >= 300:  # 300: KMeans' default
            break
    return {
        "library": "scikit-learn KMeans",
        "seconds": seconds,
        "inertia": path[-1][1],
        "steps": int(steps),
        "converged": bool(converged),
        "path": path,
    }


def faiss(n: int, k: int) -> dict[str, Any]:
    """faiss.Kmeans with its defaults, then the nearest centre of every row."""
    import faiss as library

    from tunesmith.numerics import nearest_center

    X = embeddings(n)
    model = library.Kmeans(COLUMNS, k, seed=0)

    def run() -> None:
        model.train(X)
        model.index.search(X, 1)

    seconds, _ = timed(run, clock=time.process_time)
    return {
        "library": "FAISS Kmeans",
        "seconds": seconds,
        "inertia": float(nearest_center(X, model.centroids)[1].sum()),
        "steps": int(model.cp.niter),
    }


def against(row: dict[str, Any]) -> str:
    """Say how a library compares with ours."""
    share = 100 * (1 / row["inertia_to_ours"] - 1)
    end = "" if row.get("converged", True) else " without having converged"
    return (
        f"{row['library']} takes {row['times_ours']:.2f} times our time{end}, and our inertia is "
        f"{abs(share):.2f} % {'higher' if share > 0 else 'lower'} than its"
    )


def passed(row: dict[str, Any], inertia: float, ours_s: float) -> str:
    """Say after how many times our time scikit-learn had an inertia no higher than ``inertia``."""
    times = next((seconds / ours_s for seconds, found in row["path"] if found <= inertia), None)
    return (
        f"more than {row['times_ours']:.1f} times our time"
        if times is None
        else f"{times:.1f} times our time"
    )


def main() -> None:
    """Run all and save docs/benchmarks/kmeans.json."""
    given = sys.argv[1:]
    n, k = int(given[0]) if given else 1_000_000, int(given[1]) if given[1:] else 1024
    patience = float(given[2]) if given[2:] else 6.0
    runs = [
        isolated(__file__, "ours", one_core=True, n=n, k=k),
        isolated(__file__, "faiss", one_core=True, n=n, k=k),
    ]
    mine = runs[0]
    limit = min(patience * mine["seconds"], 1e9)
    runs.append(isolated(__file__, "scikit_learn", one_core=True, n=n, k=k, limit=limit))
    for row in runs:
        row["times_ours"] = row["seconds"] / mine["seconds"]
        row["inertia_to_ours"] = row["inertia"] / mine["inertia"]
    level, near = (passed(runs[2], share * mine["inertia"], mine["seconds"]) for share in (1, 1.01))
    path = runs[2].pop("path")
    result = {
        "title": "k-means on nested samples",
        "summary": f"At {n:,} rows of {COLUMNS} columns and {k:,} clusters, processor time of one core: "
        + "; ".join(map(against, runs[1:]))
        + f". To come within 1 % of our inertia scikit-learn needs {near}, and to be as low {level}.",
        "runs": runs,
        "scikit-learn on its way": [
            {
                "times ours": round(seconds / mine["seconds"], 2),
                "inertia to ours": round(inertia / mine["inertia"], 4),
            }
            for seconds, inertia in path
        ],
        "rows": n,
        "clusters": k,
        "targets": {"times_faster_than_scikit_learn": 3, "inertia_within_percent": 1},
        "command": f"python benchmarks/kmeans.py {n} {k} {patience:g}",
        "machine": machine(),
        "versions": versions("numpy", "scipy", "scikit-learn", "faiss-cpu"),
    }
    save("benchmarks", "kmeans", result)


if __name__ == "__main__" and not serve_part({"ours": ours, "faiss": faiss, "scikit_learn": scikit_learn}):
    main()
