"""RoSTE on disk: models, checkpoints of a trainer, exported integers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from _tiny_transformers import build, output_of
from tunesmith.core.errors import DataError
from tunesmith.tuners import RosteConfig, apply_roste, load_roste
from tunesmith.tuners.roste import RosteExport, export, is_roste_folder, roste_layers, roste_state

WAYS = [
    ("llama", "online", torch.float32),
    ("llama-tied", "folded", torch.float32),
    ("llama-tied", "online", torch.bfloat16),
    ("gpt2", "online", torch.float32),
]


def made(kind: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """As `build`, but positions stay in float32, as ``from_pretrained`` keeps them."""
    model, inputs = build(kind, dtype)
    if dtype != torch.float32:
        model.model.rotary_emb = build(kind)[0].model.rotary_emb
    return model, inputs


def run(model: Any, inputs: Any) -> torch.Tensor:
    with torch.no_grad():
        return output_of(model(**inputs))


def step(model: Any, inputs: Any, optimiser: Any = None) -> None:
    optimiser = optimiser or torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    optimiser.step()
    optimiser.zero_grad()


@pytest.mark.parametrize(("kind", "layout", "dtype"), WAYS)
def test_a_saved_model_is_loaded_with_the_same_outputs_to_the_bit(
    kind: str, layout: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    model, inputs = made(kind, dtype)
    model = apply_roste(model, RosteConfig(layout=layout, seed=5), [inputs])
    step(model, inputs)
    model.save_pretrained(tmp_path)
    assert is_roste_folder(tmp_path)
    loaded = load_roste(tmp_path)
    assert not loaded.training
    assert loaded.dtype == dtype
    assert torch.equal(run(loaded, inputs), run(model, inputs))
    one, other = roste_state(model), roste_state(loaded)
    assert (one.config, one.rotate, one.choices) == (other.config, other.rotate, other.choices)
    assert one.signs.keys() == other.signs.keys()
    assert all(torch.equal(one.signs[w], other.signs[w]) for w in one.signs)
    frozen = [[n for n, p in m.named_parameters() if not p.requires_grad] for m in (model, loaded)]
    assert frozen[0] == frozen[1]
    for m in (model, loaded):  # and goes on learning alike
        step(m, inputs)
    assert torch.equal(run(loaded, inputs), run(model, inputs))
    loaded.save_pretrained(tmp_path / "again")
    assert torch.equal(run(load_roste(tmp_path / "again"), inputs), run(model, inputs))


def test_signs_come_from_the_file_and_not_from_the_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tunesmith.numerics import RandomHadamard

    model, inputs = build("llama")
    model = apply_roste(model, RosteConfig(rotation="all"))
    model.save_pretrained(tmp_path)

    def changed(*_: Any) -> Any:
        raise AssertionError("drawn anew")

    monkeypatch.setattr(RandomHadamard, "drawn", changed)
    assert torch.equal(run(load_roste(tmp_path), inputs), run(model, inputs))


@pytest.mark.parametrize("layout", ["online", "folded"])
def test_a_trainer_resumed_from_a_checkpoint_ends_as_the_straight_run(layout: str, tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    base, inputs = build("llama-tied")
    base = apply_roste(base, RosteConfig(layout=layout), [inputs])
    rows = [{"input_ids": ids, "labels": ids} for ids in inputs["input_ids"].repeat(2, 1)]

    def trainer(model: Any) -> Any:
        arguments = TrainingArguments(
            str(tmp_path), max_steps=4, save_steps=2, per_device_train_batch_size=1, gradient_accumulation_steps=2,
            learning_rate=1e-3, report_to="none", disable_tqdm=True, use_cpu=True, seed=0,
        )  # fmt: skip
        return Trainer(model, arguments, train_dataset=rows)

    straight = copy.deepcopy(base)
    trainer(straight).train()
    checkpoint = tmp_path / "checkpoint-2"
    resumed = load_roste(checkpoint)
    assert not torch.equal(run(resumed, inputs), run(straight, inputs))
    trainer(resumed).train(resume_from_checkpoint=str(checkpoint))
    for a, b in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(run(resumed.eval(), inputs), run(straight.eval(), inputs))


@pytest.mark.parametrize(("kind", "layout", "dtype"), WAYS)
@pytest.mark.parametrize("symmetric", [False, True])
def test_the_export_holds_integers_and_computes_what_the_model_computed(
    kind: str, layout: str, dtype: torch.dtype, symmetric: bool, tmp_path: Path
) -> None:
    model, inputs = made(kind, dtype)
    rotation = "all" if symmetric else "adaptive"
    model = apply_roste(model, RosteConfig(layout=layout, symmetric=symmetric, rotation=rotation), [inputs])
    step(model, inputs)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    expected = run(model, inputs)
    exported = export(model)
    layers = roste_layers(model)
    assert set(exported.weights) == set(layers)
    low, high = (-8, 7) if symmetric else (0, 15)
    for name, weight in exported.weights.items():
        assert weight.codes.dtype == (torch.int8 if symmetric else torch.uint8)
        assert low <= int(weight.codes.min()) <= int(weight.codes.max()) <= high
        assert weight.scale.shape == (layers[name].out_features,)
        assert (weight.zero is None) == symmetric
        effective, bias = layers[name].effective(torch.float32)
        assert torch.equal(weight.dequantize(), effective)
        assert (bias is None) == (weight.bias is None)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert torch.equal(run(model, inputs), expected)
    exported.save(tmp_path)
    loaded = RosteExport.model(tmp_path)
    assert loaded.dtype == dtype
    torch.testing.assert_close(run(loaded, inputs), expected, rtol=0, atol=1e-5)
    read = sum(f.stat().st_size for f in tmp_path.iterdir() if f.suffix == ".safetensors")
    model.save_pretrained(tmp_path / "float")
    assert read < sum(f.stat().st_size for f in (tmp_path / "float").glob("*.safetensors"))


@pytest.mark.parametrize("bits", [2, 3, 8, 12])
def test_other_bits_and_groups_survive_the_file(bits: int, tmp_path: Path) -> None:
    model, inputs = build("llama")
    model = apply_roste(model, RosteConfig(weight_bits=bits, group_size=16, rotation="all"))
    exported = export(model)
    weight = exported.weights["model.layers.0.mlp.down_proj"]
    assert weight.scale.shape == (32, 3)
    assert int(weight.codes.max()) == 2**bits - 1
    exported.save(tmp_path)
    assert torch.equal(run(RosteExport.model(tmp_path), inputs), run(model, inputs))


def test_any_module_exports_and_its_buffers_too() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(7, 16), torch.nn.BatchNorm1d(16), torch.nn.Linear(16, 2))
    model(torch.randn(9, 7))
    other = copy.deepcopy(model.eval())
    other[1].reset_running_stats()
    model = apply_roste(model, RosteConfig(rotation="all"))
    other = apply_roste(other, RosteConfig(rotation="all"))
    x = torch.randn(3, 7)
    merged = export(model).load_into(other)
    assert torch.equal(merged(x), model(x))
    assert not merged[0].weight.requires_grad


def test_a_model_with_merged_rotations_is_not_mistaken_for_one_to_rotate(tmp_path: Path) -> None:
    model, inputs = build("llama")
    model = apply_roste(model, RosteConfig(rotation="all"))
    exported = export(model)
    exported.load_into(model)
    model.save_pretrained(tmp_path / "merged")
    with pytest.raises(
        DataError, match="the entry 'roste' has format 'merged', and this version reads format 1"
    ):
        load_roste(tmp_path / "merged")
    exported.save(tmp_path / "export")
    assert torch.equal(run(RosteExport.model(tmp_path / "export"), inputs), run(model, inputs))
