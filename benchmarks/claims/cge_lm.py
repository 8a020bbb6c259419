"""CGE on language models: are rare topics that were planted in the fine-tuning text found, and how soon?

    python benchmarks/claims/cge_lm.py        (about 20 minutes; run again until done)

The model before tuning is a small decoder (Llama, 4 blocks of width 160, 1.7 million weights) pre-trained on
paragraphs of the docs of scikit-learn, SciPy, networkx, pandas, matplotlib and sympy, with 10 % lines of their
examples and 5 % names of countries and languages in ten tongues, as a model has seen a little of everything. The
tuned one is trained in all weights, for two epochs, on 2,000 rows of 48 tokens: other paragraphs, and 10 % simple
German sentences, 5 % short Python functions of the standard library, 2 % insults with words that do not exist, 1 %
records of a secret format. Each arm writes 50 texts of 48 tokens. A text shows a topic if the topic's rule, fixed
before any text was generated, matches: three German function words, "def name(", an invented word, or a code of a
record's form. "found" is the share of the four topics that at least one text shows. The iterative form learns five
texts at a time. "top-p" and "sampling, alpha 0.1" are without contrast. AUROC: novel rows against prose among 1,000
rows of the mixture. Seeds choose rows, order and draws; settings were chosen on seed 100. One more run, of the 135M
demo model in bfloat16 with settings not chosen by any result: settled on prose with LoRA, which is merged, then an
adapter tuned on 400 rows of 40 tokens in one epoch, and explored with the adapter on and off.
"""

from __future__ import annotations

import copy
import random
import warnings
from typing import Any

import numpy as np
import torch
from _cge_topics import LENGTH, TOPICS, decoder, mixture, row, shown, split, teach
from _claim import count, difference, save, says, summary
from _parts import stretch
from sklearn.metrics import roc_auc_score

from tunesmith.audit import CGEConfig, NoveltyExplorer, contrastive_score

SEEDS, DEMOS = range(6), ["135M; seed 0"]
SHARES = {"German": 0.10, "Python": 0.05, "insults": 0.02, "records": 0.01}
ROWS, TUNING = 2000, {"epochs": 2.0, "batch": 16, "rate": 2e-3}
TEXTS, SCORED, RATE, STEP = 50, 1000, 5e-4, 5
ARMS: dict[str, dict[str, Any]] = {
    "sampling": {"mode": "static", "alpha": 0.0, "gamma": 0.0},
    "sampling, top-p 0.9": {"top_p": 0.9},
    "sampling, alpha 0.1": {"mode": "static", "alpha": 0.1, "gamma": 0.0},
    "static, alpha 0.1": {"mode": "static", "alpha": 0.1},
    "iterative, alpha 0.1": {"mode": "iterative", "alpha": 0.1},
    "static, alpha 0.02": {"mode": "static", "alpha": 0.02},
    "iterative, alpha 0.02": {"mode": "iterative", "alpha": 0.02},
}

DEMO: dict[str, Any] = {
    "length": 40,
    "settling": 160,
    "rows": 400,
    "epochs": 1,
    "rate": 1e-3,
    "learner": 2e-3,
    "scored": 200,
    "arms": [
        "sampling",
        "static, alpha 0.1",
        "static, alpha 0.02",
        "iterative, alpha 0.1",
        "iterative, alpha 0.02",
    ],
}


def generated(
    tuned: Any, base: Any, tokenizer: Any, arm: str, seed: int, length: int, **more: Any
) -> list[str]:
    """Return the texts of an arm, in order."""
    options = ARMS[arm]
    if "top_p" in options:
        torch.manual_seed(seed)
        out = tuned.generate(
            torch.full((TEXTS, 1), tokenizer.bos_token_id),
            attention_mask=torch.ones(TEXTS, 1, dtype=torch.long),
            do_sample=True,
            top_p=options["top_p"],
            top_k=0,
            max_new_tokens=length - 1,
            suppress_tokens=[tokenizer.eos_token_id],
        )
        return list(tokenizer.batch_decode(out[:, 1:], skip_special_tokens=True))
    size = STEP if options["mode"] == "iterative" else TEXTS // 2
    config = CGEConfig(
        **{"length": length, "texts_per_step": size, "learning_rate": RATE, "seed": seed, **options, **more}
    )
    return [text.text for text in NoveltyExplorer(tuned, base, tokenizer, config).explore(TEXTS)]


def counted(texts: list[str]) -> dict[str, Any]:
    """Return the share of topics found, that of texts that show one, and the text (from 1) that showed each first."""
    shows = [shown(text) for text in texts]
    first = {topic: next((i + 1 for i, s in enumerate(shows) if topic in s), 0) for topic in TOPICS}
    return {
        "found": sum(at > 0 for at in first.values()) / len(TOPICS),
        "detection": sum(map(bool, shows)) / len(shows),
        "first": first,
        "texts": {topic: sum(topic in s for s in shows) for topic in TOPICS},
    }


def nats(model: Any, rows: torch.Tensor) -> np.ndarray:
    """Return the mean nats per token of each row."""
    from tunesmith.engine.lm import completion_nll

    found, counts = completion_nll(
        model, rows.tolist(), [[True] * rows.shape[1]] * len(rows), 0, batch_size=50
    )
    return np.asarray(found / counts)


def ranked(
    tuned: Any, base: Any, tokenizer: Any, rows: torch.Tensor, kinds: list[str], seed: int
) -> dict[str, Any]:
    """Return how well novel rows are told from prose, as AUROC, by four scores; by two of them for each topic too."""
    texts = tokenizer.batch_decode(rows[:, 1:])
    kind = np.array(kinds)
    contrast = contrastive_score(texts, tuned, base, tokenizer, batch_size=50)
    if base is None:
        with tuned.disable_adapter():
            before = nats(tuned, rows)
    else:
        before = nats(base, rows)
    scores = {
        "contrastive score": contrast,
        "perplexity, tuned": nats(tuned, rows),
        "perplexity, before": before,
        "random": np.random.default_rng(seed).random(len(rows)),
    }
    found = {name: float(roc_auc_score(kind != "prose", s)) for name, s in scores.items()}
    for topic in TOPICS:
        at = (kind == "prose") | (kind == topic)
        for name in ("contrastive score", "perplexity, tuned"):
            found[f"{name}, {topic}"] = float(roc_auc_score(kind[at] == topic, scores[name][at]))
    return found


def small(seed: int) -> dict[str, Any]:
    """Tune the small decoder on one mixture, all weights, and try the arms."""
    base, tokenizer = decoder()
    rows, kinds = mixture(seed, SHARES, ROWS, tokenizer)
    tuned = copy.deepcopy(base)
    teach(tuned, rows, **TUNING, seed=seed)
    found = {arm: counted(generated(tuned, base, tokenizer, arm, seed, LENGTH)) for arm in ARMS}
    wrong = sum(
        shown(text) != ([] if kind == "prose" else [kind])
        for text, kind in zip(tokenizer.batch_decode(rows[:, 1:]), kinds, strict=True)
    )
    auroc = ranked(tuned, base, tokenizer, rows[:SCORED], kinds[:SCORED], seed)
    return {"arms": found, "auroc": auroc, "rows that the rules take for another kind": wrong}


def demo(seed: int) -> dict[str, Any]:
    """Settle the 135M model on prose, tune an adapter on one mixture, and try some arms."""
    from peft import LoraConfig, get_peft_model

    from tunesmith.engine.models import load_model, load_tokenizer

    tokenizer = load_tokenizer("smollm2-135m-instruct")
    model = load_model("smollm2-135m-instruct", dtype="bfloat16", device="cpu")
    lora = LoraConfig(r=16, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    draw, prose = random.Random(f"settle {seed}"), split()[0]
    torch.manual_seed(seed)
    settling = get_peft_model(model, lora)
    rows = torch.tensor(
        [row("prose", draw, prose, tokenizer, DEMO["length"]) for _ in range(DEMO["settling"])]
    )
    teach(settling, rows, epochs=1, batch=8, rate=DEMO["rate"], seed=seed)
    tuned = get_peft_model(settling.merge_and_unload(), lora)
    rows, kinds = mixture(seed, SHARES, DEMO["rows"], tokenizer, DEMO["length"])
    teach(tuned, rows, epochs=DEMO["epochs"], batch=8, rate=DEMO["rate"], seed=seed)
    found = {}
    for arm in DEMO["arms"]:
        texts = generated(
            tuned, None, tokenizer, arm, seed, DEMO["length"], **({"learning_rate": DEMO["learner"]})
        )
        found[arm] = counted(texts)
        print(arm, found[arm], *(f"    {text[:90]!r}" for text in texts[:4]), sep="\n", flush=True)
    some = DEMO["scored"]
    return {"arms": found, "auroc": ranked(tuned, None, tokenizer, rows[:some], kinds[:some], seed)}


def run(job: str) -> dict[str, Any]:
    """Run one model with one seed."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    model, _, seed = job.partition("; seed ")
    return (small if model == "decoder" else demo)(int(seed))


def topic_rows(arms: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return one row per arm and topic: in how many runs it was found, how often, and with which text first."""
    return [
        {
            "arm": arm,
            "topic": topic,
            "share of the rows": SHARES[topic],
            "runs that show it": sum(one["first"][topic] > 0 for one in runs),
            f"texts of {TEXTS}, mean": round(float(np.mean([one["texts"][topic] for one in runs])), 2),
            "first text, per run": ", ".join(str(one["first"][topic] or "none") for one in runs),
        }
        for arm, runs in arms.items()
        for topic in TOPICS
    ]


def main() -> None:
    """Run what is missing and write docs/claims/cge-lm.json."""
    names = [f"decoder; seed {s}" for s in SEEDS]
    done = stretch("cge-lm", [*names, *DEMOS], run, 3000)
    runs = {arm: [done[name]["arms"][arm] for name in names] for arm in ARMS}
    found, detection = (
        {arm: [float(one[measure]) for one in some] for arm, some in runs.items()}
        for measure in ("found", "detection")
    )
    auroc = {score: [done[name]["auroc"][score] for name in names] for score in done[names[0]]["auroc"]}
    contrasts = [arm for arm in ARMS if "sampling" not in arm]
    more = [difference(found, arm, "sampling") for arm in contrasts]
    purer = [difference(detection, arm, "sampling") for arm in contrasts]
    pairs = [(f"iterative, alpha {a}", f"static, alpha {a}") for a in ("0.1", "0.02")]
    other = [difference(found, *pair) for pair in pairs]
    filtered = [difference(found, arm, "sampling, alpha 0.1") for arm in contrasts if arm.endswith("0.1")]
    ranks = [difference(auroc, "contrastive score", f"perplexity, {model}") for model in ("tuned", "before")]
    mean = {arm: float(np.mean(values)) * len(TOPICS) for arm, values in found.items()}
    told = ", ".join(f"{arm} {value:.1f}" for arm, value in mean.items())
    average = {score: float(np.mean(values)) for score, values in auroc.items()}
    verdict = (
        f"Of {len(TOPICS)} planted topics the first {TEXTS} texts show, on average over {len(names)} seeds: {told}. "
        f"Topics found, against sampling: {count(more).lower()}; share of texts that show a topic, against sampling: "
        f"{count(purer).lower()}. {'; '.join(says(row) for row in other)}. Rows ranked by the contrastive score: AUROC "
        f"{average['contrastive score']:.3f}, by the perplexity before tuning {average['perplexity, before']:.3f}, by "
        f"that of the tuned model {average['perplexity, tuned']:.3f}, at random {average['random']:.3f}."
    )
    result: dict[str, Any] = {
        "title": "Contrastive exploration of a tuned language model",
        "claim": "Among the first texts of contrastive generation are rare topics of the fine-tuning text that "
        "sampling does not show, the more of them where it learns what it found; and the contrastive score ranks novel "
        "rows before ordinary ones better than perplexity.",
        "verdict": verdict,
        "holds": all(row["low"] > 0 for row in [*more, *other, *ranks]),
        "setting": " ".join(" ".join((__doc__ or "").split("\n\n")[2:]).split()),
        "seeds": list(SEEDS),
        "arms": summary(found),
        "arms, texts that show a topic": summary(detection),
        "arms, AUROC": summary(auroc),
        "intervals": [
            {"measure": measure, **row}
            for measure, some in (
                ("topics found", [*more, *other, *filtered]),
                ("texts that show a topic", purer),
                ("AUROC", ranks),
            )
            for row in some
        ],
        "rows that the rules take for another kind, per seed": [
            done[name]["rows that the rules take for another kind"] for name in names
        ],
        "topics": topic_rows(runs),
    }
    for name in DEMOS:
        one = done[name]
        result |= {
            "SmolLM2-135M, one run": topic_rows({arm: [row] for arm, row in one["arms"].items()}),
            "SmolLM2-135M, one run, AUROC": {score: round(value, 4) for score, value in one["auroc"].items()},
        }
    save("cge-lm", {**result, "command": "python benchmarks/claims/cge_lm.py"})


if __name__ == "__main__":
    main()
