"""Head selection: scores, ranking, penalty, and the runs that produce them."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from peft import get_peft_model

from _tiny_transformers import build
from tunesmith.core.errors import ParameterError, TrainingError
from tunesmith.tuners.lofit import (
    HeadSelection,
    LofitConfig,
    LofitLayer,
    head_importance,
    select_heads,
    with_heads,
)
from tunesmith.tuners.lofit.heads import head_scores, noise_level, rank_heads, sparsity

GOLDEN = {
    case["name"]: case
    for case in json.loads((Path(__file__).parents[1] / "golden" / "lofit.json").read_text())["cases"]
}


def tensor(value: dict[str, Any]) -> torch.Tensor:
    return torch.tensor(value["data"], dtype=getattr(torch, value["dtype"])).reshape(value["shape"])


def batches(n: int = 3) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(3, 99, (2, 7), generator=generator) for _ in range(n)]
    return [{"input_ids": ids, "labels": ids} for ids in rows]


@pytest.mark.parametrize("name", ["head_selection", "head_selection_ties", "head_selection_default_K"])
def test_golden_ranking(name: str) -> None:
    case = GOLDEN[name]
    scores = head_scores(tensor(case["inputs"]["A"])).numpy()
    np.testing.assert_allclose(scores, tensor(case["outputs"]["S"]).numpy(), atol=case["tolerance"])
    out = case["outputs"]
    expected = out["heads_ascending_ties"] if "heads_ascending_ties" in out else out["heads"]
    ranking = rank_heads(scores)
    k = case["params"]["K"]
    found = HeadSelection(ranking, ranking, scores, 0.0).top(
        0.1 if k is None else k
    )  # the code's default is a tenth
    assert [list(pair) for pair in found] == expected


def test_golden_penalty_is_a_sum() -> None:
    case = GOLDEN["l1_objective"]
    A, l1 = tensor(case["inputs"]["A"]).requires_grad_(), case["params"]["lambda"]
    total = case["inputs"]["L_task"] + sparsity([A], l1)
    assert float(total.detach()) == pytest.approx(
        float(tensor(case["outputs"]["L_sel"])), abs=case["tolerance"]
    )
    total.backward()
    assert torch.allclose(A.grad, tensor(case["outputs"]["grad_A_of_penalty"]))  # type: ignore[arg-type]


def test_scores_by_hand() -> None:
    A = torch.tensor([[[3.0, 4.0], [0.0, 1.0]], [[2.0, 0.0], [0.0, 0.0]]])
    assert head_scores(A).tolist() == [[5.0, 1.0], [2.0, 0.0]]
    assert head_scores(-A).tolist() == head_scores(A).tolist()
    assert rank_heads(head_scores(A).numpy()) == [(0, 0), (1, 0), (0, 1), (1, 1)]
    A[1, 1] = 7.0  # a constant on an unused head does not alter the order of the others
    assert [h for h in rank_heads(head_scores(A).numpy()) if h != (1, 1)] == [(0, 0), (1, 0), (0, 1)]
    assert rank_heads(np.array([[1.0, np.nan], [1.0, 2.0]])) == [(1, 1), (0, 0), (1, 0)]
    assert noise_level(1e-3, 64) == pytest.approx(0.016)


def test_the_model_is_left_as_it_was_and_the_run_repeats() -> None:
    model, _ = build("llama")
    model.model.embed_tokens.weight.requires_grad_(False)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    trainable = {name: p.requires_grad for name, p in model.named_parameters()}
    torch.manual_seed(3)
    generator = torch.get_rng_state()
    one = select_heads(model, batches(), 2, epochs=2)
    assert torch.equal(torch.get_rng_state(), generator)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == trainable
    assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())
    assert model.state_dict().keys() == state.keys()
    assert not model.training
    assert not hasattr(model, "peft_config")
    torch.manual_seed(4)
    two = select_heads(model, iter(batches()), 5, epochs=2)
    assert np.array_equal(one.scores, two.scores)
    assert one.scores.shape == (2, 4)
    assert one.heads == one.ranking[:2] == two.heads[:2] == two.top(2) == two.top(0.25)
    assert len(two.heads) == 5
    assert not one.is_noise
    tuned = get_peft_model(model, two.config(init_std=0.0))
    assert sum(p.numel() for p in tuned.parameters() if p.requires_grad) == 5 * 8
    assert two.config().heads == [list(pair) for pair in two.heads]


def test_a_head_that_alone_matters_comes_first() -> None:
    model, inputs = build("gpt2")
    seen: dict[str, torch.Tensor] = {}

    def loss(tuned: Any, batch: Any) -> torch.Tensor:
        site = next(m for m in tuned.modules() if isinstance(m, LofitLayer) and m.index == 1)
        handle = site.base_layer.register_forward_pre_hook(lambda _, x: seen.update(z=x[0]))
        tuned(**batch)
        handle.remove()
        return seen["z"][..., 16:24].square().mean()  # the output of head 2 of layer 1

    found = select_heads(model, [inputs], 1, loss=loss, epochs=10, l1=1e-2)
    assert found.heads == [(1, 2)]
    # the penalty pulls every other entry back to 0 but for the last, small steps
    others = [s for pair, s in np.ndenumerate(found.scores) if pair != (1, 2)]
    assert found.scores[1, 2] > 5 * max(others)


def test_a_config_may_ask_for_heads_to_be_chosen() -> None:
    model, _ = build("llama")
    config = LofitConfig(k=0.5, l1=1e-2, layers_to_transform=[1], init_std=0.0, seed=3)
    with pytest.raises(
        ParameterError, match=r"chosen before: with_heads\(model, config, data\) does so for k=0\.5"
    ):
        get_peft_model(model, config)
    chosen = with_heads(model, config, batches(), epochs=2)
    expected = select_heads(
        model, batches(), 2, epochs=2, l1=1e-2, layers_to_transform=[1], init_std=0.0, seed=3
    )
    assert chosen.heads == [list(pair) for pair in expected.heads]
    assert (chosen.k, chosen.init_std, chosen.seed) == (0.5, 0.0, 3)
    assert config.heads is None
    assert with_heads(model, chosen, []) is chosen
    assert with_heads(model, every := LofitConfig(), []) is every
    get_peft_model(model, chosen)


def test_layers_left_out_have_no_score() -> None:
    scores = head_importance(build("llama")[0], batches(1), epochs=1, layers_to_transform=[1])
    assert np.isnan(scores[0]).all()
    assert (scores[1] > 0).all()
    clip, inputs = build("clip")
    scores = head_importance(clip, [{**inputs, "return_loss": True}], epochs=1)
    assert scores.shape == (4, 4)


def test_too_strong_a_penalty_leaves_noise_and_says_so() -> None:
    model, _ = build("llama")
    with pytest.warns(
        UserWarning, match=r"does not exceed what the initialisation can reach \(0\.00566\): the ranking"
    ):
        found = select_heads(model, batches(), 1, l1=100.0, epochs=10, learning_rate=2e-3)
    assert found.is_noise
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert not select_heads(model, batches(), 1, l1=0.0).is_noise


def test_accumulated_micro_batches_equal_one_batch() -> None:
    model, _ = build("llama")
    rows = batches(4)
    pairs = [{k: torch.cat([a[k], b[k]]) for k in a} for a, b in zip(rows[::2], rows[1::2], strict=True)]
    big = head_importance(model, pairs, epochs=3, l1=1e-2)
    small = head_importance(model, rows, epochs=3, l1=1e-2, accumulate=2)
    np.testing.assert_allclose(small, big, rtol=1e-3)
    assert not np.allclose(head_importance(model, rows, epochs=3, l1=1e-2), big, rtol=1e-3)
    # a last group that is short is divided by what it has
    odd = head_importance(model, rows[:3], epochs=1, accumulate=2)
    mixed = head_importance(model, [pairs[0], rows[2]], epochs=1)
    np.testing.assert_allclose(odd, mixed, rtol=1e-3)


def test_a_dataset_is_shuffled_by_the_seed_and_collated() -> None:
    model, _ = build("llama")
    data = [{"input_ids": batch["input_ids"][0]} for batch in batches(5)]

    def collate(rows: list[Any]) -> dict[str, torch.Tensor]:
        ids = torch.stack([row["input_ids"] for row in rows])
        return {"input_ids": ids, "labels": ids}

    one, two, other = (
        head_importance(model, data, batch_size=2, collate_fn=collate, seed=seed, epochs=1)
        for seed in (0, 0, 1)
    )
    assert np.array_equal(one, two)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize(
    ("flag", "accepts", "items", "share"), [(True, False, None, 4), (None, True, 10, 4), (None, False, 10, 1)]
)
def test_a_trainers_loss_gets_the_penalty_once_per_micro_batch(
    flag: bool | None, accepts: bool, items: int | None, share: int
) -> None:
    """Where the trainer divides the loss by the number of micro-batches, it divides the penalty too; else we do."""
    seen = {}

    def factory(model: Any) -> Any:
        def train() -> None:
            model.train()
            expected = 0.5 * sum(
                float(p.detach().abs().sum()) for n, p in model.named_parameters() if "lofit_a" in n
            )
            seen["train"] = float(trainer.compute_loss(model, {}, num_items_in_batch=items)) - 7.0
            seen["expected"] = expected
            model.eval()
            seen["eval"] = trainer.compute_loss(model, {}, return_outputs=True)

        trainer = SimpleNamespace(
            loss_is_scaled_for_ga=flag,
            model_accepts_loss_kwargs=accepts,
            compute_loss_func=None,
            current_gradient_accumulation_steps=4,
            train=train,
            compute_loss=lambda model, inputs, return_outputs=False, num_items_in_batch=None: (
                (torch.tensor(7.0), "outputs") if return_outputs else torch.tensor(7.0)
            ),
        )
        return trainer

    with pytest.warns(UserWarning, match="the ranking is noise"):
        select_heads(build("llama")[0], trainer=factory, l1=0.5, init_std=0.5)
    assert seen["train"] == pytest.approx(seen["expected"] / share, rel=1e-4)
    assert seen["eval"] == (7.0, "outputs")


def test_a_trainer_of_transformers_runs_stage_one(tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    model, _ = build("llama")
    rows = [{"input_ids": ids, "labels": ids} for batch in batches(4) for ids in batch["input_ids"].tolist()]

    def factory(tuned: Any) -> Trainer:
        arguments = TrainingArguments(
            output_dir=str(tmp_path),
            use_cpu=True,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            num_train_epochs=8,
            learning_rate=5e-3,
            weight_decay=0.0,
            save_strategy="no",
            disable_tqdm=True,
        )
        return Trainer(tuned, arguments, train_dataset=rows)

    strong = select_heads(model, trainer=factory, l1=1e-3)
    assert not strong.is_noise
    assert np.array_equal(strong.scores, select_heads(model, trainer=factory, l1=1e-3).scores)
    free = select_heads(model, trainer=factory, l1=0.0)
    assert np.nansum(free.scores) > np.nansum(strong.scores)
    assert not hasattr(model, "peft_config")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (
            {"k": 0},
            "The 'k' parameter of select_heads must be an int in [1, 8] or a float in (0, 1]. Got 0 instead.",
        ),
        ({"k": 9}, "an int in [1, 8] or a float in (0, 1]. Got 9 instead."),
        ({"k": 1.5}, "Got 1.5 instead."),
        ({"k": True}, "Got True instead."),
        (
            {"l1": -1e-3},
            "The 'l1' parameter of select_heads must be a finite number at least 0. Got -0.001 instead.",
        ),
        ({"learning_rate": 0.0}, "must be a finite number above 0. Got 0.0 instead."),
        ({"max_grad_norm": math.nan}, "The 'max_grad_norm' parameter of select_heads must be"),
        (
            {"epochs": 0},
            "The 'epochs' parameter of select_heads must be an int of at least 1. Got 0 instead.",
        ),
        ({"accumulate": 1.5}, "must be an int of at least 1. Got 1.5 instead."),
        ({"batch_size": 0}, "must be an int of at least 1. Got 0 instead."),
        (
            {"data": []},
            "The 'data' parameter of select_heads must be at least one batch. Got 'none' instead.",
        ),
        (
            {"data": None},
            "The 'trainer' parameter of select_heads must be given if and only if 'data' is not.",
        ),
        (
            {"trainer": len},
            "The 'trainer' parameter of select_heads must be given if and only if 'data' is not.",
        ),
        (
            {"data": None, "trainer": lambda model: model},
            "must be a function that returns a trainer with compute_loss",
        ),
        (
            {"data": [{"input_ids": torch.tensor([[1, 2]])}]},
            "or rows must carry labels for the model's own. Got None",
        ),
        ({"heads": [[5, 0]]}, "layers 0-1, heads in [0, 3]. Got [5, 0] instead."),
    ],
)
def test_bad_calls_leave_the_model_alone(parameters: dict[str, Any], message: str) -> None:
    model, _ = build("llama")
    with pytest.raises(ParameterError) as error:
        select_heads(model, **{"data": batches(1), **parameters})
    assert message in str(error.value)
    assert not any(isinstance(module, LofitLayer) for module in model.modules())
    assert all(p.requires_grad for p in model.parameters())


def test_losses_that_are_not_finite_and_models_with_adapters() -> None:
    model, _ = build("llama")
    with pytest.raises(TrainingError, match="the loss of head selection is nan"):
        select_heads(model, batches(1), loss=lambda tuned, batch: tuned(**batch).loss * math.nan)
    assert not hasattr(model, "peft_config")
    tuned = get_peft_model(model, LofitConfig())
    with pytest.raises(ParameterError, match="must be a model without adapters: merge or unload them"):
        select_heads(tuned, batches(1))
