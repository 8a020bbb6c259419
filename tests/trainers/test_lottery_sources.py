"""Several sources, each with its delta in turn: batches of one source, nothing left behind."""

from __future__ import annotations

import pytest
import torch
from _lottery import same, weights
from transformers import Trainer, TrainingArguments

from tunesmith.core.errors import DataError, ParameterError
from tunesmith.trainers.lottery import LotteryTicketMixin, SourceBatches, SourceMixin
from tunesmith.tuners.sparse import SparseDelta, applied_to


class Task(LotteryTicketMixin, SourceMixin, Trainer):
    pass


def rows(count=16):
    ids = torch.randint(3, 60, (count, 9), generator=torch.Generator().manual_seed(5))
    return [
        {"input_ids": r, "labels": r[0] % 3, "source": "de" if i % 4 else "en"} for i, r in enumerate(ids)
    ]


def arguments(tmp_path, **options):
    return TrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=2, use_cpu=True, disable_tqdm=True, report_to="none",
        save_strategy="no", **{"remove_unused_columns": False, "learning_rate": 1e-3, **options},
    )  # fmt: skip


def change(model):
    torch.manual_seed(3)
    tuned = {n: p.detach() + 0.1 * torch.randn_like(p) for n, p in model.named_parameters()}
    return SparseDelta.from_models(model, tuned, k=2000)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_batch_sees_its_sources_delta_and_leaves_no_trace(dtype, tiny_transformer, tmp_path):
    model, _ = tiny_transformer("bert", dtype)
    base, delta = weights(model), change(model)
    seen = []

    class Watched(Task):
        def compute_loss(self, model, inputs, *args, **kwargs):
            if self.phase is not None:
                own = self.model.named_parameters()
                touched = {n: p.detach().clone() for n, p in own if not n.startswith("tunesmith_")}
                seen.append((self.phase[0], [d is delta for d in applied_to(self.model)], touched))
            return super().compute_loss(model, inputs, *args, **kwargs)

    lottery = {"num_params": 200, "dense_steps": 8}
    sources = {"de": delta, "en": None}
    trainer = Watched(model, arguments(tmp_path), train_dataset=rows(), sources=sources, lottery=lottery)
    trainer.train()
    assert [kind for kind, _, _ in seen] == ["dense"] * 8 + ["sparse"] * 8
    applied = [given for _, given, _ in seen]
    assert applied.count([True]) == 12
    assert applied.count([]) == 4
    first = next(touched for kind, given, touched in seen if kind == "sparse" and given)
    assert not same(first, base)
    assert trainer.sparse_delta.nnz > 190
    trainer.sparse_delta.revert(model)
    assert same(weights(model), base), "entries outside of the mask are the base's, bit for bit"
    metrics = trainer.evaluate({name: [r for r in rows() if r["source"] == name] for name in ("de", "en")})
    assert {"eval_de_loss", "eval_en_loss"} <= set(metrics)
    assert applied_to(model) == []


def test_the_order_of_rows():
    names = ["a"] * 7 + ["b"] * 3
    order = SourceBatches(names, 2, seed=0, upsample={"b": 3})
    assert len(order) == 6 + 8
    drawn = list(order)
    assert len(drawn) == 14
    assert all(names[i] == names[j] for i, j in zip(drawn[::2], drawn[1::2], strict=True))
    assert drawn == list(order)
    order.set_epoch(1)
    assert drawn != list(order)


def test_refusals(tiny_transformer, tmp_path):
    model, _ = tiny_transformer("bert")
    lottery = {"num_params": 20, "dense_steps": 1}
    with pytest.raises(
        ParameterError, match="The 'remove_unused_columns' parameter of Task must be False, or the column"
    ):
        Task(
            model,
            arguments(tmp_path, remove_unused_columns=True),
            train_dataset=rows(),
            sources={},
            lottery=lottery,
        )
    with pytest.raises(ParameterError) as error:
        Task(model, arguments(tmp_path), train_dataset=rows(), sources={"de": None}, lottery=lottery)
    assert str(error.value) == (
        "The 'sources' parameter of Task must be a mapping with every source of the rows. "
        "Got \"none for 'en'\" instead."
    )
    with pytest.raises(ParameterError) as error:
        SourceBatches(["a", "b", "b"], 2, 0)
    assert str(error.value) == (
        "The 'train_dataset' parameter of SourceBatches must be of at least 2 rows of each source (the batch size), "
        "times its upsampling. Got \"1 of 'a'\" instead."
    )
    with pytest.raises(
        ParameterError, match="The 'upsample' parameter of SourceBatches must be an int >= 1 for 'a'"
    ):
        SourceBatches(["a", "a"], 1, 0, {"a": 0})
    trainer = Task(
        model, arguments(tmp_path), train_dataset=rows(), sources={"de": None, "en": None}, lottery=lottery
    )
    with pytest.raises(DataError, match="a batch has rows of several sources"):
        trainer.data_collator(rows(2))
