"""Masked thought in trainers: the rate of each step, accumulation, workers, evaluation, resuming, refusals."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from _thoughts import fed, rows
from datasets import Dataset
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from tunesmith.core.errors import DataError, ParameterError, TrainingError
from tunesmith.trainers import (
    Consistency,
    ConsistencyMixin,
    MaskedThoughtCollator,
    MaskedThoughtMixin,
    MaskRateCallback,
)
from tunesmith.trainers._trl_compat import Trainer as OurTrainer
from tunesmith.trainers.masked_thought import mask_rate

MASK = 1
PAD = DataCollatorForLanguageModeling(0)
SLOW_MIXIN = pytest.param("mixin", marks=pytest.mark.slow)
MASKED = {"mask_token": MASK, "rate": 0.8, "warmup": 0.5}


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[], str]:
    counter = itertools.count()
    return lambda: str(tmp_path / str(next(counter)))


def arguments(kind: Any, out: str, **kwargs: Any) -> Any:
    settings: dict[str, Any] = {
        "output_dir": out,
        "per_device_train_batch_size": 4,
        "max_steps": 4,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "seed": 3,
        **kwargs,
    }
    if issubclass(kind, SFTTrainer):
        return SFTConfig(
            dataset_kwargs={"skip_prepare_dataset": True}, gradient_checkpointing=False, **settings
        )
    return TrainingArguments(remove_unused_columns=False, **settings)


def trainer(kind: Any, model_dir: str, tokenizer: Any, out: str, more: dict[str, Any], **kwargs: Any) -> Any:
    return kind(
        model=AutoModelForCausalLM.from_pretrained(model_dir),
        args=arguments(kind, out, **kwargs),
        train_dataset=Dataset.from_list(rows(16)),
        eval_dataset=Dataset.from_list(rows(4, seed=9)),
        processing_class=tokenizer,
        **{"data_collator": PAD, **more},
    )


def driven(p_max: float = 0.8, seed: int = 3, **kwargs: Any) -> dict[str, Any]:
    collator = MaskedThoughtCollator(PAD, mask_token=MASK, rate=p_max, seed=seed, **kwargs)
    return {"data_collator": collator, "callbacks": [MaskRateCallback(collator, warmup=0.5)]}


def with_mixin(kind: Any) -> Any:
    return type("Masked", (MaskedThoughtMixin, kind), {})


def weights(model: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        pytest.param(Trainer, "callback", marks=pytest.mark.slow),
        (SFTTrainer, "callback"),
        pytest.param(SFTTrainer, "mixin", marks=pytest.mark.slow),
        (OurTrainer, "mixin"),
    ],
)
def test_each_step_has_its_rate_and_evaluation_is_clean(
    kind: Any, how: str, tiny_model_dir: str, tiny_tokenizer: Any, folder: Any
) -> None:
    more = driven() if how == "callback" else {"masked": MASKED}
    kind = kind if how == "callback" else with_mixin(kind)
    made = trainer(
        kind, tiny_model_dir, tiny_tokenizer, folder(), more, max_steps=6, eval_strategy="steps", eval_steps=2
    )
    made.evaluate()
    with fed(made.model) as trained, fed(made.model, training=False) as evaluated:
        made.train()
    rates = [mask_rate(s, 6, 0.8, 0.5) for s in range(6)]
    assert rates == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 0.8])
    assert len(trained) == 6
    shares = [float((ids == MASK).float().sum()) / (4 * 9.5) for ids in trained]
    assert shares[0] == 0
    assert all(
        abs(share - rate) < 0.27 for share, rate in zip(shares, rates, strict=True)
    )  # 3 standard errors
    assert len(evaluated) >= 3
    assert not any((ids == MASK).any() for ids in evaluated)
    logged = [e["mask_rate"] for e in made.state.log_history if "loss" in e]
    assert logged == pytest.approx(rates)


def test_callback_and_mixin_hide_the_same_tokens(
    tiny_model_dir: str, tiny_tokenizer: Any, folder: Any
) -> None:
    found = []
    for kind, more in (
        (SFTTrainer, driven()),
        (Trainer, driven()),
        (with_mixin(OurTrainer), {"masked": MASKED}),
    ):
        made = trainer(kind, tiny_model_dir, tiny_tokenizer, folder(), more)
        made.train()
        found.append(weights(made.model))
    for other in found[1:]:
        assert_close(other, found[0], atol=2e-4, rtol=0)


@pytest.mark.parametrize("how", ["callback", SLOW_MIXIN])
def test_a_rate_of_zero_is_plain_training(
    how: str, tiny_model_dir: str, tiny_tokenizer: Any, folder: Any
) -> None:
    plain = trainer(SFTTrainer, tiny_model_dir, tiny_tokenizer, folder(), {}, max_steps=2)
    more = driven(0.0) if how == "callback" else {"masked": {**MASKED, "rate": 0.0}}
    kind = SFTTrainer if how == "callback" else with_mixin(SFTTrainer)
    none = trainer(kind, tiny_model_dir, tiny_tokenizer, folder(), more, max_steps=2)
    for made in (plain, none):
        made.train()
    assert torch.equal(weights(plain.model), weights(none.model))


@pytest.mark.parametrize("how", ["callback", SLOW_MIXIN])
def test_accumulation_equals_a_big_batch(
    how: str, tiny_model_dir: str, tiny_tokenizer: Any, folder: Any
) -> None:
    found = []
    for b in (4, 1):
        more = driven() if how == "callback" else {"masked": MASKED}
        kind = SFTTrainer if how == "callback" else with_mixin(OurTrainer)
        sizes = {"per_device_train_batch_size": b, "gradient_accumulation_steps": 4 // b}
        made = trainer(
            kind, tiny_model_dir, tiny_tokenizer, folder(), more, dataloader_num_workers=b == 1, **sizes
        )
        made.train()
        found.append(weights(made.model))
    assert_close(found[1], found[0], atol=2e-4, rtol=0)


@pytest.mark.parametrize("how", ["callback", SLOW_MIXIN])
def test_an_interrupted_run_equals_a_straight_one(
    how: str, tiny_model_dir: str, tiny_tokenizer: Any, folder: Any
) -> None:
    def make(out: str) -> Any:
        more = driven() if how == "callback" else {"masked": MASKED}
        kind = Trainer if how == "callback" else with_mixin(Trainer)
        return trainer(kind, tiny_model_dir, tiny_tokenizer, out, more, save_strategy="steps", save_steps=2)

    straight = make(folder())
    straight.train()
    resumed = make(folder())
    with fed(resumed.model) as seen:
        resumed.train(resume_from_checkpoint=str(Path(straight.args.output_dir) / "checkpoint-2"))
    assert len(seen) == 2
    assert torch.equal(weights(resumed.model), weights(straight.model))


def test_two_passes_over_a_batch_hide_the_same_tokens(
    tiny_model_dir: str, tiny_tokenizer: Any, folder: Any
) -> None:
    kind = type("Both", (MaskedThoughtMixin, ConsistencyMixin, Trainer), {})
    more = {"masked": MASKED, "consistency": Consistency()}
    made = trainer(kind, tiny_model_dir, tiny_tokenizer, folder(), more)
    with fed(made.model) as seen:
        made.train()
    assert len(seen) == 8
    assert all(torch.equal(*seen[i : i + 2]) for i in range(0, 8, 2))


def test_packed_rows_of_trl(tiny_model_dir: str, tiny_tokenizer: Any, folder: Any) -> None:
    """TRL takes no other collator than its own where it packs: the mixin needs none."""
    data = rows(12)
    args = arguments(SFTTrainer, folder(), max_steps=-1, num_train_epochs=1)
    args.dataset_kwargs, args.packing, args.max_length = None, True, 40
    made = with_mixin(SFTTrainer)(
        model=AutoModelForCausalLM.from_pretrained(tiny_model_dir),
        args=args,
        train_dataset=Dataset.from_list(data),
        processing_class=tiny_tokenizer,
        masked={"mask_token": MASK, "rate": 1.0, "warmup": 0.0},
    )
    with fed(made.model) as seen:
        made.train()
    ids = torch.cat([batch.flatten() for batch in seen])
    assert len(ids) == sum(len(row["input_ids"]) for row in data)
    assert sorted(ids[ids != MASK].tolist()) == sorted(
        token for row in data for token in row["input_ids"][:4]
    )


def test_after_the_training_the_model_is_let_go(
    tiny_model_dir: str, tiny_tokenizer: Any, folder: Any
) -> None:
    more = driven()
    made = trainer(Trainer, tiny_model_dir, tiny_tokenizer, folder(), more, max_steps=2)
    made.train()
    assert not made.model._forward_pre_hooks
    assert torch.equal(more["data_collator"](rows(2))["input_ids"], PAD(rows(2))["input_ids"])
    made.train()  # again: a hook, not two
    assert not made.model._forward_pre_hooks


def test_a_schedule_of_ones_own(tiny_model_dir: str, tiny_tokenizer: Any, folder: Any) -> None:
    collator = MaskedThoughtCollator(PAD, mask_token=MASK)
    callback = MaskRateCallback(collator, schedule=lambda step, total: step / total)
    more = {"data_collator": collator, "callbacks": [callback]}
    made = trainer(Trainer, tiny_model_dir, tiny_tokenizer, folder(), more)
    made.train()
    logged = [e["mask_rate"] for e in made.state.log_history if "loss" in e]
    assert logged == [0.0, 0.25, 0.5, 0.75]


@pytest.mark.parametrize(("kind", "kwargs"), [(OurTrainer, {}), (Trainer, {"label_smoothing_factor": 0.1})])
def test_a_trainer_that_hides_the_labels_stops_the_callback(
    kind: Any, kwargs: Any, tiny_model_dir: str, tiny_tokenizer: Any, folder: Any
) -> None:
    made = trainer(kind, tiny_model_dir, tiny_tokenizer, folder(), driven(), **kwargs)
    with pytest.raises(TrainingError) as caught:
        made.train()
    assert str(caught.value) == (
        "MaskRateCallback hides tokens where it sees labels, and this trainer ran the model without labels or without "
        "input_ids. Use MaskedThoughtMixin with it"
    )
    masked = trainer(with_mixin(kind), tiny_model_dir, tiny_tokenizer, folder(), {"masked": MASKED}, **kwargs)
    with fed(masked.model) as seen:
        masked.train()
    assert (seen[-1] == MASK).any()


def test_rows_without_a_prompt_stop_a_training(tiny_model_dir: str, tiny_tokenizer: Any, folder: Any) -> None:
    made = trainer(with_mixin(Trainer), tiny_model_dir, tiny_tokenizer, folder(), {"masked": MASKED})
    made.train_dataset = Dataset.from_list(rows(4, prompt=0))
    with pytest.raises(
        DataError, match=r"^batch, row 0: all tokens of the row are trained, so it has no prompt"
    ):
        made.train()


def test_the_collator_does_not_mask_beside_the_mixin(
    tiny_model_dir: str, tiny_tokenizer: Any, folder: Any
) -> None:
    with pytest.raises(ParameterError) as caught:
        trainer(with_mixin(Trainer), tiny_model_dir, tiny_tokenizer, folder(), {**driven(), "masked": MASKED})
    assert str(caught.value) == (
        "The 'data_collator' parameter of Masked must be the clean one inside: the mixin hides the tokens itself, "
        "without MaskRateCallback. Got 'MaskedThoughtCollator' instead."
    )


def test_refusals_of_the_callback() -> None:
    with pytest.raises(ParameterError) as caught:
        MaskRateCallback(PAD)  # type: ignore[arg-type]
    assert str(caught.value).startswith(
        "The 'collator' parameter of MaskRateCallback must be a MaskedThoughtCollator, the trainer's data_collator. Got"
    )
    collator = MaskedThoughtCollator(PAD, mask_token=MASK)
    for name in ("p_max", "warmup", "start"):
        with pytest.raises(ParameterError) as caught:
            MaskRateCallback(collator, **{name: 1.5})
        assert str(caught.value) == (
            f"The '{name}' parameter of MaskRateCallback must be a float in [0, 1]. Got 1.5 instead."
        )
    with pytest.warns(
        UserWarning, match=r"^The mask rate rises to 1: all tokens of the reasoning are hidden, and"
    ):
        MaskRateCallback(collator, 1.0)
    with pytest.raises(ParameterError) as caught:
        MaskedThoughtCollator(PAD, mask_token=MASK, rate=2.0)
    assert "float in [0, 1]. Got 2.0" in str(caught.value)


def test_a_model_without_the_tokens_row_is_refused(
    tiny_model_dir: str, tiny_tokenizer: Any, folder: Any
) -> None:
    masked = {**MASKED, "mask_token": 400}
    with pytest.raises(ParameterError, match=r"must be below 400, the rows of the model's embedding"):
        trainer(with_mixin(Trainer), tiny_model_dir, tiny_tokenizer, folder(), {"masked": masked})
    collator = MaskedThoughtCollator(PAD, mask_token=400)
    more = {"data_collator": collator, "callbacks": [MaskRateCallback(collator)]}
    made = trainer(Trainer, tiny_model_dir, tiny_tokenizer, folder(), more)
    with pytest.raises(ParameterError, match=r"must be below 400, the rows of the model's embedding"):
        made.train()
