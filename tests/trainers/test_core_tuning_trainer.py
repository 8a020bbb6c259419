"""Core-tuning in a trainer: the step by hand, any cut of it, balanced batches, resuming, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from datasets import Dataset
from torch.nn.functional import cross_entropy
from torch.testing import assert_close
from transformers import TrainerCallback, TrainingArguments

from _tiny_transformers import build
from _vector_net import net, vectors
from tunesmith.core.errors import DataError, ParameterError, TrainingError
from tunesmith.core.seeds import child_seed
from tunesmith.trainers.core_tuning import ClassBalancedSampler, CoreTuningTrainer, core_tuning_loss


def trainer_of(folder: Any, model: Any = None, rows: Any = None, callbacks: Any = None, **more: Any) -> Any:
    """Return a trainer; what is no argument of TrainingArguments goes to it."""
    own = (
        "eta",
        "alpha",
        "clip",
        "tau",
        "projection_dim",
        "focal",
        "mixup",
        "positives",
        "normalise",
        "strict",
    )
    own = (*own, "detach_originals", "variant", "rows_per_class", "features", "head", "data_collator")
    given = {
        "per_device_train_batch_size": 8, "num_train_epochs": 2, "learning_rate": 0.05, "report_to": "none",
        "logging_steps": 1, "save_strategy": "no", "use_cpu": True, "disable_tqdm": True, "seed": 3, "optim": "sgd",
        "lr_scheduler_type": "constant", "max_grad_norm": 0.0, "label_names": ["labels"],
    }  # fmt: skip
    for name in [name for name in more if name not in own]:
        given[name] = more.pop(name)
    return CoreTuningTrainer(
        model=net() if model is None else model,
        args=TrainingArguments(output_dir=str(folder), **given),
        train_dataset=vectors() if rows is None else rows,
        callbacks=callbacks,
        **more,
    )


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    named = [*trainer.model.named_parameters(), *trainer.extra.named_parameters()]
    return {name: p.detach().clone() for name, p in named}


def entries(trainer: Any, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


class _Stop(TrainerCallback):
    def __init__(self, at: int) -> None:
        self.at = at

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step == self.at


def test_a_step_is_the_gradient_of_the_loss(tmp_path) -> None:
    trainer = trainer_of(
        tmp_path, max_steps=1, per_device_train_batch_size=24, eta=2.0, alpha=0.5, tau=0.2, clip=0.7
    )
    model, G = net(), trainer_of(tmp_path).extra
    trainer.train()
    rows = vectors()
    order = torch.tensor([rows["x"].index(x) for x in _order(trainer)])
    x, y = torch.tensor(rows["x"])[order], torch.tensor(rows["labels"])[order]
    draws = torch.Generator().manual_seed(child_seed(3, "step", 0))
    found = core_tuning_loss(
        model.encoder(x), y, model.fc, G, 3, eta=2.0, alpha=0.5, tau=0.2, clip=0.7, generator=draws
    )
    found.loss.backward()
    for (name, tensor), p in zip(
        weights(trainer).items(), [*model.parameters(), *G.parameters()], strict=True
    ):
        assert_close(tensor, (p - 0.05 * p.grad).detach(), msg=name)
    assert entries(trainer, "ce") == [pytest.approx(float(found.ce))]
    assert entries(trainer, "contrast") == [pytest.approx(float(found.contrast))]
    assert entries(trainer, "anchors") == [1.0]
    assert entries(trainer, "loss") == [pytest.approx(float(found.loss), abs=1e-4)]


def _order(trainer: Any) -> list[list[float]]:
    """Return the rows of the first batch, in the order in which a trainer of this seed reads them."""
    from transformers import set_seed

    set_seed(3)
    return next(iter(trainer.get_train_dataloader()))["x"].tolist()


def test_without_contrast_and_pairs_it_is_plain_fine_tuning(tmp_path) -> None:
    trainer = trainer_of(tmp_path, max_steps=1, per_device_train_batch_size=24, eta=0.0, mixup=False)
    start = {name: p.clone() for name, p in trainer.extra.named_parameters()}
    model, rows = net(), vectors()
    trainer.train()
    cross_entropy(model(torch.tensor(rows["x"])), torch.tensor(rows["labels"])).backward()
    for (name, p), theirs in zip(trainer.model.named_parameters(), model.parameters(), strict=True):
        assert_close(p, theirs - 0.05 * theirs.grad, msg=name)
    for name, p in trainer.extra.named_parameters():
        assert torch.equal(p, start[name])


def test_accumulated_batches_are_one_batch(tmp_path) -> None:
    big = trainer_of(tmp_path)
    cut = trainer_of(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    big.train()
    cut.train()
    for name, tensor in weights(big).items():
        assert_close(weights(cut)[name], tensor, atol=1e-5, rtol=1e-4)
    assert entries(cut, "loss") == pytest.approx(entries(big, "loss"), rel=1e-4)


def test_interrupted_equals_straight_with_balanced_batches(tmp_path) -> None:
    more = {"save_strategy": "steps", "save_steps": 4, "optim": "adamw_torch", "rows_per_class": 4}
    straight = trainer_of(tmp_path / "straight", **more)
    straight.train()
    first = trainer_of(tmp_path / "cut", callbacks=[_Stop(4)], **more)  # in the second epoch
    first.train()
    second = trainer_of(tmp_path / "cut", **more)
    second.train(resume_from_checkpoint=True)
    assert entries(first, "loss") + entries(second, "loss")[4:] == entries(straight, "loss")
    for name, tensor in weights(straight).items():
        assert torch.equal(weights(second)[name], tensor), name


def test_evaluation_does_not_see_the_projection(tmp_path) -> None:
    trainer = trainer_of(tmp_path)
    trainer.train()
    rows = vectors(10)
    before = trainer.predict(rows)
    for p in trainer.extra.parameters():
        p.data.normal_()
    after = trainer.predict(rows)
    assert (before.predictions == after.predictions).all()
    logits = trainer.model(torch.tensor(rows["x"]))
    assert before.metrics["test_loss"] == pytest.approx(
        float(cross_entropy(logits, torch.tensor(rows["labels"])))
    )
    assert set(trainer.model.state_dict()) == set(net().state_dict())


@pytest.mark.parametrize("kind", ["vit", "bert"])
def test_transformers_of_images_and_texts(kind, tmp_path) -> None:
    model, inputs = build(kind)
    rows = {name: value.repeat(4, *[1] * (value.dim() - 1)).tolist() for name, value in inputs.items()}
    rows = Dataset.from_dict({**rows, "labels": [0, 1, 2, 0, 1, 2, 0, 1]}).with_format("torch")
    trainer = trainer_of(tmp_path, model, rows, max_steps=2, per_device_train_batch_size=8)
    before = weights(trainer)
    trainer.train()
    moved = [name for name, tensor in weights(trainer).items() if not torch.equal(tensor, before[name])]
    assert any(name.startswith("classifier") for name in moved)
    assert any("layer" in name for name in moved)
    assert "0.weight" in moved  # of the projection


# Balanced batches.


def test_a_balanced_batch_holds_as_many_rows_of_each_of_its_classes() -> None:
    y = torch.tensor([0] * 40 + [1] * 9 + [2] * 5 + [3] * 6)
    sampler = ClassBalancedSampler(y, 2, 4, seed=1)
    assert len(sampler) == 56  # 7 batches of 8 from 60 rows
    for epoch in range(4):
        sampler.set_epoch(epoch)
        rows = list(sampler)
        assert len(rows) == 56
        seen = []
        for part in range(7):
            batch = rows[8 * part : 8 * part + 8]
            assert len(set(batch)) == 8
            counts = torch.bincount(y[batch], minlength=4)
            assert sorted(counts.tolist()) == [0, 0, 4, 4]
            seen += [c for c in range(4) if counts[c]]
        assert rows == list(sampler)
        assert sorted(seen.count(c) for c in range(4)) == [3, 3, 4, 4]  # classes come in turn
    assert len(set(map(tuple, (_epoch(sampler, e) for e in range(4))))) == 4


def _epoch(sampler: ClassBalancedSampler, epoch: int) -> list[int]:
    sampler.set_epoch(epoch)
    return list(sampler)


def test_rows_of_a_class_come_in_turn() -> None:
    sampler = ClassBalancedSampler([0] * 8 + [1] * 8, 2, 4)
    rows = list(sampler)
    assert sorted(rows) == list(range(16))  # two batches take each row once


def test_a_class_with_one_example_repeats_it_and_a_warning_says_so() -> None:
    with pytest.warns(
        UserWarning, match=r"1 of 3 classes have fewer than rows_per_class=2 rows, first class 7 with 1"
    ):
        sampler = ClassBalancedSampler([0, 0, 1, 1, 7], 3, 2)
    assert sorted(sampler) == [0, 1, 2, 3, 4, 4]


def test_the_trainer_s_batches_are_balanced(tmp_path) -> None:
    trainer = trainer_of(tmp_path, rows_per_class=4)
    for batch in trainer.get_train_dataloader():
        assert sorted(torch.bincount(batch["labels"], minlength=3).tolist()) == [0, 4, 4]
    trainer.train()
    assert entries(trainer, "anchors") == [1.0] * 6


@pytest.mark.parametrize("form", ["targets", "dicts"])
def test_classes_of_other_datasets(form, tmp_path) -> None:
    rows = vectors()

    class Rows(torch.utils.data.Dataset):
        if form == "targets":
            targets = rows["labels"][:]

        def __len__(self):
            return len(rows)

        def __getitem__(self, i):
            return {"x": torch.tensor(rows[i]["x"]), "labels": rows[i]["labels"]}

    trainer = trainer_of(tmp_path, rows=Rows(), rows_per_class=4)
    batch = next(iter(trainer.get_train_dataloader()))
    assert sorted(torch.bincount(batch["labels"], minlength=3).tolist()) == [0, 4, 4]


# Refusals.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"eta": -0.1},
            "The 'eta' parameter of CoreTuningTrainer must be a float of at least 0. Got -0.1 instead.",
        ),
        ({"alpha": 0}, "The 'alpha' parameter of CoreTuningTrainer must be a float above 0. Got 0 instead."),
        ({"tau": 0}, "The 'tau' parameter of CoreTuningTrainer must be a float above 0. Got 0 instead."),
        ({"clip": 2}, "The 'clip' parameter of CoreTuningTrainer must be a float in [0, 1]. Got 2 instead."),
        (
            {"projection_dim": 0},
            "The 'projection_dim' parameter of CoreTuningTrainer must be an int of at least 1. Got 0 instead.",
        ),
        (
            {"rows_per_class": 3},
            "The 'rows_per_class' parameter of CoreTuningTrainer must be an int of at least 2 that divides "
            "per_device_train_batch_size=8. Got 3 instead.",
        ),
    ],
)
def test_parameters(settings, message, tmp_path) -> None:
    with pytest.raises(ParameterError) as error:
        trainer_of(tmp_path, **settings)
    assert str(error.value) == message


def step(trainer: Any, labels: torch.Tensor) -> torch.Tensor:
    """Return the loss of a step of these rows."""
    x = torch.randn(len(labels), 5, generator=torch.Generator().manual_seed(0))
    return trainer.compute_loss(trainer.model.train(), {"x": x, "labels": labels})


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 3], r"Labels must lie in \[0, 3\), one per output of the head 'fc'\. Got 0 to 3\."),
        ([0.0, 1.0], r"Labels must be class numbers: .* Got torch.float32 of shape \(2,\)"),
        ([[0, 1], [1, 0]], r"Got torch.int64 of shape \(2, 2\): several labels per row"),
    ],
)
def test_labels(labels, message, tmp_path) -> None:
    with pytest.raises(DataError, match=message):
        step(trainer_of(tmp_path), torch.tensor(labels))


def test_steps_that_hold_no_pairs(tmp_path) -> None:
    trainer = trainer_of(tmp_path)
    with pytest.raises(DataError) as error:
        step(trainer, torch.tensor([1]))
    assert str(error.value) == (
        "Core-tuning pairs rows, and this step has one: raise per_device_train_batch_size or "
        "gradient_accumulation_steps, or set dataloader_drop_last=True if it is the rest of an epoch."
    )
    of_one_class = torch.ones(8, dtype=torch.int64)
    assert torch.isfinite(step(trainer, of_one_class))
    with pytest.raises(DataError, match=r"All 8 rows of the batch are of class 1, so there are no negatives"):
        step(trainer_of(tmp_path, strict=True), of_one_class)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (lambda model, inputs: (model.encoder(inputs["x"]),), r"features= returned a tuple\."),
        (lambda model, inputs: None, r"features= returned nothing \(None\)\."),
    ],
)
def test_features_that_are_none(features, message, tmp_path) -> None:
    with pytest.raises(TrainingError, match=message):
        step(trainer_of(tmp_path, features=features), torch.tensor([0, 1]))


@pytest.mark.parametrize(
    ("labels", "P", "M", "kind", "message"),
    [
        (
            [0, 0, 1, 1],
            3,
            2,
            ParameterError,
            "The 'classes_per_batch' parameter of ClassBalancedSampler must be an int in [2, 2], the number of classes "
            "in the data. Got 3 instead.",
        ),
        (
            [0, 0, 1, 1],
            2,
            1,
            ParameterError,
            "The 'rows_per_class' parameter of ClassBalancedSampler must be an int of at least 2. Got 1 instead.",
        ),
        (
            [0.5, 1.0],
            2,
            2,
            DataError,
            "Class-balanced batches need one integer class per row. Got float64 of shape (2,).",
        ),
    ],
)
def test_samplers(labels, P, M, kind, message) -> None:
    with pytest.raises(kind) as error:
        ClassBalancedSampler(labels, P, M)
    assert str(error.value) == message


def test_balanced_batches_need_classes_in_advance(tmp_path) -> None:
    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, i):
            return torch.zeros(5), 0

    with pytest.raises(
        DataError, match="rows_per_class needs the classes of all rows before training: a column"
    ):
        trainer_of(tmp_path, rows=Rows(), rows_per_class=4).get_train_dataloader()
