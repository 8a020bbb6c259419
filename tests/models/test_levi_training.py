"""LEVI in transformers' trainer: accumulation, resuming, cached features, predictions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import DataCollatorWithPadding, Trainer, TrainerCallback, TrainingArguments

from tunesmith.core.errors import DataError, ParameterError
from tunesmith.models import LEVI, LeviConfig
from tunesmith.models.levi import CachedFeatures, cache_features

Build = Callable[..., tuple[Any, dict[str, torch.Tensor]]]
N = 12


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    ids = [rng.integers(3, 99, size=4 + i % 5).tolist() for i in range(N)]
    return [
        {"input_ids": x, "attention_mask": [1] * len(x), "labels": int(rng.integers(3)), "left": 0.0}
        for x in ids
    ]


@pytest.fixture
def model(tiny_transformer: Build) -> Callable[..., LEVI]:
    def make(kind: str = "bert", dtype: torch.dtype = torch.float32, **given: Any) -> LEVI:
        base, _ = tiny_transformer(kind, dtype)
        torch.manual_seed(5)
        return LEVI(LeviConfig(**{"num_labels": 3, "adapter_width": 6, **given}), base)

    return make


def train(
    model: LEVI, rows: Any, folder: Path, tokenizer: Any, *, resume: Any = None, **given: Any
) -> Trainer:
    arguments = {
        "num_train_epochs": 1, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "logging_steps": 1,
        "save_strategy": "no", "use_cpu": True, "report_to": "none", "disable_tqdm": True, "seed": 3,
    }  # fmt: skip
    callbacks = given.pop("callbacks", None)
    trainer = Trainer(
        model,
        TrainingArguments(str(folder), **{**arguments, **given}),
        train_dataset=rows,
        data_collator=DataCollatorWithPadding(tokenizer),
        callbacks=callbacks,
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def losses(trainer: Trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def state(model: LEVI) -> torch.Tensor:
    return torch.cat([p.detach().float().flatten() for p in model.parameters() if p.requires_grad])


def test_accumulation_equals_one_large_batch(
    model: Any, rows: Any, tmp_path: Path, tiny_tokenizer: Any
) -> None:
    rows[2]["labels"] = rows[5]["labels"] = -100  # some parts of a step then hold fewer labels
    sgd = {"optim": "sgd", "learning_rate": 1.0}
    one, several = model(), model()
    a = train(one, rows, tmp_path, tiny_tokenizer, **sgd)
    parts = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    b = train(several, rows, tmp_path, tiny_tokenizer, **sgd, **parts)
    assert losses(a)[0] == pytest.approx(1.0986, abs=1e-4), "the loss of a step is a mean over its labels"
    assert losses(a) == pytest.approx(losses(b), abs=1.1e-4)  # logged with four figures
    assert torch.allclose(state(one), state(several), atol=1e-6)


class Stop(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = state.global_step == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "given",
    [{"save_base": False}, {"freeze_base": False}, {"lora": {"r": 2, "target_modules": ["query"]}}],
    ids=["frozen, not in the checkpoint", "tuned", "lora"],
)
def test_an_interrupted_training_ends_as_a_straight_one(
    model: Any, rows: Any, tmp_path: Path, tiny_tokenizer: Any, given: dict[str, Any]
) -> None:
    given = {"view_dropout": 0.3, **given}
    straight = model(**given)
    train(straight, rows, tmp_path / "a", tiny_tokenizer)
    saving = {"save_strategy": "steps", "save_steps": 2}
    train(model(**given), rows, tmp_path / "b", tiny_tokenizer, callbacks=[Stop()], **saving)
    resumed = model(**given)
    train(resumed, rows, tmp_path / "b", tiny_tokenizer, resume=True, **saving)
    assert torch.equal(state(resumed), state(straight))


def test_training_on_cached_features_equals_training_on_the_rows(
    model: Any, rows: Any, tmp_path: Path, tiny_tokenizer: Any
) -> None:
    plain, cached = model(view_dropout=0.3), model(view_dropout=0.3)
    expected = losses(train(plain, rows, tmp_path, tiny_tokenizer))
    path = tmp_path / "cache" / "features.npy"
    found = cache_features(
        cached, rows, collator=DataCollatorWithPadding(tiny_tokenizer), batch_size=5, path=path
    )
    assert sorted(p.name for p in path.parent.iterdir()) == ["features.npy"]
    assert isinstance(found.features, np.memmap)
    assert found.features.shape == (N, 64)
    cached.base.register_forward_hook(lambda *_: pytest.fail("the base ran"))
    assert losses(train(cached, found, tmp_path, tiny_tokenizer)) == pytest.approx(expected, abs=2e-4)
    assert torch.allclose(state(cached), state(plain), atol=1e-4)
    half = cache_features(plain, rows, collator=DataCollatorWithPadding(tiny_tokenizer), dtype="float16")
    assert half.features.dtype == np.float16
    assert np.allclose(half.features, np.load(path), atol=2e-3)


def test_a_16_bit_base_learns(model: Any, rows: Any, tmp_path: Path, tiny_tokenizer: Any) -> None:
    tuned = model("llama", torch.bfloat16)
    found = losses(
        train(tuned, rows, tmp_path, tiny_tokenizer, num_train_epochs=12, lr_scheduler_type="constant")
    )
    assert found[-1] < 0.5 < found[0]
    assert {p.dtype for p in tuned.base.parameters()} == {torch.bfloat16}


def test_predictions_are_the_aggregate_alone(
    model: Any, rows: Any, tmp_path: Path, tiny_tokenizer: Any
) -> None:
    trainer = train(model(aggregate="probs"), rows, tmp_path, tiny_tokenizer)
    found = trainer.predict(rows)
    assert found.predictions.shape == (N, 3)
    assert np.exp(found.predictions).sum(1) == pytest.approx(np.ones(N), abs=1e-5)
    assert trainer.evaluate(rows)["eval_loss"] == pytest.approx(found.metrics["test_loss"])


def test_cache_errors(model: Any, rows: Any) -> None:
    with pytest.raises(ParameterError) as error:
        cache_features(model(freeze_base=False), rows)
    assert str(error.value) == (
        "The 'model' parameter of cache_features must be a LEVI with a frozen base. Got 'a base that is trained' "
        "instead."
    )
    with pytest.raises(ParameterError) as error:
        cache_features(model(), rows, dtype="int8")
    assert str(error.value) == (
        "The 'dtype' parameter of cache_features must be 'float32' or 'float16'. Got 'int8' instead."
    )
    with pytest.raises(DataError) as error:
        CachedFeatures(rows, np.zeros((3, 8)))
    assert str(error.value) == "there are 12 rows, but features of 3."
