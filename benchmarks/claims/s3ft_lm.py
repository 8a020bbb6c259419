"""The claim of S3FT on the 135M demo model: word problems whose gold answers have a terse style.

    python benchmarks/claims/s3ft_lm.py        (about 25 minutes; run again until done)

Additions of numbers up to 49 as word problems, 96 to learn from and 64 for the test, gold answers ``===v===``; the
judge is the last number. LoRA of rank 8 on query and value, alpha 16, 18 steps of 8 rows at 1e-3, AdamW, the rate
falling by a cosine, in every arm; candidates are greedy, at most 48 tokens. Forgetting is measured on 24 general
questions and the base model's replies to them. 3 seeds, each with its own problems. RFT drops the rows without a right
answer.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from _claim import difference, save, says, summary
from _parts import RUNS, stretch
from _s3ft_characters import STYLES, batch_of, divergence, train
from datasets import Dataset

from tunesmith.data.templates import encode_messages
from tunesmith.engine import LocalLLM
from tunesmith.engine.models import load_model, load_tokenizer
from tunesmith.trainers import selective_self_targets
from tunesmith.trainers.s3ft import NumberMatch, target_nll

MODEL = "smollm2-135m-instruct"
SEEDS = range(3)
ROWS, TEST, STEPS, BATCH, NEW, MOST = 96, 64, 18, 8, 48, 49
ARMS = ("base", "SFT", "S3FT", "S3FT without paraphrase", "SDFT", "RFT")
TASK, NLL, KL, FIT = (
    "task accuracy",
    "NLL of the base's replies",
    "KL from the base",
    "base NLL of the training set",
)
STORIES = (
    "Tom has {a} apples and buys {b} more. How many apples does he have now?",
    "There are {a} birds in a tree. Then {b} birds join them. How many birds are in the tree?",
    "Anna read {a} pages on Monday and {b} pages on Tuesday. How many pages did she read in all?",
    "A shop sold {a} books in the morning and {b} in the afternoon. How many books did it sell?",
)
GENERAL = (
    "What is the capital of France?|Why is the sky blue?|Name three fruits.|What do bees make?|"
    "Write a short greeting for a friend.|What is water made of?|How do I boil an egg?|Name a large animal.|"
    "What is a mountain?|Give a tip for sleeping well.|What colour is grass?|What does a doctor do?|"
    "Describe the sea in one sentence.|What is a library?|Name two languages.|How can I save energy at home?|"
    "What is the sun?|Write a sentence about rain.|What do plants need?|Name a musical instrument.|"
    "What is bread made of?|Why do people exercise?|What is a river?|Give a reason to learn history."
)


def problems(seed: int) -> list[tuple[str, int]]:
    """Different problems with their sums."""
    rng = np.random.default_rng(seed)
    found: dict[str, int] = {}
    while len(found) < ROWS + TEST:
        a, b = (int(v) for v in rng.integers(2, MOST + 1, 2))
        found[STORIES[int(rng.integers(len(STORIES)))].format(a=a, b=b)] = a + b
    return list(found.items())


def targets(llm: LocalLLM, data: Dataset, arm: str, seed: int) -> Dataset:
    """The rows that an arm trains on; what the base model said comes from the first arm's folder."""
    with warnings.catch_warnings(action="ignore"):  # SFT takes no candidate
        built = selective_self_targets(
            data,
            llm if arm != "SFT" else lambda prompts: [""] * len(prompts),
            NumberMatch(),
            paraphrase=arm in ("S3FT", "SDFT"),
            predict=arm != "SDFT",
            max_new_tokens=NEW,
            folder=RUNS / f"s3ft-lm-{seed}" if arm != "SFT" else None,
        )
    return built.filter(lambda row: row["source"] == "model") if arm == "RFT" else built


def _encoded(pairs: Iterable[tuple[str, str]], tokens: Any) -> list[Any]:
    chats = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in pairs]
    return [encode_messages(chat, tokens) for chat in chats]


def run(job: str) -> dict[str, float]:
    """Measure -> value of one arm and seed."""
    from peft import LoraConfig, get_peft_model

    torch.set_num_threads(1)
    seed, arm = int(job.split(" ", 1)[0]), job.split(" ", 1)[1]
    tokens, base = load_tokenizer(MODEL), load_model(MODEL, device="cpu")
    learned, test = problems(seed)[:ROWS], problems(seed)[ROWS:]
    data = Dataset.from_dict(
        {"prompt": [q for q, _ in learned], "completion": [STYLES[0].format(v) for _, v in learned]}
    )
    questions = GENERAL.split("|")
    general = [[{"role": "user", "content": question}] for question in questions]
    written = LocalLLM(base, tokens)(general, max_new_tokens=NEW)
    neutral = batch_of(_encoded(zip(questions, map(str, written), strict=True), tokens))
    found: dict[str, float] = {}
    net: Any = base
    if arm != "base":
        built = targets(LocalLLM(base, tokens), data, arm, seed)
        found |= {FIT: target_nll(built, base, tokens, batch_size=8)["mean_target"], "rows": len(built)}
        found |= {
            source: built["source"][:].count(source) / ROWS for source in ("model", "paraphrase", "gold")
        }
        rows = _encoded(zip(built["prompt"], built["completion"], strict=True), tokens)
        order = np.random.default_rng(seed + 1000).integers(0, 10**9, (STEPS, BATCH))
        torch.manual_seed(seed)
        config = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"])
        net = get_peft_model(load_model(MODEL, device="cpu"), config)
        train(net, (batch_of([rows[i % len(rows)] for i in step]) for step in order), STEPS, 1e-3)
    asked = [[{"role": "user", "content": question}] for question, _ in test]
    said = LocalLLM(net, tokens)(asked, max_new_tokens=NEW)
    judge = NumberMatch()
    found[TASK] = float(
        np.mean([judge("", str(r), str(v), {}) for r, (_, v) in zip(said, test, strict=True)])
    )
    found[KL], found[NLL] = divergence(base, net, neutral)
    return found


def main() -> None:
    """Run what is missing and write docs/claims/s3ft-lm.json."""
    jobs = [f"{seed} {arm}" for seed in SEEDS for arm in ARMS]
    found = stretch("s3ft-lm", jobs, run)
    tables = {
        measure: {
            arm: [found[f"{seed} {arm}"][measure] for seed in SEEDS]
            for arm in ARMS
            if measure in found[f"0 {arm}"]
        }
        for measure in (TASK, NLL, KL, FIT)
    }
    shares = {
        source: round(float(np.mean([found[f"{seed} S3FT"][source] for seed in SEEDS])), 3)
        for source in ("model", "paraphrase", "gold")
    }
    intervals = [
        {"measure": measure, **difference(tables[measure], "S3FT", other)}
        for measure in tables
        for other in ARMS[1:]
        if other != "S3FT"
    ]
    of_task = [row for row in intervals if row["measure"] == TASK]
    lower = [row["high"] < 0 for row in intervals if row["baseline"] == "SFT" and row["measure"] != TASK]
    means = {measure: summary(values) for measure, values in tables.items()}
    drift = "; ".join(
        f"{measure} {means[measure]['S3FT']['mean']:.3f} against {means[measure]['SFT']['mean']:.3f} of SFT"
        for measure in (NLL, KL, FIT)
    )
    save(
        "s3ft-lm",
        {
            "title": "S3FT on the demo model",
            "claim": "Targets that the model itself would say, where they are right, teach the task better than gold "
            "answers and move the model less.",
            "verdict": "; ".join(says(row) for row in of_task)
            + f". Base model {means[TASK]['base']['mean']:.1%}. {drift}. Targets of S3FT: "
            + ", ".join(f"{share:.0%} {source}" for source, share in shares.items())
            + ".",
            "holds": of_task[0]["low"] > 0 and all(lower),
            "setting": " ".join(" ".join((__doc__ or "").split("\n\n")[2:]).split()),
            "seeds": list(SEEDS),
            "arms": means[TASK],
            **{f"arms, {measure}": means[measure] for measure in (NLL, KL, FIT)},
            "targets of S3FT": shares,
            "intervals": intervals,
            "command": "python benchmarks/claims/s3ft_lm.py",
        },
    )


if __name__ == "__main__":
    main()
