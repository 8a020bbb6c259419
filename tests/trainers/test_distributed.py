"""Two processes under torchrun learn what one learns, and only the first writes and emits."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from _two_processes import run_alone_and_in_two

SCRIPT = """
import json, sys
import torch
from datasets import load_from_disk
torch.set_num_threads(1)
from tunesmith.core.events import EventLog
from tunesmith.engine.models import load_model, load_tokenizer
from tunesmith.trainers import train_sft

folder, rows, output, batch_size, rank = sys.argv[1:5] + [__import__("os").environ.get("RANK", "0")]
log = EventLog(output + f"-events-{rank}.jsonl")
result = train_sft(
    load_model(folder, dtype="float32"), load_tokenizer(folder), load_from_disk(rows), output_dir=output,
    tuner={"type": "lora", "r": 4}, learning_rate=1e-2, batch_size=int(batch_size), save_every=2, log=log,
)
json.dump([result.losses, result.tokens, result.trained_tokens], open(output + f"-{rank}.json", "w"))
"""


@pytest.mark.slow
def test_two_processes_equal_one(tiny_model_dir, tiny_tokenizer, tmp_path):
    from datasets import Dataset

    from tunesmith.data.preflight import encode_dataset

    rows, _ = encode_dataset(
        Dataset.from_list([{"text": "the cat sat on the mat " * (1 + i % 4)} for i in range(32)]),
        tiny_tokenizer,
        max_length=None,
    )
    rows.save_to_disk(str(tmp_path / "rows"))
    (tmp_path / "script.py").write_text(SCRIPT)
    run_alone_and_in_two(
        tmp_path / "script.py",
        lambda run, batch: [tiny_model_dir, str(tmp_path / "rows"), str(tmp_path / run), str(batch)],
    )
    one = json.loads((tmp_path / "one-0.json").read_text())
    two = json.loads((tmp_path / "two-0.json").read_text())
    assert [loss for _, loss, _ in two[0]] == pytest.approx([loss for _, loss, _ in one[0]], abs=1e-6)
    assert two[1:] == one[1:]
    assert not (tmp_path / "two-events-1.jsonl").exists()
    for step in (2, 4):
        assert (tmp_path / "two" / f"checkpoint-{step}" / "complete.json").exists()
    ours, theirs = (
        load_file(tmp_path / x / "checkpoint-4" / "adapter_model.safetensors") for x in ("one", "two")
    )
    for key, tensor in ours.items():
        assert torch.allclose(tensor, theirs[key], atol=1e-6), key
