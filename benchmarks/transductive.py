"""Transductive clustering of a million points with a nearest-neighbour Laplacian: time, memory, descent.

    python benchmarks/transductive.py

100 overlapping Gaussian classes in 64 dimensions, flat and turned each its own way, ten labelled rows each. Three
parts, each alone in a process with one thread: the whole fit on a million rows (float32), with every energy checked for
descent and the approximate graph for recall; K-means as the special case without Laplacian, from the seeds given to
scikit-learn's KMeans too; and a plain dense NumPy form (n x n affinities, float64) at a size it can do. Times are
processor time.
"""

from __future__ import annotations

import time
import warnings
from typing import Any

import numpy as np

from _common import isolated, machine, save, serve_part, timed, versions

LAM, NEIGHBORS = 0.5, 3


def points(n: int, k: int = 100, d: int = 64, shots: int = 10) -> tuple[Any, Any, Any]:
    """Rows in float32, labels with -1, true classes; each class fills six directions of its own, as embeddings do."""
    rng = np.random.default_rng(0)
    centres = 0.4 * rng.standard_normal((k, d)).astype(np.float32)
    spread = 0.25 * rng.standard_normal((k, 6, d)).astype(np.float32)
    truth = rng.permutation(np.arange(n) % k)
    X = 0.4 * rng.standard_normal((n, d), dtype=np.float32)
    y = np.full(n, -1)
    for c in range(k):
        rows = np.flatnonzero(truth == c)
        X[rows] += centres[c] + rng.standard_normal((len(rows), 6), dtype=np.float32) @ spread[c]
        y[rows[:shots]] = c
    return X, y, truth


def million(n: int) -> dict[str, Any]:
    """Fit with and without the Laplacian; energies, recall of the graph, accuracy on the rows to label."""
    from tunesmith.cluster import TransductiveClustering
    from tunesmith.cluster.transductive import normalize_features
    from tunesmith.numerics.neighbors import knn_graph

    X, y, truth = points(n)
    free = y < 0
    begin = time.perf_counter()
    seconds, model = timed(
        lambda: TransductiveClustering(lam=LAM, psd_shift=True, random_state=0).fit(X, y),
        clock=time.process_time,
    )
    wall = time.perf_counter() - begin
    rises = [float((np.diff(e) / np.abs(e[1:])).max()) for e in model.bound_energies_]
    plain_s, plain = timed(lambda: TransductiveClustering(lam=0).fit(X, y), clock=time.process_time)
    rows = normalize_features(X)
    graph_s, (W, _) = timed(lambda: knn_graph(rows, NEIGHBORS - 1), clock=time.process_time)
    some = np.random.default_rng(1).choice(n, 500, replace=False)
    hits = 0
    for i in some:
        distance = ((rows - rows[i]) ** 2).sum(axis=1)
        distance[i] = np.inf
        hits += len(np.intersect1d(np.argpartition(distance, NEIGHBORS - 1)[: NEIGHBORS - 1], W[[i]].indices))
    return {
        "rows": n,
        "dimensions": X.shape[1],
        "classes": 100,
        "seconds": seconds,
        "wall_s": wall,
        "graph_s": graph_s,
        "steps": model.n_iter_,
        "bound_updates": sum(len(e) - 1 for e in model.bound_energies_),
        "largest_relative_rise": max(rises),
        "graph_recall": hits / (len(some) * (NEIGHBORS - 1)),
        "accuracy": float(np.mean(model.labels_[free] == truth[free])),
        "without_laplacian_s": plain_s,
        "without_laplacian_accuracy": float(np.mean(plain.labels_[free] == truth[free])),
    }


def fixed_point(n: int) -> dict[str, Any]:
    """K-means without labels from given seeds, ours and scikit-learn's to the end."""
    from sklearn.cluster import KMeans

    from tunesmith.cluster import TransductiveClustering

    X = points(n)[0].astype(np.float64)
    seeds = X[:100]
    options: dict[str, Any] = {"lam": 0.0, "normalize": "un", "tol": 0.0, "max_iter": 1000}
    ours_s, ours = timed(
        lambda: TransductiveClustering(100, init=seeds, **options).fit(X), clock=time.process_time
    )
    peer_s, peer = timed(
        lambda: KMeans(100, init=seeds, n_init=1, tol=0, max_iter=1000).fit(X), clock=time.process_time
    )
    again = TransductiveClustering(100, init=peer.cluster_centers_, **options).fit(X)
    return {
        "rows": n,
        "labels_that_differ": int((ours.labels_ != peer.labels_).sum()),
        "relative_energy_difference": abs(ours.energy_ - peer.inertia_) / peer.inertia_,
        "labels_moved_from_scikit_learns_end": int((again.labels_ != peer.labels_).sum()),
        "ours_s": ours_s,
        "scikit_learn_s": peer_s,
    }


def naive(X: Any, y: Any, max_iter: int = 100) -> Any:
    """The same alternation as plain NumPy writes it: all pairs of rows at once, dense W."""
    X = X - X.mean(axis=0)
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    support = y >= 0
    X[~support] += X[support].mean(axis=0) - X[~support].mean(axis=0)
    n, k = len(X), y.max() + 1
    pairs = (X**2).sum(axis=1)[:, None] + (X**2).sum(axis=1) - 2 * X @ X.T
    np.fill_diagonal(pairs, np.inf)
    W = np.zeros((n, n))
    np.put_along_axis(W, np.argsort(pairs, axis=1)[:, : NEIGHBORS - 1], 1.0, axis=1)
    W = (W + W.T) / 2
    W += np.diag(W.sum(axis=1))
    M = np.stack([X[y == c].mean(axis=0) for c in range(k)])
    labels = ((X[:, None] - M) ** 2).sum(axis=2).argmin(axis=1)
    labels[support] = y[support]
    outer = np.inf
    for step in range(max_iter):
        M = np.stack([X[labels == c].mean(axis=0) for c in range(k)])
        a = ((X[:, None] - M) ** 2).sum(axis=2)
        Z = np.exp(-a) / np.exp(-a).sum(axis=1, keepdims=True)
        Z[support] = np.eye(k)[y[support]]
        energy = np.inf
        for i in range(600):
            s = -a + LAM * (W @ Z)
            Z = np.exp(s - s.max(axis=1, keepdims=True))
            Z /= Z.sum(axis=1, keepdims=True)
            Z[support] = np.eye(k)[y[support]]
            new = (Z * np.log(np.maximum(Z, 1e-20)) + Z * a - LAM / 2 * Z * (W @ Z)).sum()
            if i > 1 and abs(new - energy) <= 1e-7 * abs(energy):
                break
            energy = new
        labels = Z.argmax(axis=1)
        if step > 1 and abs(new - outer) <= 1e-4 * abs(outer):
            break
        outer = new
    return labels


def against_naive(n: int) -> dict[str, Any]:
    """Ours and the dense form on the same rows in float64."""
    from tunesmith.cluster import TransductiveClustering

    X, y, _ = points(n)
    X = X.astype(np.float64)
    ours_s, ours = timed(
        lambda: TransductiveClustering(lam=LAM, psd_shift=True).fit(X, y), repeats=2, clock=time.process_time
    )
    naive_s, labels = timed(lambda: naive(X, y), clock=time.process_time)
    return {
        "rows": n,
        "ours_s": ours_s,
        "naive_s": naive_s,
        "ratio": naive_s / ours_s,
        "labels_that_differ": int((labels != ours.labels_).sum()),
    }


PARTS = {"million": million, "fixed_point": fixed_point, "against_naive": against_naive}


def main() -> None:
    """Run the parts and save docs/benchmarks/transductive.json."""
    large = isolated(__file__, "million", one_core=True, n=1_000_000)
    same = isolated(__file__, "fixed_point", one_core=True, n=20_000)
    dense = isolated(__file__, "against_naive", one_core=True, n=5_000)
    result = {
        "title": "Transductive clustering with a Laplacian",
        "summary": (
            f"{large['rows']:,} rows x {large['dimensions']} x {large['classes']} classes with a nearest-neighbour "
            f"Laplacian: {large['seconds']:.0f} s on one core ({large['graph_s']:.0f} s of it for the graph, whose "
            f"recall is {large['graph_recall']:.2f}), {large['bound_updates']} bound updates in {large['steps']} "
            f"steps, {large['peak_gib']:.2f} GiB at the peak with the data. The largest relative rise of the energy "
            f"in any update is {large['largest_relative_rise']:.1g} (float32: rounding is 6e-8). Accuracy "
            f"{large['accuracy']:.3f}, without the Laplacian {large['without_laplacian_accuracy']:.3f} in "
            f"{large['without_laplacian_s']:.0f} s. K-means from equal seeds on {same['rows']:,} rows: "
            f"{same['labels_that_differ']} labels differ from scikit-learn's, and from its end "
            f"{same['labels_moved_from_scikit_learns_end']} move. Against dense NumPy on {dense['rows']:,} rows: "
            f"{dense['ratio']:.1f} times faster, {dense['labels_that_differ']} labels differ."
        ),
        "million": large,
        "fixed_point": same,
        "against_naive": dense,
        "targets": {"seconds": "minutes", "largest_relative_rise": "<= rounding", "labels_that_differ": 0},
        "command": "python benchmarks/transductive.py",
        "machine": machine(),
        "versions": versions("numpy", "scipy", "scikit-learn", "faiss-cpu"),
    }
    save("benchmarks", "transductive", result)


warnings.simplefilter("ignore")
if __name__ == "__main__" and not serve_part(PARTS):
    main()
