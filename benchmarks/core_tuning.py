"""A step of Core-tuning against a step of plain fine-tuning, in transformers' trainer, on three backbones.

    python benchmarks/core_tuning.py        (run again until done)

Random weights in float32, 10 classes, AdamW, one thread: BERT-base on 16 x 64 tokens, ViT-B/16 on 16 images of 96
pixels (small ones: the backbone then costs least beside the loss), ResNet-50 on 16 images of 128 pixels, with features
of width 2048. Projections of width 256. "In two" are two micro-batches of 8, which Core-tuning runs once more without
gradients, to pair all 16 rows. Each arm runs in a process of its own, plain and ours one after the other, in two turns;
a step's time is the least processor time of its steps, memory the process's peak.
"""

from __future__ import annotations

import tempfile
import time
from typing import Any

from _common import isolated, machine, save, serve_part, versions
from claims._parts import stretch

ROWS, CLASSES, STEPS = 16, 10, 3
BACKBONES = ("BERT-base", "ViT-B/16", "ResNet-50")
ARMS = ("plain", "Core-tuning", "plain, in two", "Core-tuning, in two")
IN_TWO = "BERT-base"
"""The backbone on which the cut into micro-batches is measured."""


def backbone(name: str) -> tuple[Any, dict[str, Any]]:
    """Return a classifier with random weights and a batch."""
    import torch
    import transformers as tf

    g = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    if name == "BERT-base":
        ids = torch.randint(1000, 30_000, (ROWS, 64), generator=g)
        return tf.BertForSequenceClassification(tf.BertConfig(num_labels=CLASSES)), {"input_ids": ids}
    if name == "ViT-B/16":
        config = tf.ViTConfig(num_labels=CLASSES, image_size=96)
        return tf.ViTForImageClassification(config), {
            "pixel_values": torch.randn(ROWS, 3, 96, 96, generator=g)
        }
    pixels = torch.randn(ROWS, 3, 128, 128, generator=g)
    return tf.ResNetForImageClassification(tf.ResNetConfig(num_labels=CLASSES)), {"pixel_values": pixels}


def step(name: str, arm: str) -> dict[str, Any]:
    """Time of the steps of one arm on one backbone."""
    import torch
    from torch.utils.data import Dataset
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from tunesmith.trainers import CoreTuningTrainer

    model, inputs = backbone(name)

    class Rows(Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return ROWS

        def __getitem__(self, i: int) -> dict[str, Any]:
            return {key: value[i] for key, value in inputs.items()} | {"labels": i % (CLASSES // 2)}

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.times: list[float] = []

        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            self.begin = time.process_time()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            self.times.append(time.process_time() - self.begin)

    clock, cuts = Clock(), 2 if "in two" in arm else 1
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=ROWS // cuts,
            gradient_accumulation_steps=cuts,
            max_steps=STEPS,
            report_to="none",
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
        )
        kind = CoreTuningTrainer if arm.startswith("Core") else Trainer
        trainer = kind(model=model, args=settings, train_dataset=Rows(), callbacks=[clock])
        trainer.train()
    trained = sum(p.numel() for p in model.parameters())
    extra = sum(p.numel() for p in trainer.extra.parameters()) if arm.startswith("Core") else 0
    assert torch.get_num_threads() == 1
    return {"weights": trained, "projection": extra, "step_s": min(clock.times[1:])}


def main() -> None:
    """Run everything and save docs/benchmarks/core_tuning.json."""

    def pair(job: str) -> dict[str, Any]:
        name, _, cut = job.partition(": ")[2].partition(", ")
        arms = [arm for arm in ARMS if arm.endswith("in two") == bool(cut)]
        return {arm: isolated(__file__, "step", one_core=True, name=name, arm=arm) for arm in arms}

    pairs = [*BACKBONES, f"{IN_TWO}, in two"]
    done = stretch("core-tuning-benchmark", [f"turn {k}: {name}" for k in (1, 2) for name in pairs], pair)
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for job, both in done.items():
        for arm, result in both.items():
            found.setdefault((job.partition(": ")[2].partition(", ")[0], arm), []).append(result)
    rows: list[dict[str, Any]] = []
    for (name, arm), results in found.items():
        best = {key: min(r[key] for r in results) for key in ("step_s", "peak_gib")}
        rows.append(
            {
                "backbone": name,
                "arm": arm,
                "weights": results[0]["weights"],
                "projection": results[0]["projection"],
                "step_s": round(best["step_s"], 3),
                "peak_gib": round(best["peak_gib"], 2),
            }
        )
    by_name = {(row["backbone"], row["arm"]): row for row in rows}
    for row in rows:
        plain = by_name[row["backbone"], row["arm"].replace("Core-tuning", "plain")]
        row["time to plain"] = round(row["step_s"] / plain["step_s"], 3)
        row["memory to plain"] = round(row["peak_gib"] / plain["peak_gib"], 3)
    ours = [row for row in rows if row["arm"] == "Core-tuning"]
    in_two = by_name[IN_TWO, "Core-tuning, in two"]
    most = max(row["time to plain"] for row in [*ours, in_two])
    each = ", ".join(f"{row['backbone']} {row['time to plain']:.2f}" for row in ours)
    result = {
        "title": "Core-tuning: a training step",
        "summary": f"A step of Core-tuning takes, of a plain step's time: {each}; in two micro-batches "
        f"{in_two['time to plain']:.2f}. The target of 1.6 is {'met' if most <= 1.6 else 'missed'}. Peak memory: at "
        f"most {max(row['memory to plain'] for row in [*ours, in_two]):.2f} times the plain one's.",
        "rows": rows,
        "setting": " ".join((__doc__ or "").split("\n\n")[2].split()),
        "command": "python benchmarks/core_tuning.py",
        "machine": machine(),
        "versions": versions("torch", "transformers"),
    }
    save("benchmarks", "core_tuning", result)


if __name__ == "__main__" and not serve_part({"step": step}):
    main()
