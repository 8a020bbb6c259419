"""Masked thought against numbers of the authors' code (tests/golden/masked-thought.json)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional
from torch.testing import assert_close

from _golden import raw_cases, tensor
from tunesmith.trainers.masked_thought import add_mask_token, cosine_then_linear, mask_inputs, mask_rate
from tunesmith.trainers.masked_thought.noise import eligible_tokens

CASES = raw_cases("masked-thought")


@pytest.mark.parametrize("name", [n for n in CASES if n.startswith("mask_inputs")])
def test_golden_corrupted_inputs(name: str) -> None:
    case = CASES[name]
    given = {key: tensor(value) for key, value in case["inputs"].items()}
    M = (given["hit"] * given["eligible"]).bool()
    use_noise = given["u_replace"] < case["params"]["r"]
    found = mask_inputs(given["input_ids"], M, given["noise_ids"], use_noise, case["params"]["mask_id"])
    assert torch.equal(found, tensor(case["outputs"]["corrupted_input_ids"]))
    assert M.sum(1).tolist() == case["outputs"]["n_hits"]["data"]


def test_golden_question_only() -> None:
    case = CASES["mask_question_only"]
    given = {key: tensor(value) for key, value in case["inputs"].items()}
    M = given["hit"].bool() & ~given["target_mask"].bool()
    found = mask_inputs(given["input_ids"], M, given["input_ids"], False, 20)
    assert torch.equal(found, tensor(case["outputs"]["corrupted_input_ids"]))


def test_golden_collator_of_metamath() -> None:
    case = CASES["collator_metamath"]
    given, out = case["inputs"], case["outputs"]
    for i, row in enumerate(given["input_ids"]):
        ids = tensor(row)
        labels = ids.clone()
        labels[: given["source_lengths"][i]] = -100
        assert torch.equal(labels, tensor(out["labels"][i]))
        u = torch.ones(len(ids), dtype=torch.float64)
        u[given["source_lengths"][i] :] = tensor(given["uniform_per_target_token"][i])
        M = (u < case["params"]["p"]) & eligible_tokens({"labels": labels})
        found = mask_inputs(ids, M, ids, False, case["params"]["mask_id"])
        assert torch.equal(found, tensor(out["corrupted_input_ids"][i]))


@pytest.mark.parametrize("name", ["rate_schedule_S300", "rate_schedule_S10"])
def test_golden_rates(name: str) -> None:
    case = CASES[name]
    p = case["params"]
    found = [mask_rate(s, p["S"], p["p_max"], p["rho"]) for s in case["inputs"]["s"]]
    assert found == pytest.approx(case["outputs"]["p"], abs=1e-12)


@pytest.mark.parametrize("name", ["collator_rate_metamath", "collator_rate_mammoth_late"])
def test_golden_rates_by_calls(name: str) -> None:
    case = CASES[name]
    p, S = case["params"], 20
    warmup, start = p["warmup_calls"] / S, p.get("late_calls", 0) / S
    found = [mask_rate(s, S, p["p_max"], warmup, start, "official") for s in case["inputs"]["calls"]]
    assert found == pytest.approx(case["outputs"]["p"], abs=1e-12)


def test_golden_learning_rate() -> None:
    case = CASES["lr_schedule_metamath"]
    p = case["params"]
    found = [
        cosine_then_linear(s, p["total_steps"], p["warmup_steps"], p["min_ratio"], p["decay_until"])
        for s in case["inputs"]["step"]
    ]
    assert found == pytest.approx(case["outputs"]["multiplier"], abs=1e-12)


def test_golden_loss_and_gradients() -> None:
    case = CASES["loss_clean_labels_corrupted_inputs"]
    given, out = {key: tensor(value) for key, value in case["inputs"].items()}, case["outputs"]
    assert torch.equal(
        given["corrupted_input_ids"],
        mask_inputs(
            given["input_ids"],
            given["corrupted_input_ids"] == 20,
            given["input_ids"],
            False,
            case["params"]["mask_id"],
        ),
    )

    def loss_of(ids: torch.Tensor, E: torch.Tensor, W: torch.Tensor) -> torch.Tensor:
        logits = E[ids].cumsum(1) @ W.T
        return functional.cross_entropy(logits[:, :-1].flatten(0, 1), given["labels"][:, 1:].flatten())

    E, W = given["E"].requires_grad_(), given["W"].requires_grad_()
    loss = loss_of(given["corrupted_input_ids"], E, W)
    loss.backward()
    assert_close(loss, tensor(out["loss"]), atol=1e-5, rtol=0)
    assert_close(E.grad, tensor(out["grad_E"]), atol=1e-5, rtol=0)
    assert_close(W.grad, tensor(out["grad_W"]), atol=1e-5, rtol=0)
    clean = loss_of(given["input_ids"], E, W)
    assert_close(clean, tensor(out["loss_without_corruption"]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["format_and_pad_left", "format_and_pad_right_truncated"])
def test_golden_layout(name: str, tiny_tokenizer: Any) -> None:
    import copy

    from transformers import DataCollatorForSeq2Seq

    from tunesmith.trainers import MaskedThoughtCollator

    case = CASES[name]
    p, out = case["params"], case["outputs"]
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.padding_side = p["padding_side"]
    assert tokenizer.pad_token_id == p["pad_id"]
    rows = []
    for ids, count in zip(*case["inputs"].values(), strict=True):
        labels = [-100] * (len(ids) - count) + ids[len(ids) - count :]
        n = p["max_len"]
        rows.append({"input_ids": ids[:n], "labels": labels[:n], "attention_mask": [1] * len(ids[:n])})
    collator = MaskedThoughtCollator(
        DataCollatorForSeq2Seq(tokenizer, padding=True), tokenizer, mode="random", rate=0.0
    )
    batch = collator(rows)
    assert torch.equal(batch["input_ids"], tensor(out["input_ids"]).long())
    assert torch.equal(batch["attention_mask"], tensor(out["attention_mask"]).long())
    assert torch.equal(eligible_tokens(batch).long(), tensor(out["label_mask"]).long())


class Tables(torch.nn.Module):
    """An input embedding and an output layer that grow as in transformers."""

    def __init__(self, rows: torch.Tensor, out: torch.Tensor) -> None:
        super().__init__()
        self.inner = torch.nn.Embedding.from_pretrained(rows, freeze=False)
        self.outer = torch.nn.Linear(out.shape[1], len(out), bias=False)
        self.outer.weight.data = out

    def get_input_embeddings(self) -> Any:
        return self.inner

    def get_output_embeddings(self) -> Any:
        return self.outer

    def resize_token_embeddings(self, size: int, mean_resizing: bool) -> None:
        assert mean_resizing is False
        for layer in (self.inner, self.outer):
            old = layer.weight.data
            layer.weight = torch.nn.Parameter(torch.cat([old, old.new_zeros(size - len(old), old.shape[1])]))


class Words:
    """A tokenizer of n words without a mask token."""

    def __init__(self, n: int) -> None:
        self.n, self.mask_token_id = n, None

    def __len__(self) -> int:
        return self.n

    def add_special_tokens(self, tokens: dict[str, str]) -> None:
        assert tokens == {"mask_token": "<mask>"}
        self.mask_token_id, self.n = self.n, self.n + 1


@pytest.mark.parametrize("name", ["new_token_rows", "new_mask_row"])
def test_golden_new_rows(name: str) -> None:
    case = CASES[name]
    rows, outs = tensor(case["inputs"]["input_rows"]), tensor(case["inputs"]["output_rows"])
    model, words = Tables(rows.clone(), outs.clone()), Words(len(rows))
    assert add_mask_token(model, words) == len(rows)
    assert torch.equal(model.inner.weight[:-1], rows)
    assert torch.equal(model.outer.weight[:-1], outs)
    out = case["outputs"]
    if name == "new_token_rows":
        assert_close(model.inner.weight.data, tensor(out["input_rows_after"])[:-1], atol=1e-6, rtol=0)
        assert_close(model.outer.weight.data, tensor(out["output_rows_after"])[:-1], atol=1e-6, rtol=0)
    else:  # the authors' mean leaves out as many old rows as there are new tokens; ours does not
        assert_close(
            model.inner.weight[-1].data, tensor(out["mean_over_all_old_rows_input"]), atol=1e-6, rtol=0
        )
        official = tensor(out["input_rows_after_official"])[-1]
        assert_close(rows[: -case["params"]["n_new"]].mean(0), official, atol=1e-6, rtol=0)
