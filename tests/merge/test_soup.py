"""Model soups: hand-worked numbers, parity with the released average, laws, files and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tunesmith.core.errors import DataError, ParameterError
from tunesmith.merge import soup

FILE = Path(__file__).parents[1] / "golden/points.json"
GOLDEN = {case["name"]: case for case in json.loads(FILE.read_text(encoding="utf-8"))["cases"]}

SCALARS = [{"w": torch.tensor([v])} for v in (0.0, 1.0, 4.0)]


def accuracy(state: dict[str, Any]) -> float:
    return -float((state["w"] - 0.4).pow(2).sum())


def tensors(block: dict[str, Any], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {
        name: torch.tensor(v["data"], dtype=torch.int64 if v["dtype"] == "int64" else dtype).reshape(
            v["shape"]
        )
        for name, v in block.items()
    }


def net(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))


def test_hand_example() -> None:
    greedy = soup(SCALARS, method="greedy", score=accuracy)
    assert greedy.members == [0, 1]
    assert greedy.state_dict["w"].item() == pytest.approx(0.5)
    assert [step["member"] for step in greedy.trace] == [0, 1, 2]
    assert [step["score"] for step in greedy.trace] == pytest.approx([-0.16, -0.36, -12.96], rel=1e-5)
    assert [step["soup"] for step in greedy.trace] == pytest.approx([-0.16, -0.01, -1.6044], rel=1e-3)
    assert [step["accepted"] for step in greedy.trace] == [True, True, False]
    best_two = soup(SCALARS, method="maximum", score=accuracy, members=2)
    assert best_two.state_dict["w"].item() == pytest.approx(0.5)
    assert soup(SCALARS).state_dict["w"].item() == pytest.approx(5 / 3)
    weighted = soup(SCALARS, weights=[2, 1, 0], method="weighted")
    assert (weighted.members, weighted.weights) == ([0, 1], pytest.approx([2 / 3, 1 / 3]))
    assert weighted.state_dict["w"].item() == pytest.approx(1 / 3)


def test_equality_is_accepted_and_a_margin_refuses_it() -> None:
    twins = [{"w": torch.tensor([1.0])}, {"w": torch.tensor([1.0])}]
    assert soup(twins, method="greedy", score=accuracy).members == [0, 1]
    assert soup(twins, method="greedy", score=accuracy, margin=0.01).members == [0]


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_average_matches_the_released_code(name: str) -> None:
    case = GOLDEN[f"average_soup_{name}"]
    dtype = getattr(torch, name)
    models = [tensors(block, dtype) for block in case["inputs"].values()]
    with pytest.raises(DataError, match="integer tensor 'count'"):  # there it is averaged and truncated
        soup(models)
    for model in models:
        model["count"] = models[0]["count"]
    got = soup(models).state_dict
    for key in ("w", "b"):
        want = torch.tensor(case["outputs"][key]["data"]).reshape(got[key].shape)
        exact = torch.stack([model[key].double() for model in models]).mean(0)
        assert got[key].dtype == dtype
        if name == "float32":
            assert torch.allclose(got[key], want, atol=1e-6, rtol=1e-6)
        else:  # ours is the mean rounded once; theirs is summed in bfloat16 and may be off by more
            assert torch.equal(got[key], exact.to(dtype))
            assert (got[key].double() - exact).abs().max() <= (want.double() - exact).abs().max()
            assert torch.allclose(got[key].float(), want, rtol=2**-6, atol=2**-2)
    assert torch.equal(got["count"], models[0]["count"])


def test_one_model_identical_models_and_order() -> None:
    models = [net(seed) for seed in range(4)]
    alone = soup(models[:1]).state_dict
    assert all(torch.equal(alone[name], tensor) for name, tensor in models[0].state_dict().items())
    same = soup([models[0]] * 3).state_dict
    assert all(torch.allclose(same[name], tensor) for name, tensor in models[0].state_dict().items())
    forward, backward = soup(models).state_dict, soup(models[::-1]).state_dict
    assert all(torch.allclose(forward[name], backward[name], atol=1e-7) for name in forward)


def test_the_result_does_not_share_memory_with_the_models() -> None:
    models = [net(0), net(1)]
    before = models[0][0].weight.clone()
    soup(models[:1]).state_dict["0.weight"].add_(1)
    soup(models).state_dict["0.weight"].add_(1)
    assert torch.equal(models[0][0].weight, before)


def test_greedy_never_scores_below_the_best_single() -> None:
    torch.manual_seed(0)
    inputs, targets = torch.randn(64, 3), torch.randn(64, 2)

    def score(model: torch.nn.Module) -> float:
        with torch.no_grad():
            return -float((model(inputs) - targets).pow(2).mean())

    for seed in range(5):
        models = [net(10 * seed + i) for i in range(4)]
        result = soup(models, method="greedy", score=score)
        final = net(0)
        final.load_state_dict(result.state_dict)
        assert score(final) >= max(map(score, models)) - 1e-6
        assert score(final) == pytest.approx(max(s["soup"] for s in result.trace if s["accepted"]), abs=1e-5)


def test_average_of_linear_models_is_no_worse_than_their_mean_score() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(50, 3, generator=generator), torch.randn(50, generator=generator)
    models = [{"w": torch.randn(3, generator=generator)} for _ in range(6)]

    def score(state: dict[str, Any]) -> float:
        return -float((inputs @ state["w"] - targets).pow(2).mean())

    assert score(soup(models).state_dict) >= sum(map(score, models)) / 6


def test_tied_weights_are_averaged_once_and_stay_tied(tiny_model_dir: str) -> None:
    from transformers import AutoModelForCausalLM

    models = [AutoModelForCausalLM.from_pretrained(tiny_model_dir) for _ in range(2)]
    with torch.no_grad():
        models[1].model.embed_tokens.weight.add_(1.0)
    target = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    state = soup(models, into=target).state_dict
    assert state["lm_head.weight"] is state["model.embed_tokens.weight"]
    assert target.lm_head.weight is target.model.embed_tokens.weight
    want = models[0].model.embed_tokens.weight + 0.5
    assert torch.allclose(target.lm_head.weight, want, atol=1e-6)


def test_folders_with_shards_are_streamed_to_a_folder(tiny_model_dir: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    models = [AutoModelForCausalLM.from_pretrained(tiny_model_dir) for _ in range(3)]
    folders = []
    for i, model in enumerate(models):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        model.save_pretrained(tmp_path / str(i), max_shard_size="100KB" if i < 2 else "1GB")
        folders.append(tmp_path / str(i))
    assert len(list(folders[0].glob("*.safetensors"))) > 1
    result = soup(folders, output=tmp_path / "soup")
    assert (result.output, result.state_dict) == (tmp_path / "soup", {})
    assert sorted(p.name for p in (tmp_path / "soup").iterdir()) == sorted(
        p.name for p in folders[0].iterdir()
    )
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "soup")
    in_memory = soup(models)
    ids = torch.arange(12)[None]
    target = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    target.load_state_dict(in_memory.state_dict)
    with torch.no_grad():
        assert torch.allclose(read(ids).logits, target(ids).logits, atol=1e-5)
    single_file = soup([next(iter(folders[2].glob("*.safetensors")))]).state_dict
    assert torch.equal(single_file["model.norm.weight"], models[2].model.norm.weight)


def test_lora_factors_need_a_common_a() -> None:
    a, b = torch.ones(2, 4), torch.ones(3, 2)
    models = [{"x.lora_A.weight": a, "x.lora_B.weight": i * b} for i in range(3)]
    assert torch.equal(soup(models).state_dict["x.lora_B.weight"], b)
    models[2] = {**models[2], "x.lora_A.weight": 2 * a}
    with pytest.raises(DataError) as error:
        soup(models)
    assert str(error.value) == (
        "model 2: the LoRA factor 'x.lora_A.weight' differs from that of model 0, and the mean of products "
        "B A is "
        "not the product of the means. Merge each adapter first (merge_and_unload), or combine them exactly "
        "with "
        'PeftModel.add_weighted_adapter(..., combination_type="cat").'
    )


W = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            {"v": W},
            "model 1: only models of one architecture can be averaged: model 1 has a tensor 'v' and model 0 "
            "does "
            "not (2 such names).",
        ),
        ({"w": torch.zeros(2, 4)}, "model 1: 'w' has shape (2, 4), but (2, 3) in model 0."),
        ({"w": W.half()}, "model 1: 'w' has type float16, but float32 in model 0."),
    ],
)
@pytest.mark.parametrize("saved", [False, True])
def test_models_that_do_not_fit(other: dict[str, Any], message: str, saved: bool, tmp_path: Path) -> None:
    models: list[Any] = [{"w": W}, other]
    if saved:
        from safetensors.torch import save_file

        for i, state in enumerate(models):
            save_file(state, tmp_path / f"{i}.safetensors")
        models = [tmp_path / "0.safetensors", tmp_path / "1.safetensors"]
    with pytest.raises(DataError) as error:
        soup(models)
    assert str(error.value) == message


def test_folders_without_weights_and_an_index_that_leaves_its_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        soup([tmp_path])
    assert str(error.value) == (
        f"{tmp_path}: no safetensors weights; models saved in other formats are not read."
    )
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"w": "../secret.safetensors"}}', encoding="utf-8")
    with pytest.raises(DataError) as error:
        soup([tmp_path])
    assert str(error.value) == (
        f"{tmp_path}: the index places 'w' in '../secret.safetensors', outside the folder."
    )


FORM = "The '{}' parameter of soup must be {}. Got {} instead."


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"models": []}, FORM.format("models", "a list of at least one model", "[]")),
        (
            {"models": [3]},
            FORM.format(
                "models",
                "a list of modules, state dictionaries of tensors, or paths to safetensors weights",
                "3",
            ),
        ),
        (
            {"method": "mean"},
            FORM.format("method", "one of 'uniform', 'weighted', 'greedy', 'maximum'", "'mean'"),
        ),
        (
            {"method": "weighted"},
            FORM.format("weights", "3 numbers >= 0 with method='weighted', and None otherwise", "None"),
        ),
        (
            {"method": "weighted", "weights": [1, -1, 0]},
            FORM.format("weights", "3 finite numbers >= 0, not all 0", "[1, -1, 0]"),
        ),
        ({"method": "greedy"}, FORM.format("score", "a callable with method='greedy'", "None")),
        (
            {"method": "maximum", "score": accuracy, "members": 4},
            FORM.format("members", "an int in [1, 3] with method='maximum'", "4"),
        ),
        (
            {"method": "greedy", "score": lambda state: float("nan")},
            FORM.format("score", "a callable that returns a finite number", "nan"),
        ),
        ({"margin": -1.0}, FORM.format("margin", "a finite number >= 0", "-1.0")),
        ({"output": "x"}, FORM.format("output", "None unless all models are paths", "'x'")),
    ],
)
def test_bad_parameters(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError) as error:
        soup(**{"models": SCALARS, **arguments})
    assert str(error.value) == message
