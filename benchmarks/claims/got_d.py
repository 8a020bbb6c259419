"""The claim of GOT-D at small scale: warming up a model on the rows that its pre-training lacks.

    python benchmarks/claims/got_d.py

scikit-learn's digits, standardised, 20 principal components. The model is pre-trained on the pool: 580 rows, 95 % of
them digits 0 to 4. The target, 200 rows, and the test rows are even over all ten. 30 rows of the pool are chosen and
the model (one hidden layer of 64) makes 5 passes over them; then it is tested without further training. Arms choose by
GOT-D (entropic, epsilon 0.02 of the mean cost), by its exact gradient (linear programme), by distance to the nearest
target row or to the target's centre, by matching the target's distribution (greedy k-medoids on the target), or at
random.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

import numpy as np
from _claim import count, difference, over_seeds, save, says, summary
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler

from tunesmith.numerics.transport import cost_matrix, solve_exact
from tunesmith.select.goracs.search import greedy
from tunesmith.select.gotd import GOTDSelector, calibrated_gradient

SEEDS = range(10)
PICKS, PASSES = 30, 5
SHARES = (0.05, 0.1, 0.3, 0.5, 1.0)


def split(seed: int) -> dict[str, Any]:
    """Pool, target and test rows; no row is in two of them."""
    X, y = load_digits(return_X_y=True)
    X = PCA(20, random_state=0).fit_transform(StandardScaler().fit_transform(X))
    rng = np.random.default_rng(seed)
    rows = {k: rng.permutation(np.flatnonzero(y == k)) for k in range(10)}
    target = np.concatenate([rows[k][:20] for k in range(10)])
    test = np.concatenate([rows[k][20:60] for k in range(10)])
    common = rng.permutation(np.concatenate([rows[k][60:] for k in range(5)]))[:551]
    rare = rng.permutation(np.concatenate([rows[k][60:] for k in range(5, 10)]))[:29]
    pool = np.concatenate([common, rare])
    return {"pool": (X[pool], y[pool]), "target": X[target], "test": (X[test], y[test])}


def run(seed: int) -> dict[str, dict[str, float]]:
    """One seed: all arms from one pre-trained model."""
    data = split(seed)
    (X, y), target = data["pool"], data["target"]
    cost = cost_matrix(X, target)
    base = MLPClassifier(64, batch_size=10, max_iter=30, random_state=seed).fit(X, y)
    rng = np.random.default_rng([seed, 1])
    picks = {
        "no warm-up": np.array([], dtype=np.int64),
        "random": rng.choice(len(X), PICKS, replace=False),
        "nearest to a target row": np.argsort(cost.min(axis=1), kind="stable")[:PICKS],
        "nearest to the centre": np.argsort(cost.mean(axis=1), kind="stable")[:PICKS],
        "matching": greedy(cost, PICKS),
        "GOT-D": GOTDSelector().fit(X, target_embedding=target).select(PICKS),
        "GOT-D exact": np.argsort(calibrated_gradient(solve_exact(cost).f), kind="stable")[:PICKS],
    }
    start = solve_exact(cost).cost
    results = {}
    for arm, chosen in picks.items():
        model = copy.deepcopy(base)
        for _ in range(PASSES if chosen.size else 0):
            model.partial_fit(X[chosen], y[chosen])
        results[arm] = {"accuracy": model.score(*data["test"])}
        if chosen.size:
            results[arm]["rare"] = float((y[chosen] >= 5).mean())
        if arm in ("GOT-D", "matching", "random"):
            for share in SHARES:
                a = np.full(len(X), (1 - share) / len(X))
                a[chosen] += share / PICKS
                results[arm][f"mix {share}"] = solve_exact(cost, a=a).cost / start
    return results


def main() -> None:
    """Run ten seeds and write docs/claims/got-d.json."""
    warnings.simplefilter("ignore")
    found = over_seeds(run, SEEDS)
    accuracy = found["accuracy"]
    others = ("random", "nearest to a target row", "nearest to the centre", "matching", "no warm-up")
    intervals = [difference(accuracy, "GOT-D", other) for other in others]
    rare = {arm: float(np.mean(values)) for arm, values in found["rare"].items()}
    mixing = [
        {"share": share, **{arm: round(float(np.mean(v)), 3) for arm, v in found[f"mix {share}"].items()}}
        for share in SHARES
    ]
    crossed = [row["share"] for row in mixing if row["matching"] < row["GOT-D"]]
    save(
        "got-d",
        {
            "title": "GOT-D on digits",
            "claim": "Few rows with the most negative transport gradient warm a model up for its target better than "
            "random rows, rows near the target, or rows that match its distribution.",
            "verdict": f"{count(intervals)}. "
            + "; ".join(says(interval) for interval in intervals)
            + f". Share of digits 5 to 9 among the picks: GOT-D {rare['GOT-D']:.0%}, matching {rare['matching']:.0%}, "
            f"random {rare['random']:.0%}, nearest {rare['nearest to a target row']:.0%}. "
            + (
                f"Mixed in at a share of {min(crossed)} or more, matching rows bring the pool nearer to the target."
                if crossed
                else "At no share did matching rows bring the pool nearer to the target."
            ),
            "holds": all(interval["low"] > 0 for interval in intervals),
            "setting": " ".join((__doc__ or "").split("\n\n")[2].split()),
            "seeds": list(SEEDS),
            "arms": summary(accuracy),
            "share_of_rare_classes": summary(found["rare"]),
            "transport_cost_after_mixing_over_before": mixing,
            "intervals": intervals,
            "command": "python benchmarks/claims/got_d.py",
        },
    )


if __name__ == "__main__":
    main()
