"""The claim of CLEAR at small scale: dropping and repairing rows that the model doubts beats training on all of them.

    python benchmarks/claims/clear.py

scikit-learn's digits, 1,000 training and 797 test rows, 20 % of the training labels flipped to another digit. The
"language model" is a logistic regression fitted out of fold (five folds) on the noisy labels: it samples answers from
its probabilities, calls two answers contradictory if they differ, finds a given label correct above a probability of
2/3 and incorrect below 1/3, and judges between two labels by their probabilities. Auto-Filter keeps rows above the
median confidence, or drops a fifth (the true share of wrong labels). Auto-Correct takes candidates from the regression
fitted on the filtered rows. The same regression is then fitted on what each arm leaves.
"""

from __future__ import annotations

import re
import warnings
from typing import Any

import numpy as np
from _claim import count, difference, over_seeds, save, says, summary
from datasets import Dataset, disable_progress_bars
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import KFold, cross_val_predict

from tunesmith.curate import AutoCorrect, AutoFilter

SEEDS = range(12)
TRAIN, NOISE = 1000, 0.2
ALL, CLEAN, HALF, FIFTH = "all noisy rows", "all rows, right labels", "random half", "random four fifths"
FILTER, CORRECT = "Auto-Filter at {}", "Auto-Filter and Auto-Correct at {}"
RULES = {"the median": "median", "20 %": "20%"}


class Regression:
    """Answers about row i from ``p[i]``, the probabilities of its ten labels."""

    def __init__(self, p: NDArray[np.float64]) -> None:
        self.p = p

    def __call__(self, chats: Any, *, temperature: float, max_new_tokens: int, seeds: Any) -> list[str]:
        return [self.reply(chat, temperature, seed) for chat, seed in zip(chats, seeds, strict=True)]

    def reply(self, chat: Any, temperature: float, seed: int) -> str:
        text = chat[0]["content"]
        p = self.p[int(re.findall(r"image (\d+)", text)[0])]
        said = [int(d) for d in re.findall(r"(?:Proposed answer|Answer [12]):\n(\d)", text)]
        rng = np.random.default_rng(seed)
        if not said:  # asked for the label itself
            return f"Answer: {rng.choice(10, p=p)}" if temperature else str(p.argmax())
        if len(said) == 1:  # is it correct?
            return choice(p[said[0]])
        first = p[said[0]] / max(p[said].sum(), 1e-12)
        if len(chat) == 1:  # which is better?
            return "(A)" if (rng.random() < first if temperature else first > 0.5) else "(B)"
        return choice(first if "answer 1 is better" in chat[2]["content"] else 1 - first)


def choice(p: float) -> str:
    return "(A)" if p > 2 / 3 else "(B)" if p < 1 / 3 else "(C)"


def differ(premises: list[str], hypotheses: list[str]) -> list[float]:
    return [float(a != b) for a, b in zip(premises, hypotheses, strict=True)]


def fitted(X: NDArray[np.float64], y: NDArray[np.int64]) -> LogisticRegression:
    return LogisticRegression(max_iter=300).fit(X, y)


def run(seed: int) -> dict[str, dict[str, float]]:
    """One seed: all arms on one split and one set of flips."""
    X, truth = load_digits(return_X_y=True)
    X = X / 16
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(X))
    train, test = order[:TRAIN], order[TRAIN:]
    flipped = rng.random(TRAIN) < NOISE
    y = np.where(flipped, (truth[train] + rng.integers(1, 10, TRAIN)) % 10, truth[train])
    folds = KFold(5, shuffle=True, random_state=seed)
    p = cross_val_predict(LogisticRegression(max_iter=300), X[train], y, cv=folds, method="predict_proba")
    llm = Regression(p / p.sum(axis=1, keepdims=True))
    rows = Dataset.from_dict(
        {
            "prompt": [f"Which digit is image {i}?" for i in range(TRAIN)],
            "completion": [str(label) for label in y],
            "row": list(range(TRAIN)),
        }
    )

    def score(kept: Any, labels: Any) -> float:
        return float(fitted(X[train][kept], np.asarray(labels)).score(X[test], truth[test]))

    half = rng.choice(TRAIN, TRAIN // 2, replace=False)
    four = rng.choice(TRAIN, TRAIN * 4 // 5, replace=False)
    results = {
        ALL: {"accuracy": score(np.arange(TRAIN), y)},
        CLEAN: {"accuracy": score(np.arange(TRAIN), truth[train])},
        HALF: {"accuracy": score(half, y[half])},
        FIFTH: {"accuracy": score(four, y[four])},
    }
    for name, rule in RULES.items():
        options: dict[str, Any] = {"threshold": rule, "nli": differ, "random_state": seed}
        method = AutoFilter(llm, **options)
        out = method.fit_transform(rows)
        kept = np.array(out["row"][:])
        same_size = rng.choice(TRAIN, len(kept), replace=False)
        results[FILTER.format(name)] = {
            "accuracy": score(kept, y[kept]),
            "same size": score(same_size, y[same_size]),
            "kept": len(kept) / TRAIN,
            "clean": float(1 - flipped[kept].mean()),
        }
        if name == "the median":
            for part in ("confidence", "observed", "reflection"):
                auroc = roc_auc_score(~flipped, getattr(method, f"{part}_"))
                results.setdefault("detector", {})[part] = float(auroc)
        tuned = Regression(np.eye(10)[fitted(X[train][kept], y[kept]).predict(X[train])])
        method = AutoCorrect(llm, candidate=tuned, **options)
        out = method.fit_transform(rows)
        kept, labels = np.array(out["row"][:]), np.array([int(text) for text in out["completion"][:]])
        new = np.array([action == "replace" for action in out["clear_action"][:]])
        results[CORRECT.format(name)] = {
            "accuracy": score(kept, labels),
            "replaced": float(new.sum()) / TRAIN,
            "right": float((labels[new] == truth[train][kept[new]]).mean()) if new.any() else float("nan"),
        }
    return results


def main() -> None:
    """Run twelve seeds and write docs/claims/clear.json."""
    warnings.simplefilter("ignore")
    disable_progress_bars()
    found = over_seeds(run, SEEDS)
    accuracy = found["accuracy"]
    arms = [template.format(name) for name in RULES for template in (FILTER, CORRECT)]
    against_all = [difference(accuracy, arm, ALL) for arm in arms]
    sizes = []
    for name in RULES:
        arm, other = FILTER.format(name), f"random rows as many as {FILTER.format(name)}"
        sizes.append(difference({**accuracy, other: found["same size"][arm]}, arm, other))
    auroc = {
        part: float(np.mean(found[part]["detector"])) for part in ("confidence", "observed", "reflection")
    }
    kept = {
        name: {
            "kept": round(float(np.mean(found["kept"][FILTER.format(name)])), 3),
            "clean among kept": round(float(np.mean(found["clean"][FILTER.format(name)])), 4),
            "replaced": round(float(np.mean(found["replaced"][CORRECT.format(name)])), 3),
            "right among replaced": round(float(np.mean(found["right"][CORRECT.format(name)])), 3),
        }
        for name in RULES
    }
    intervals = [*against_all, *sizes]
    save(
        "clear",
        {
            "title": "CLEAR on digits",
            "claim": "Training on the rows whose labels the model is confident of, and on those with wrong labels "
            "replaced, beats training on all rows and on as many random rows.",
            "verdict": f"{count(intervals)}. "
            + "; ".join(says(interval) for interval in intervals)
            + f". The confidence finds flipped labels with an AUROC of {auroc['confidence']:.3f} (consistency alone "
            f"{auroc['observed']:.3f}, reflection alone {auroc['reflection']:.3f}). "
            + "; ".join(
                f"{'At' if name == 'the median' else 'at'} {name} {facts['kept']:.0%} of the rows are kept, "
                f"{facts['clean among kept']:.1%} of them clean, "
                f"and {facts['replaced']:.0%} replaced, {facts['right among replaced']:.0%} of these rightly"
                for name, facts in kept.items()
            )
            + ".",
            "holds": all(interval["low"] > 0 for interval in intervals),
            "setting": " ".join((__doc__ or "").split("\n\n")[2].split()),
            "seeds": list(SEEDS),
            "arms": summary(accuracy),
            "auroc": {part: round(value, 4) for part, value in auroc.items()},
            "rows": kept,
            "intervals": intervals,
            "command": "python benchmarks/claims/clear.py",
        },
    )


if __name__ == "__main__":
    main()
