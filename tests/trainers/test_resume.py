"""A training killed anywhere and continued ends with the tensors of a straight one."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from tunesmith.core.errors import TrainingError
from tunesmith.core.events import EventLog
from tunesmith.data.preflight import encode_dataset
from tunesmith.engine.models import load_model, load_tokenizer
from tunesmith.trainers import train_sft

# Dropout, two epochs and a fractional third: the order of rows and the random state both have to be restored.
OPTIONS: dict[str, Any] = {
    "tuner": {"type": "lora", "r": 4, "lora_dropout": 0.2},
    "learning_rate": 1e-2,
    "epochs": 2.4,
    "batch_size": 4,
    "save_every": 2,
    "seed": 7,
}
STEPS = 12


def make_rows(tokenizer) -> Dataset:
    words = ["cat", "dog", "park", "mat", "capital", "France"]
    draw = random.Random(1)
    rows = []
    for _ in range(20):
        some = " ".join(draw.choices(words, k=draw.randint(2, 7)))
        rows.append(
            {"messages": [{"role": "user", "content": some}, {"role": "assistant", "content": some[::-1]}]}
        )
    return encode_dataset(Dataset.from_list(rows), tokenizer, max_length=None)[0]


def start(folder: str, output: Path, listeners=(), **options):
    tokenizer = load_tokenizer(folder)
    log = EventLog(listeners=list(listeners))
    model = load_model(folder, dtype="float32")
    return train_sft(
        model, tokenizer, make_rows(tokenizer), output_dir=output, log=log, **{**OPTIONS, **options}
    )


def tensors(result) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in result.model.named_parameters() if p.requires_grad}


@pytest.fixture(scope="module")
def straight(tiny_model_dir, tmp_path_factory):
    result = start(tiny_model_dir, tmp_path_factory.mktemp("straight") / "run")
    assert result.steps == STEPS
    return result, tensors(result)


def assert_equal(result, straight) -> None:
    reference, theirs = straight
    ours = tensors(result)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name
    assert result.losses == reference.losses
    assert (result.tokens, result.trained_tokens) == (reference.tokens, reference.trained_tokens)
    assert result.epochs == reference.epochs


class Stop(Exception):
    pass


def stop_at(step: int):
    def listen(event):
        if event["kind"] == "metric" and event["step"] == step:
            raise Stop

    return listen


@pytest.mark.parametrize("step", [1, 4, 7, 12])
def test_interrupted_and_continued(step, tiny_model_dir, straight, tmp_path):
    with pytest.raises(Stop):
        start(tiny_model_dir, tmp_path / "run", [stop_at(step)])
    events = []
    assert_equal(start(tiny_model_dir, tmp_path / "run", [events.append]), straight)
    done = (step - 1) // 2 * 2  # the event of a step comes before its checkpoint
    assert [e["step"] for e in events if e["kind"] == "metric"] == list(range(done + 1, STEPS + 1))


def kill_during(folder: str, output: str, when: dict[str, Any]) -> None:
    """Run in a process of its own; die by SIGKILL at a step, or in the middle of writing a checkpoint."""
    torch.set_num_threads(1)
    if "saving" in when:
        from tunesmith.trainers import checkpoints

        def die(path: Any, value: Any) -> None:
            if value["step"] == when["saving"]:
                os.kill(os.getpid(), signal.SIGKILL)
            original(path, value)

        original, checkpoints.write_json = checkpoints.write_json, die

    def listen(event: dict[str, Any]) -> None:
        if event["kind"] == "metric" and event["step"] == when.get("step"):
            os.kill(os.getpid(), signal.SIGKILL)

    start(folder, Path(output), [listen])


@pytest.mark.slow  # in the default tier a whole run is killed, see tests/recipe/test_run.py
def test_killed_and_continued(tiny_model_dir, straight, tmp_path):
    """Three kills in a row: at a random step, inside a save, and at a later random step."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["trl", "peft", "transformers", "datasets", "tunesmith.trainers._loop"])
    draw = random.Random()
    kills = [{"step": draw.randint(2, 5)}, {"saving": 6}, {"step": draw.randint(7, 11)}]
    for when in kills:
        process = context.Process(target=kill_during, args=(tiny_model_dir, str(tmp_path / "run"), when))
        process.start()
        process.join(200)
        assert process.exitcode == -signal.SIGKILL, when
        if "saving" in when:
            assert (tmp_path / "run" / "checkpoint-6").exists()
            assert not (tmp_path / "run" / "checkpoint-6" / "complete.json").exists()
    assert_equal(start(tiny_model_dir, tmp_path / "run"), straight)


def test_a_finished_training_is_not_trained_on(tiny_model_dir, straight, tmp_path):
    start(tiny_model_dir, tmp_path / "run")
    events = []
    assert_equal(start(tiny_model_dir, tmp_path / "run", [events.append]), straight)
    assert not [e for e in events if e["kind"] == "metric"]


def test_full_tuning_continues_too(tiny_model_dir, tmp_path):
    options = {"tuner": None, "learning_rate": 1e-3, "epochs": 1.0, "save_every": 1}
    reference = start(tiny_model_dir, tmp_path / "straight", **options)
    with pytest.raises(Stop):
        start(tiny_model_dir, tmp_path / "run", [stop_at(3)], **options)
    assert_equal(start(tiny_model_dir, tmp_path / "run", **options), (reference, tensors(reference)))


def test_another_training_is_refused(tiny_model_dir, tmp_path):
    start(tiny_model_dir, tmp_path / "run", epochs=0.4)
    with pytest.raises(
        TrainingError,
        match=r"run holds checkpoints of another training; it differs in: learning_rate, tuner\. Give "
        r"another folder, or "
        r"resume=False to discard them\.",
    ):
        start(
            tiny_model_dir, tmp_path / "run", epochs=0.4, learning_rate=1e-3, tuner={"type": "lora", "r": 2}
        )
    start(tiny_model_dir, tmp_path / "run", epochs=0.4, learning_rate=1e-3, resume=False)
    marker = json.loads((tmp_path / "run" / "checkpoint-2" / "complete.json").read_text())
    assert marker["identity"]["learning_rate"] == "0.001"
    assert marker["step"] == 2
