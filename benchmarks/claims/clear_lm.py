"""What BSDetector's confidence is worth with a small language model.

    python benchmarks/claims/clear_lm.py

SmolLM2-135M-Instruct judges the answers of 60 rows "What is the capital of …?", a fifth of which name another country's
capital. Samples are five per question, of 48 new tokens at temperature 1. No inference model is at hand, so sentence
embeddings (MiniLM) compare them, once as they are and once not at all (alpha 0, equal answers only). Seeds choose which
rows are wrong; the samples of a question are the same for all. The measure is the AUROC of right rows against wrong
ones, 0.5 by chance.
"""

from __future__ import annotations

import warnings

import numpy as np
from _claim import count, difference, over_seeds, save, says, summary
from sklearn.metrics import roc_auc_score

from tunesmith.curate import BSDetector
from tunesmith.engine import CachedLLM, LocalLLM

SEEDS = range(5)
WRONG = 0.2
CHANCE = "chance"
CAPITALS = """
Afghanistan:Kabul Albania:Tirana Algeria:Algiers Angola:Luanda Argentina:Buenos_Aires Armenia:Yerevan
Australia:Canberra Austria:Vienna Azerbaijan:Baku Bangladesh:Dhaka Belarus:Minsk Belgium:Brussels
Bolivia:Sucre Bulgaria:Sofia Cambodia:Phnom_Penh Cameroon:Yaounde Canada:Ottawa Chile:Santiago China:Beijing
Colombia:Bogota Croatia:Zagreb Cuba:Havana Cyprus:Nicosia Denmark:Copenhagen Ecuador:Quito Egypt:Cairo
Eritrea:Asmara Estonia:Tallinn Ethiopia:Addis_Ababa Finland:Helsinki France:Paris Georgia:Tbilisi
Germany:Berlin Ghana:Accra Greece:Athens Haiti:Port-au-Prince Honduras:Tegucigalpa Hungary:Budapest
Iceland:Reykjavik India:New_Delhi Indonesia:Jakarta Iran:Tehran Iraq:Baghdad Ireland:Dublin Israel:Jerusalem
Italy:Rome Jamaica:Kingston Japan:Tokyo Jordan:Amman Kazakhstan:Astana Kenya:Nairobi Laos:Vientiane
Latvia:Riga Lebanon:Beirut Libya:Tripoli Lithuania:Vilnius Malaysia:Kuala_Lumpur Mali:Bamako Malta:Valletta
Mongolia:Ulaanbaatar
"""
FACTS = [tuple(part.replace("_", " ").split(":")) for part in CAPITALS.split()]
QUESTIONS = [f"What is the capital of {country}? Name only the city." for country, _ in FACTS]
RIGHT = [city for _, city in FACTS]


def run(seed: int, llm: CachedLLM) -> dict[str, dict[str, float]]:
    """One choice of wrong rows: AUROC of the confidence and of its parts."""
    rng = np.random.default_rng(seed)
    wrong = rng.permutation(len(FACTS))[: round(WRONG * len(FACTS))]
    answers = list(RIGHT)
    for i in wrong:
        answers[i] = RIGHT[int(rng.choice(np.setdiff1d(np.arange(len(FACTS)), wrong)))]
    right = np.array([a == b for a, b in zip(answers, RIGHT, strict=True)])
    results = {CHANCE: {"auroc": 0.5}}
    for name, alpha in (("", 0.8), (", equal answers only", 0.0)):
        detector = BSDetector(llm, nli="embedding", alpha=alpha, max_new_tokens=48)
        detector.score(QUESTIONS, answers)
        judged = detector.judged_
        for part, values in (("C", judged.confidence), ("O", judged.observed)):
            results[part + name] = {"auroc": float(roc_auc_score(right, values))}
        results["S"] = {"auroc": float(roc_auc_score(right, judged.reflection)), "unread": judged.unread}
    return results


def main() -> None:
    """Run five seeds and write docs/claims/clear-lm.json."""
    warnings.simplefilter("ignore")
    llm = CachedLLM(LocalLLM("smollm2-135m-instruct"), chunk=64)
    greedy = llm([[{"role": "user", "content": question}] for question in QUESTIONS], max_new_tokens=24)
    knows = float(
        np.mean([city.lower() in str(reply).lower() for city, reply in zip(RIGHT, greedy, strict=True)])
    )
    found = over_seeds(lambda seed: run(seed, llm), SEEDS)
    auroc = found["auroc"]
    parts = [name for name in auroc if name != CHANCE]
    intervals = [difference(auroc, name, CHANCE) for name in parts]
    unread = float(np.mean(found["unread"]["S"])) / (2 * len(FACTS))
    save(
        "clear-lm",
        {
            "title": "CLEAR with a small language model",
            "claim": "The confidence of a language model of 135M weights tells right answers from wrong ones.",
            "verdict": f"{count(intervals)}. "
            + "; ".join(says(interval) for interval in intervals)
            + f". AUROC: {', '.join(f'{name} {np.mean(auroc[name]):.2f}' for name in parts)}. Asked plainly, the model "
            f"names {knows:.0%} of the capitals; {unread:.0%} of its replies in the reflection hold no choice and "
            "count a half.",
            "holds": all(interval["low"] > 0 for interval in intervals),
            "setting": " ".join((__doc__ or "").split("\n\n")[2].split()),
            "seeds": list(SEEDS),
            "arms": summary(auroc),
            "knows": round(knows, 3),
            "replies_without_a_choice": round(unread, 3),
            "intervals": intervals,
            "command": "python benchmarks/claims/clear_lm.py",
        },
    )


if __name__ == "__main__":
    main()
