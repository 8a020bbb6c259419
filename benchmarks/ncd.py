"""Novel class discovery: NCD k-means against scikit-learn's k-means, and the sparse spectral graph against all pairs.

    python benchmarks/ncd.py

Processor time on one thread. k-means: 10^6 rows of 32 columns in float32, ten clusters, both from the same centroids
for the same number of steps, tolerance 0; then the whole of NCDKMeans with one restart, its draws included, beside five
known classes. Spectral: six thousand rows of ten overlapping classes in 16 columns, five of them known.
"""

from __future__ import annotations

import time
import warnings
from typing import Any

import numpy as np

from _common import isolated, machine, save, serve_part, timed, versions

STEPS = 20


def groups(n: int, d: int, k: int, spread: float, seed: int = 0) -> tuple[Any, Any]:
    """Rows of k Gaussian classes in float32, and their classes."""
    rng = np.random.default_rng(seed)
    centers = spread * rng.standard_normal((k, d), dtype=np.float32)
    true = rng.integers(k, size=n)
    return centers[true] + rng.standard_normal((n, d), dtype=np.float32), true


def kmeans(n: int) -> dict[str, Any]:
    """Lloyd's steps alone, ours and scikit-learn's, and a whole fit."""
    from sklearn.cluster import KMeans

    from tunesmith.cluster import NCDKMeans
    from tunesmith.cluster.ncd.lloyd import draw_rows, lloyd, open_table

    X, true = groups(n, 32, 15, 1.2)
    novel = X[true >= 5]
    warm = open_table(novel[:1000])  # compile
    lloyd(warm, warm.rows[draw_rows(warm, 10, None, 2, np.random.RandomState(0))], tol=0, max_iter=1)
    X = np.vstack([novel, groups(n - len(novel), 32, 10, 1.2, seed=1)[0]])
    start = X[np.random.default_rng(2).choice(n, 10, replace=False)]

    def ours() -> Any:
        table = open_table(X)
        return lloyd(table, start - table.shift, tol=0, max_iter=STEPS)

    def theirs() -> Any:
        return KMeans(10, init=start, n_init=1, tol=0, max_iter=STEPS, algorithm="lloyd").fit(X)

    warnings.simplefilter("ignore")
    ours_s, found = timed(ours, repeats=3, clock=time.process_time)
    theirs_s, peer = timed(theirs, repeats=3, clock=time.process_time)
    rng = np.random.default_rng(3)
    beside = np.vstack([X, groups(100_000, 32, 15, 1.2, seed=4)[0]])
    y = np.r_[np.full(n, -1), rng.integers(5, size=100_000)]
    model = NCDKMeans(10, n_init=1, max_iter=STEPS, random_state=0)
    whole_s, _ = timed(lambda: model.fit(beside, y), clock=time.process_time)
    return {
        "rows": n,
        "steps": found[2],
        "ours_s": ours_s,
        "scikit_learn_s": theirs_s,
        "scikit_learn_over_ours": theirs_s / ours_s,
        "inertia_over_theirs": found[1] / float(peer.inertia_),
        "whole_fit_s": whole_s,
        "whole_fit_steps": model.n_iter_,
    }


def spectral(n: int, graph: str) -> dict[str, Any]:
    """One fit on a dense or a sparse graph."""
    from tunesmith.cluster import NCDSpectralClustering
    from tunesmith.metrics.clustering import novel_class_accuracy

    X, true = groups(n, 16, 10, 1.0)
    y = np.where(true < 5, true, -1)
    model = NCDSpectralClustering(5, s_min=0.1, n_components=10, graph=graph, random_state=0)
    seconds, _ = timed(lambda: model.fit(X, y), clock=time.process_time)
    return {
        "graph": graph,
        "rows": n,
        "seconds": seconds,
        "accuracy": novel_class_accuracy(true, model.labels_, known=range(5)),
    }


def summary(
    steps: dict[str, Any], dense: dict[str, Any], sparse: dict[str, Any], large: dict[str, Any]
) -> str:
    """Say the figures in words."""
    return (
        f"{steps['rows']:,} x 32, 10 clusters, {steps['steps']} Lloyd steps from the same centroids: "
        f"{steps['ours_s']:.2f} s, scikit-learn {steps['scikit_learn_s']:.2f} s "
        f"({steps['scikit_learn_over_ours']:.2f} times ours), inertia {steps['inertia_over_theirs']:.4f} of its. "
        f"NCD spectral clustering of {dense['rows']:,} x 16: sparse graph {sparse['seconds']:.1f} s and "
        f"{sparse['peak_gib']:.2f} GiB at the peak, all pairs {dense['seconds']:.1f} s and "
        f"{dense['peak_gib']:.2f} GiB; accuracy on novel rows {sparse['accuracy']:.3f} and {dense['accuracy']:.3f}. "
        f"{large['rows']:,} rows, sparse: {large['seconds']:.0f} s, {large['peak_gib']:.2f} GiB, accuracy "
        f"{large['accuracy']:.3f}."
    )


def main() -> None:
    """Run everything and save docs/benchmarks/ncd.json."""
    steps = isolated(__file__, "kmeans", one_core=True, n=1_000_000)
    dense, sparse = (
        isolated(__file__, "spectral", one_core=True, n=6_000, graph=g) for g in ("dense", "sparse")
    )
    large = isolated(__file__, "spectral", one_core=True, n=50_000, graph="sparse")
    save(
        "benchmarks",
        "ncd",
        {
            "title": "Novel class discovery: k-means steps and spectral graphs",
            "summary": summary(steps, dense, sparse, large),
            "kmeans": steps,
            "spectral": [dense, sparse, large],
            "command": "python benchmarks/ncd.py",
            "machine": machine(),
            "versions": versions("numpy", "scipy", "scikit-learn"),
        },
    )


if __name__ == "__main__" and not serve_part({"kmeans": kmeans, "spectral": spectral}):
    main()
