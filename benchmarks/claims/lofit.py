"""The claim of LoFiT at small scale: offsets of chosen heads against those of random and of the least heads, and LoRA.

    python benchmarks/claims/lofit.py [letters|words]        (about 15 minutes; run again until done)

Letters: a Llama of four blocks of eight heads learns four tasks on six letters, each announced by a token of its own.
Then 500 rows with an announcement it has never seen want one of these tasks (sorting), or an XOR: letters swapped in
pairs. 3 or 8 of 32 heads, equal steps and one learning rate for all offsets; random heads are drawn 3 times per seed.
Figures: nats per letter on 500 test rows, and how many more nats the four announced tasks cost than before.
Words: the 135M demo model answers praise and blame with two coded words; 64 rows, 32 steps of 8, 80 test rows with
adjectives of their own. 27 of 270 heads; random heads are drawn twice. Figures: accuracy between the two words, and how
many more nats a token of neutral text costs than before.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any

import _lofit_letters as letters
import _lofit_words as words
from _claim import count, difference, save, says, sign, summary
from _parts import stretch

LETTER_SEEDS, WORD_SEEDS = range(4), range(4)


def by_arm(runs: list[dict[str, dict[str, float]]], measure: str) -> dict[str, list[float]]:
    """Arm -> one value per seed."""
    return {arm: [run[arm][measure] for run in runs] for arm in runs[0]}


def main() -> None:
    """Run what is missing and write docs/claims/lofit.json."""
    warnings.simplefilter("ignore")
    only = sys.argv[1] if len(sys.argv) > 1 else ""
    kept: dict[str, list[dict[str, Any]]] = {"letters": [], "words": []}
    if only != "words":
        done = stretch("lofit-letters", [str(s) for s in LETTER_SEEDS], lambda s: letters.run(int(s)))
        kept["letters"] = list(done.values())
    if only != "letters":
        done = stretch("lofit-words", [str(s) for s in WORD_SEEDS], lambda s: words.run(int(s)))
        kept["words"] = list(done.values())
    if not only:
        report(kept["letters"], kept["words"])


def report(of_letters: list[dict[str, Any]], of_words: list[dict[str, Any]]) -> None:
    """Write the file."""
    known = {m: by_arm([run[letters.KNOWN] for run in of_letters], m) for m in ("nats", "forgetting")}
    xor = {m: by_arm([run[letters.XOR] for run in of_letters], m) for m in ("nats", "forgetting")}
    word = {m: by_arm(of_words, m) for m in ("accuracy", "forgetting")}
    # Lower is better for nats: differences are of their negatives, so that "better" means what it says.
    gain = {arm: [-x for x in values] for arm, values in known["nats"].items()}
    versus = [
        difference(gain, f"LoFiT, {k} heads", f"{other} {k} heads")
        for k in letters.KEPT
        for other in ("random", "bottom")
    ]
    few, many = letters.KEPT
    versus_word = [
        difference(word["accuracy"], f"LoFiT, {words.KEPT} heads", f"{other} {words.KEPT} heads")
        for other in ("random", "bottom")
    ]
    lora = difference(word["accuracy"], "LoRA, r = 8", f"LoFiT, {words.KEPT} heads")
    lora_letters = difference(gain, "LoRA, r = 8", f"LoFiT, {many} heads")
    forget = difference(known["forgetting"], "LoRA, r = 8", f"LoFiT, {many} heads")
    limit = difference(
        {a: [-x for x in v] for a, v in xor["nats"].items()}, "LoRA, r = 8", "LoFiT, all 32 heads"
    )

    def mean(values: dict[str, list[float]], arm: str) -> float:
        return sum(values[arm]) / len(values[arm])

    table = ", ".join(
        f"{arm} {mean(known['nats'], arm):.2f}"
        for k in letters.KEPT
        for arm in (f"LoFiT, {k} heads", f"random {k} heads", f"bottom {k} heads")
    )
    verdict = (
        f"Chosen heads against random and least heads on letters: {count(versus).lower()}; nats per letter "
        f"(untuned {mean(known['nats'], 'untuned'):.2f}): {table}, LoRA {mean(known['nats'], 'LoRA, r = 8'):.3f} "
        f"({sign(lora_letters)} LoFiT with {many} heads). In the 135M model: "
        f"{'; '.join(says(row) for row in versus_word)}; {says(lora)}. An XOR is beyond offsets: "
        f"{mean(xor['nats'], 'LoFiT, all 32 heads'):.2f} nats with all heads, {mean(xor['nats'], 'LoRA, r = 8'):.2f} "
        f"with LoRA ({sign(limit)} LoFiT). Forgetting of the announced tasks: "
        f"{mean(known['forgetting'], f'LoFiT, {few} heads'):.2f} and "
        f"{mean(known['forgetting'], f'LoFiT, {many} heads'):.2f} nats with {few} and {many} heads, "
        f"{mean(known['forgetting'], 'LoRA, r = 8'):.2f} with LoRA; of neutral text in the 135M model "
        f"{mean(word['forgetting'], f'LoFiT, {words.KEPT} heads'):.2f} with LoFiT, "
        f"{mean(word['forgetting'], 'LoRA, r = 8'):.2f} with LoRA."
    )
    save(
        "lofit",
        {
            "title": "LoFiT on letters and words",
            "claim": "Offsets of the heads that stage 1 chooses teach a task better than offsets of as many random "
            "heads, or of those it ranks last; they cannot express what depends on the input.",
            "verdict": verdict,
            "holds": all(row["low"] > 0 for row in (*versus, *versus_word)),
            "setting": " ".join(" ".join((__doc__ or "").split("\n\n")[2:]).split()),
            "seeds": {"letters": list(LETTER_SEEDS), "words": list(WORD_SEEDS)},
            "arms": summary(known["nats"]),
            "letters, forgetting": summary(known["forgetting"]),
            "an XOR, nats": summary(xor["nats"]),
            "words, accuracy": summary(word["accuracy"]),
            "words, forgetting": summary(word["forgetting"]),
            "intervals": [
                *({"setting": "letters, minus nats", **row} for row in (*versus, lora_letters)),
                {"setting": "letters, forgetting (more is worse)", **forget},
                {"setting": "an XOR, minus nats", **limit},
                *({"setting": "words, accuracy", **row} for row in (*versus_word, lora)),
            ],
            "command": "python benchmarks/claims/lofit.py",
        },
    )


if __name__ == "__main__":
    main()
