"""The records of a training: every step, before clipping, with the rows seen, and the same after a kill."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from _tiny_transformers import build
from tunesmith.core.errors import DataError
from tunesmith.engine.models import load_model, load_tokenizer
from tunesmith.trainers import EarlySignalCallback, rank_runs, sft_recipe, train_sft
from tunesmith.trainers.recipe_guide import read_signals


def make_rows(n: int = 20, seed: int = 1) -> Dataset:
    draw = random.Random(seed)
    rows = []
    for _ in range(n):
        ids = [draw.randrange(5, 300) for _ in range(draw.randint(6, 14))]
        rows.append({"input_ids": ids, "labels": [-100] * 3 + ids[3:]})
    return Dataset.from_list(rows)


def start(folder: str, output: Any, *callbacks: Any, rows: Dataset | None = None, **options: Any) -> Any:
    return train_sft(
        load_model(folder, dtype="float32"),
        load_tokenizer(folder),
        make_rows() if rows is None else rows,
        output_dir=output,
        callbacks=callbacks,
        **{"batch_size": 3, "epochs": 2.0, "save_every": 2, "seed": 7, "warmup": 0.0, **options},
    )


class Kill(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def test_a_record_for_each_step_and_the_same_after_a_kill(tiny_model_dir, tmp_path) -> None:
    straight = EarlySignalCallback(tmp_path / "straight.jsonl", setting={"sweep": 1})
    result = start(tiny_model_dir, tmp_path / "straight", straight)
    assert [r["step"] for r in straight.records] == list(range(1, 15))
    assert [r["samples_seen"] for r in straight.records] == [
        3,
        6,
        9,
        12,
        15,
        18,
        20,
        23,
        26,
        29,
        32,
        35,
        38,
        40,
    ]
    assert [(r["step"], r["loss"], r["lr"]) for r in straight.records] == result.losses
    assert read_signals(tmp_path / "straight.jsonl") == straight.run
    assert straight.setting["sweep"] == 1
    assert straight.setting.keys() > {"model", "data", "tokenizer", "template", "loss"}

    with pytest.raises(KeyboardInterrupt):
        start(tiny_model_dir, tmp_path / "killed", EarlySignalCallback(tmp_path / "killed.jsonl"), Kill(6))
    with open(tmp_path / "killed.jsonl", "a") as stream:
        stream.write('{"step": 6, "samples_se')
    again = EarlySignalCallback(tmp_path / "killed.jsonl", setting={"sweep": 1})
    start(tiny_model_dir, tmp_path / "killed", again)
    assert again.records == straight.records
    assert read_signals(tmp_path / "killed.jsonl") == straight.run


def test_it_logs_every_step_in_its_window_whatever_the_trainer_does(tmp_path) -> None:
    """And the norm is that before clipping, over all trained weights."""
    model, _ = build("llama-tied")
    norms: list[float] = []

    class Watch(TrainerCallback):
        def on_pre_optimizer_step(
            self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
        ) -> None:
            clipped = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
            norms.append(float(clipped))

    rows = [{"input_ids": [5 + i % 9] * 8, "labels": [5 + i % 9] * 8} for i in range(32)]
    args = TrainingArguments(
        str(tmp_path), per_device_train_batch_size=2, gradient_accumulation_steps=2, num_train_epochs=1,
        logging_strategy="no", max_grad_norm=0.01, use_cpu=True, report_to="none", disable_tqdm=True,
        save_strategy="no",
    )  # fmt: skip
    signals = EarlySignalCallback(samples=20)
    Trainer(model, args, train_dataset=rows, callbacks=[signals, Watch()]).train()
    assert [r["samples_seen"] for r in signals.records] == [4, 8, 12, 16, 20]
    assert max(norms) == pytest.approx(0.01, rel=1e-3)
    assert min(r["grad_norm"] for r in signals.records) > 0.1


def test_the_recommended_schedule_is_flat_from_the_first_step_to_the_last(tiny_model_dir, tmp_path) -> None:
    given = sft_recipe(4, world=1, per_device=2, epochs=2, learning_rate=3e-4, kind="train_sft")
    result = start(tiny_model_dir, tmp_path, **given)
    assert len(result.losses) == 10
    assert {rate for _, _, rate in result.losses} == {3e-4}


def test_runs_on_other_data_are_not_ranked_together(tiny_model_dir, tmp_path) -> None:
    runs = {}
    for name, rows in (("a", make_rows(10)), ("b", make_rows(10, seed=2))):
        runs[name] = EarlySignalCallback(samples=10)
        start(tiny_model_dir, tmp_path / name, runs[name], rows=rows, batch_size=1, epochs=1.0, save_every=50)
    assert math.isfinite(rank_runs({"a": runs["a"].run}, 10).runs[0].g)
    with pytest.raises(DataError, match=r"^the runs 'a' and 'b' cannot be compared: they differ in data \("):
        rank_runs({name: callback.run for name, callback in runs.items()}, 10)


def test_larger_batches_move_less_and_forget_less(tmp_path) -> None:
    """At the same rate and rows seen; what the guide expects of a large batch."""
    torch.manual_seed(0)
    known = [{"input_ids": [5 + (i + j) % 9 for j in range(8)], "labels": [5 + (i + j) % 9 for j in range(8)]}
             for i in range(9)]  # fmt: skip
    new = [{"input_ids": [5 + (i - j) % 9 for j in range(8)], "labels": [5 + (i - j) % 9 for j in range(8)]}
           for i in range(64)]  # fmt: skip
    base, _ = build("llama-tied")

    def trained(model: Any, rows: list[Any], batch: int, epochs: int) -> Any:
        args = TrainingArguments(
            str(tmp_path), per_device_train_batch_size=batch, num_train_epochs=epochs, learning_rate=3e-3,
            lr_scheduler_type="constant", use_cpu=True, report_to="none", disable_tqdm=True, save_strategy="no",
            logging_strategy="no",
        )  # fmt: skip
        Trainer(model, args, train_dataset=rows).train()
        return model.eval()

    def loss(model: Any) -> float:
        batch = {key: torch.tensor([row[key] for row in known]) for key in ("input_ids", "labels")}
        with torch.no_grad():
            return float(model(**batch).loss)

    trained(base, known, 9, 30)
    state = {key: value.clone() for key, value in base.state_dict().items()}
    moved, forgotten = {}, {}
    for batch in (4, 32):
        model, _ = build("llama-tied")
        model.load_state_dict(state)
        before = loss(model.eval())
        trained(model.train(), new, batch, 2)
        moved[batch] = math.sqrt(sum(float(((p - state[n]) ** 2).sum()) for n, p in model.named_parameters()))
        forgotten[batch] = loss(model) - before
    assert moved[32] < moved[4]
    assert forgotten[32] < forgotten[4]
