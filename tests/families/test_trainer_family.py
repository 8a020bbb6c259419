"""What every supervised method must hold under its trainer: a new one adds a row to `_trainer_rows.ROWS`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from _trainer_rows import ROWS, train
from _two_processes import TESTS, run_alone_and_in_two
from tunesmith.core.errors import TrainingError

# One row runs in the default tier; the others have trainer tests of their own there.
# The plain losses show that the suite itself is right.
QUICK = ("masked-thought",)
NAMES = [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in ROWS]


@pytest.fixture
def folders(tiny_model_dir: str, tiny_bert_dir: str) -> dict[str, str]:
    return {"lm": tiny_model_dir, "encoder": tiny_bert_dir}


def weights(result: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in result.model.named_parameters()}


def losses(result: Any) -> list[float]:
    return [loss for _, loss, _ in result.losses]


def apart(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Return the mean difference of two models' weights.

    The mean, since Adam moves a weight by about the rate at each step, also where its gradient is all rounding.
    """
    return float(torch.cat([(b[key] - tensor).abs().flatten() for key, tensor in a.items()]).mean())


@pytest.mark.parametrize("name", NAMES)
def test_accumulated_batches_are_one_batch_and_seeds_repeat(name: str, folders: Any, tmp_path: Path) -> None:
    big = train(name, folders, tmp_path / "big", learning_rate=1e-4)
    cut = train(name, folders, tmp_path / "cut", learning_rate=1e-4, batch_size=2, accumulate=4)
    assert apart(weights(big), weights(cut)) < 0.02 * 1e-4
    assert losses(cut) == pytest.approx(losses(big), rel=1e-4)
    again = train(name, folders, tmp_path / "again", learning_rate=1e-4)
    assert all(torch.equal(a, b) for a, b in zip(weights(big).values(), weights(again).values(), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_killed_and_continued_it_ends_as_a_straight_run(
    name: str, folders: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import Trainer

    straight = train(name, folders, tmp_path / "straight")
    step = Trainer.training_step

    def dies(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 5:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "training_step", dies)
    with pytest.raises(KeyboardInterrupt):
        train(name, folders, tmp_path / "cut")
    monkeypatch.undo()
    assert (tmp_path / "cut" / "checkpoint-4" / "complete.json").exists()
    found = train(name, folders, tmp_path / "cut")
    for key, tensor in weights(straight).items():
        assert torch.equal(weights(found)[key], tensor), key
    assert found.losses == straight.losses
    assert (
        train(name, folders, tmp_path / "cut").steps == found.steps
    )  # after its last step nothing is trained
    with pytest.raises(
        TrainingError, match="holds checkpoints of another training; it differs in: learning_rate"
    ):
        train(name, folders, tmp_path / "cut", learning_rate=2e-3)


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16(name: str, folders: Any, tmp_path: Path) -> None:
    result = train(name, folders, tmp_path, dtype="bfloat16", learning_rate=3e-3, epochs=8)
    assert sum(losses(result)[-3:]) < sum(losses(result)[:3])


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in ROWS if n not in ("sft", "cross-entropy")])
def test_two_processes_equal_one(name: str, folders: Any, tmp_path: Path) -> None:
    run_alone_and_in_two(
        TESTS / "_trainer_rows.py",
        lambda run, batch: [name, folders["lm"], folders["encoder"], str(tmp_path / run), str(batch)],
    )
    one, two = (json.loads((tmp_path / f"{run}.json").read_text()) for run in ("one", "two"))
    assert two == pytest.approx(one, rel=1e-3)
    ours, theirs = (load_file(tmp_path / f"{run}.safetensors") for run in ("one", "two"))
    assert apart(ours, theirs) < 0.02 * 1e-3
