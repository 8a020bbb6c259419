"""Training on the tiny model: it learns, repeats itself exactly, continues exactly, and stops loudly."""

from __future__ import annotations

import random

import pytest
import torch
from datasets import Dataset

from tunesmith.core.errors import ParameterError, TrainingError
from tunesmith.core.events import EventLog
from tunesmith.data.preflight import encode_dataset
from tunesmith.engine.models import load_model
from tunesmith.trainers import train_sft

WORDS = "the cat sat on mat dog ran park capital France Paris".split()  # noqa: SIM905


def chats(count: int, seed: int = 0) -> Dataset:
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        words = draw.choices(WORDS, k=draw.randint(2, 6))
        question, answer = " ".join(words), " ".join(reversed(words))
        rows.append(
            {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
        )
    return Dataset.from_list(rows)


@pytest.fixture(scope="module")
def rows(tiny_tokenizer):
    return encode_dataset(chats(40), tiny_tokenizer, max_length=None)[0]


@pytest.fixture
def train(tiny_model_dir, tiny_tokenizer, rows, tmp_path):
    def call(data=None, output_dir="run", dtype="float32", **options):
        model = load_model(tiny_model_dir, dtype=dtype)
        options = {"tuner": {"type": "lora", "r": 4}, "learning_rate": 1e-2, **options}
        return train_sft(
            model, tiny_tokenizer, rows if data is None else data, output_dir=tmp_path / output_dir, **options
        )

    return call


def trained(model) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert torch.equal(tensor, b[name]), name


def test_it_learns_and_says_what_it_did(train, rows):
    events = []
    result = train(epochs=4, log=EventLog(listeners=[events.append]))
    assert result.steps == 20
    assert result.epochs == 4
    assert result.losses[-1][1] < result.losses[0][1] - 0.2
    assert result.tokens == 4 * sum(map(len, rows["input_ids"]))
    assert result.trained_tokens == 4 * sum(label != -100 for labels in rows["labels"] for label in labels)
    assert result.tokens_per_second == pytest.approx(result.tokens / result.seconds)
    assert result.peak_memory_mb > 100
    assert not result.model.training
    metrics = [e for e in events if e["kind"] == "metric"]
    assert [e["step"] for e in metrics] == list(range(1, 21))
    assert metrics[-1]["tokens"] == result.tokens
    assert [(e["step"], e["loss"], e["learning_rate"]) for e in metrics] == result.losses
    last = [e for e in events if e["kind"] == "progress"][-1]
    assert (last["what"], last["done"], last["total"]) == ("training steps", 20, 20)


def test_equal_seeds_give_equal_tensors(train):
    assert_same(trained(train(output_dir="a").model), trained(train(output_dir="b").model))


def test_seed_reaches_the_adapter(train):
    a, b = (trained(train(output_dir=f"{s}", seed=s, learning_rate=1e-9).model) for s in (0, 1))
    assert not torch.equal(*(next(t for n, t in x.items() if "lora_A" in n) for x in (a, b)))


def test_accumulation_equals_one_large_batch(train):
    large, small = (
        train(output_dir="large", batch_size=8),
        train(output_dir="small", batch_size=2, accumulate=4),
    )
    assert [loss for _, loss, _ in small.losses] == pytest.approx([x for _, x, _ in large.losses], abs=1e-6)
    for name, tensor in trained(large.model).items():
        assert torch.allclose(tensor, trained(small.model)[name], atol=1e-6), name


def test_full_tuning_moves_all_weights(train, tiny_model_dir):
    result = train(tuner={"type": "full"}, learning_rate=3e-3, epochs=4)
    assert result.losses[-1][1] < 0.7 * result.losses[0][1]
    base = dict(load_model(tiny_model_dir, dtype="float32").named_parameters())
    assert all(not torch.equal(p, base[name]) for name, p in result.model.named_parameters())


@pytest.mark.parametrize(
    "tuner",
    [
        {"type": "ia3"},
        {"type": "vera"},
        {"type": "oft", "target_modules": ["q_proj", "up_proj"]},
        {"type": "prompt_tuning", "num_virtual_tokens": 4},
        {"type": "lora", "r": 2, "use_dora": True, "target_modules": ["up_proj"]},
        {"type": "lora", "r": 2, "target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    ],
)
def test_any_peft_method_trains(train, tuner):
    result = train(tuner=tuner, epochs=2)
    assert result.losses[-1][1] < result.losses[0][1]


def test_bfloat16_weights_get_float32_adapters(train):
    result = train(dtype="bfloat16")
    assert {p.dtype for p in result.model.parameters()} == {torch.bfloat16, torch.float32}
    assert {p.dtype for p in trained(result.model).values()} == {torch.float32}


def test_the_loss_is_the_model_s_own(train, rows, tiny_model_dir, tiny_tokenizer):
    from tunesmith.trainers._trl_compat import Trainer

    model = load_model(tiny_model_dir, dtype="float32")
    result = train(batch_size=len(rows))
    width = max(map(len, rows["input_ids"]))
    padded = [
        torch.tensor([list(row) + [fill] * (width - len(row)) for row in rows[name]])
        for name, fill in (("input_ids", 0), ("labels", -100))
    ]
    mask = torch.tensor([[i < len(row) for i in range(width)] for row in rows["input_ids"]])
    with torch.inference_mode():
        expected = model(input_ids=padded[0], attention_mask=mask.long(), labels=padded[1]).loss
    assert result.losses[0][1] == pytest.approx(expected.item(), rel=1e-5)
    assert Trainer.loss_is_scaled_for_ga is True


def test_gathered_loss_equals_trl_s(train, monkeypatch):
    from tunesmith.trainers import _trl_compat

    gathered = train(output_dir="ours")
    monkeypatch.setattr(_trl_compat, "MAX_LOGITS", 0)
    theirs = train(output_dir="theirs")
    assert [x for _, x, _ in gathered.losses] == pytest.approx([x for _, x, _ in theirs.losses], rel=1e-5)


def test_validation_is_measured_after_each_epoch(train, rows):
    events = []
    train(epochs=2, validation=rows.select(range(8)), log=EventLog(listeners=[events.append]))
    held = [e for e in events if "validation_loss" in e]
    assert [e["step"] for e in held] == [5, 10]
    assert held[1]["validation_loss"] < held[0]["validation_loss"]


def test_rows_without_labels_are_not_filtered(train, rows):
    silent = Dataset.from_list(
        [{**rows[0], "labels": [-100] * len(rows[0]["labels"])}, *rows.select(range(1, 16))]
    )
    result = train(data=silent)
    assert result.steps == 2
    assert result.tokens == sum(map(len, silent["input_ids"]))


def test_the_model_is_its_own_again(train, tiny_tokenizer):
    from tunesmith.engine.generate import generate

    result = train()
    assert "forward" not in result.model.get_base_model().__dict__
    assert len(generate(result.model, tiny_tokenizer, [[5, 9]], max_new_tokens=3)) == 1


def test_loss_that_is_not_finite_names_step_and_checkpoint(train, tmp_path, monkeypatch):
    from tunesmith.trainers._trl_compat import Trainer

    original = Trainer._gathered_loss

    def break_at_third_step(self, *arguments):
        loss = original(self, *arguments)
        return loss * float("nan") if self.state.global_step == 3 else loss

    monkeypatch.setattr(Trainer, "_gathered_loss", break_at_third_step)
    with pytest.raises(
        TrainingError,
        match=r"Training stopped at step 4: the loss is nan\. The last good checkpoint is "
        r".*checkpoint-2\. A lower "
        r"learning rate, more warmup or a smaller max_grad_norm usually help",
    ):
        train(save_every=2)
    assert (tmp_path / "run" / "checkpoint-2" / "complete.json").exists()
    with pytest.raises(
        TrainingError, match=r"stopped at step 4: the loss is nan\. No checkpoint was written before\."
    ):
        train(output_dir="other", save_every=50)


def test_weights_that_are_not_finite_never_become_a_checkpoint(train, tmp_path, monkeypatch):
    from tunesmith.trainers._trl_compat import Trainer

    original = Trainer.training_step

    def poison(self, model, *arguments, **options):
        loss = original(self, model, *arguments, **options)
        if self.state.global_step == 4:
            next(p for p in model.parameters() if p.requires_grad).grad.fill_(float("nan"))
        return loss

    monkeypatch.setattr(Trainer, "training_step", poison)
    with pytest.raises(
        TrainingError,
        match=r"Training ended at step 5 with weights that are not finite\. The last good checkpoint is "
        r".*checkpoint-4",
    ):
        train(save_every=1, max_grad_norm=0)
    assert not (tmp_path / "run" / "checkpoint-5" / "complete.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, r"The 'epochs' parameter of train_sft must be a float above 0\. Got 0 instead"),
        ({"batch_size": 0}, "The 'batch_size' parameter of train_sft must be an int of at least 1"),
        ({"accumulate": 1.5}, "The 'accumulate' parameter of train_sft must be an int of at least 1"),
        ({"save_every": True}, "The 'save_every' parameter of train_sft must be an int of at least 1"),
        ({"warmup": 1}, r"The 'warmup' parameter of train_sft must be a float in \[0, 1\)"),
        (
            {"learning_rate": 0.0},
            r"The 'learning_rate' parameter of train_sft must be a float above 0\. Got 0\.0",
        ),
        (
            {"schedule": "cosin"},
            r"'schedule' parameter of train_sft must be one of .* Did you mean 'cosine'\?",
        ),
        (
            {"tuner": 3},
            "'tuner' parameter of train_sft must be a dict with 'type', a PeftConfig or None. Got 3",
        ),
        (
            {"tuner": {"type": "full", "r": 8}},
            "'r' parameter of tuner 'full' must be left out: full tuning has no",
        ),
        (
            {"num_train_epochs": 2},
            r"'num_train_epochs' parameter of train_sft must be given as 'epochs'\. Got 2",
        ),
        ({"packing": True}, "'packing' parameter of train_sft must be left out: it is set by tunesmith"),
        (
            {"weight_decai": 0.1},
            r"'weight_decai' .* a field of trl\.SFTConfig\. Did you mean 'weight_decay'\?",
        ),
        ({"batchsize": 4}, r"'batchsize' .* Did you mean 'batch_size'\?"),
        (
            {"tuner": {"type": "lora", "target_modules": ["q_prj"]}},
            r"'q_prj' matches none\. Did you mean 'q_proj'\?",
        ),
        (
            {"tuner": {"type": "lora", "target_modules": ["lm_head"]}},
            "'target_modules' parameter of train_sft must be without the output layer, whose adapter TRL "
            "would not",
        ),
    ],
)
def test_parameters_are_checked_before_training(train, options, message):
    with pytest.raises(ParameterError, match=message):
        train(**options)


def test_no_rows(train, rows):
    with pytest.raises(
        TrainingError, match=r"There is nothing to train on: the encoded dataset has no rows\."
    ):
        train(data=rows.select([]))


def test_settings_of_trl_pass_through(train):
    result = train(max_steps=2, weight_decay=0.1, train_sampling_strategy="random")
    assert result.steps == 2
