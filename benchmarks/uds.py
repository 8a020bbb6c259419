"""What choosing half of each batch costs and saves, on the demo model.

    python benchmarks/uds.py

Batches of 8 rows of 60 to 180 random tokens, the last 20 to 40 trained, under the 135M demo model in its own type, LoRA
(r = 16, all linear layers) and all weights. Two figures. The score: nuclear norm, sketch and distances to a full memory
of 1,024, after the forward pass that it needs, over that pass. The step: optimiser steps of `train_sft` on all 8 rows
against scoring 8 and training on 4, one after the other on the same rows and in the same order; the first steps of a
run warm up and are not counted.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from typing import Any

import torch

from _common import isolated, machine, save, serve_part, timed, versions
from tunesmith.core.files import hash_json

MODEL, BATCH, STEPS, SKIP = "smollm2-135m-instruct", 8, 6, 2


def make_rows() -> list[dict[str, list[int]]]:
    """The rows of every part."""
    draw = random.Random(0)
    out = []
    for _ in range(BATCH * STEPS):
        ids = [draw.randrange(100, 40_000) for _ in range(draw.randint(60, 180))]
        answer = draw.randint(20, 40)
        out.append({"input_ids": ids, "labels": [-100] * (len(ids) - answer) + ids[-answer:]})
    return out


def score(frozen: bool) -> dict[str, Any]:
    """Time of the score over the time of the forward pass that it follows."""
    from tunesmith.engine.lm import last_states
    from tunesmith.engine.models import load_model
    from tunesmith.select.online import Candidates, OutputLayer, UDSPolicy

    model, rows = load_model(MODEL), make_rows()[:BATCH]
    length = max(len(row["input_ids"]) for row in rows)
    ids, mask = torch.zeros(BATCH, length, dtype=torch.long), torch.zeros(BATCH, length, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row["input_ids"])] = torch.tensor(row["input_ids"])
        mask[i, : len(row["input_ids"])] = 1
    policy, head = UDSPolicy(), model.get_output_embeddings()
    policy.memory_.push(torch.randn(1024, 1024, generator=torch.Generator().manual_seed(0)))
    made_s, layer = timed(lambda: OutputLayer(head.weight, head.bias))
    with torch.no_grad():
        if frozen:
            forward_s, states = timed(
                lambda: last_states(model, ids, mask), repeats=3, clock=time.process_time
            )
            candidates = Candidates(mask.bool(), states=states, layer=layer)
        else:
            forward_s, out = timed(
                lambda: model(input_ids=ids, attention_mask=mask, use_cache=False), repeats=4
            )
            candidates = Candidates(mask.bool(), logits=out.logits)
        score_s, _ = timed(
            lambda: policy.score(BATCH, policy.measure(candidates)), repeats=3, clock=time.process_time
        )
    return {
        "output_layer": "frozen: states" if frozen else "trained: logits",
        "tokens": int(mask.sum()),
        "forward_s": forward_s,
        "score_s": score_s,
        "share": score_s / forward_s,
        "once_s": made_s if frozen else 0.0,
    }


def step(lora: bool) -> dict[str, Any]:
    """Median processor time of a step, with and without the choice."""
    from datasets import Dataset

    from tunesmith.core.events import EventLog
    from tunesmith.engine.models import load_model, load_tokenizer
    from tunesmith.trainers import train_sft

    def steps(online: dict[str, Any] | None) -> float:
        marks: list[float] = []

        def mark(event: dict[str, Any]) -> None:
            if event["kind"] == "metric":
                marks.append(time.process_time())

        with tempfile.TemporaryDirectory() as folder:
            train_sft(
                load_model(MODEL),
                load_tokenizer(MODEL),
                Dataset.from_list(make_rows()),
                output_dir=folder,
                tuner={"type": "lora", "r": 16, "target_modules": "all-linear"} if lora else None,
                batch_size=BATCH,
                save_every=1000,
                online=online,
                log=EventLog(listeners=[mark]),
            )
        return statistics.median(b - a for a, b in zip(marks[SKIP - 1 :], marks[SKIP:], strict=False))

    choices = (None, {"policy": "uds", "keep": 0.5}, {"policy": "random", "keep": 0.5}, None)
    before, uds, random_half, after = (steps(online) for online in choices)
    return {
        "trained": "LoRA" if lora else "all weights",
        "rows_hash": hash_json(make_rows())[:16],
        "full_batch_s": [before, after],
        "random_half_s": random_half,
        "uds_half_s": uds,
        "ratio": uds / min(before, after),
    }


def summarise(scores: list[dict[str, Any]], steps: list[dict[str, Any]]) -> str:
    """Say what was measured; the two runs on whole batches show how far a ratio can be trusted."""
    ranges = (
        f"{s['uds_half_s'] / max(s['full_batch_s']):.2f} to {s['uds_half_s'] / min(s['full_batch_s']):.2f} "
        f"({s['trained']})"
        for s in steps
    )
    return (
        "Score over its forward pass: "
        + "; ".join(f"{s['share']:.1%} with the output layer {s['output_layer']}" for s in scores)
        + ". Step with half of the batch kept over a step on all of it, against the slower and the faster of two "
        f"runs on whole batches: {'; '.join(ranges)}. Targets: 10% and 0.9."
    )


def main() -> None:
    """Run all parts and save docs/benchmarks/uds.json."""
    scores = [isolated(__file__, "score", frozen=flag, one_core=True) for flag in (True, False)]
    steps = [isolated(__file__, "step", lora=flag, one_core=True) for flag in (True, False)]
    assert steps[0]["rows_hash"] == steps[1]["rows_hash"], "the parts measured different rows"
    result = {
        "title": "UDS: cost of the score, time of a step",
        "summary": summarise(scores, steps),
        "measure": "processor time on one core, since the machine is shared; whole batches run before and after, and "
        "their faster run counts",
        "score": scores,
        "step": steps,
        "targets": {
            "share": 0.1,
            "share_reached": {s["output_layer"]: s["share"] < 0.1 for s in scores},
            "ratio": 0.9,
            "ratio_reached": {s["trained"]: s["ratio"] <= 0.9 for s in steps},
        },
        "command": "python benchmarks/uds.py",
        "machine": machine(),
        "versions": versions("torch", "transformers", "trl", "peft"),
    }
    save("benchmarks", "uds", result)


if __name__ == "__main__" and not serve_part({"score": score, "step": step}):
    main()
