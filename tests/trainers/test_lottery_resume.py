"""A lottery-ticket training that was interrupted ends as a straight one; the best checkpoint of a phase counts."""

from __future__ import annotations

import pytest
import torch
from _lottery import Lottery, Stop, Watch, build, same, weights
from safetensors.torch import load_file

from tunesmith.core.errors import TrainingError
from tunesmith.trainers.lottery import can_continue
from tunesmith.trainers.lottery.ticket import START


def test_the_best_checkpoint_of_each_phase_counts(tiny_transformer, tmp_path):
    model, _ = tiny_transformer("llama", torch.bfloat16)
    losses = {"dense": [3.0, 1.0, 2.0], "sparse": [1.0, 2.0, 3.0]}
    seen = {}

    class Scored(Lottery):
        def evaluate(self, *args, **kwargs):
            kind, step = self.phase[0], self.state.global_step
            seen[kind, step] = {n: t.clone() for n, t in self._moving.tensors().items()}
            return {"eval_loss": losses[kind][step - 1]}

    trainer = build(
        model, tmp_path, {"num_params": 100, "dense_steps": 3}, kind=Scored, save_strategy="steps", save_steps=1,
        eval_strategy="steps", eval_steps=1, load_best_model_at_end=True, learning_rate=1e-2, held_out=[],
    )  # fmt: skip
    trainer.train()
    best = seen["sparse", 1]  # its lowest loss
    base, _ = tiny_transformer("llama", torch.bfloat16)
    chosen = load_file(tmp_path / "sparse-1" / START)
    for name, (index, values) in trainer.sparse_delta.diffs.items():
        if len(index):
            start = base.get_parameter(name).detach().float().reshape(-1)
            expected = torch.zeros_like(start)
            expected[chosen[f"index/{name}"]] = best[name]
            torch.testing.assert_close(start[index] + values, expected[index], rtol=1e-6, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_interrupted_equals_straight(dtype, tiny_transformer, tmp_path):
    settings = {"num_params": 120, "n_iterations": 2, "dense_steps": 2, "sparse_steps": 3, "l1_sparse": 0.5}
    options = {"save_strategy": "steps", "save_steps": 1, "weight_decay": 0.1, "save_total_limit": 1}

    def make(folder, stop=None):
        return build(tiny_transformer("gpt2", dtype)[0], tmp_path / folder, settings, Watch(stop), **options)

    straight = make("straight")
    straight.train()
    stops = [(("sparse", 1), 1), (("dense", 2), 2)]
    if dtype == torch.bfloat16:
        stops = [(("dense", 1), 1), (("sparse", 2), 3)]
    for number, stop in enumerate(stops):
        trainer = make(f"run-{number}", stop)
        with pytest.raises(Stop):
            trainer.train()
        assert can_continue(tmp_path / f"run-{number}")
        torch.rand(7)  # another process has another random state
        trainer = make(f"run-{number}")
        trainer.train(resume_from_checkpoint=True)
        assert trainer.sparse_delta == straight.sparse_delta, stop
        assert same(weights(trainer.model), weights(straight.model))
    trainer = make("run-0")
    trainer.train(resume_from_checkpoint=str(tmp_path / "run-0" / "sparse-1" / "checkpoint-3"))
    assert trainer.sparse_delta == straight.sparse_delta
    for change, message in (
        ({"num_params": 121}, "it differs in: num_params."),
        ({}, "it differs in: base."),
    ):
        model = tiny_transformer("gpt2", dtype)[0]
        if not change:
            model.transformer.wte.weight.data.add_(1)
        with pytest.raises(TrainingError) as error:
            build(model, tmp_path / "run-0", {**settings, **change}, **options).train(True)
        assert message in str(error.value)


def test_nothing_to_continue(tiny_transformer, tmp_path):
    trainer = build(tiny_transformer("llama")[0], tmp_path, {"dense_steps": 1})
    assert not can_continue(tmp_path)
    with pytest.raises(TrainingError) as error:
        trainer.train(True)
    assert str(error.value) == f"{tmp_path} holds no lottery-ticket training that could be continued."
    with pytest.raises(TrainingError) as error:
        trainer.train(str(tmp_path / "checkpoint-3"))
    assert str(error.value) == (
        f"{tmp_path / 'checkpoint-3'} is no checkpoint in a phase's folder (dense-1, sparse-1, ...) of this training."
    )
