"""Candidates of S3FT from the demo model: prompts in batches of like length against `generate` row by row.

    python benchmarks/s3ft.py        (about 10 minutes; run again until done)

The first 96 prompts of the messy demo pool, of mixed length, the 135M demo model, greedy, at most 32 new tokens, one
thread, processor time; each arm in a process of its own, loading not counted. "row by row" is transformers' `generate`
on one prompt after the other, "batches in the order given" the same on 32 padded prompts at a time, "tunesmith" is
`selective_self_targets` with the model as generator and a judge that always says yes, so that each row is generated
once: batches by length, keeping every reply on disk, choosing and the rows included. Equal are the texts to those of
row by row in the same type; rounding differs with the size of a batch, in bfloat16 by far more than in float32, and
where two tokens are nearly as likely a greedy answer then takes another path.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from _common import isolated, machine, save, serve_part, versions

sys.path.insert(0, str(Path(__file__).parent / "claims"))
from _parts import stretch

ROWS, NEW, BATCH = 96, 32, 32
MODEL = "smollm2-135m-instruct"
ARMS = ("row by row", "batches in the order given", "tunesmith")
DTYPES = ("float32", "bfloat16")


def run(arm: str, dtype: str) -> dict[str, Any]:
    """Texts of one arm, and its processor time."""
    import torch
    from transformers import GenerationConfig

    from tunesmith.data import read
    from tunesmith.engine import LocalLLM
    from tunesmith.engine.models import load_model, load_tokenizer
    from tunesmith.engine.prompts import prompt_ids
    from tunesmith.trainers import selective_self_targets

    torch.set_num_threads(1)
    model = load_model(MODEL, dtype=dtype, device="cpu")
    tokenizer = load_tokenizer(MODEL)
    llm = LocalLLM(MODEL, batch_size=BATCH, dtype=dtype, device="cpu")
    if arm == "tunesmith":  # loads the model
        llm([[{"role": "user", "content": "Hello"}]], max_new_tokens=1)
    rows = read("demo:messy", max_rows=ROWS).dataset
    prompts = [prompt_ids(chat[:-1], tokenizer) for chat in rows["messages"]]
    begin = time.process_time()
    if arm == "tunesmith":

        def yes(prompt: Any, candidate: str, gold: str, row: Any) -> bool:
            return True

        built = selective_self_targets(
            rows,
            llm,
            yes,
            paraphrase=False,
            max_new_tokens=NEW,
            source_column="target_source",
        )
        texts = built["s3ft_prediction"][:]
    else:
        config = GenerationConfig(
            max_new_tokens=NEW,
            do_sample=False,
            eos_token_id=[tokenizer.eos_token_id],
            pad_token_id=tokenizer.pad_token_id,
        )
        size = 1 if arm == "row by row" else BATCH
        texts = []
        for at in range(0, len(prompts), size):
            part = prompts[at : at + size]
            width = max(map(len, part))
            ids = torch.full((len(part), width), tokenizer.pad_token_id)
            seen = torch.zeros_like(ids)
            for place, prompt in enumerate(part):
                ids[place, width - len(prompt) :] = torch.tensor(prompt)
                seen[place, width - len(prompt) :] = 1
            with torch.inference_mode():
                out = model.generate(input_ids=ids, attention_mask=seen, generation_config=config)
            texts += [t.strip() for t in tokenizer.batch_decode(out[:, width:], skip_special_tokens=True)]
    seconds = time.process_time() - begin
    return {"seconds": seconds, "texts": texts, "prompt_tokens": sum(map(len, prompts))}


def main() -> None:
    """Run what is missing and save docs/benchmarks/s3ft.json."""
    jobs = [f"{dtype}: {arm}" for dtype in DTYPES for arm in ARMS]

    def job(name: str) -> dict[str, Any]:
        dtype, arm = name.split(": ")
        return isolated(__file__, "run", one_core=True, arm=arm, dtype=dtype)

    found = stretch("s3ft-benchmark", jobs, job, limit_s=600)
    rows = []
    for dtype in DTYPES:
        naive = found[f"{dtype}: {ARMS[0]}"]
        for arm in ARMS:
            one = found[f"{dtype}: {arm}"]
            rows.append(
                {
                    "type": dtype,
                    "arm": arm,
                    "seconds": round(one["seconds"], 1),
                    "times faster than row by row": round(naive["seconds"] / one["seconds"], 2),
                    "equal texts": sum(map(str.__eq__, one["texts"], naive["texts"])) / ROWS,
                    "peak_gib": round(one["peak_gib"], 2),
                }
            )
    ours = {row["type"]: row for row in rows if row["arm"] == "tunesmith"}
    f32, bf16 = ours["float32"], ours["bfloat16"]
    key = "times faster than row by row"
    save(
        "benchmarks",
        "s3ft",
        {
            "title": "S3FT: generating candidates",
            "summary": f"In float32, {f32[key]:.1f} times as fast as `generate` row by row, with "
            f"{f32['equal texts']:.0%} of the greedy texts equal; in bfloat16 {bf16[key]:.1f} times, with "
            f"{bf16['equal texts']:.0%} equal. (Wanted: 4 times.)",
            "rows": rows,
            "setting": " ".join((__doc__ or "").split("\n\n")[2].split()),
            "prompts": ROWS,
            "prompt tokens": found[jobs[0]]["prompt_tokens"],
            "command": "python benchmarks/s3ft.py",
            "machine": machine(),
            "versions": versions("torch", "transformers"),
        },
    )


if __name__ == "__main__" and not serve_part({"run": run}):
    main()
