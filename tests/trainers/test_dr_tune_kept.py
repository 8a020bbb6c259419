"""Features kept from one epoch to the next: the same training, and no pass of the frozen encoder for a known row."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.testing import assert_close
from transformers import TrainingArguments

from _vector_net import net, vectors
from tunesmith.trainers.dr_tune import DRTuneTrainer
from tunesmith.trainers.dr_tune.kept import KeptFeatures


def trained(folder: Any, keep: bool) -> tuple[Any, int]:
    """A trainer after three epochs, and the rows that its frozen encoder saw."""
    args = TrainingArguments(
        str(folder), per_device_train_batch_size=8, num_train_epochs=3, learning_rate=0.05, report_to="none",
        save_strategy="no", use_cpu=True, disable_tqdm=True, optim="sgd",
    )  # fmt: skip
    trainer = DRTuneTrainer(model=net(), args=args, train_dataset=vectors(), bank_size=12, keep_features=keep)
    seen: list[int] = []
    trainer.frozen.copied.encoder.register_forward_hook(lambda module, args, out: seen.append(len(out)))
    trainer.train()
    return trainer, sum(seen)


def test_the_same_training_with_one_pass_over_the_data(tmp_path) -> None:
    (plain, all_rows), (kept, once) = trained(tmp_path, False), trained(tmp_path, True)
    assert (all_rows, once) == (16 + 3 * 24, 24)
    for name, tensor in plain.model.state_dict().items():
        assert_close(kept.model.state_dict()[name], tensor, atol=1e-6, rtol=1e-5)


def compute(part: dict[str, Any]) -> torch.Tensor:
    calls.append(len(part["input_ids"]))
    mask = part.get("attention_mask", torch.ones_like(part["input_ids"]))
    return (part["input_ids"] * mask).float().sum(1, keepdim=True) * torch.tensor([1.0, 2.0])


calls: list[int] = []


def test_rows_are_known_by_content_without_padding() -> None:
    calls.clear()
    kept = KeptFeatures()
    short = {"input_ids": torch.tensor([[5, 6], [7, 0]]), "attention_mask": torch.tensor([[1, 1], [1, 0]])}
    assert kept(short, compute).tolist() == [[11, 22], [7, 14]]
    longer = {
        "input_ids": torch.tensor([[9, 9, 9], [7, 0, 0], [5, 6, 0], [9, 9, 9]]),
        "attention_mask": torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 1]]),
        "labels": torch.tensor([0, 1, 2, 3]),
    }
    assert kept(longer, compute).tolist() == [[27, 54], [7, 14], [11, 22], [27, 54]]
    assert calls == [2, 2]  # both copies of the new row
    assert kept(longer, compute).tolist() == [[27, 54], [7, 14], [11, 22], [27, 54]]
    assert calls == [2, 2]
    other = {**short, "token_type_ids": torch.tensor([[0, 1], [0, 0]])}
    kept(other, compute)
    assert calls == [2, 2, 2]  # another input is another row


def test_what_is_not_made_of_rows_is_computed() -> None:
    calls.clear()
    kept = KeptFeatures()
    for more in (torch.tensor(3.0), torch.zeros(5), "text"):
        kept({"input_ids": torch.tensor([[5, 6]]), "other": more}, compute)
    assert calls == [1, 1, 1]
    assert not kept.rows


def test_augmented_rows_are_noticed() -> None:
    kept = KeptFeatures(most=3)
    kept({"input_ids": torch.tensor([[1], [2], [3]])}, compute)
    message = (
        r"^More than 3 different rows came from a data set of 3: they are augmented, and no features are kept"
    )
    with pytest.warns(UserWarning, match=message):
        kept({"input_ids": torch.tensor([[4]])}, compute)
    kept({"input_ids": torch.tensor([[5], [6]])}, compute)
    assert len(kept.rows) == 4
