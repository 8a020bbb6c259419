"""The base of trainers with a loss on pooled features: any classifier, any cut of a step, two kinds of state."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close
from transformers import Trainer, TrainerCallback, TrainingArguments

from _vector_net import net, vectors
from tunesmith.core.errors import DataError, TrainingError
from tunesmith.trainers.pooled import PooledTrainer
from tunesmith.trainers.pooled.step import Step


class Plain(PooledTrainer):
    """Cross-entropy, as a loss on features."""

    def step_loss(self, z, y, head, generator, companions):
        self.report(rows=len(y))
        return cross_entropy(head(z), y)


class Pairs(PooledTrainer):
    """A loss over all pairs of a step, a trained projection, draws, and a memory of the mean feature."""

    def build_extra(self, d, n_classes):
        return nn.Linear(d, 4)

    def companions(self, model, inputs):
        return {"sums": inputs["x"].sum(1)}

    def prepare_loss(self, model):
        self.memory = torch.ones(self.dim) + torch.rand(self.dim)

    def step_loss(self, z, y, head, generator, companions):
        v = self.extra(z)
        same = (y[:, None] == y[None]).float()
        draws = torch.rand(len(y), generator=generator)
        loss = cross_entropy(head(z), y) - 0.1 * (same * (v @ v.T).tanh()).mean()
        loss = (
            loss
            + 0.1 * (draws * companions["sums"] * v.mean(1)).mean()
            + (z.mean(0) * self.memory).sum() * 0.01
        )
        self.memory = 0.5 * self.memory + 0.5 * z.detach().mean(0)
        return loss

    def loss_state(self):
        return {"memory": self.memory}

    def load_loss_state(self, tensors):
        self.memory = tensors["memory"]


def arguments(folder: Any, **more: Any) -> TrainingArguments:
    given = {
        "per_device_train_batch_size": 8, "num_train_epochs": 2, "learning_rate": 0.05, "report_to": "none",
        "logging_steps": 1, "save_strategy": "no", "use_cpu": True, "disable_tqdm": True, "seed": 3,
        "lr_scheduler_type": "constant", "optim": "sgd", "max_grad_norm": 0.0, "label_names": ["labels"],
    }  # fmt: skip
    return TrainingArguments(output_dir=str(folder), **{**given, **more})


def trained(kind: type, folder: Any, model: Any = None, rows: Any = None, **more: Any) -> Any:
    model = net() if model is None else model
    trainer = kind(
        model=model, args=arguments(folder, **more), train_dataset=vectors() if rows is None else rows
    )
    trainer.train()
    return trainer


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def losses(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


class CE(Trainer):
    loss_is_scaled_for_ga = False

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return cross_entropy(model(inputs["x"]), inputs["labels"])


def test_cross_entropy_is_that_of_the_usual_trainer(tmp_path) -> None:
    ours, theirs = trained(Plain, tmp_path), trained(CE, tmp_path)
    for name, tensor in weights(theirs).items():
        assert_close(weights(ours)[name], tensor)
    assert losses(ours) == pytest.approx(losses(theirs))
    assert [entry["rows"] for entry in ours.state.log_history if "rows" in entry] == [8.0] * 6


@pytest.mark.parametrize("kind", [Plain, Pairs])
def test_accumulated_batches_are_one_batch(kind, tmp_path) -> None:
    big = trained(kind, tmp_path)
    cut = trained(kind, tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    for name, tensor in weights(big).items():
        assert_close(weights(cut)[name], tensor, atol=1e-6, rtol=1e-5)
    assert losses(cut) == pytest.approx(losses(big), rel=1e-5)
    if kind is Pairs:
        assert_close(cut.extra.weight, big.extra.weight)
        assert_close(cut.memory, big.memory)


def test_uneven_last_micro_batch(tmp_path) -> None:
    rows = vectors(11)
    big = trained(Pairs, tmp_path, rows=rows, per_device_train_batch_size=12)
    cut = trained(Pairs, tmp_path, rows=rows, per_device_train_batch_size=4, gradient_accumulation_steps=3)
    for name, tensor in weights(big).items():
        assert_close(weights(cut)[name], tensor, atol=1e-6, rtol=1e-5)


def test_dropout_draws_the_same_masks_in_both_passes(tmp_path) -> None:
    """The features that the loss is computed on are those that the gradient flows through."""
    model = net()
    model.drop.p = 0.5
    seen: list[torch.Tensor] = []

    class Looking(Plain):
        def step_loss(self, z, y, head, generator, companions):
            seen.append(z.detach().clone())
            return super().step_loss(z, y, head, generator, companions)

        def _share(self, inner, z, j):
            seen.append(z.detach().clone())
            return super()._share(inner, z, j)

    trained(
        Looking, tmp_path, model, per_device_train_batch_size=4, gradient_accumulation_steps=2, max_steps=1
    )
    assert_close(torch.cat(seen[1:]), seen[0], atol=0, rtol=0)
    assert (seen[0] == 0).float().mean() > 0.5  # half of them dropped, beside ReLU's


def test_batch_normalisation_counts_each_micro_batch_once(tmp_path) -> None:
    trainer = trained(
        Plain, tmp_path, net(norm=True), per_device_train_batch_size=4, gradient_accumulation_steps=2
    )
    assert int(trainer.model.encoder[1].num_batches_tracked) == 2 * 6  # 24 rows in batches of 4, two epochs


def test_the_projection_learns_from_each_step_alone(tmp_path) -> None:
    """With plain SGD it moves by the rate times the gradient of that step: no gradient is left from the one before."""

    class Linear(Plain):
        def build_extra(self, d, n_classes):
            return nn.Linear(d, 1, bias=False)

        def step_loss(self, z, y, head, generator, companions):
            return cross_entropy(head(z), y) + self.extra.weight.sum()

    trainer = trained(Linear, tmp_path)
    start = Linear(model=net(), args=arguments(tmp_path), train_dataset=vectors()).extra.weight
    assert_close(trainer.extra.weight, start - 6 * 0.05)


class _Stop(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == 3


@pytest.mark.parametrize("accumulate", [1, 2])
def test_interrupted_equals_straight(accumulate, tmp_path) -> None:
    settings = {
        "per_device_train_batch_size": 8 // accumulate, "gradient_accumulation_steps": accumulate,
        "optim": "adamw_torch", "save_strategy": "steps", "save_steps": 1, "learning_rate": 0.01,
    }  # fmt: skip
    straight = trained(Pairs, tmp_path / "straight", **settings)
    first = Pairs(
        model=net(),
        args=arguments(tmp_path / "cut", **settings),
        train_dataset=vectors(),
        callbacks=[_Stop()],
    )
    first.train()
    second = Pairs(model=net(), args=arguments(tmp_path / "cut", **settings), train_dataset=vectors())
    second.train(resume_from_checkpoint=True)
    assert losses(first) + losses(second)[3:] == losses(straight)
    for name, tensor in weights(straight).items():
        assert torch.equal(weights(second)[name], tensor), name
    assert torch.equal(second.extra.weight, straight.extra.weight)
    assert torch.equal(second.memory, straight.memory)


def test_a_checkpoint_of_another_trainer_is_refused(tmp_path) -> None:
    trained(CE, tmp_path, save_strategy="steps", save_steps=1, max_steps=1)
    with pytest.raises(
        TrainingError, match=r"holds no pooled_loss.safetensors: it is of a training with another"
    ):
        Plain(model=net(), args=arguments(tmp_path), train_dataset=vectors()).train(
            resume_from_checkpoint=True
        )


def test_the_saved_model_is_the_plain_model(tmp_path) -> None:
    trainer = trained(Pairs, tmp_path)
    assert set(trainer.model.state_dict()) == set(net().state_dict())
    moved = trainer.extra.weight.detach().clone()
    fresh = Pairs(model=net(), args=arguments(tmp_path), train_dataset=vectors())
    assert not torch.equal(fresh.extra.weight, moved)  # the projection was trained
    assert torch.equal(
        fresh.extra.weight, Pairs(model=net(), args=arguments(tmp_path), train_dataset=vectors()).extra.weight
    )


def test_evaluation_is_plain_cross_entropy(tmp_path) -> None:
    trainer = trained(Pairs, tmp_path)
    rows = vectors(10)
    found = trainer.predict(rows)
    logits = trainer.model(torch.tensor(rows["x"]))
    assert_close(torch.as_tensor(found.predictions), logits.detach())
    assert found.metrics["test_loss"] == pytest.approx(
        float(cross_entropy(logits, torch.tensor(rows["labels"])))
    )


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, r"Plain needs a tensor 'labels' in each batch, .* The batch holds: x\."),
        (torch.tensor([0.5, 1.0]), r"Labels must be class numbers: .* Got torch.float32 of shape \(2,\)"),
        (torch.tensor([[0, 1], [1, 0]]), r"Got torch.int64 of shape \(2, 2\): several labels per row"),
        (
            torch.tensor([0, 3]),
            r"Labels must lie in \[0, 3\), one per output of the head 'fc'\. Got 0 to 3\.",
        ),
        (torch.tensor([-100, 1]), r"Got -100 to 1\."),
    ],
)
def test_labels_that_are_none(labels, message, tmp_path) -> None:
    trainer = Plain(model=net(), args=arguments(tmp_path), train_dataset=vectors())
    batch = {"x": torch.zeros(2, 5), **({} if labels is None else {"labels": labels})}
    with pytest.raises(DataError, match=message):
        trainer.compute_loss(trainer.model.train(), batch)


def test_a_loss_that_is_not_finite_stops(tmp_path) -> None:
    class Broken(Plain):
        def step_loss(self, z, y, head, generator, companions):
            return z.sum() * float("nan")

    with pytest.raises(TrainingError, match="The loss at step 1 is nan"):
        trained(Broken, tmp_path)


def test_sharded_weights_and_data_parallel_are_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: 2))
    with pytest.raises(
        TrainingError, match="Plain runs one process per device: start it with `accelerate launch`"
    ):
        Plain(model=net(), args=arguments(tmp_path), train_dataset=vectors())
    monkeypatch.undo()
    made = Trainer.create_accelerator_and_postprocess

    def sharded(self: Any) -> None:
        made(self)
        self.is_fsdp_enabled = True

    monkeypatch.setattr(Trainer, "create_accelerator_and_postprocess", sharded)
    with pytest.raises(TrainingError, match="Plain needs the head's whole weights on each process"):
        Plain(model=net(), args=arguments(tmp_path), train_dataset=vectors())


def test_bfloat16(tmp_path) -> None:
    rows = vectors()

    def collate(features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return {
            "x": torch.tensor([f["x"] for f in features], dtype=torch.bfloat16),
            "labels": torch.tensor([f["labels"] for f in features]),
        }

    for accumulate in (1, 2):
        args = arguments(
            tmp_path, gradient_accumulation_steps=accumulate, per_device_train_batch_size=8 // accumulate,
            num_train_epochs=10,
        )  # fmt: skip
        trainer = Plain(model=net().to(torch.bfloat16), args=args, train_dataset=rows, data_collator=collate)
        trainer.train()
        assert sum(losses(trainer)[-3:]) < 0.95 * sum(losses(trainer)[:3])  # the last epoch's and the first's


class _Accelerator:
    """Two processes of which this one is the second; gather is told what the first has."""

    num_processes, process_index, device = 2, 1, torch.device("cpu")

    def __init__(self, other: list[torch.Tensor]) -> None:
        self.other = other

    def gather(self, own: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.other.pop(0), own])


def test_the_order_of_rows_over_processes() -> None:
    """Micro-batches (a b | c) of process 0 and (d | e f) of process 1 are a b d c e f."""
    sizes, rows = torch.tensor([[2, 1]]), torch.tensor([[[1.0, 2.0], [3.0, 0.0]]])
    step = Step([1, 2], _Accelerator([sizes, rows]))
    assert step.gather([torch.tensor([4.0]), torch.tensor([5.0, 6.0])]).tolist() == [1, 2, 4, 3, 5, 6]
    assert (step.slot(0), step.slot(1)) == (slice(2, 3), slice(4, 6))
