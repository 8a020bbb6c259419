"""DR-Tune in transformers' trainer: the step by hand, any cut of it, the frozen encoder, and what is refused."""

from __future__ import annotations

import copy
from typing import Any

import peft
import pytest
import torch
import transformers as tf
from torch import nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close
from transformers import Trainer, TrainerCallback, TrainingArguments

from _tiny_transformers import build
from _vector_net import net, vectors
from tunesmith.core.errors import DataError, ParameterError, TrainingError
from tunesmith.trainers.dr_tune import DRTuneRegularizer, DRTuneTrainer, dr_tune_loss


def arguments(folder: Any, **more: Any) -> TrainingArguments:
    given = {
        "per_device_train_batch_size": 8, "num_train_epochs": 2, "learning_rate": 0.05, "report_to": "none",
        "logging_steps": 1, "save_strategy": "no", "use_cpu": True, "disable_tqdm": True, "seed": 3,
        "lr_scheduler_type": "constant", "optim": "sgd", "max_grad_norm": 0.0,
    }  # fmt: skip
    return TrainingArguments(output_dir=str(folder), **{**given, **more})


def made(folder: Any, model: Any = None, rows: Any = None, method: Any = None, **more: Any) -> Any:
    return DRTuneTrainer(
        model=net() if model is None else model,
        args=arguments(folder, **more),
        train_dataset=vectors() if rows is None else rows,
        **{"bank_size": 12, "rotate_every": 2, **(method or {})},
    )


def trained(folder: Any, *args: Any, **more: Any) -> Any:
    trainer = made(folder, *args, **more)
    trainer.train()
    return trainer


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


@pytest.mark.parametrize("scale", ["mean", "eq14"])
def test_steps_are_those_of_a_loop_of_ones_own(scale, tmp_path) -> None:
    method = {"loss_scale": scale}
    trainer = trained(tmp_path, method=method, train_sampling_strategy="sequential")
    model, frozen, rows = net(), net().eval(), vectors()
    batches = list(zip(torch.tensor(rows["x"]).split(8), torch.tensor(rows["labels"]).split(8), strict=True))
    regularizer = DRTuneRegularizer(8, 12, rotate_every=2)
    optimizer = torch.optim.SGD(
        [
            {"params": model.encoder.parameters()},
            {"params": model.fc.parameters(), "lr": 0.05 * (1 + 12 / 8)},
        ],
        lr=0.05,
    )
    with torch.no_grad():
        regularizer.warm_up((frozen.encoder(x), y) for x, y in batches)
    losses = []
    for x, y in batches * 2:
        z = model.encoder(x)
        bank, labels = regularizer(z, frozen.encoder(x).detach(), y, model.fc)
        loss = dr_tune_loss(z, y, bank, labels, model.fc, loss_scale=scale)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["loss"] for entry in logs] == pytest.approx(losses, abs=2e-4)
    for entry in logs:
        whole = entry["ce"] + 12 / 8 * entry["dr"]
        assert whole / (1 if scale == "eq14" else 2.5) == pytest.approx(entry["loss"], abs=1e-4)
    for name, parameter in model.named_parameters():
        assert_close(weights(trainer)[name], parameter.detach(), atol=1e-6, rtol=1e-5)
    assert_close(trainer.regularizer.state_dict(), regularizer.state_dict(), atol=1e-6, rtol=1e-5)


class CE(Trainer):
    loss_is_scaled_for_ga = False

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return cross_entropy(model(inputs["x"]), inputs["labels"])


@pytest.mark.parametrize("method", [{"bank_size": 0}, {"weight": 0.0}])
def test_no_bank_is_the_plain_trainer(method, tmp_path) -> None:
    ours = trained(tmp_path, method=method, max_steps=2)
    theirs = CE(
        model=net(), args=arguments(tmp_path, label_names=["labels"], max_steps=2), train_dataset=vectors()
    )
    theirs.train()
    assert ours.head_lr_factor == 1.0
    assert ours.frozen is None
    for name, tensor in weights(theirs).items():
        assert_close(weights(ours)[name], tensor)


def test_accumulated_batches_are_one_batch(tmp_path) -> None:
    big = trained(tmp_path)
    cut = trained(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    assert big.head_lr_factor == cut.head_lr_factor == 2.5
    # the warm-up reads the same rows, whatever the cut
    assert_close(cut.regularizer.state_dict(), big.regularizer.state_dict(), atol=1e-6, rtol=1e-5)
    for name, tensor in weights(big).items():
        assert_close(weights(cut)[name], tensor, atol=1e-6, rtol=1e-5)


class _Stop(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == 3


def another_head() -> nn.Module:
    """The pre-trained encoder under a new head, as a script that starts again makes it."""
    model = net()
    nn.init.normal_(model.fc.weight)
    return model


def test_interrupted_equals_straight(tmp_path) -> None:
    settings = {"save_strategy": "steps", "save_steps": 1, "method": {"reuse_rotation": True}}
    straight = trained(tmp_path / "straight", **settings)
    first = made(tmp_path / "cut", **settings)
    first.add_callback(_Stop())
    first.train()
    second = made(tmp_path / "cut", another_head(), **settings)
    second.train(resume_from_checkpoint=True)
    for name, tensor in weights(straight).items():
        assert torch.equal(weights(second)[name], tensor), name
    for name, tensor in straight.regularizer.state_dict().items():
        assert torch.equal(second.regularizer.state_dict()[name], tensor), name
    with pytest.raises(
        TrainingError, match=r"^The model given to the trainer is not the pre-trained one that this"
    ):
        made(tmp_path / "cut", second.model, **settings).train(resume_from_checkpoint=True)
    with pytest.raises(
        TrainingError, match=r"^The checkpoint's banks have another size or form than this trainer's"
    ):
        made(tmp_path / "cut", method={"bank_size": 6, "reuse_rotation": True}).train(
            resume_from_checkpoint=True
        )


def test_the_frozen_encoder_keeps_every_bit(tmp_path) -> None:
    model = net(norm=True)
    before = copy.deepcopy(model.state_dict())
    trainer = trained(tmp_path, model)
    frozen = trainer.frozen.copied
    assert not frozen.training
    assert not any(p.requires_grad for p in frozen.parameters())
    for name, tensor in before.items():
        assert torch.equal(frozen.state_dict()[name], tensor), name
    moved = trainer.model.state_dict()
    for name in ("encoder.0.weight", "encoder.1.running_mean", "encoder.1.running_var", "fc.weight"):
        assert not torch.equal(moved[name], before[name]), name
    assert set(moved) == set(before)  # and is no part of what is saved


def bert_rows() -> list[dict[str, Any]]:
    return [
        {"input_ids": [3 + 30 * (i % 3), 7, 9 + 2 * i, 3 + 30 * (i % 3)], "labels": i % 3} for i in range(12)
    ]


def adapted(**more: Any) -> Any:
    config = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"], r=2, **more)
    return peft.get_peft_model(build("bert")[0], config)


def test_adapters_are_switched_off_instead_of_a_copy(tmp_path) -> None:
    model = adapted(lora_dropout=0.1, init_lora_weights=False)
    pinned = next(p for n, p in model.named_parameters() if "lora_A" in n).requires_grad_(False)
    base = build("bert")[0]
    trainer = trained(tmp_path, model, bert_rows(), per_device_train_batch_size=4, learning_rate=1.0)
    assert trainer.frozen.copied is None
    assert not pinned.requires_grad
    assert model.training
    batch = {"input_ids": torch.tensor([row["input_ids"] for row in bert_rows()])}
    trainer.model.train()
    trainer.model.base_model.model.bert.pooler.eval()  # modes come back as they were, one by one
    pre = trainer.companions(trainer.model, batch)["pre"]
    assert not trainer.model.base_model.model.bert.pooler.training
    assert trainer.model.training
    assert_close(pre, base.bert(**batch).pooler_output.detach())
    tuned = trainer.pool(trainer.model.eval(), batch)[0]
    assert float((tuned - pre).abs().max()) > 1e-3
    # the head that is kept beside the adapters is the one whose weights are the prototypes
    trainer.regularizer(tuned, pre, torch.arange(12) % 3, trainer.pool.module(trainer.model))


def test_a_copy_where_more_than_adapters_moves(tmp_path) -> None:
    assert made(tmp_path, adapted(bias="all"), bert_rows()).frozen.copied is not None
    config = peft.LoraConfig(target_modules=["encoder.0"], modules_to_save=["fc"], r=2)
    assert made(tmp_path, peft.get_peft_model(net(norm=True), config)).frozen.copied is not None
    assert made(tmp_path, peft.get_peft_model(net(), config)).frozen.copied is None


def test_a_head_with_an_adapter_of_its_own(tmp_path) -> None:
    config = peft.LoraConfig(target_modules=["encoder.0", "fc"], r=2)
    trainer = trained(tmp_path, peft.get_peft_model(net(), config))
    head = trainer.pool.module(trainer.model)
    z = torch.eye(8)
    phi = (head(z) - head(torch.zeros(1, 8))).T.detach()
    bank = trainer.regularizer.eval()(z, z, torch.arange(8) % 3, head)[0]
    assert_close(bank, trainer.regularizer(z, z, torch.arange(8) % 3, phi)[0], atol=1e-5, rtol=1e-5)


def test_the_head_has_its_own_rate(tmp_path) -> None:
    for method, factor in (({}, 2.5), ({"weight": 3.0}, 4.0), ({"head_lr_factor": 7.0}, 7.0)):
        trainer = made(tmp_path, method=method)
        optimizer = trainer.create_optimizer()
        rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        assert rates[id(trainer.model.fc.bias)] == pytest.approx(factor * 0.05)
        assert rates[id(trainer.model.encoder[0].weight)] == 0.05
    message = r"^The head learns at 2.5 times the encoder's rate, which is meant for SGD: AdamW undoes"
    with pytest.warns(UserWarning, match=message):
        made(tmp_path, optim="adamw_torch").create_optimizer()


def test_sizes_of_banks_that_are_odd(tmp_path) -> None:
    message = r"^Banks of 3 rows are smaller than a step of 8: each step replaces them by its last 3 rows\.$"
    with pytest.warns(UserWarning, match=message):
        small = trained(tmp_path, method={"bank_size": 3})
    assert small.regularizer.held == 3
    message = r"^Banks of 30 rows are larger than the data set of 24: they hold rows several times\. Set bank_size to"
    with pytest.warns(UserWarning, match=message):
        large = trained(tmp_path, method={"bank_size": 30}, num_train_epochs=1)
    assert large.regularizer.held == 30


def decoder() -> Any:
    config = tf.LlamaConfig(
        vocab_size=99, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=0, num_labels=3,
    )  # fmt: skip
    return tf.LlamaForSequenceClassification(config)


@pytest.mark.parametrize("kind", ["decoder", "bfloat16 weights", "bfloat16 passes"])
def test_models_of_transformers(kind, tmp_path) -> None:
    model = decoder() if kind == "decoder" else build("bert")[0]
    model = model.to(torch.bfloat16) if kind == "bfloat16 weights" else model
    trainer = trained(
        tmp_path, model, bert_rows(), method={"bank_size": 8, "head_lr_factor": 1.5}, optim="adamw_torch",
        per_device_train_batch_size=4, num_train_epochs=4, learning_rate=0.01, bf16=kind == "bfloat16 passes",
    )  # fmt: skip
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])


SETTING = "The '{}' parameter of DRTuneTrainer must be {}. Got {} instead."


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"bank_size": -4}, SETTING.format("bank_size", "an int of at least 0", -4)),
        ({"weight": -1.0}, SETTING.format("weight", "a float of at least 0 or None", -1.0)),
        ({"loss_scale": "sum"}, SETTING.format("loss_scale", "'mean' or 'eq14'", "'sum'")),
        ({"head_lr_factor": 0}, SETTING.format("head_lr_factor", "a float above 0 or None", 0)),
    ],
)
def test_bad_settings(method, message, tmp_path) -> None:
    with pytest.raises(ParameterError) as caught:
        made(tmp_path, method=method)
    assert str(caught.value) == message


def test_a_head_that_is_not_trained(tmp_path) -> None:
    model = net()
    model.fc.requires_grad_(False)
    with pytest.raises(ParameterError) as caught:
        made(tmp_path, model)
    expected = "a layer that is trained (under PEFT: name it in modules_to_save)"
    assert str(caught.value) == SETTING.format("head", expected, "'fc'")


@pytest.mark.parametrize(
    ("hook", "got"),
    [(lambda model, inputs: None, "nothing (None)"), (lambda model, inputs: (1, 2), "a tuple")],
)
def test_a_hook_that_gives_no_features(hook, got, tmp_path) -> None:
    with pytest.raises(TrainingError) as caught:
        trained(tmp_path, method={"features": hook})
    assert str(caught.value) == (
        f"Pooled features must be one tensor (rows, 8), what the layer 'fc' takes; features= returned {got}."
    )


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ([0, 3] * 12, r"^Labels must lie in \[0, 3\), one per output of the head 'fc'\. Got 0 to 3\.$"),
        ([0.0, 1.0] * 12, r"^Labels must be class numbers: integers of shape \(rows,\)\. Got torch.float32"),
    ],
)
def test_labels_that_are_no_classes(column, message, tmp_path) -> None:
    rows = vectors().remove_columns("labels").add_column("labels", column)
    with pytest.raises(DataError, match=message):
        trained(tmp_path, rows=rows)
