"""The exact choice of the K entries that moved most, over tensors in memory and in files."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from _composable_sft import CASES, tensors
from tunesmith.core.errors import DataError, ParameterError
from tunesmith.tuners.sparse import _tensors, global_top_k, random_positions, top_k_positions


def chosen(found):
    return {name: index.tolist() for name, index in found.items()}


def select(case, **options):
    inputs = case["inputs"]
    exclude = {n: torch.tensor(i) for n, i in inputs.get("already_selected_flat_index", {}).items()}
    theta0, theta1 = tensors(inputs["theta0"]), tensors(inputs["theta1"])
    return global_top_k(
        theta0, theta1, case["params"]["k"], names=inputs["maskable"], exclude=exclude, **options
    )


@pytest.mark.parametrize(
    "name",
    ["select_distinct", "select_all", "select_one_tensor_only", "select_second_iteration", "dossier_example"],
)
def test_the_authors_choice(name):
    """Golden: cambridgeltl/composable-sft, selection of the k most changed parameters."""
    case = CASES[name]
    found = chosen(select(case))
    for tensor, positions in case["inputs"].get("already_selected_flat_index", {}).items():
        found[tensor] = sorted(found.get(tensor, []) + positions)
    expected = {n: i for n, i in case["outputs"]["selected_flat_index"].items() if i}
    assert found == expected
    assert sum(map(len, found.values())) == case["outputs"]["n_selected"]


def test_ties_where_the_authors_choose_too_many():
    some = CASES["select_ties_some"]  # four entries share the third largest value: they take all four
    assert some["outputs"]["n_selected"] == 4
    assert chosen(select(some)) == {"a": [0, 3, 6]}
    zero = CASES["select_ties_all_zero"]  # nothing moved: they take all 17
    assert zero["outputs"]["n_selected"] == 17
    assert chosen(select(zero)) == {}
    assert chosen(select(zero, positive=False)) == {"a": [0, 1]}


def test_k_zero_and_k_too_large():
    assert select(CASES["select_k_zero"]) == {}
    with pytest.raises(ParameterError) as error:
        select(CASES["select_too_many"])
    assert str(error.value) == (
        "The 'k' parameter of global_top_k must be an int in [0, 17], the maskable entries. Got 18 instead."
    )


def test_worked_example():
    moved = {"a": torch.tensor([0.5, -0.9, 0.1, 0.2])}
    assert chosen(global_top_k({"a": torch.zeros(4)}, moved, 2)) == {"a": [0, 1]}


def flat_positions(found, sizes):
    start, all_positions = 0, []
    for name, size in sizes.items():
        all_positions += [start + i for i in found.get(name, torch.zeros(0)).tolist()]
        start += size
    return all_positions


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_a_sort_of_everything_however_the_vector_is_cut(dtype, monkeypatch):
    monkeypatch.setattr(_tensors, "PIECE", 7)
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(200, generator=generator, dtype=dtype)
    scores[::5] = scores[3]  # many ties
    scores[1::9] = 0.0
    order = sorted(range(200), key=lambda i: (-float(scores[i]), i))
    for cut in ([200], [1, 50, 149], [13, 13, 13, 161]):
        sizes = {f"t{i}": size for i, size in enumerate(cut)}
        starts = dict(zip(sizes, [sum(cut[:i]) for i in range(len(cut))], strict=True))
        for k in (1, 5, 60, 150):
            found = top_k_positions(
                lambda n, a, b: scores[starts[n] + a : starts[n] + b],  # noqa: B023
                sizes,
                k,
                dtype=dtype,
            )
            assert flat_positions(found, sizes) == sorted(i for i in order[:k] if scores[i] > 0)


def test_a_ranking_per_tensor_is_another_one():
    base = {"a": torch.zeros(4), "b": torch.zeros(4)}
    tuned = {"a": torch.tensor([9.0, 8.0, 7.0, 6.0]), "b": torch.tensor([4.0, 3.0, 2.0, 1.0])}
    assert chosen(global_top_k(base, tuned, 4)) == {"a": [0, 1, 2, 3]}  # per tensor: two of each


def test_modules_dictionaries_files_and_shards_agree(tmp_path):
    torch.manual_seed(0)
    base = {"x.weight": torch.randn(5, 7), "y.weight": torch.randn(11), "z": torch.randn(2, 2, 3)}
    tuned = {name: t + torch.randn_like(t) for name, t in base.items()}
    save_file(base, tmp_path / "base.safetensors")
    shards = tmp_path / "tuned"
    shards.mkdir()
    files = {"x.weight": "one.safetensors", "y.weight": "two.safetensors", "z": "one.safetensors"}
    for file in set(files.values()):
        save_file({n: t for n, t in tuned.items() if files[n] == file}, shards / file)
    (shards / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    expected = chosen(global_top_k(base, tuned, 20))
    assert chosen(global_top_k(tmp_path / "base.safetensors", shards, 20, names=list(base))) == expected
    module = torch.nn.Linear(3, 2)
    moved = {n: p.detach() + 1 for n, p in module.named_parameters()}
    assert chosen(global_top_k(module, moved, 8)) == {"weight": [0, 1, 2, 3, 4, 5], "bias": [0, 1]}


def test_low_precision_is_compared_in_float32():
    base = {"a": torch.tensor([1.0, 1.0], dtype=torch.bfloat16)}
    tuned = {"a": torch.tensor([1.0 + 1e-4, 1.0 + 2e-4])}  # both round to the same bfloat16
    assert chosen(global_top_k(base, tuned, 1)) == {"a": [1]}


@pytest.mark.slow
def test_random_positions_are_uniform_and_repeatable():
    sizes = {"a": 30, "b": 10}
    assert chosen(random_positions(sizes, 40, 0)) == {"a": list(range(30)), "b": list(range(10))}
    assert chosen(random_positions(sizes, 7, 3)) == chosen(random_positions(sizes, 7, 3))
    draws = [random_positions(sizes, 8, seed) for seed in range(400)]
    assert all(sum(map(len, d.values())) == 8 for d in draws)
    counts = torch.zeros(40)
    for draw in draws:
        counts[torch.tensor(flat_positions(draw, sizes))] += 1
    # Each count is binomial(400, 1/5): mean 80, standard deviation 8; 40 of them within 4.5 deviations.
    assert (counts - 80).abs().max() < 36


@pytest.mark.parametrize(
    ("base", "tuned", "options", "error", "message"),
    [
        (
            {"wight": torch.zeros(2)},
            {"weight": torch.zeros(2)},
            {"names": ["weight"]},
            ParameterError,
            "The 'base' parameter of global_top_k must be a model with the weight 'weight'. "
            "Got \"1 other names, the nearest 'wight'\" instead.",
        ),
        (
            {"a": torch.zeros(2)},
            {"a": torch.zeros(3)},
            {},
            ParameterError,
            "The 'tuned' parameter of global_top_k must be a model whose 'a' has the shape (2,) of the base's. "
            "Got (3,) instead.",
        ),
        (
            {"a": torch.zeros(2, dtype=torch.uint8)},
            {"a": torch.zeros(2)},
            {"names": ["a"]},
            ParameterError,
            "The 'base' parameter of global_top_k must be in floating point: a sparse difference to quantised weights "
            "has no meaning. Got 'a: torch.uint8' instead.",
        ),
        (
            7,
            {"a": torch.zeros(2)},
            {},
            ParameterError,
            "The 'base' parameter of global_top_k must be a module, a dictionary of tensors, or a path to safetensors "
            "weights. Got 7 instead.",
        ),
        (
            {"a": torch.zeros(2)},
            {"a": torch.tensor([1.0, float("nan")])},
            {},
            DataError,
            "tensor a: a difference is not a finite number.",
        ),
    ],
)
def test_bad_input(base, tuned, options, error, message):
    with pytest.raises(error) as caught:
        global_top_k(base, tuned, 1, **options)
    assert str(caught.value) == message


def test_bad_k_and_bad_folders(tmp_path):
    with pytest.raises(ParameterError) as error:
        top_k_positions(lambda n, a, b: torch.ones(b - a), {"a": 3}, 4)
    assert "must be an int in [0, 3], the entries there are. Got 4 instead." in str(error.value)
    with pytest.raises(DataError) as error:
        global_top_k(tmp_path, tmp_path, 1)
    assert (
        str(error.value) == f"{tmp_path}: no safetensors weights; models saved in other formats are not read."
    )
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../a.safetensors"}}')
    with pytest.raises(DataError) as error:
        global_top_k(tmp_path, tmp_path, 1)
    assert str(error.value) == f"{tmp_path}: the index places 'a' in '../a.safetensors', outside the folder."
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "a.safetensors"}}')
    with pytest.raises(DataError) as error:
        global_top_k(tmp_path, tmp_path, 1)
    assert str(error.value) == f"{tmp_path}: the index places 'a' in 'a.safetensors', which is not there."
