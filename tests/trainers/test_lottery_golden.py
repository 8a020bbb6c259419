"""LT-SFT against the authors' code: golden numbers of cambridgeltl/composable-sft, through the real trainer."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from _composable_sft import CASES, tensors
from tunesmith.core.errors import ParameterError
from tunesmith.trainers.lottery import LotteryTicketMixin, phase_length
from tunesmith.trainers.lottery.moving import l1_gradient
from tunesmith.trainers.lottery.ticket import Ticket


class Quadratic(nn.Module):
    """L = 1/2 sum h (theta - c)^2."""

    def __init__(self, theta, h, c):
        super().__init__()
        self.h, self.c = h, c
        for name, value in theta.items():
            self.register_parameter(name, nn.Parameter(value.clone()))

    def forward(self, x):
        return {"loss": sum(0.5 * (self.h[n] * (getattr(self, n) - self.c[n]) ** 2).sum() for n in self.h)}


class Lottery(LotteryTicketMixin, Trainer):
    pass


def trainer_of(case, tmp_path, accumulation=1, rate=0.2, **lottery):
    inputs = case["inputs"]
    model = Quadratic(*(tensors(inputs[key]) for key in ("theta0", "h", "c")))
    args = TrainingArguments(
        output_dir=str(tmp_path),
        optim="sgd",
        learning_rate=rate,
        lr_scheduler_type="constant",
        max_grad_norm=0,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=accumulation,
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
        report_to="none",
    )
    rows = [{"x": torch.zeros(1)}] * 64
    settings = {"maskable": inputs["maskable"], **lottery}
    return Lottery(model, args, train_dataset=rows, lottery=settings)


@pytest.mark.parametrize(
    ("name", "budget"),
    [
        ("full_run_R1_k5_l1_0.0_0.0", 5),
        ("full_run_R2_k5_l1_0.0_0.0", 4),  # they add floor(5 / 2) twice, we split K
        ("full_run_R1_k4_l1_0.5_0.3_reference_detached", 4),
        ("full_run_R1_k4_l1_0.5_0.3_as_released", 4),
    ],
)
def test_whole_runs(name, budget, tmp_path, monkeypatch):
    case = CASES[name]
    p = case["params"]
    dense = []
    choose = Ticket.choose

    def record(self, k, moving):
        dense.append({n: t.detach().clone() for n, t in self.parameters.items()})
        return choose(self, k, moving)

    monkeypatch.setattr(Ticket, "choose", record)
    l1 = {
        key: p[key] if p["L1_acts"] else 0.0 for key in ("l1_dense", "l1_sparse")
    }  # released: without effect
    trainer = trainer_of(
        case,
        tmp_path,
        num_params=budget,
        n_iterations=p["R"],
        dense_steps=p["dense_steps"],
        sparse_steps=p["sparse_steps"],
        **l1,
    )
    trainer.train()
    delta, out, close = trainer.sparse_delta, case["outputs"], {"rtol": 0, "atol": case["tolerance"]}
    for found, expected in zip(dense, out["after_each_dense_phase"], strict=True):
        for n, value in tensors(expected).items():
            torch.testing.assert_close(found[n], value, **close)
    for n, value in tensors(out["final"]).items():
        torch.testing.assert_close(trainer.model.get_parameter(n).detach(), value, **close)
    assert {n: i.tolist() for n, (i, _) in delta.diffs.items() if len(i)} == out["selected_flat_index"]
    for n, value in tensors(out["diffs"]).items():
        torch.testing.assert_close(delta.dense(n), value, **close)
    torch.testing.assert_close(delta.abs["head"], tensors(out["abs"])["head"], **close)


class Probe(TrainerCallback):
    """Put the weights somewhere when the phase begins; keep the gradients of its step."""

    def __init__(self, phase, theta):
        self.phase, self.theta, self.trainer, self.found = phase, theta, None, {}

    @torch.no_grad()
    def on_train_begin(self, args, state, control, **kwargs):
        if self.trainer.phase[0] == self.phase:
            for name, value in self.theta.items():
                self.trainer.model.get_parameter(name).copy_(value)
            moving = self.trainer._moving
            moving.load({n: self.theta[n].reshape(-1)[moving.index[n]] for n in moving.names})

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if self.trainer.phase[0] == self.phase and not self.found:
            moving = self.trainer._moving
            for name, p in self.trainer.model.named_parameters():
                if p.grad is not None and name in self.theta:
                    self.found[name] = p.grad.clone()
            for name in moving.names:
                grad = torch.zeros(self.theta[name].shape)
                grad.view(-1)[moving.index[name]] = moving.values(name).grad
                self.found[name] = grad

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.trainer.phase[0] == self.phase and "loss" in logs:
            self.logged = logs


@pytest.mark.parametrize(
    "name",
    [
        "l1_dense_phase_all_acc1",
        "l1_sparse_phase_all_acc1",
        "l1_sparse_phase_maskable_only_acc2",
        "l1_dense_phase_all_acc4_frozen_b",
    ],
)
def test_gradients_with_the_l1_term(name, tmp_path, monkeypatch):
    case = CASES[name]
    p, theta = case["params"], tensors(case["inputs"]["theta"])
    trainer = trainer_of(
        case,
        tmp_path,
        accumulation=p["gradient_accumulation"],
        rate=1e-30,
        num_params=6,
        dense_steps=1,
        l1_dense=p["l1_dense"],
        l1_sparse=p["l1_sparse"],
        l1_maskable_only=p["l1_maskable_only"],
    )
    for frozen in p["frozen"]:
        trainer.model.get_parameter(frozen).requires_grad_(False)
    picks = {n: torch.tensor(i) for n, i in case["inputs"]["selected_flat_index"].items()}
    if p["frozen"]:
        picks = {"a": picks["a"]}
    monkeypatch.setattr(Ticket, "choose", lambda self, k, moving: picks)
    probe = Probe(p["phase"], theta)
    probe.trainer = trainer
    trainer.args.logging_steps = trainer.state.logging_steps = 1
    trainer.add_callback(probe)
    trainer.train()
    assert trainer._ticket is None
    expected = tensors(case["outputs"]["gradient_paper"])
    released = tensors(case["outputs"]["gradient_as_released"])
    assert set(probe.found) == set(expected)
    for n, found in probe.found.items():
        torch.testing.assert_close(found, expected[n], rtol=0, atol=case["tolerance"])
    assert any((expected[n] - released[n]).abs().max() > 1e-3 for n in probe.found)  # there the term cancels


def test_worked_example_of_the_l1_term(tmp_path):
    moved = torch.tensor([0.5, -0.9, 0.1, 0.2])
    gradient = l1_gradient(moved, torch.zeros(4), 0.1 / 4)
    assert gradient.tolist() == pytest.approx([0.025, -0.025, 0.025, 0.025])
    assert 0.1 / 4 * float(moved.abs().sum()) == pytest.approx(0.0425)
    assert l1_gradient(moved, moved, 0.1 / 4).tolist() == [0.0] * 4


def test_length_of_a_phase():
    rows = CASES["phase_length"]
    for given, expected in zip(rows["inputs"]["rows"], rows["outputs"]["rows"], strict=True):
        if expected.get("error"):
            with pytest.raises(ParameterError):
                phase_length(**given)
        else:
            steps, epochs = phase_length(**given)
            assert steps == expected["max_steps"]
            assert epochs == (None if expected["epochs"] == "unchanged" else expected["epochs"])
    with pytest.raises(ParameterError) as error:
        phase_length(None, None, None, 50, 4, 1)
    assert str(error.value) == (
        "The 'max_steps' parameter of phase_length must be an int, or 'max_epochs' a float. Got None instead."
    )
    with pytest.raises(ParameterError) as error:
        phase_length(30, 20, None, 50, 4, 1)
    assert str(error.value) == (
        "The 'min_steps' parameter of phase_length must be at most max_steps = 20. Got 30 instead."
    )
