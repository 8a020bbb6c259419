"""Two processes hold one mask and end with one delta."""

from __future__ import annotations

import pytest
import torch

from _two_processes import run_alone_and_in_two
from tunesmith.tuners.sparse import SparseDelta

SCRIPT = """
import sys
import torch
torch.set_num_threads(1)
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments
from tunesmith.trainers import LotteryTicketMixin

class Lottery(LotteryTicketMixin, Trainer):
    pass

folder, output, batch, dtype = sys.argv[1:]
model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=getattr(torch, dtype))
ids = torch.randint(3, 60, (8, 9), generator=torch.Generator().manual_seed(0))  # all rows in each step
rows = [{"input_ids": r, "labels": r[0] % 3} for r in ids]
args = TrainingArguments(output_dir=output, per_device_train_batch_size=int(batch), use_cpu=True, report_to="none",
    disable_tqdm=True, save_strategy="no", learning_rate=1e-3, max_grad_norm=0.5, optim="sgd", logging_steps=1)
lottery = {"num_params": 300, "n_iterations": 2, "dense_steps": 3, "sparse_steps": 4, "l1_sparse": 1.0}
trainer = Lottery(model, args, train_dataset=rows, lottery=lottery)
trainer.train()
trainer.sparse_delta.save_pretrained(f"{output}/delta-{args.process_index}")
"""


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_two_processes_equal_one(dtype, tiny_transformer, tmp_path):
    model, _ = tiny_transformer("bert")
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
        setattr(model.config, name, 0.0)
    model.save_pretrained(tmp_path / "base")
    (tmp_path / "script.py").write_text(SCRIPT)
    run_alone_and_in_two(
        tmp_path / "script.py",
        lambda run, batch: [str(tmp_path / "base"), str(tmp_path / run), str(batch), dtype],
    )
    first, second = (SparseDelta.from_pretrained(tmp_path / "two" / f"delta-{rank}") for rank in (0, 1))
    assert first == second
    assert first.nnz > 250
    if dtype == "float32":  # in bfloat16 the two halves of a batch are rounded apart
        one = SparseDelta.from_pretrained(tmp_path / "one" / "delta-0")
        # Gradients summed in another order may swap entries that moved as far as the K-th did, to seven digits.
        assert first.overlap(one) >= 0.98 * one.nnz
        a, b = (torch.cat([d.dense(name).reshape(-1) for name in one.diffs]) for d in (first, one))
        assert torch.cosine_similarity(a, b, dim=0) > 0.999
