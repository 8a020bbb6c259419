"""What may move beside adapters, under the trainer: half the weights, one matrix, fake-quantised weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from tunesmith.core.errors import MissingModelError, ParameterError, TrainingError, UnknownNameError
from tunesmith.core.events import EventLog
from tunesmith.core.files import write_json
from tunesmith.engine.logits import fixed_batch, logits_of
from tunesmith.engine.models import load_model
from tunesmith.trainers import load_tuned, save_tuned, train_sft
from tunesmith.trainers.plans import PLANS, parameters_of_plan, plan_of
from tunesmith.tuners.registration import WHOLE_MODEL

ROWS = Dataset.from_list(
    [{"input_ids": list(range(3, 12 + i)), "labels": [-100] * 4 + list(range(7, 12 + i))} for i in range(8)]
)
TUNERS: dict[str, dict[str, Any]] = {
    "hft": {"type": "hft"},
    "locft": {"type": "locft", "layer": 1, "module": "mlp_down"},
    "lt_sft": {"type": "lt_sft", "density": 0.05},
    "roste": {"type": "roste", "n_calibration": 4},
}


def train(tuner: Any, model_dir: str, tokenizer: Any, folder: Path, **changes: Any) -> Any:
    arguments = {"epochs": 2, "batch_size": 2, "learning_rate": 1e-3, "seed": 3, **changes}
    model = load_model(model_dir, dtype="float32")
    return train_sft(model, tokenizer, ROWS, output_dir=folder, tuner=tuner, **arguments)


@pytest.mark.parametrize("name", TUNERS)
def test_trained_saved_and_read_back(
    name: str, tiny_model_dir: str, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    before = load_model(tiny_model_dir, dtype="float32").state_dict()
    messages: list[str] = []
    log = EventLog(listeners=[lambda event: messages.append(event.get("message", ""))])
    result = train(TUNERS[name], tiny_model_dir, tiny_tokenizer, tmp_path / "run", log=log)
    assert result.steps == (16 if name == "lt_sft" else 8)
    assert [step for step, *_ in result.losses] == list(range(1, result.steps + 1))
    assert result.losses[-1][1] < result.losses[0][1]
    after = result.model.state_dict()
    moved = {n for n in before if not torch.equal(before[n], after[n])}
    if name == "locft":
        assert moved == {"model.layers.1.mlp.down_proj.weight"}
    elif name == "lt_sft":
        changed = sum(int((before[n] != after[n]).sum()) for n in before if n != "lm_head.weight")
        assert 0 < changed <= result.delta.nnz
    elif name == "hft":
        layers = {n for n in before if ".layers." in n}
        assert len(layers & moved) == 9  # of 18: 2 of 4, 2 or 1 of 3 and 1 of 2 in each of two layers
        assert "model.embed_tokens.weight" in moved
        assert any("HFT trains" in message for message in messages)
    else:
        assert moved == set(before)
        assert any("RoSTE rotates" in message for message in messages)
    expected = logits_of(result.model, fixed_batch(result.model))
    save_tuned(result.model, tiny_tokenizer, tmp_path / "tuned")
    again = load_tuned(tmp_path / "tuned", tiny_model_dir)
    assert torch.allclose(logits_of(again, fixed_batch(again)), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "step"), [*((name, 5) for name in TUNERS if name != "lt_sft"), ("lt_sft", 12)]
)
def test_killed_and_continued_it_ends_as_a_straight_run(
    name: str, step: int, tiny_model_dir: str, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    straight = train(TUNERS[name], tiny_model_dir, tiny_tokenizer, tmp_path / "straight")

    class Killed(Exception):
        pass

    def kill(event: dict[str, Any]) -> None:
        if event.get("step") == step:
            raise Killed

    log = EventLog(listeners=[kill])
    with pytest.raises(Killed):
        train(TUNERS[name], tiny_model_dir, tiny_tokenizer, tmp_path / "run", save_every=2, log=log)
    continued = train(TUNERS[name], tiny_model_dir, tiny_tokenizer, tmp_path / "run", save_every=2)
    one, other = straight.model.state_dict(), continued.model.state_dict()
    assert all(torch.equal(one[n], other[n]) for n in one)
    assert continued.losses == straight.losses
    assert (continued.steps, continued.tokens) == (straight.steps, straight.tokens)
    assert continued.trained_tokens == straight.trained_tokens
    if name == "lt_sft":
        assert continued.delta == straight.delta


def test_lofit_chooses_its_heads_on_the_training_rows(
    tiny_model_dir: str, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    result = train({"type": "lofit", "k": 3}, tiny_model_dir, tiny_tokenizer, tmp_path, learning_rate=1e-2)
    assert len(result.model.peft_config["default"].heads) == 3
    assert result.losses[-1][1] < result.losses[0][1]


def test_an_unknown_adapter_is_named(tmp_path: Path, tiny_model_dir: str) -> None:
    write_json(tmp_path / "adapter_config.json", {"peft_type": "TUNESMITH_LATER"})
    with pytest.raises(
        MissingModelError, match="is of the method 'TUNESMITH_LATER', which neither the installed PEFT"
    ):
        load_tuned(tmp_path, tiny_model_dir)


def test_phases_of_another_training_are_refused(
    tiny_model_dir: str, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    tuner = {"type": "lt_sft", "density": 0.05, "dense_steps": 2, "sparse_steps": 2}
    train(tuner, tiny_model_dir, tiny_tokenizer, tmp_path)
    with pytest.raises(TrainingError, match="holds phases of another training; it differs in: learning_rate"):
        train(tuner, tiny_model_dir, tiny_tokenizer, tmp_path, learning_rate=2e-3)
    again = train(tuner, tiny_model_dir, tiny_tokenizer, tmp_path, learning_rate=2e-3, resume=False)
    assert again.steps == 4


def test_two_passes_with_mosa_and_with_whatever_asks_for_them(
    tiny_model_dir: str, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    runs = {}
    for weight in (None, 0.0, 1.0):
        tuner = {"type": "mosa", "r": 4, "target_modules": ["q_proj", "v_proj"]}
        result = train(
            tuner,
            tiny_model_dir,
            tiny_tokenizer,
            tmp_path / str(weight),
            consistency=weight,
            learning_rate=1e-2,
        )
        runs[weight] = [loss for _, loss, _ in result.losses]
    assert runs[None] == runs[1.0] != runs[0.0]
    plain = train({"type": "lora", "r": 4}, tiny_model_dir, tiny_tokenizer, tmp_path / "plain")
    with_passes = train(
        {"type": "lora", "r": 4, "lora_dropout": 0.5},
        tiny_model_dir,
        tiny_tokenizer,
        tmp_path / "r",
        consistency=2.0,
    )
    assert plain.steps == with_passes.steps
    with pytest.raises(
        ParameterError, match="The 'consistency' parameter of train_sft must be a float of at least 0"
    ):
        train(None, tiny_model_dir, tiny_tokenizer, tmp_path / "bad", consistency=-1.0)


def test_bad_plans() -> None:
    with pytest.raises(
        ParameterError, match="The 'r' parameter of tuner 'full' must be left out: full tuning has no"
    ):
        plan_of({"type": "full", "r": 4}, "train_sft")
    with pytest.raises(
        ParameterError, match=r"The 'ration' parameter of tuner 'hft' .* Did you mean 'ratio'\?"
    ):
        plan_of({"type": "hft", "ration": 0.4}, "train_sft")
    with pytest.raises(ParameterError, match="The 'n_calibration' parameter of tuner 'roste' must be an int"):
        plan_of({"type": "roste", "n_calibration": 0}, "train_sft")
    with pytest.raises(ParameterError, match="The 'weight_bits' parameter of RosteConfig"):
        plan_of({"type": "roste", "weight_bits": 1}, "train_sft")
    with pytest.raises(ParameterError, match="must be a dict with 'type', a PeftConfig or None"):
        plan_of("lora", "train_sft")
    with pytest.raises(UnknownNameError, match="nope"):
        plan_of({"type": "nope"}, "train_sft")
    assert set(PLANS) == set(WHOLE_MODEL)
    for name in PLANS:
        assert "self" not in parameters_of_plan(name)


def test_one_matrix_under_gradient_checkpointing(
    tiny_model_dir: str, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    """Nothing below the matrix needs a gradient, and the backward pass need not go there."""
    losses = [
        train(
            TUNERS["locft"], tiny_model_dir, tiny_tokenizer, tmp_path / str(on), gradient_checkpointing=on
        ).losses
        for on in (False, True)
    ]
    assert losses[0] == losses[1]


def test_one_matrix_of_a_bfloat16_model_is_trained_in_float32(
    tiny_model_dir: str, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    model = load_model(tiny_model_dir, dtype="bfloat16")
    result = train_sft(
        model, tiny_tokenizer, ROWS, output_dir=tmp_path, tuner=TUNERS["locft"], batch_size=4, epochs=1
    )
    assert result.model.dtype == torch.float32
