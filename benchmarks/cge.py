"""CGE: what generation by contrast costs against sampling from the tuned model in the same loop.

    python benchmarks/cge.py        (about 8 minutes; run again until done)

Texts of 32 tokens from the loop of `NoveltyExplorer`, alpha 0.1, static; processor time of one thread, the arms taking
turns, the median of the rounds' times and of their ratios; each form in a process of its own. "sampling" is that loop
with gamma 0: the tuned model alone, nothing scored. "contrast" asks both models, keeps the keys and values of both, and
scores the texts on the way. "base without cache" is the naive form: the model before tuning reads all tokens again at
each step. With an adapter the model before tuning is the same weights with the adapter off: "contrast" then reads one
batch of twice as many rows, half of them without the adapter, and "two passes" switches the adapter off and on at each
step. The small decoder has 4 blocks of width 160 and 2,048 tokens, float32; the 135M demo model is in the type it is
loaded in here. LoRA has rank 8 on all linear layers.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

from _common import isolated, machine, save, serve_part, versions

sys.path.insert(0, str(Path(__file__).parent / "claims"))
from _parts import stretch

LENGTH, TARGET = 32, 2.2
MODEL = "smollm2-135m-instruct"
JOBS = [
    f"{model}; {form}; {rows}"
    for model, together in (("small decoder", (1, 4, 16)), ("135M", (4,)))
    for rows in together
    for form in ("two models", "adapter")
]


def models(model: str, form: str) -> tuple[Any, Any, Any]:
    """Return the tuned model, the one before it or None, and what a tokenizer says of marks."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, LlamaConfig

    from tunesmith.engine.models import load_model, load_tokenizer

    if model == "135M":
        made = [load_model(MODEL, device="cpu") for _ in range(2 if form == "two models" else 1)]
        tokenizer = load_tokenizer(MODEL)
    else:
        config = LlamaConfig(
            vocab_size=2048,
            hidden_size=160,
            intermediate_size=480,
            num_hidden_layers=4,
            num_attention_heads=5,
            tie_word_embeddings=True,
        )
        torch.manual_seed(0)
        made = [AutoModelForCausalLM.from_config(config).eval() for _ in range(2)]
        tokenizer = SimpleNamespace(bos_token_id=0, eos_token_id=1, pad_token_id=1)
    if form == "two models":
        return made[0], made[1], tokenizer
    torch.manual_seed(1)
    lora = LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    return get_peft_model(made[0], lora).eval(), None, tokenizer


def run(model: str, form: str, rows: int) -> dict[str, Any]:
    """Time the arms of one form in turns."""
    import torch

    from tunesmith.audit import CGEConfig, NoveltyExplorer
    from tunesmith.audit.novelty.pair import Pair

    class Uncached(Pair):
        """The model before tuning reads all tokens again."""

        @torch.inference_mode()
        def step(self, ids: Any, caches: Any, *, both: bool = True) -> Any:
            ours, seen = caches or (None, ids[:, :0])
            seen = torch.cat([seen, ids], 1)
            one = self.finetuned(input_ids=ids, past_key_values=ours, use_cache=True)
            with self._as_base():
                two = self.base(input_ids=seen, use_cache=False, logits_to_keep=1)
            return one.logits[:, -1], two.logits[:, -1], (one.past_key_values, seen)

    torch.set_num_threads(1)
    tuned, base, tokenizer = models(model, form)
    arms: dict[str, tuple[float, Pair]] = {
        "sampling": (0.0, Pair(tuned, base)),
        "contrast": (1.0, Pair(tuned, base)),
        "base without cache": (1.0, Uncached(tuned, base)),
    }
    if form == "adapter":
        arms["two passes"] = (1.0, Pair(tuned, base))
        arms["two passes"][1]._stacked = False
    rounds = 9 if model == "small decoder" else 3
    times: dict[str, list[float]] = {arm: [] for arm in arms}
    for turn in range(rounds + 1):  # the first warms up
        for arm, (gamma, pair) in arms.items():
            if arm == "base without cache" and model == "135M" and turn > 1:
                continue  # slow: one round
            config = CGEConfig("static", gamma=gamma, length=LENGTH if turn else 4, texts_per_step=rows)
            explorer = NoveltyExplorer(tuned, base, tokenizer, config)
            begin = time.process_time()
            explorer._generate(pair, rows, turn)
            if turn:
                times[arm].append(time.process_time() - begin)
    return {"times": times, "type": str(next(tuned.parameters()).dtype).removeprefix("torch.")}


def main() -> None:
    """Run what is missing and save docs/benchmarks/cge.json."""

    def job(name: str) -> dict[str, Any]:
        model, form, rows = name.split("; ")
        return isolated(__file__, "run", one_core=True, model=model, form=form, rows=int(rows))

    found = stretch("cge-benchmark", JOBS, job, limit_s=500)
    rows = []
    for name in JOBS:
        model, form, count = name.split("; ")
        times = found[name]["times"]
        for arm, own in times.items():
            ratios = [a / b for a, b in zip(own, times["sampling"], strict=False)]
            rows.append(
                {
                    "model": model,
                    "type": found[name]["type"],
                    "form": form,
                    "texts together": int(count),
                    "arm": arm,
                    "tokens per second": round(int(count) * (LENGTH - 1) / median(own), 1),
                    "times sampling": round(median(ratios), 2),
                    "least and most": f"{min(ratios):.2f} to {max(ratios):.2f}",
                    "rounds": len(own),
                }
            )
    worst = {
        form: max(r["times sampling"] for r in rows if r["form"] == form and r["arm"] == "contrast")
        for form in ("two models", "adapter")
    }
    naive = [r["times sampling"] for r in rows if r["arm"] == "base without cache"]
    passes = [r["times sampling"] for r in rows if r["arm"] == "two passes"]
    save(
        "benchmarks",
        "cge",
        {
            "title": "CGE: generation by contrast",
            "summary": f"With two models a text costs up to {worst['two models']:.2f} times one sampled from the tuned "
            f"model; with an adapter up to {worst['adapter']:.2f} times, where two passes cost {min(passes):.2f} to "
            f"{max(passes):.2f} times. Without the base's cache: {min(naive):.1f} to {max(naive):.1f} times. "
            f"(Wanted: at most {TARGET} times.)",
            "rows": rows,
            "setting": " ".join((__doc__ or "").split("\n\n")[2].split()),
            "command": "python benchmarks/cge.py",
            "machine": machine(),
            "versions": versions("torch", "transformers", "peft"),
        },
    )


if __name__ == "__main__" and not serve_part({"run": run}):
    main()
