"""The claims of kM-Random and kMQ at small scale; the iterative form is tried in kmeans_iterative_rounds.py.

    python benchmarks/claims/kmeans_iterative.py

A Gaussian mixture in 32 columns: 20 components of Zipf-distributed sizes in 8 classes, and junk, a quarter of
20,000 rows, whose labels are random. Two pools: junk in 4 components of its own, or junk spread over the good
components. Quality is 1 for good rows and 0 for junk, flipped for 30 % of all rows. 400 rows are chosen with
48 clusters, logistic regression learns on them; the test rows are spread evenly over the good components.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from _claim import count, difference, over_seeds, save, says, summary
from sklearn.linear_model import LogisticRegression

from tunesmith.select import KMeansSelector, RandomSelector

SEEDS = range(10)
# Random selection reaches about 80 % with it, as in the calibration this follows. Settled with random selection alone
# on seeds 100 to 103, but after a full run with a first value, where it reached 40 % and 7 of 10 comparisons held.
SPREAD = 1.5
ROWS, BUDGET, CLUSTERS, GOOD, JUNK, CLASSES, COLUMNS = 20_000, 400, 48, 20, 4, 8, 32


def make_pool(seed: int, inside: bool) -> dict[str, Any]:
    """Rows, labels, quality, which rows are junk, and clean test rows."""
    rng = np.random.default_rng([seed, inside])
    centers = SPREAD * rng.normal(size=(GOOD + JUNK, COLUMNS))
    of_class = rng.permutation(np.arange(GOOD) % CLASSES)
    weights = 1 / np.arange(1, GOOD + 1)
    junk = np.arange(ROWS) < ROWS // 4
    component = rng.choice(GOOD, ROWS, p=weights / weights.sum())
    if not inside:
        component[junk] = rng.integers(GOOD, GOOD + JUNK, junk.sum())
    X = centers[component] + rng.normal(size=(ROWS, COLUMNS))
    y = np.where(junk, rng.integers(0, CLASSES, ROWS), of_class[np.minimum(component, GOOD - 1)])
    quality = np.where(rng.random(ROWS) < 0.3, junk, ~junk).astype(float)
    even = np.repeat(np.arange(GOOD), 200)
    test = centers[even] + rng.normal(size=(len(even), COLUMNS))
    return {
        "X": X.astype(np.float32),
        "y": y,
        "quality": quality,
        "junk": junk,
        "test": (test, of_class[even]),
    }


def run(seed: int, inside: bool) -> dict[str, dict[str, float]]:
    """One seed: all arms on one pool."""
    pool = make_pool(seed, inside)
    X, quality = pool["X"], pool["quality"]
    labels = KMeansSelector(CLUSTERS, sampling="random", normalise=False, random_state=seed).fit(X).labels_

    def clustered(sampling: str, allocation: str) -> Any:
        selector = KMeansSelector(
            sampling=sampling,
            allocation=allocation,
            normalise=False,
            random_state=seed,  # type: ignore[arg-type]
        )
        return selector.fit(X, quality=quality, labels=labels).select(BUDGET)

    best_first = np.lexsort((np.random.default_rng(seed).random(ROWS), -quality))
    picks = {
        "random": RandomSelector(random_state=seed).fit(X).select(BUDGET),
        "top quality": best_first[:BUDGET],
        "kM-Random": clustered("random", "proportional"),
        "kM-Closest": clustered("closest", "proportional"),
        "kMQ": clustered("quality", "proportional"),
        "kM-Random, equal counts": clustered("random", "equal"),
        "kMQ, equal counts": clustered("quality", "equal"),
    }
    results = {}
    for arm, chosen in picks.items():
        learner = LogisticRegression(max_iter=1000).fit(X[chosen], pool["y"][chosen])
        results[arm] = {"accuracy": learner.score(*pool["test"]), "junk": pool["junk"][chosen].mean()}
    return results


def main() -> None:
    """Run both pools over ten seeds and write docs/claims/kmeans-iterative.json."""
    apart, inside = (over_seeds(lambda s: run(s, where), SEEDS) for where in (False, True))  # noqa: B023
    pairs = [
        ("kM-Random", "random"),
        ("kMQ", "kM-Random"),
        ("kMQ", "random"),
        ("kM-Random, equal counts", "random"),
        ("kMQ, equal counts", "kM-Random, equal counts"),
    ]
    by_pool = [[difference(found["accuracy"], *pair) for pair in pairs] for found in (apart, inside)]
    holds = all(rows[0]["low"] > 0 and rows[1]["low"] > 0 for rows in by_pool)
    save(
        "kmeans-iterative",
        {
            "title": "kM-Random and kMQ on a mixture with junk",
            "claim": "Sampling inside k-means clusters beats random sampling, and drawing by quality inside "
            "them (kMQ) beats drawing at random.",
            "verdict": f"{count(by_pool[0] + by_pool[1])}. Junk in components of its own: "
            + "; ".join(says(interval) for interval in by_pool[0])
            + ". Junk inside good components: "
            + "; ".join(says(interval) for interval in by_pool[1])
            + ". The iterative form has a run of its own (kmeans-iterative-rounds).",
            "holds": holds,
            "setting": " ".join((__doc__ or "").split("\n\n")[2].split()),
            "seeds": list(SEEDS),
            "arms": summary(apart["accuracy"]),
            "junk_share": summary(apart["junk"]),
            "arms_with_junk_inside": summary(inside["accuracy"]),
            "junk_share_with_junk_inside": summary(inside["junk"]),
            "intervals": by_pool[0],
            "intervals_with_junk_inside": by_pool[1],
            "command": "python benchmarks/claims/kmeans_iterative.py",
        },
    )


if __name__ == "__main__":
    main()
