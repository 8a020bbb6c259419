"""Does a greedy soup of models, one per candidate dataset, beat the best of them? (The filter of POINTS has
no claim yet.)

    python benchmarks/claims/points.py [seeds]        (default 10)

scikit-learn's digits, a 64-64-10 perceptron. It is pre-trained on 150 rows; then one copy per candidate is
tuned on 150 base rows plus the candidate: five candidates hold 60 rows of two classes each, one holds 60 rows
with random labels. Scores for choosing are on 300 validation rows, the figures on all remaining rows.
Control: the same six tunings from six different random starts, averaged.
"""

from __future__ import annotations

import copy
import sys
from typing import Any

import numpy as np
import torch
from _claim import difference, over_seeds, save, says, summary
from sklearn.datasets import load_digits

from tunesmith.merge import soup

BASE, CANDIDATE, VALIDATION, STEPS, TUNE_STEPS = 150, 60, 300, 200, 100


def network(seed: int) -> Any:
    """The perceptron; equal seeds give equal weights."""
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))


def train(model: Any, x: Any, y: Any, steps: int) -> Any:
    """Full-batch Adam, so that nothing but the rows and the start differs."""
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(steps):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimiser.step()
    return model


def run(seed: int) -> dict[str, dict[str, float]]:
    """One seed: six members, their soups, and the control."""
    rng = np.random.default_rng(seed)
    pixels, target = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(target)
    first, base, checked, rest = np.split(rng.permutation(len(y)), np.cumsum([BASE, BASE, VALIDATION]))
    pool, test = rest[: len(rest) // 2], rest[len(rest) // 2 :]
    classes = rng.permutation(10)
    tasks = []
    for i in range(6):
        mine = pool[np.isin(target[pool], classes[2 * i : 2 * i + 2])] if i < 5 else pool
        rows = np.concatenate([base, rng.choice(mine, CANDIDATE, replace=False)])
        labels = y[rows].clone()
        if i == 5:
            labels[BASE:] = torch.from_numpy(rng.integers(0, 10, CANDIDATE))
        tasks.append((x[rows], labels))

    def accuracy(model: Any, rows: Any) -> float:
        with torch.no_grad():
            return float((model(x[rows]).argmax(1) == y[rows]).double().mean())

    def check(model: Any) -> float:
        return accuracy(model, checked)

    start = train(network(seed), x[first], y[first], STEPS)
    members = [train(copy.deepcopy(start), *task, TUNE_STEPS) for task in tasks]
    strangers = [
        train(train(network(1000 * seed + i + 1), x[first], y[first], STEPS), *task, TUNE_STEPS)
        for i, task in enumerate(tasks)
    ]
    into = network(0)
    arms = {"start": start, "best member by validation": max(members, key=check)}
    for name, models, options in (
        ("average soup", members, {}),
        ("maximum soup, 3 members", members, {"method": "maximum", "members": 3, "score": check}),
        ("greedy soup", members, {"method": "greedy", "score": check}),
        ("average of different starts", strangers, {}),
    ):
        arms[name] = copy.deepcopy(into)
        soup(models, into=arms[name], **options)  # type: ignore[arg-type]
    found = {name: {"test": accuracy(m, test), "validation": check(m)} for name, m in arms.items()}
    for name, models in (("mean member", members), ("mean member, different starts", strangers)):
        found[name] = {
            "test": float(np.mean([accuracy(m, test) for m in models])),
            "validation": float(np.mean([check(m) for m in models])),
        }
    return found


def main() -> None:
    """Run all seeds and write docs/claims/points.json."""
    torch.set_num_threads(1)
    seeds = range(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
    found = over_seeds(run, seeds)
    best = "best member by validation"
    pairs = [
        ("greedy soup", best),
        ("maximum soup, 3 members", best),
        ("average soup", best),
        ("greedy soup", "average soup"),
        ("average of different starts", "mean member, different starts"),
    ]
    intervals = [difference(found["test"], *pair) for pair in pairs]
    save(
        "points",
        {
            "title": "POINTS: model soup over candidate datasets",
            "claim": "A greedy soup of models tuned on different datasets beats the best of them, and the "
            "plain "
            "average too; averaging needs one common start.",
            "verdict": "On test rows: " + "; ".join(map(says, intervals)) + ".",
            "holds": bool(intervals[0]["low"] > 0 and intervals[3]["low"] > 0),
            "setting": " ".join((__doc__ or "").split("\n\n")[2].split()),
            "seeds": list(seeds),
            "arms": summary(found["test"]),
            "validation": summary(found["validation"]),
            "intervals": intervals,
            "command": "python benchmarks/claims/points.py",
        },
    )


if __name__ == "__main__":
    main()
