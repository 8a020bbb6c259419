"""Half fine-tuning: which half is drawn, rounds on a model, half-reset, and what is refused."""

from __future__ import annotations

import json
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tunesmith.core.errors import ParameterError, TrainingError
from tunesmith.tuners import HalfFineTuning, half_reset
from tunesmith.tuners.hft import Matrix, matrices_of, select_half

TRIPLES = {"attention": "qkvo", "ffn": ("up", "down", "gate"), "norm": ("n1", "n2")}


def llama_matrices(n_layers: int, kv: int = 100) -> list[Matrix]:
    """Matrices of a Llama-style model; K and V hold ``kv`` numbers."""
    sizes = {"k": kv, "v": kv, "n1": 10, "n2": 10, "up": 300, "down": 300, "gate": 300}
    return [
        Matrix(layer, category, sizes.get(name, 100), (f"{layer}.{name}",))
        for layer in range(n_layers)
        for category, names in TRIPLES.items()
        for name in names
    ]


def counts(chosen: set[str], names: Any) -> list[int]:
    """How many of ``names`` are chosen in each layer that has any chosen, in order of the layers."""
    layers = sorted({int(name.split(".")[0]) for name in chosen})
    return [sum(f"{layer}.{name}" in chosen for name in names) for layer in layers]


def llama(n_layers: int = 4, tied: bool = False) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=40,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=n_layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=tied,
        )
    )


def snapshot(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_four_layers_train_8_of_16_6_of_12_and_4_of_8() -> None:
    chosen = select_half(llama_matrices(4), np.random.default_rng(0))
    assert counts(chosen, "qkvo") == [2, 2, 2, 2]
    assert sorted(counts(chosen, TRIPLES["ffn"])) == [1, 1, 2, 2]
    assert counts(chosen, TRIPLES["norm"]) == [1, 1, 1, 1]
    assert len(chosen) == 18


def test_five_layers_train_8_of_15_feed_forward_matrices() -> None:
    chosen = select_half(llama_matrices(5), np.random.default_rng(0))
    assert sorted(counts(chosen, TRIPLES["ffn"])) == [1, 1, 2, 2, 2]
    assert sum(counts(chosen, "qkvo")) == 10


@pytest.mark.parametrize(("n_layers", "ffn_share"), [(4, 0.5), (5, 8 / 15)])
def test_each_matrix_is_drawn_as_often_as_the_paper_says(n_layers: int, ffn_share: float) -> None:
    matrices = llama_matrices(n_layers)
    rng = np.random.default_rng(1)
    found = dict.fromkeys((m.parameters[0] for m in matrices), 0)
    for _ in range(10_000):
        for name in select_half(matrices, rng):
            found[name] += 1
    for matrix in matrices:
        expected = ffn_share if matrix.category == "ffn" else 0.5
        assert found[matrix.parameters[0]] / 10_000 == pytest.approx(expected, abs=0.02)


def test_rounds_are_independent_and_repeatable() -> None:
    matrices = llama_matrices(30)
    draws = [select_half(matrices, np.random.default_rng(seed)) for seed in range(200)]
    assert draws[0] == select_half(matrices, np.random.default_rng(0))
    # Two independent halves share a quarter of the matrices: 30 x (4 + 3 + 2) / 4 = 67.5.
    shared = [len(a & b) for a, b in pairwise(draws)]
    assert np.mean(shared) == pytest.approx(67.5, abs=1.0)


def test_every_layer_trains_and_freezes_in_attention_and_in_feed_forward() -> None:
    for seed in range(50):
        chosen = select_half(llama_matrices(7), np.random.default_rng(seed))
        assert set(counts(chosen, "qkvo")) == {2}
        assert set(counts(chosen, TRIPLES["ffn"])) == {1, 2}


def test_two_matrix_feed_forward_parts_train_one_of_two() -> None:
    matrices = [Matrix(layer, "ffn", 10, (f"{layer}.{n}",)) for layer in range(5) for n in ("up", "down")]
    assert counts(select_half(matrices, np.random.default_rng(0)), ("up", "down")) == [1] * 5


@pytest.mark.parametrize(
    ("ratio", "expected"), [(0.0, (0, 0, 0)), (0.3, (5, 4, 2)), (0.75, (12, 9, 6)), (1.0, (16, 12, 8))]
)
def test_other_shares_are_rounded_over_the_layers(ratio: float, expected: tuple[int, ...]) -> None:
    # 16, 12 and 8 matrices; 0.3 of them are 4.8, 3.6 and 2.4
    chosen = select_half(llama_matrices(4), np.random.default_rng(0), ratio=ratio)
    assert tuple(sum(counts(chosen, names)) for names in TRIPLES.values()) == expected


def test_layer_level_trains_whole_layers_and_model_level_any_half() -> None:
    matrices = llama_matrices(4)
    whole = select_half(matrices, np.random.default_rng(0), level="layer")
    assert len(whole) == 18
    assert {int(name.split(".")[0]) for name in whole} < {0, 1, 2, 3}
    anywhere = select_half(matrices, np.random.default_rng(0), level="model")
    assert len(anywhere) == 18
    assert counts(anywhere, "qkvo") != [2, 2, 2, 2]


def test_grouped_query_attention_is_balanced_by_numbers() -> None:
    matrices = llama_matrices(4, kv=25)
    sizes = {m.parameters[0]: m.size for m in matrices}
    attention = {m.parameters[0] for m in matrices if m.category == "attention"}
    spread = set()
    for seed in range(20):
        half = select_half(matrices, np.random.default_rng(seed), balance="params") & attention
        assert counts(half, "qo") == counts(half, "kv") == [1, 1, 1, 1]
        assert sum(sizes[name] for name in half) == 4 * 125
        by_count = select_half(matrices, np.random.default_rng(seed)) & attention
        spread.add(sum(sizes[name] for name in by_count))
    assert len(spread) > 1  # two of four drawn by count: 20 % to 80 % of a layer's numbers


def test_toy_optima_and_the_bound_of_the_proximal_form() -> None:
    target = torch.tensor([2.0, 4.0])

    def minimise(free: list[bool], proximal: bool = False) -> tuple[list[float], float]:
        theta = torch.nn.ParameterList([torch.zeros(()), torch.zeros(())])
        for p, moves in zip(theta, free, strict=True):
            p.requires_grad_(moves)
        optimizer = torch.optim.SGD([p for p in theta if p.requires_grad], lr=0.2)
        for _ in range(200):
            loss = 0.5 * sum((p - a) ** 2 for p, a in zip(theta, target, strict=True))
            loss = loss + theta[1] ** 2 if proximal else loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return [round(p.item(), 5) for p in theta], round(loss.item(), 5)

    assert minimise([True, False]) == ([2.0, 0.0], 8.0)
    assert minimise([True, True]) == ([2.0, 4.0], 0.0)
    point, value = minimise([True, True], proximal=True)
    assert point == [2.0, pytest.approx(4 / 3, abs=1e-4)]
    assert value == pytest.approx(16 / 3, abs=1e-4)
    assert value <= 8.0


def test_a_model_gets_its_flags_and_its_counts(capsys: pytest.CaptureFixture[str]) -> None:
    model = llama()
    half = HalfFineTuning(model, seed=3)
    assert all(p.requires_grad for p in model.parameters()), "nothing is drawn before the first round"
    first = half.new_round()
    assert {name for name, p in model.named_parameters() if p.requires_grad} == half.trained
    assert half.outside == ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
    assert set(half.outside) <= half.trained
    assert len(first.trained) == 18
    assert half.trainable["lm_head.weight"]
    assert half.frozen | half.trained == set(snapshot(model))
    trained, total = half.trainable_parameters()
    assert total == sum(p.numel() for p in model.parameters())
    assert trained == sum(p.numel() for p in model.parameters() if p.requires_grad)
    half.print_trainable_parameters()
    assert capsys.readouterr().out == (
        f"trainable params: {trained:,} || all params: {total:,} || trainable%: {100 * trained / total:.4f}\n"
    )
    second = half.new_round()
    assert (second.index, second.seed) == (1, 3)
    assert second.trained != first.trained
    assert HalfFineTuning(model, seed=3).new_round().trained == first.trained
    assert HalfFineTuning(model).new_round(3).trained == first.trained
    outside_frozen = HalfFineTuning(model, train_outside=False, seed=3)
    outside_frozen.new_round()
    assert outside_frozen.trained == set(first.trained)


def test_tied_embeddings_are_one_tensor_counted_once() -> None:
    model = llama(tied=True)
    half = HalfFineTuning(model)
    half.new_round()
    assert half.outside == ["model.embed_tokens.weight", "model.norm.weight"]
    assert model.lm_head.weight.requires_grad
    assert half.trainable_parameters()[1] == model.num_parameters()


def test_rounds_are_kept_for_resuming_and_for_the_record(tmp_path: Path) -> None:
    half = HalfFineTuning(llama(), ratio=0.4, balance="params", train_outside=False, seed=5)
    half.new_round()
    half.new_round()
    path = half.save(tmp_path)
    kept = json.loads(path.read_text())
    assert [r["index"] for r in kept["rounds"]] == [0, 1]
    model = llama()
    taken_up = HalfFineTuning.load(model, tmp_path)
    assert taken_up.state_dict() == half.state_dict()
    assert {name for name, p in model.named_parameters() if p.requires_grad} == half.trained
    assert taken_up.new_round().trained == half.new_round().trained
    with pytest.raises(
        ParameterError, match=r"the one that .* was written for; it has no model\.layers\.[23]\."
    ):
        HalfFineTuning.load(llama(2), path)
    with pytest.raises(ParameterError, match=r"'folder' parameter .* with half_fine_tuning.json in it"):
        HalfFineTuning.load(model, tmp_path / "nowhere")


def test_half_reset_of_all_none_and_a_rounds_frozen_set() -> None:
    base, tuned = llama(), llama()
    half = HalfFineTuning(tuned)
    half.new_round()
    with torch.no_grad():
        for p in tuned.parameters():
            if p.requires_grad:
                p.add_(1.0)
    after = snapshot(tuned)
    assert half_reset(tuned, base, names=half.frozen) == half.frozen
    assert all(torch.equal(p, after[name]) for name, p in tuned.named_parameters())
    assert half_reset(tuned, base, names=[]) == set()
    assert all(torch.equal(p, after[name]) for name, p in tuned.named_parameters())
    drawn = half_reset(tuned, base.state_dict(), seed=1)
    assert len(drawn) == 18
    for name, p in tuned.named_parameters():
        assert torch.equal(p, base.get_parameter(name) if name in drawn else after[name])
    half_reset(tuned, base, names=set(after))
    assert all(torch.equal(p, base.get_parameter(name)) for name, p in tuned.named_parameters())


def test_fused_projections_and_experts_count_as_one_and_are_told() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel, MixtralConfig, MixtralForCausalLM

    gpt2 = GPT2LMHeadModel(
        GPT2Config(vocab_size=40, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0)
    )
    with pytest.warns(UserWarning, match=r"c_attn.weight and 1 more tensors hold several matrices in one"):
        half = HalfFineTuning(gpt2)
    chosen = half.new_round().trained
    for layer in range(2):
        attention = {name for name in chosen if name.startswith(f"transformer.h.{layer}.attn")}
        assert len(attention) == 2, "a weight and its bias"
        assert {name.rsplit(".", 1)[0] for name in attention} <= {
            f"transformer.h.{layer}.attn.c_attn",
            f"transformer.h.{layer}.attn.c_proj",
        }
    mixtral = MixtralForCausalLM(
        MixtralConfig(
            vocab_size=40,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            num_local_experts=4,
        )
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        matrices = matrices_of(mixtral)[0]
    kinds = [(m.category, m.fused) for m in matrices if m.layer == 0]
    assert kinds.count(("ffn", True)) == 2
    assert kinds.count(("router", False)) == 1
    assert {name for m in matrices for name in m.parameters} >= {
        name for name, _ in mixtral.named_parameters() if ".layers." in name
    }


def test_what_is_refused() -> None:
    for name, value in {
        "ratio": 1.5,
        "level": "matrix",
        "balance": "numbers",
    }.items():
        with pytest.raises(ParameterError, match=f"The '{name}' parameter of select_half must be"):
            HalfFineTuning(llama(1), **{name: value})
    with pytest.raises(ParameterError, match="'seed' parameter of HalfFineTuning must be an int"):
        HalfFineTuning(llama(1), seed=0.5)  # type: ignore[arg-type]
    half = HalfFineTuning(llama(1))
    with pytest.raises(ParameterError, match="'seed' parameter of new_round must be an int or None"):
        half.new_round("0")  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match="call new_round\\(\\) before the trainer is made"):
        half.apply()
    with pytest.raises(ParameterError, match="a transformer whose blocks"):
        HalfFineTuning(torch.nn.Sequential(torch.nn.Linear(2, 2)))
    strange = llama(1)
    strange.model.layers[0].memory = torch.nn.Parameter(torch.zeros(3, 3))
    with pytest.raises(
        ParameterError, match=r"the category of these tensors is not known: model.layers.0.memory"
    ):
        HalfFineTuning(strange)
    packed = llama(1)
    projection = packed.model.layers[0].self_attn.q_proj
    projection.weight = torch.nn.Parameter(projection.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(ParameterError, match=r"in floating point, .*model.layers.0.self_attn.q_proj"):
        HalfFineTuning(packed)
    with pytest.raises(ParameterError, match="'names' parameter of half_reset must be names of the model's"):
        half_reset(llama(1), llama(1), names=["nothing"])
    with pytest.raises(
        ParameterError, match=r"'base' parameter of half_reset must be the model that was tuned: .*'none'"
    ):
        half_reset(llama(2), llama(1))
    weight = "model.layers.0.self_attn.q_proj.weight"
    with pytest.raises(ParameterError, match=r"in the shape \(32, 32\). Got \(2, 2\)"):
        half_reset(llama(1), {weight: torch.zeros(2, 2)}, names=[weight])


def test_adapters_are_refused() -> None:
    from peft import LoraConfig, get_peft_model

    with pytest.raises(ParameterError, match="without adapters: half of its own weights are trained"):
        HalfFineTuning(get_peft_model(llama(1), LoraConfig(target_modules=["q_proj"])))
