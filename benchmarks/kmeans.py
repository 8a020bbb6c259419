"""k-means for large pools against scikit-learn and FAISS: processor time, inertia, peak memory.

    OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 python benchmarks/kmeans.py [rows] [clusters]

The default is 300000 1024, the target 1000000 1024, where scikit-learn needs most of an hour. Times are those of
the processor, all threads together: on one thread they do not depend on what else the machine does.

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

COLUMNS, COMPONENTS = 384, 3000


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


def scikit_learn(n: int, k: int) -> dict[str, Any]:
    """sklearn.cluster.KMeans, one seeding."""
    from sklearn.cluster import KMeans

    X = embeddings(n)
    seconds, result = timed(lambda: KMeans(k, n_init=1, random_state=0).fit(X), clock=time.process_time)
    return {
        "library": "scikit-learn KMeans",
        "seconds": seconds,
        "inertia": float(result.inertia_),
        "steps": int(result.n_iter_),
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


def summarise(n: int, k: int, runs: list[dict[str, Any]]) -> str:
    """Return the outcome in words."""

    def against(row: dict[str, Any]) -> str:
        share = 100 * (1 / row["inertia_to_ours"] - 1)
        return (
            f"{row['library']} takes {row['times_ours']:.2f} times our time, and our inertia is "
            f"{abs(share):.2f} % {'higher' if share > 0 else 'lower'} than its"
        )

    return (
        f"At {n:,} rows of {COLUMNS} columns and {k:,} clusters "
        + "; ".join(against(row) for row in runs[1:])
        + " (processor time)."
        + ("" if n >= 1_000_000 else " The target named 10^6 rows; the same command runs that size.")
    )


def main() -> None:
    """Run all and save docs/benchmarks/kmeans.json."""
    n, k = (int(a) for a in (sys.argv[1:3] + ["300000", "1024"][len(sys.argv) - 1 :])[:2])
    runs = [
        isolated(__file__, "ours", n=n, k=k),
        isolated(__file__, "faiss", n=n, k=k),
        isolated(__file__, "scikit_learn", n=n, k=k),
    ]
    for row in runs:
        row["times_ours"] = row["seconds"] / runs[0]["seconds"]
        row["inertia_to_ours"] = row["inertia"] / runs[0]["inertia"]
    result = {
        "title": "k-means on nested samples",
        "summary": summarise(n, k, runs),
        "runs": runs,
        "rows": n,
        "clusters": k,
        "targets": {"times_faster_than_scikit_learn": 3, "inertia_within_percent": 1},
        "command": f"OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 python benchmarks/kmeans.py {n} {k}",
        "machine": machine(),
        "versions": versions("numpy", "scipy", "scikit-learn", "faiss-cpu"),
    }
    save("benchmarks", "kmeans", result)


if __name__ == "__main__" and not serve_part({"ours": ours, "faiss": faiss, "scikit_learn": scikit_learn}):
    main()
