"""What a quality score can see in the demo's pool, and what the selectors pick from it.

    python benchmarks/demo_pool.py        (about four minutes on two cores; a minute when the scores are cached)

Quality is 1 - IFD under the untuned demo model. First, for reasoning families that could be asked, how well IFD
tells an answer that belongs to another row from the right one (16 rows each way). Then the same for the pool that
the quickstart uses, and the composition of the picks of its three selectors. The column ``defect`` that tells sound
rows from others is read after the choice.
"""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
from datasets import Dataset
from sklearn.metrics import roc_auc_score

from _common import machine, save, versions
from tunesmith import methods
from tunesmith.data import Pool, demo
from tunesmith.data.demo.mess import corrupt
from tunesmith.data.demo.reasoning import FAMILIES, make_tasks

MODEL, ROWS, SEEDS = "smollm2-135m-instruct", 16, range(5)
OTHERS: dict[str, dict[str, Any]] = {
    "chain_sum": {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 1},
    "products": {"min_digits": 1, "max_digits": 1},
    "letter_counting": {"min_words": 3, "max_words": 5},
    "syllogism": {},
    "gcd": {"max_value": 60},
    "lcm": {"min_value": 2, "max_value": 20},
    "spell_backward": {"min_word_len": 3, "max_word_len": 5},
    "family_relationships": {"min_family_size": 4, "max_family_size": 4},
    "complex_arithmetic": {},
    "prime_factorization": {"max_value": 99},
    "simple_equations": {},
    "count_bits": {"max_n": 63},
    "basic_arithmetic": {"max_terms": 2, "max_digits": 1},
    "base_conversion": {},
    "time_intervals": {},
    "rotate_matrix": {"min_n": 2, "max_n": 2},
}


def candidates() -> list[dict[str, Any]]:
    """One line per family: the AUC of IFD between right and foreign answers."""
    items, names, wrong = [], [], []
    for name, options in (FAMILIES | OTHERS).items():
        tasks = make_tasks(name, 3 * ROWS, 7, options)
        bad = corrupt(tasks[: 2 * ROWS], ROWS, Random(0))
        spoiled = {item.question for item in bad}
        good = [item for item in tasks if item.question not in spoiled][:ROWS]
        items += [*good, *bad]
        names += [name] * (len(good) + len(bad))
        wrong += [False] * len(good) + [True] * len(bad)
    rows = [item.row() | {"_row": i, "_source": "candidates"} for i, item in enumerate(items)]
    ifd = np.asarray(Pool(Dataset.from_list(rows), scorer=MODEL).feature("ifd"))
    found = []
    for name in FAMILIES | OTHERS:
        at = np.array([other == name for other in names])
        found.append(
            {
                "family": name,
                "AUC": round(roc_auc_score(np.array(wrong)[at], ifd[at]), 2),
                "characters": round(
                    np.mean([len(item.question) for item, mine in zip(items, at, strict=True) if mine])
                ),
                "in the demo": name in FAMILIES,
            }
        )
    return sorted(found, key=lambda row: -row["AUC"])


def visible(rows: Dataset, ifd: Any) -> list[dict[str, Any]]:
    """AUC and medians of IFD for each way in which a row of the pool can be spoiled."""
    defect, family = np.array(rows["defect"]), np.array(rows["family"])
    sound, call = np.isin(defect, ["none", "duplicate"]), family == "function_call"
    pairs = {
        "corrupted function calls": (sound & call, (defect == "corrupted") & call),
        "corrupted reasoning rows": (sound & ~call, (defect == "corrupted") & ~call),
        "all corrupted rows": (sound, defect == "corrupted"),
        "off-topic rows": (sound, defect == "off_topic"),
    }
    return [
        {
            "told apart from sound rows": name,
            "rows": int(bad.sum()),
            "AUC": round(roc_auc_score(bad[good | bad], ifd[good | bad]), 2),
            "median IFD, sound": round(float(np.median(ifd[good])), 2),
            "median IFD, spoiled": round(float(np.median(ifd[bad])), 2),
        }
        for name, (good, bad) in pairs.items()
    ]


def picks(rows: Dataset, pool: Pool) -> list[dict[str, Any]]:
    """What 40 picks of each selector consist of, means over seeds where it draws."""
    defect, family = np.array(rows["defect"]), np.array(rows["family"])
    tasks = np.array(rows["task"])
    arms: dict[str, list[Any]] = {"quality alone": [np.argsort(-pool.feature("quality"), kind="stable")[:40]]}
    for name in ("random", "kmeans", "mig"):
        for seed in SEEDS:
            selector = methods.create(f"select.{name}")
            if "random_state" in selector.get_params():
                selector.set_params(random_state=seed)
            arms.setdefault(name, []).append(pool.fit(selector).select(40))
    return [
        {"picked by": name} | _mean([_count(at, defect, family, tasks) for at in runs])
        for name, runs in arms.items()
    ]


def _count(at: Any, defect: Any, family: Any, tasks: Any) -> dict[str, float]:
    sound = at[np.isin(defect[at], ["none", "duplicate"])]
    return {
        "corrupted": (defect[at] == "corrupted").sum(),
        "off topic": (defect[at] == "off_topic").sum(),
        "sound": len(sound),
        "different sound": len(np.unique(tasks[sound])),
        "sound calls": (family[sound] == "function_call").sum(),
        "kinds of task (of 9)": len(np.unique(family[sound])),
    }


def _mean(runs: list[dict[str, float]]) -> dict[str, float]:
    return {key: round(float(np.mean([run[key] for run in runs])), 1) for key in runs[0]}


def main() -> None:
    """Score, print and save."""
    rows = demo.load("messy")
    pool = Pool(rows, scorer=MODEL)
    ifd = np.asarray(pool.feature("ifd"))
    save(
        "benchmarks",
        "demo-pool",
        {
            "title": "The demo's pool: what quality can see, and what is picked",
            "summary": "IFD is the perplexity of an answer given its question over that of the answer alone, under the "
            "untuned demo model; an AUC of 0.5 means that it cannot tell an answer of another row from the right one. "
            "Picks: 40 of the pool's 400 rows, means over five seeds of the selector.",
            "command": "python benchmarks/demo_pool.py",
            "candidate families": candidates(),
            "pool": visible(rows, ifd),
            "picks": picks(rows, pool),
            "machine": machine(),
            "versions": versions("torch", "transformers", "reasoning-gym", "bfcl-eval"),
        },
    )


if __name__ == "__main__":
    main()
