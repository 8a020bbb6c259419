"""All selectors on one messy pool: what they pick, and what a model learns from it.

    python benchmarks/selection.py [seeds]        (default 10; about two minutes)

scikit-learn's digits, so that a learner can be trained hundreds of times in minutes. Skills are 40 groups of the
images, of Zipf-distributed sizes in the pool, so that most are rare. A quarter of the pool's rows is junk, half
of it with another class, half with scrambled pixels; a quarter are near-copies of a few rows. The test is spread
evenly over the skills, and so are 100 rows that selectors with a target see.

What selectors see is what a pool of text would give them, from a weak model (logistic regression on 100 random
rows of the pool, labels as they come): the perplexity of a row's label, its ratio to the label's perplexity
without the image (IFD), quality = 1 - IFD clipped to [0, 1], and clusters at two granularities as tags. The
learner is logistic regression; its loss on the test is in nats.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression

from _common import machine, save, versions
from tunesmith import methods
from tunesmith.metrics.bootstrap import paired_bootstrap
from tunesmith.numerics import kmeans

SKILLS, BUDGETS = 40, (40, 100, 200)
ORIGINALS, JUNK, COPIES, TARGET = 400, 200, 200, 100
HELD_OUT, CLUSTERS, GRANULARITIES = 0.5, 30, (7, 45)
Array = NDArray[Any]


def make(seed: int) -> dict[str, Any]:
    """The pool with everything that selectors may see, the test rows, and what is what."""
    rng = np.random.default_rng(seed)
    X, y = load_digits(return_X_y=True)
    X = X / 16
    skill = KMeans(SKILLS, n_init=1, random_state=seed).fit_predict(X)
    held = rng.random(len(X)) < HELD_OUT
    rank = rng.permutation(SKILLS)
    weight = np.where(held, 0, 1 / (1 + rank[skill]))
    rows = rng.choice(len(X), ORIGINALS + JUNK, replace=False, p=weight / weight.sum())
    few = rng.choice(ORIGINALS // 10, COPIES)
    pool = np.concatenate([rows, rows[few]])
    pixels, labels = X[pool].copy(), y[pool].copy()
    kind = np.repeat(["sound", "junk", "copy"], [ORIGINALS, JUNK, COPIES])
    wrong, scrambled = np.split(np.flatnonzero(kind == "junk"), 2)
    labels[wrong] = (labels[wrong] + rng.integers(1, 10, len(wrong))) % 10
    pixels[scrambled] = rng.permuted(pixels[scrambled], axis=1)
    pixels[kind == "copy"] += 0.03 * rng.standard_normal((COPIES, X.shape[1]))
    origin = np.concatenate([np.arange(ORIGINALS + JUNK), few])

    even = 1 / np.bincount(skill[held], minlength=SKILLS)[skill[held]]
    fresh = rng.choice(np.flatnonzero(held), 100 + 500, replace=False, p=even / even.sum())
    target, test = np.split(fresh, [TARGET])

    weak = LogisticRegression(max_iter=300).fit(*_some(pixels, labels, 100, rng))
    log_p = np.log(np.maximum(weak.predict_proba(pixels), 1e-12))
    own = np.full((len(pool), 10), np.log(1e-12))
    own[:, weak.classes_] = log_p
    prior = np.bincount(labels, minlength=10) / len(labels)
    nll = -own[np.arange(len(pool)), labels]
    perplexity = np.exp(nll)
    ifd = perplexity * prior[labels]
    embedding = pixels.astype(np.float32)
    found = {k: kmeans(embedding, k, random_state=seed) for k in GRANULARITIES}
    vectors = {f"c{k}:{c}": centre for k, result in found.items() for c, centre in enumerate(result.centers)}
    return {
        "features": {
            "embedding": embedding,
            "target_embedding": X[target].astype(np.float32),
            "perplexity": perplexity,
            "ifd": ifd,
            "quality": np.clip(1 - ifd, 0, 1),
            "tags": [[f"c{k}:{found[k].labels[i]}" for k in GRANULARITIES] for i in range(len(pool))],
            "label_embeddings": vectors,
        },
        "X": pixels,
        "y": labels,
        "kind": kind,
        "origin": origin,
        "skill": skill[pool],
        "test": (X[test], y[test]),
    }


def _some(X: Array, y: Array, n: int, rng: np.random.Generator) -> tuple[Array, Array]:
    rows = rng.permutation(len(X))[:n]
    return X[rows], y[rows]


def choose(name: str, pool: dict[str, Any], budget: int, seed: int) -> Array:
    """Let one selector choose."""
    features = pool["features"]
    if name == "top quality":
        return np.argsort(-features["quality"], kind="stable")[:budget]
    if name == "all rows":
        return np.arange(len(pool["y"]))
    selector = methods.create(name)
    parameters = selector.get_params()
    if "random_state" in parameters:
        selector.set_params(random_state=seed)
    if "n_clusters" in parameters:
        selector.set_params(n_clusters=CLUSTERS)
    if "feedback" in parameters:
        selector.set_params(feedback=lambda rows, _: _feedback(pool, rows))
    given = {key: features[key] for key in selector.requires if key != "embedding"}
    return np.asarray(selector.fit(features["embedding"], **given).select(budget))


def _feedback(pool: dict[str, Any], rows: Array) -> Array:
    """How much the learner of the rows so far prefers a row's label to its own answer: 0 or less."""
    learner, X, y = _learn(pool, rows), pool["X"][rows], pool["y"][rows]
    log_p = np.log(np.maximum(learner.predict_proba(X), 1e-12))
    return np.asarray(log_p[np.arange(len(rows)), np.searchsorted(learner.classes_, y)] - log_p.max(axis=1))


def _learn(pool: dict[str, Any], rows: Array) -> Any:
    X, y = pool["X"][rows], pool["y"][rows]
    one_class = len(np.unique(y)) == 1  # some selectors pick a single class of a small budget
    return (DummyClassifier() if one_class else LogisticRegression(max_iter=300)).fit(X, y)


def judge(pool: dict[str, Any], rows: Array) -> dict[str, float]:
    """What was picked, and what a model learns from it."""
    X, y = pool["test"]
    learner = _learn(pool, rows)
    p = np.full((len(y), 10), 1e-3)  # a class that was never seen is given a chance in a thousand
    p[:, learner.classes_] = np.maximum(learner.predict_proba(X), 1e-3)
    p /= p.sum(axis=1, keepdims=True)
    sound = rows[pool["kind"][rows] != "junk"]
    return {
        "loss": float(-np.log(p[np.arange(len(y)), y]).mean()),
        "accuracy": float((p.argmax(axis=1) == y).mean()),
        "junk": 1 - len(sound) / len(rows),
        "repeated": 1 - len(np.unique(pool["origin"][rows])) / len(rows),
        "coverage": len(np.unique(pool["skill"][sound])) / len(np.unique(pool["skill"])),
    }


def main() -> None:
    """Run all, print and save docs/benchmarks/selection.json."""
    seeds = range(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
    arms = [*methods.names("select.*"), "top quality", "all rows"]
    found: dict[tuple[int, str], list[dict[str, float]]] = {}
    for seed in seeds:
        pool = make(seed)
        for budget in BUDGETS:
            for arm in arms:
                begin = time.process_time()
                rows = choose(arm, pool, budget, seed)
                seconds = time.process_time() - begin
                found.setdefault((budget, arm), []).append(judge(pool, rows) | {"seconds": seconds})
    table = [_line(budget, arm, found) for budget, arm in found]
    better = {
        budget: [
            row["selector"] for row in table if row["budget"] == budget and row["loss - random, high"] < 0
        ]
        for budget in BUDGETS
    }
    for row in table:
        print(*row.values(), sep="\t")
    save(
        "benchmarks",
        "selection",
        {
            "title": "Which rows each selector picks, and what a model learns from them",
            "summary": "Digits with planted junk (25 %), near-copies (25 %) and rare skills; means over "
            f"{len(seeds)} seeds. Loss is that of a learner on an even test; its difference to random selection comes "
            "with a 95 % interval, paired by seed. Junk and repeated are shares of the picks, coverage is the share "
            "of skills with at least one sound pick. 'all rows' trains on the whole pool and 'top quality' takes "
            "the best scores; neither is a method of the catalogue. Seconds are the processor's.",
            "verdict": "; ".join(
                f"at {budget} rows better than random in loss: "
                + (", ".join(name for name in names if name != "all rows") or "none")
                for budget, names in better.items()
            ),
            "command": "python benchmarks/selection.py",
            "table": table,
            "seeds": len(seeds),
            "pool_rows": ORIGINALS + JUNK + COPIES,
            "machine": machine(),
            "versions": versions("numpy", "scipy", "scikit-learn"),
        },
    )


def _line(budget: int, arm: str, found: dict[tuple[int, str], list[dict[str, float]]]) -> dict[str, Any]:
    runs, chance = found[budget, arm], found[budget, "select.random"]
    mean = {key: round(float(np.mean([run[key] for run in runs])), 3) for key in runs[0]}
    gap = paired_bootstrap([run["loss"] for run in runs], [run["loss"] for run in chance])
    return {
        "budget": budget,
        "selector": arm.removeprefix("select."),
        **mean,
        "loss - random": round(gap["delta"], 3),
        "loss - random, low": round(gap["low"], 3),
        "loss - random, high": round(gap["high"], 3),
    }


if __name__ == "__main__":
    main()
