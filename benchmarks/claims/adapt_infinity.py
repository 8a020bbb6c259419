"""Does choosing from a growing, pruned pool by Adapt-infinity forget less than random replay?

    python benchmarks/claims/adapt_infinity.py [seeds]        (default 10; about a minute)

scikit-learn's digits arrive as five datasets of two classes. 60 % of each dataset are near-copies of a few of
its rows, and one class of the second has six originals. A 64-64-10 perceptron trains on 100 rows a round; the
pool keeps 300 rows (LITE: 120). Gradient features are the last layer's, projected to 256 columns; semantic
vectors for pruning are the hidden layer's. Every arm starts from the same weights, sees the same datasets,
and does the same number of steps; "everything" trains on all rows seen so far and is an upper bound, not a
peer.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from _claim import difference, over_seeds, save, says, summary
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.metrics import v_measure_score

from tunesmith.select import LifelongPool
from tunesmith.select.lifelong import project_gradients

ROUNDS, BUDGET, POOL, LITE, CLUSTERS = 5, 100, 300, 120, 10
STEPS, BATCH, RATE = 200, 32, 3e-3
ORIGINALS, RARE, COPIED = 80, 6, 0.6  # rows per class, of the rare class, share of near-copies

Array = NDArray[Any]


def stream(seed: int) -> tuple[list[tuple[Array, Array, Array]], Array, Array, int]:
    """Return five datasets (rows, classes, number of the original), the test set, and the rare class."""
    rng = np.random.default_rng(seed)
    pixels, target = load_digits(return_X_y=True)
    pixels = pixels / 16
    classes = rng.permutation(10)
    rare = int(classes[2])
    test = np.zeros(len(target), dtype=bool)
    datasets, number = [], 0
    for t in range(ROUNDS):
        rows, labels, origin = [], [], []
        for c in classes[2 * t : 2 * t + 2]:
            mine = rng.permutation(np.flatnonzero(target == c))
            test[mine[ORIGINALS:]] = True
            first = pixels[mine[: RARE if c == rare else ORIGINALS]]
            few = rng.integers(0, max(1, len(first) // 8), size=round(len(first) * COPIED / (1 - COPIED)))
            noise = 0.03 * rng.standard_normal((len(few), 64))
            rows += [first, first[few] + noise]
            labels += [c] * (len(first) + len(few))
            origin += [*range(number, number + len(first)), *(number + few)]
            number += len(first)
        order = rng.permutation(len(labels))
        datasets.append((np.concatenate(rows)[order], np.array(labels)[order], np.array(origin)[order]))
    return datasets, pixels[test], target[test], rare


class Network:
    """A 64-64-10 perceptron with ReLU, cross-entropy and Adam; equal seeds give equal weights."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng([seed, 1])
        shapes = [(64, 64), (64,), (64, 10), (10,)]
        self.weights = [
            rng.uniform(-0.125, 0.125, shape) for shape in shapes
        ]  # 1 / sqrt(64), as torch's Linear

    def forward(self, x: Array) -> tuple[Array, Array]:
        """Return hidden states and log-probabilities."""
        w1, b1, w2, b2 = self.weights
        hidden = np.maximum(x @ w1 + b1, 0)
        logits = hidden @ w2 + b2
        logits -= logits.max(1, keepdims=True)
        return hidden, logits - np.log(np.exp(logits).sum(1, keepdims=True))

    def train(self, x: Array, y: Array, seed: int) -> None:
        """Take the same number of Adam steps whatever the rows."""
        rng = np.random.default_rng([seed, 2])
        first, second = ([np.zeros_like(w) for w in self.weights] for _ in range(2))
        for step in range(1, STEPS + 1):
            at = rng.integers(0, len(x), BATCH)
            hidden, log_p = self.forward(x[at])
            wrong = (np.exp(log_p) - np.eye(10)[y[at]]) / BATCH
            back = (wrong @ self.weights[2].T) * (hidden > 0)
            gradients = [x[at].T @ back, back.sum(0), hidden.T @ wrong, wrong.sum(0)]
            for w, m, v, g in zip(self.weights, first, second, gradients, strict=True):
                m += 0.1 * (g - m)
                v += 0.001 * (g * g - v)
                w -= RATE * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)

    def look(self, x: Array, y: Array) -> tuple[Array, Array, dict[str, Array]]:
        """Return projected last-layer gradients, hidden states and four scores of each row."""
        hidden, log_p = self.forward(x)
        p = np.exp(log_p)
        wrong = p - np.eye(10)[y]
        gradient = np.concatenate([(hidden[:, :, None] * wrong[:, None]).reshape(len(x), -1), wrong], axis=1)
        scores = {
            "perplexity": np.exp(np.minimum(-log_p[np.arange(len(y)), y], 50)),
            "el2n": np.linalg.norm(wrong, axis=1),
            "entropy": -(p * log_p).sum(1),
            "grand": np.linalg.norm(gradient, axis=1),
        }
        return project_gradients(gradient, 256), hidden, scores


ARMS: dict[str, dict[str, Any]] = {
    "sequential": {},
    "random pool and random replay": {},
    "clusters, highest perplexity": {"scorers": ["perplexity"], "sampling": "top"},
    "clusters, CCS on perplexity": {"scorers": ["perplexity"]},
    "full method": {},
    "full method, random draw in clusters": {"sampling": "random"},
    "LITE": {},
    "everything": {},
}


def run(arm: str, seed: int) -> dict[str, Any]:
    """Go through the five rounds with one arm."""
    datasets, test_x, test_y, rare = stream(seed)
    model, rng = Network(seed), np.random.default_rng([seed, 7])
    pool = LifelongPool(CLUSTERS, random_state=seed, **ARMS[arm])
    held: tuple[Array, ...] = (np.zeros((0, 64)), np.zeros(0, int), np.zeros(0, int))
    curve, trained, chosen, agreement = [], set(), [], []
    for t, new in enumerate(datasets):
        held = tuple(np.concatenate([a, b]) for a, b in zip(held, new, strict=True))
        if arm == "sequential":
            rows = len(held[1]) - len(new[1]) + rng.choice(len(new[1]), BUDGET, replace=False)
        elif arm == "everything":
            rows = np.arange(len(held[1]))
        elif arm.startswith("random"):
            kept = np.sort(rng.choice(len(held[1]), min(POOL, len(held[1])), replace=False))
            held = tuple(part[kept] for part in held)
            rows = rng.choice(len(held[1]), BUDGET, replace=False)
        else:
            pool.add(len(new[1]), f"round {t}")
            gradient, hidden, scores = model.look(held[0], held[1])
            pool.fit(hidden, gradient=gradient, scores=scores)
            agreement.append(v_measure_score(held[1], pool.labels_))
            kept = pool.prune(POOL)
            held = tuple(part[kept] for part in held)
            rows = pool.select(BUDGET)
            chosen += [row["scorer"] for row in pool.report_]
        trained |= set(held[2][rows].tolist())
        model.train(held[0][rows], held[1][rows], seed * 100 + t)
        if arm == "LITE":
            kept = pool.prune(LITE)
            held = tuple(part[kept] for part in held)
        right = model.forward(test_x)[1].argmax(1) == test_y
        curve.append([right[test_y == c].mean() for c in range(10)])
    table = np.array(curve)
    counts = {f"chosen: {name}": chosen.count(name) for name in sorted(set(chosen))}
    return {
        "accuracy": table[-1].mean(),
        "forgetting": (table.max(0) - table[-1]).mean(),
        "rare_class": table[-1, rare],
        "distinct_rows_trained": len(trained),
        **({"v_measure": float(np.mean(agreement))} if agreement else {}),
        **(counts if arm == "full method" else {}),
    }


def main() -> None:
    """Run all arms and seeds, and write docs/claims/adapt-infinity.json."""
    seeds = range(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
    found = over_seeds(lambda seed: {arm: run(arm, seed) for arm in ARMS}, seeds)
    replay, full = "random pool and random replay", "full method"
    pairs = [
        ("accuracy", full, replay),
        ("rare_class", full, replay),
        ("accuracy", full, "clusters, CCS on perplexity"),
        ("accuracy", full, "clusters, highest perplexity"),
        ("accuracy", full, "full method, random draw in clusters"),
        ("accuracy", "LITE", replay),
        ("accuracy", full, "sequential"),
    ]
    intervals = [{"measure": key, **difference(found[key], a, b)} for key, a, b in pairs]
    accuracy, rare, choice, top, strata, lite, _ = intervals
    holds = bool(accuracy["low"] > 0 and rare["low"] > 0 and choice["low"] > 0)
    save(
        "adapt-infinity",
        {
            "title": "Adapt-infinity: a growing pool, chosen by gradient clusters and pruned for good",
            "claim": "It forgets less than sequential training and random replay, most of all rare tasks, "
            "and the "
            "choice of a scorer per cluster by entropy helps.",
            "verdict": f"Accuracy over all classes after the last round: {says(accuracy)}; on the rare "
            "class: "
            f"{says(rare)}; {says(lite)}. What the parts add: {says(choice)}; {says(top)}; {says(strata)}.",
            "holds": holds,
            "setting": " ".join((__doc__ or "").split("\n\n")[2].split()),
            "seeds": list(seeds),
            "arms": summary(found["accuracy"]),
            "forgetting": summary(found["forgetting"]),
            "rare_class": summary(found["rare_class"]),
            "distinct_rows_trained": summary(found["distinct_rows_trained"]),
            "v_measure_of_clusters_against_classes": summary(found["v_measure"]),
            "times_a_scorer_was_chosen_per_run": {
                key.removeprefix("chosen: "): round(sum(values[full]) / len(seeds), 1)
                for key, values in found.items()
                if key.startswith("chosen: ")
            },
            "intervals": intervals,
            "command": "python benchmarks/claims/adapt_infinity.py",
        },
    )


if __name__ == "__main__":
    main()
