"""The claim of S3FT on a small model of characters: gold answers in a terse style against targets in its own words.

    python benchmarks/claims/s3ft.py        (about 10 minutes; run again until done)

A Llama of 2 layers of width 64 learns for 600 steps to add 0 to 19 in full sentences, to restate a reference of any of
four styles, and four tasks on strings. Then 500 additions with gold answers ``===v===`` are learned by all weights, 150
steps of 32 rows at 1e-3, in every arm; the judge is the last number. 6 seeds, each with a base model and data of its
own; training rows and the 200 test additions are drawn from the same 400: most test additions were learned from.
RFT drops the rows without a right answer. Forgetting is measured on 200 string tasks and the base model's replies to
them.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from _claim import difference, save, sign, summary
from _parts import stretch
from _s3ft_characters import (
    MOST,
    STYLES,
    addition,
    batch_of,
    divergence,
    encoded,
    lesson,
    model,
    restated,
    string_task,
    tokenizer,
    train,
)
from datasets import Dataset

from tunesmith.engine import LocalLLM
from tunesmith.trainers import selective_self_targets, self_target_report
from tunesmith.trainers.s3ft import NumberMatch, target_nll

SEEDS = range(6)
PRE, STEPS, BATCH, ROWS, TEST = 600, 150, 32, 500, 200
ARMS = ("base", "SFT", "S3FT", "S3FT without paraphrase", "SDFT", "RFT")
TASK, OTHER, NLL, KL = (
    "task accuracy",
    "accuracy on other tasks",
    "NLL of the base's replies",
    "KL from the base",
)
FIT = "base NLL of the training set"


def replies(net: Any, tokens: Any, questions: list[str]) -> list[str]:
    """Greedy replies."""
    chats = [[{"role": "user", "content": question}] for question in questions]
    return [str(reply) for reply in LocalLLM(net, tokens, batch_size=256)(chats, max_new_tokens=40)]


def targets(net: Any, tokens: Any, rows: Dataset, arm: str) -> Dataset:
    """The rows that an arm trains on."""
    judge, llm = NumberMatch(), LocalLLM(net, tokens, batch_size=256)
    if arm == "SFT":  # the gold answers, in the same columns
        with warnings.catch_warnings(action="ignore"):
            return selective_self_targets(
                rows, lambda prompts: [""] * len(prompts), judge, paraphrase=False, chunk=ROWS
            )
    built = selective_self_targets(
        rows,
        llm,
        judge,
        paraphrase=restated if arm in ("S3FT", "SDFT") else False,
        predict=arm != "SDFT",
        max_new_tokens=40,
        chunk=ROWS,
    )
    return built.filter(lambda row: row["source"] == "model") if arm == "RFT" else built


def run(seed: int) -> dict[str, dict[str, Any]]:
    """Arm -> measure -> value."""
    torch.set_num_threads(1)
    tokens = tokenizer()
    rng = np.random.default_rng(seed)
    base = model(seed, tokens.eos_token_id)
    train(base, (batch_of([encoded(*lesson(rng)) for _ in range(64)]) for _ in range(PRE)), PRE, 3e-3)
    test, drawn = (rng.integers(0, MOST + 1, (n, 2)).tolist() for n in (TEST, ROWS))
    golds = [STYLES[0].format(a + b) for a, b in drawn]
    data = Dataset.from_dict({"prompt": [addition(a, b)[0] for a, b in drawn], "completion": golds})
    others = [string_task(rng) for _ in range(TEST)]
    written = replies(base, tokens, [question for question, _ in others])
    neutral = batch_of([encoded(q, r) for (q, _), r in zip(others, written, strict=True)])
    order = np.random.default_rng(seed + 1000).integers(0, 10**9, (STEPS, BATCH))
    found: dict[str, dict[str, Any]] = {}
    for arm in ARMS:
        net = copy.deepcopy(base)
        measures: dict[str, Any] = {}
        if arm != "base":
            built = targets(base, tokens, data, arm)
            fit = target_nll(built, base, tokens, batch_size=256)
            measures |= {FIT: fit["mean_target"], "rows": len(built)}
            if arm == "S3FT":
                measures |= self_target_report(built).sources
                measures["own answers likelier than gold"] = fit["below_gold"]
            chosen = [encoded(q, t) for q, t in zip(built["prompt"], built["completion"], strict=True)]

            def batches(rows: list[Any] = chosen) -> Iterator[dict[str, torch.Tensor]]:
                return (batch_of([rows[i % len(rows)] for i in step]) for step in order)

            torch.manual_seed(seed)
            train(net, batches(), STEPS, 1e-3)
        judge = NumberMatch()
        said = replies(net, tokens, [addition(a, b)[0] for a, b in test])
        right = [judge("", text, str(a + b), {}) for text, (a, b) in zip(said, test, strict=True)]
        again = replies(net, tokens, [question for question, _ in others])
        kl, nll = divergence(base, net, neutral)
        measures |= {TASK: float(np.mean(right)), NLL: nll, KL: kl}
        measures[OTHER] = float(np.mean([r == a for r, (_, a) in zip(again, others, strict=True)]))
        found[arm] = measures
    return found


def main() -> None:
    """Run what is missing and write docs/claims/s3ft.json."""
    runs = list(stretch("s3ft", [str(s) for s in SEEDS], lambda s: run(int(s)), limit_s=400).values())

    def by_arm(measure: str) -> dict[str, list[float]]:
        return {arm: [one[arm][measure] for one in runs] for arm in ARMS if measure in runs[0][arm]}

    tables = {measure: by_arm(measure) for measure in (TASK, OTHER, NLL, KL, FIT)}
    intervals = [
        {"measure": measure, **difference(tables[measure], "S3FT", other)}
        for measure in (TASK, OTHER, NLL, KL, FIT)
        for other in ARMS[1:]
        if other != "S3FT"
    ]
    by_name = {(row["measure"], row["baseline"]): row for row in intervals}

    def clause(measure: str, other: str, points: bool) -> str:
        row = by_name[measure, other]
        low, mid, high = ((100 if points else 1) * row[key] for key in ("low", "delta", "high"))
        numbers = (
            f"{mid:+.1f} points, {low:+.1f} to {high:+.1f}"
            if points
            else f"{mid:+.2f}, {low:+.2f} to {high:+.2f}"
        )
        lower = {"better than": "above", "worse than": "below"}.get(sign(row), sign(row))
        return f"{measure} {sign(row) if points else lower} {other} ({numbers})"

    shares = {
        source: round(float(np.mean([one["S3FT"][source] / ROWS for one in runs])), 3)
        for source in ("model", "paraphrase", "gold")
    }
    claimed = [by_name[TASK, "SFT"]["low"] > 0, *(by_name[m, "SFT"]["high"] < 0 for m in (NLL, KL, FIT))]
    arms = "; ".join(clause(TASK, other, True) for other in ARMS[1:] if other != "S3FT")
    drift = "; ".join(clause(measure, "SFT", False) for measure in (NLL, KL, FIT))
    save(
        "s3ft",
        {
            "title": "S3FT on additions in a terse style",
            "claim": "Targets that the model itself would say, where they are right, teach the task better than gold "
            "answers and cost less of what the model could do before.",
            "verdict": f"S3FT against the other arms: {arms}. It changes the model less: {drift}. Targets of S3FT: "
            + ", ".join(f"{share:.0%} {source}" for source, share in shares.items())
            + f"; {np.mean([one['S3FT']['own answers likelier than gold'] for one in runs]):.1%} of the model's own "
            "answers are likelier to it than their gold answers.",
            "holds": all(claimed),
            "setting": " ".join(" ".join((__doc__ or "").split("\n\n")[2:]).split()),
            "seeds": list(SEEDS),
            "arms": summary(tables[TASK]),
            **{f"arms, {measure}": summary(values) for measure, values in tables.items() if measure != TASK},
            "targets of S3FT": shares,
            "rows of RFT": summary(by_arm("rows"))["RFT"],
            "intervals": intervals,
            "command": "python benchmarks/claims/s3ft.py",
        },
    )


if __name__ == "__main__":
    main()
