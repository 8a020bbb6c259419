"""The loss of two passes: values by hand and the authors', its gradients, and the trainer that adds it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch.nn import functional
from torch.testing import assert_close
from transformers import Trainer, TrainingArguments

import tunesmith.trainers.consistency as consistency
from _golden import raw_cases, tensor
from _tiny_transformers import build
from tunesmith.core.errors import ParameterError, TrainingError
from tunesmith.trainers import Consistency, ConsistencyMixin, consistency_loss
from tunesmith.trainers.consistency import deep_consistency_loss
from tunesmith.tuners import MosaConfig

CASES = raw_cases("mosa")


def test_R_by_hand() -> None:
    P1, P2 = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.9, 0.1]])
    assert float(consistency_loss(P1.log(), P2.log())) == pytest.approx((0.5108 + 0.3681) / 2, abs=1e-4)
    assert float(consistency_loss(P2.log(), P1.log())) == pytest.approx(0.4394, abs=1e-4)
    assert float(consistency_loss(P1.log(), P1.log() + 3)) == pytest.approx(0.0, abs=1e-7)


@pytest.mark.parametrize("name", [n for n in CASES if n.startswith("consistency_R")])
def test_golden_R_and_its_gradients(name: str) -> None:
    case = CASES[name]
    p1 = tensor(case["inputs"]["p1_logits"]).requires_grad_()
    p2 = tensor(case["inputs"]["p2_logits"]).requires_grad_()
    R = consistency_loss(p1, p2)
    R.backward()
    tolerance = {"atol": case["tolerance"], "rtol": 0.0}
    assert_close(R, tensor(case["outputs"]["R"]), **tolerance)
    assert_close(p1.grad, tensor(case["outputs"]["dR_dp1"]), **tolerance)
    assert_close(p2.grad, tensor(case["outputs"]["dR_dp2"]), **tolerance)
    by_formula = 0.5 * (p1.softmax(-1) - p2.softmax(-1)) / len(p1)
    assert_close(p1.grad, by_formula.detach(), atol=1e-7, rtol=0)


def test_golden_deep_term_and_totals() -> None:
    case = CASES["deep_consistency"]
    h1, h2 = tensor(case["inputs"]["h1"]), tensor(case["inputs"]["h2"])
    assert_close(deep_consistency_loss(h1, h2), tensor(case["outputs"]["R_deep"]), atol=1e-6, rtol=0)
    for name in ("total_loss_default", "total_loss_weighted"):
        case = CASES[name]
        x, p = case["inputs"], case["params"]
        p1, p2, y, weight = (tensor(x[k]) for k in ("p1_logits", "p2_logits", "y", "class_weights"))
        ce = [functional.cross_entropy(q, y, weight, reduction="sum") / len(y) for q in (p1, p2)]
        R = consistency_loss(p1, p2)
        if p["deep"]:
            R = R + deep_consistency_loss(tensor(x["h1"]), tensor(x["h2"]))
        total = ce[0] + p["alpha"] * ce[1] + p["beta"] * R
        assert_close(total, tensor(case["outputs"]["L"]), atol=1e-5, rtol=0)


def test_rows_out_of_the_mask_do_not_count() -> None:
    generator = torch.Generator().manual_seed(0)
    p1, p2 = torch.randn(2, 3, 5, generator=generator), torch.randn(2, 3, 5, generator=generator)
    mask = torch.tensor([[True, False, True], [False, False, True]])
    assert_close(consistency_loss(p1, p2, mask), consistency_loss(p1[mask], p2[mask]))
    assert float(consistency_loss(p1, p2, torch.zeros_like(mask))) == 0.0
    half = consistency_loss((30 * p1).bfloat16(), (30 * p2).bfloat16())
    assert half.dtype == torch.float32


def test_rows_come_in_chunks_and_ruled_out_classes_add_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(7, 5, generator=generator).requires_grad_() for _ in range(2)]
    found = []
    for size in (5 * 7, 5 * 3, 1):
        monkeypatch.setattr(consistency, "CHUNK", size)
        R = consistency_loss(*logits)
        found.append((R.detach(), *torch.autograd.grad(R, logits)))
    for other in found[1:]:
        assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(found[0], other, strict=True))
    P1, P2 = torch.tensor([[0.5, 0.5, 0.0]]), torch.tensor([[0.9, 0.1, 0.0]])
    assert float(consistency_loss(P1.log(), P2.log())) == pytest.approx(0.4394, abs=1e-4)
    P1.fill_(float("nan"))
    assert torch.isnan(consistency_loss(P1, P2.log()))


def test_nothing_of_the_size_of_the_logits_is_kept_beside_them() -> None:
    p1, p2 = (torch.randn(6, 50).requires_grad_() for _ in range(2))
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t), t)[1], lambda t: t):
        consistency_loss(p1, p2)
    large = [t for t in kept if t.numel() >= 300]
    assert {t.data_ptr() for t in large} == {p1.data_ptr(), p2.data_ptr()}


class Two(ConsistencyMixin, Trainer):
    """The mixin on transformers' trainer."""


ROWS = [[3 + i, 7, 9, 11 + i, 5, 20 + i] for i in range(4)]


def trainer(tmp_path: Path, batch: int, accumulation: int, kind: Any = Two, **more: Any) -> Any:
    from peft import get_peft_model

    model, _ = build("llama")
    model = get_peft_model(model, MosaConfig(r=2, num_parts=1, dropout=more.pop("dropout", 0.0)))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.3 * torch.randn(p.shape, generator=generator))
    args = TrainingArguments(
        str(tmp_path), per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation, max_steps=1,
        report_to=[], save_strategy="no", use_cpu=True, learning_rate=0.1, optim="sgd", max_grad_norm=0.0,
        lr_scheduler_type="constant", disable_tqdm=True, logging_steps=1,
    )  # fmt: skip
    # Rows have different numbers of labels, so a mean of means is not the mean.
    rows = [{"input_ids": row, "labels": [-100] * (1 + i) + row[1 + i :]} for i, row in enumerate(ROWS)]
    return kind(model=model, args=args, train_dataset=Dataset.from_list(rows), **more)


def trained(one: Any) -> dict[str, torch.Tensor]:
    one.train()
    return {n: p.detach().clone() for n, p in one.model.named_parameters() if p.requires_grad}


class Shifted(Two):
    """Passes differ by a constant on one logit, so R is not zero and no random state is involved."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.calls = 0

        def shift(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return output * (1.0 if self.calls % 2 else 4.0)

        self.model.get_output_embeddings().register_forward_hook(shift)


@pytest.mark.parametrize("weights", [Consistency(), Consistency(0.5, 2.0, deep=False)])
def test_accumulated_batches_are_one_batch(tmp_path: Path, weights: Consistency) -> None:
    whole = trained(trainer(tmp_path, 4, 1, Shifted, consistency=weights))
    parts = trained(trainer(tmp_path, 1, 4, Shifted, consistency=weights))
    plain = trained(trainer(tmp_path, 4, 1, Trainer))
    assert all(torch.allclose(parts[name], whole[name], atol=1e-6) for name in whole)
    assert any(float((plain[name] - whole[name]).abs().max()) > 1e-4 for name in whole)


def test_equal_passes_and_no_weight_of_the_second_train_as_one(tmp_path: Path) -> None:
    two = trained(trainer(tmp_path, 4, 1))
    plain = trained(trainer(tmp_path, 4, 1, Trainer))
    assert all(torch.allclose(two[name], plain[name], atol=1e-7) for name in two)


def test_the_loss_is_the_sum_of_its_terms_and_evaluation_runs_once(tmp_path: Path) -> None:
    one = trainer(tmp_path, 4, 1, Shifted, consistency=Consistency(0.5, 2.0, deep=True))
    batch = {"input_ids": torch.tensor(ROWS), "labels": torch.tensor(ROWS)}
    one.model.train()
    loss = one.compute_loss(one.model, batch)
    with torch.no_grad():
        first = one.model(**batch)
        second = one.model(**batch)
    R = consistency_loss(first.logits[:, :-1], second.logits[:, :-1])
    assert_close(loss, first.loss + 0.5 * second.loss + 2 * R)  # equal hidden states: R_deep is 0
    calls = one.calls
    one.model.eval()
    value, outputs = one.compute_loss(one.model, batch, return_outputs=True)
    assert one.calls == calls + 1
    assert_close(value, outputs.loss)


def test_labels_of_rows_are_compared_whole(tmp_path: Path) -> None:
    model, inputs = build("bert")
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to=[])
    one = Two(model=model, args=args)
    batch = {**inputs, "labels": torch.tensor([0, 2])}
    model.train()
    torch.manual_seed(0)
    loss = one.compute_loss(model, batch)
    torch.manual_seed(0)
    first, second = model(**batch), model(**inputs)
    assert_close(loss, first.loss + consistency_loss(first.logits, second.logits))
    assert float(loss.detach()) > float(first.loss.detach())


def test_labels_that_the_model_does_not_shift_are_not_shifted(tmp_path: Path) -> None:
    from transformers import BertConfig, BertForTokenClassification

    torch.manual_seed(0)
    model = BertForTokenClassification(
        BertConfig(
            vocab_size=99, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
            num_labels=3,
        )
    )  # fmt: skip
    one = Two(model=model.train(), args=TrainingArguments(str(tmp_path), use_cpu=True, report_to=[]))
    ids, labels = torch.tensor(ROWS), torch.tensor([[1, -100, 2, -100, 0, -100]] * 4)
    torch.manual_seed(0)
    loss = one.compute_loss(model, {"input_ids": ids, "labels": labels})
    torch.manual_seed(0)
    first, second = model(ids, labels=labels), model(ids)
    seen = labels != -100
    assert_close(loss, first.loss + consistency_loss(first.logits[seen], second.logits[seen]))


def test_both_passes_are_one_call_of_ddp(tmp_path: Path) -> None:
    import torch.distributed as dist
    from peft import get_peft_model

    def gradients(wrap: Any) -> tuple[float, dict[str, torch.Tensor]]:
        model = get_peft_model(build("llama")[0], MosaConfig(r=2, num_parts=3, share="none"))
        one = Two(model=model, args=TrainingArguments(str(tmp_path), use_cpu=True, report_to=[]))
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for p in model.parameters():
                if p.requires_grad:
                    p.add_(0.3 * torch.randn(p.shape, generator=generator))
        wrapped = wrap(model.train())
        batch = {"input_ids": torch.tensor(ROWS), "labels": torch.tensor(ROWS)}
        loss, outputs = one.compute_loss(wrapped, batch, return_outputs=True)
        assert outputs.logits.shape == (4, 6, 99)
        assert "forward" not in vars(model)
        loss.backward()
        return float(loss.detach()), {
            n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None
        }

    plain = gradients(lambda model: model)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        ddp = torch.nn.parallel.DistributedDataParallel
        found = gradients(lambda model: ddp(model, find_unused_parameters=True))
    finally:
        dist.destroy_process_group()
    assert found[0] == pytest.approx(plain[0], rel=1e-6)
    assert found[1].keys() == plain[1].keys()
    assert all(torch.allclose(found[1][name], grad, atol=1e-6) for name, grad in plain[1].items())


def test_it_trains_mosa_under_trl(tmp_path: Path, tiny_tokenizer: Any) -> None:
    from trl import SFTConfig, SFTTrainer

    class TwoSFT(ConsistencyMixin, SFTTrainer):
        """The mixin on TRL's trainer."""

    model, _ = build("llama")
    args = SFTConfig(
        output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=2, report_to=[], save_strategy="no",
        use_cpu=True, gradient_checkpointing=True, bf16=False, learning_rate=1e-2, loss_type="nll",
    )  # fmt: skip
    rows = Dataset.from_list([{"input_ids": row, "labels": row} for row in ROWS])
    one = TwoSFT(
        model=model, args=args, train_dataset=rows, processing_class=tiny_tokenizer,
        peft_config=MosaConfig(r=2, num_parts=2),
    )  # fmt: skip
    one.train()
    assert one.state.global_step == 2
    assert one.model.base_model._draws.counts == {"default": 4}  # two passes a step
    one.model.train()
    batch = {"input_ids": torch.tensor(ROWS), "labels": torch.tensor(ROWS)}
    mean, summed = one.compute_loss(one.model, batch), one.compute_loss(one.model, batch, False, 40)
    assert float(mean.detach()) == pytest.approx(2 * float(summed.detach()), rel=0.05)
    mean.backward()
    with torch.no_grad():
        for p in one.model.parameters():
            p.fill_(float("nan"))
    with pytest.raises(TrainingError, match="the loss is nan"):
        one.compute_loss(one.model, batch)
    args.loss_type = "dft"
    with pytest.raises(ParameterError, match="'nll' with two passes"):
        one.compute_loss(one.model, batch)


def test_what_cannot_work_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r"'alpha' parameter .* at least 0"):
        Consistency(alpha=-1.0)
    with pytest.raises(ParameterError, match="nothing uses the second pass"):
        Consistency(beta=0.0)
    one = trainer(tmp_path, 4, 1)

    class NoLogits(torch.nn.Module):
        def forward(self, **inputs: Any) -> Any:
            return {"loss": torch.zeros((), requires_grad=True)}

    batch = {"input_ids": torch.tensor(ROWS), "labels": torch.tensor(ROWS)}
    with pytest.raises(TrainingError, match="the model returned none"):
        one.compute_loss(NoLogits().train(), batch)
