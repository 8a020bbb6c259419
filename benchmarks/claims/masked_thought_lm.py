"""Masked thought with a small language model on sums of reasoning-gym, told step by step.

    python benchmarks/claims/masked_thought_lm.py [seeds]        (about 15 minutes; run again until done)

SmolLM2-135M-Instruct in bfloat16 gets LoRA (rank 16 on all linear layers, float32) from 128 tasks of reasoning-gym's
chain_sum with 3 or 4 terms of one or two digits; the chain adds term by term. Two epochs, batches of 8, AdamW, 1e-3
with a cosine, no choice by test data. Masked thought (MFT) has p_max 0.2, as the paper where formulas are dense, random
tokens and a warm-up over two thirds of the steps; plain fine-tuning (SFT) has as many steps. 60 test tasks, answered
greedily and scored by reasoning-gym. "recovered": the chain up to the first sum is given with a wrong first term, and
the sum told is that of the question's terms; "followed": it is that of the chain's. Seeds choose training rows, LoRA's
start and order; the test tasks are the same.
"""

from __future__ import annotations

import re
import shutil
import sys
import warnings
from typing import Any

import numpy as np
import torch
from _claim import difference, save, says, summary
from _parts import RUNS, stretch

from tunesmith.trainers import MaskedThoughtMixin
from tunesmith.trainers._trl_compat import Trainer

SEEDS = range(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
ARMS = {"SFT": 0.0, "MFT": 0.2}
ROWS, TESTS, EPOCHS, BATCH = 128, 60, 2, 8
OPTIONS = {"min_terms": 3, "max_terms": 4, "min_digits": 1, "max_digits": 2}
Task = dict[str, Any]


class Masked(MaskedThoughtMixin, Trainer):
    """Our trainer with tokens hidden."""


def tasks(count: int, seed: int, without: set[str] = frozenset()) -> list[Task]:  # type: ignore[assignment]
    """Return different tasks, each with prompt, chain, and the parts of its first sum."""
    import reasoning_gym

    found: dict[str, Task] = {}
    for entry in reasoning_gym.create_dataset("chain_sum", size=3 * count, seed=seed, **OPTIONS):
        text = entry["metadata"]["expression"]
        if len(found) == count or text in without:
            continue
        first, *rest = re.findall(r"[+-] \d+|\d+", text)
        total, lines = int(first), []
        for part in rest:
            sign, term = part.split()
            after = total + int(term) * (1 if sign == "+" else -1)
            lines.append(f"{total} {sign} {term} = {after}")
            total = after
        assert str(total) == entry["answer"], (text, entry["answer"])
        found[text] = {
            "entry": entry,
            "prompt": f"{entry['question']}\n",
            "chain": "\n".join([*lines, f"Answer: {total}"]),
            "first": (int(first), rest[0]),
        }
    return list(found.values())


def encoded(some: list[Task], tokenizer: Any) -> Any:
    """Return rows to train on."""
    from datasets import Dataset

    rows = []
    for task in some:
        prompt = tokenizer(task["prompt"]).input_ids
        chain = [*tokenizer(task["chain"]).input_ids, tokenizer.eos_token_id]
        rows.append({"input_ids": prompt + chain, "labels": [-100] * len(prompt) + chain})
    return Dataset.from_list(rows)


def measure(model: Any, tokenizer: Any, tests: list[Task]) -> dict[str, float]:
    """Score answers, and what is made of a wrong first term."""
    from reasoning_gym import get_score_answer_fn

    from tunesmith.engine.generate import generate

    score = get_score_answer_fn("chain_sum")
    prompts = [tokenizer(task["prompt"]).input_ids for task in tests]
    told = generate(model, tokenizer, prompts, max_new_tokens=64, batch_size=50)
    answers = [re.search(r"Answer: (-?\d+)", text) for text in told]
    right = [
        score(found.group(1), task["entry"]) == 1.0 if found else False
        for found, task in zip(answers, tests, strict=True)
    ]
    rng = np.random.default_rng(0)
    started, true, false = [], [], []
    for task, prompt in zip(tests, prompts, strict=True):
        first, part = task["first"]
        wrong = first + int(rng.choice([-3, -2, -1, 1, 2, 3]))
        started.append(prompt + tokenizer(f"{wrong} {part} =").input_ids)
        step = int(part.replace(" ", ""))
        true.append(first + step)
        false.append(wrong + step)
    told = generate(model, tokenizer, started, max_new_tokens=6, batch_size=50)
    sums = [re.match(r"\s*(-?\d+)", text) for text in told]
    values = [int(found.group(1)) if found else None for found in sums]
    count = len(tests)
    return {
        "answers": sum(right) / count,
        "recovered": sum(v == t for v, t in zip(values, true, strict=True)) / count,
        "followed": sum(v == f for v, f in zip(values, false, strict=True)) / count,
    }


def fit(arm: str, seed: int) -> dict[str, float]:
    """Train an arm and measure it; the base model is an arm too."""
    from peft import LoraConfig, get_peft_model
    from transformers import set_seed
    from transformers.trainer_utils import get_last_checkpoint
    from trl import SFTConfig

    from tunesmith.engine.models import load_model, load_tokenizer

    warnings.simplefilter("ignore", FutureWarning)
    model = load_model("smollm2-135m-instruct", dtype="bfloat16", device="cpu")
    tokenizer = load_tokenizer("smollm2-135m-instruct")
    tests = tasks(TESTS, seed=10_000)
    if arm == "base":
        return measure(model, tokenizer, tests)
    known = {task["entry"]["metadata"]["expression"] for task in tests}
    set_seed(seed)
    lora = LoraConfig(r=16, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    tuned = get_peft_model(model, lora, autocast_adapter_dtype=True)
    folder = RUNS / f"masked-thought-lm-{arm}-{seed}"  # killed and started again, it goes on
    args = SFTConfig(
        output_dir=str(folder),
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=BATCH,
        learning_rate=1e-3,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        logging_steps=4,
        save_strategy="steps",
        save_steps=8,
        save_total_limit=1,
        report_to="none",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        gradient_checkpointing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        seed=seed,
    )
    trainer = Masked(
        model=tuned,
        args=args,
        train_dataset=encoded(tasks(ROWS, seed, known), tokenizer),
        processing_class=tokenizer,
        masked={"rate": ARMS[arm], "mode": "random"},
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder)) if folder.exists() else None)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    trainer.unpatch()
    found = {**measure(tuned.eval(), tokenizer, tests), "training loss": float(np.mean(losses[-4:]))}
    shutil.rmtree(folder)
    return found


def run(job: str) -> dict[str, Any]:
    """Train one arm with one seed."""
    torch.set_num_threads(1)
    arm, _, seed = job.partition("; seed ")
    return fit(arm, int(seed or 0))


def main() -> None:
    """Run what is missing and write docs/claims/masked-thought-lm.json."""
    jobs = ["base", *(f"{arm}; seed {s}" for s in SEEDS for arm in ARMS)]
    done = stretch("masked-thought-lm", jobs, run, 430)

    def by_arm(name: str) -> dict[str, list[float]]:
        return {arm: [done[f"{arm}; seed {s}"][name] for s in SEEDS] for arm in ARMS}

    measures = {name: by_arm(name) for name in done["SFT; seed 0"]}
    intervals = [
        {"setting": name, **difference(measures[name], "MFT", "SFT")} for name in ("answers", "recovered")
    ]
    save(
        "masked-thought-lm",
        {
            "title": "Masked thought with a small language model",
            "claim": "On arithmetic told step by step, a language model trained with tokens of the reasoning hidden "
            "answers better, and overrules a wrong step by the question.",
            "verdict": f"Before any training the model answers {done['base']['answers']:.0%}. "
            + "; ".join(f"{row['setting']}: {says(row)}" for row in intervals)
            + ".",
            "holds": all(row["low"] > 0 for row in intervals),
            "setting": " ".join(" ".join((__doc__ or "").split("\n\n")[2:]).split()),
            "seeds": list(SEEDS),
            "arms": summary(measures["answers"]),
            **{f"arms, {name}": summary(values) for name, values in measures.items() if name != "answers"},
            "base": done["base"],
            "intervals": intervals,
            "command": "python benchmarks/claims/masked_thought_lm.py",
        },
    )


if __name__ == "__main__":
    main()
