"""The supervised methods as trainings of a tiny model, for the behaviour suite of trainers and its second process.

A new method adds one entry to `ROWS`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

WORDS = {"warm": "sun fire summer", "cold": "ice snow winter"}
ROWS: dict[str, dict[str, Any]] = {
    "sft": {},
    "masked-thought": {"masked": {"rate": 0.5, "mode": "random", "warmup": 0.0}},
    "cross-entropy": {"objective": "cross_entropy"},
    "core-tuning": {"objective": {"type": "core_tuning", "projection_dim": 8}},
    "dr-tune": {"objective": {"type": "dr_tune", "bank_size": 8, "rotate_every": 2}},
    "levi": {"tuner": {"type": "levi", "adapter_width": 8}},
}
"""Name -> what `train_sft` or `train_classifier` is told beside the usual."""
LANGUAGE = ("sft", "masked-thought")


def class_rows(n: int = 24) -> Dataset:
    """Return texts of two classes."""
    names = list(WORDS)
    return Dataset.from_list(
        [{"text": WORDS[names[i % 2]] + f" day {i % 5}", "label": names[i % 2]} for i in range(n)]
    )


def without_dropout(model: Any) -> Any:
    """Set every dropout to 0: its masks follow the batches, and then no cut of a batch equals another."""
    for part in model.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    return model


def train(name: str, folders: dict[str, str], output: str | Path, **changes: Any) -> Any:
    """Train a method of `ROWS`.

    Args:
        name: its name.
        folders: ``{"lm": folder of a language model, "encoder": folder of an encoder}``.
        output: for checkpoints.
        **changes: of the training; ``dtype`` is the model's.
    """
    from tunesmith.engine.models import load_model, load_tokenizer
    from tunesmith.trainers import train_sft
    from tunesmith.trainers.classify import encode_classes, load_classifier_for, train_classifier

    dtype = changes.pop("dtype", "float32")
    given = {"epochs": 2, "batch_size": 8, "learning_rate": 1e-3, "save_every": 2, "seed": 3}
    given |= {**ROWS[name], **changes}
    if name in LANGUAGE:
        tokenizer = load_tokenizer(folders["lm"])
        ids = torch.randint(3, 200, (24, 12), generator=torch.Generator().manual_seed(0)).tolist()
        rows = Dataset.from_list([{"input_ids": row, "labels": [-100] * 4 + row[4:]} for row in ids])
        return train_sft(load_model(folders["lm"], dtype=dtype), tokenizer, rows, output_dir=output, **given)
    tokenizer = load_tokenizer(folders["encoder"])
    rows, classes, _ = encode_classes(class_rows(), tokenizer, label="label")
    model = without_dropout(load_classifier_for(folders["encoder"], classes, dtype=dtype))
    return train_classifier(model, tokenizer, rows, output_dir=output, **given)


if __name__ == "__main__":  # one process of a distributed training
    from safetensors.torch import save_file

    torch.set_num_threads(1)
    method, lm, encoder, out, batch = sys.argv[1:]
    result = train(method, {"lm": lm, "encoder": encoder}, out, batch_size=int(batch))
    if torch.distributed.is_initialized() and torch.distributed.get_rank() > 0:
        sys.exit()
    Path(f"{out}.json").write_text(json.dumps([loss for _, loss, _ in result.losses]))
    save_file({n: p.detach().clone() for n, p in result.model.named_parameters()}, f"{out}.safetensors")
