"""The parts of a transformer are found by structure and name, in models of many families."""

from __future__ import annotations

from typing import Any

import pytest

from tunesmith.core.errors import ParameterError
from tunesmith.tuners.anatomy import anatomy

ROLES = {
    "llama": {"q", "k", "v", "o", "gate", "up", "down", "norm"},
    "llama-tied": {"q", "k", "v", "o", "gate", "up", "down", "norm"},
    "gpt2": {"qkv", "o", "up", "down", "norm"},
    "bert": {"q", "k", "v", "o", "up", "down", "norm"},
    "vit": {"q", "k", "v", "o", "up", "down", "norm"},
    "clip": {"q", "k", "v", "o", "up", "down", "norm"},
}


@pytest.mark.parametrize("kind", ROLES)
def test_every_parameter_is_in_one_part_or_outside(kind: str, tiny_transformer: Any) -> None:
    model, _ = tiny_transformer(kind)
    found = anatomy(model)
    inside = [p for block in found.blocks for part in block.parts for p in part.parameters]
    assert sorted(inside + found.outside) == sorted(name for name, _ in model.named_parameters())
    assert [block.index for block in found.blocks] == list(range(4 if kind == "clip" else 2))
    assert all(not block.unmatched for block in found.blocks)
    modules = dict(model.named_modules())
    for block in found.blocks:
        assert {part.role for part in block.parts} == ROLES[kind]
        assert modules[block.name] is block.module
        assert all(modules[part.name] is part.module for part in block.parts)
        assert all(part.parameters[0].endswith("weight") for part in block.parts)
        assert (block.n_heads, block.head_dim) == (4, 8)
        assert block.n_kv_heads == (2 if kind.startswith("llama") else 4)


def test_two_towers_are_two_stacks(tiny_transformer: Any) -> None:
    found = anatomy(tiny_transformer("clip")[0])
    assert {name: [b.index for b in blocks] for name, blocks in found.stacks.items()} == {
        "text_model.encoder.layers": [0, 1],
        "vision_model.encoder.layers": [2, 3],
    }
    assert found.block_of("vision_model.encoder.layers.1.mlp.fc1.weight") is found.blocks[3]
    assert found.block_of("text_projection.weight") is None


def test_attention_and_feed_forward_modules_are_named_where_they_stand_alone(tiny_transformer: Any) -> None:
    llama, bert = (anatomy(tiny_transformer(kind)[0]).blocks[1] for kind in ("llama", "bert"))
    assert (llama.attention, llama.ffn) == ("model.layers.1.self_attn", "model.layers.1.mlp")
    assert (bert.attention, bert.ffn) == ("bert.encoder.layer.1.attention", None)
    assert bert.one("down").name == "bert.encoder.layer.1.output.dense"


def _other(name: str) -> Any:
    import transformers as tf

    usual = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "vocab_size": 99,
    }
    more: dict[str, Any] = {
        "Phi3": {"pad_token_id": 0},
        "Qwen3Moe": {"num_experts": 4, "moe_intermediate_size": 16},
        "Gemma2": {"head_dim": 16},
    }.get(name, {})
    if name == "OPT":
        usual = {
            "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 99,
            "word_embed_proj_dim": 32, "max_position_embeddings": 64,
        }  # fmt: skip
    if name == "T5":
        usual = {"d_model": 32, "d_ff": 48, "num_layers": 1, "num_heads": 4, "d_kv": 8, "vocab_size": 99}
        return tf.T5ForConditionalGeneration(tf.T5Config(**usual))
    config = getattr(tf, f"{name}Config")(**usual, **more)
    if name == "MPNet":
        return tf.MPNetModel(config)
    return getattr(tf, f"{name}ForCausalLM")(config)


@pytest.mark.parametrize(
    ("name", "roles"),
    [
        ("Phi3", {"qkv", "o", "gate_up", "down", "norm"}),
        ("GPTNeoX", {"qkv", "o", "up", "down", "norm"}),
        ("OPT", {"q", "k", "v", "o", "up", "down", "norm"}),
        ("Gemma2", {"q", "k", "v", "o", "gate", "up", "down", "norm"}),
        ("MPNet", {"q", "k", "v", "o", "up", "down", "norm"}),
        ("Qwen3Moe", {"q", "k", "v", "o", "norm", "head_norm"}),
        ("T5", {"q", "k", "v", "o", "up", "down", "norm"}),
    ],
)
def test_other_families(name: str, roles: set[str]) -> None:
    found = anatomy(_other(name))
    assert {part.role for block in found.blocks for part in block.parts} == roles
    block = found.blocks[-1]
    assert block.n_heads == 4
    assert block.head_dim == (16 if name == "Gemma2" else 8)
    if name == "Qwen3Moe":
        assert [p.rsplit(".", 2)[-2:] for p in block.unmatched] == [
            ["experts", "gate_up_proj"], ["experts", "down_proj"], ["gate", "weight"]
        ]  # fmt: skip
    if name == "T5":  # self-attention and cross-attention
        assert len(block.role("q")) == 2
        with pytest.raises(
            ParameterError, match=r"with one 'q' matrix in each block; decoder\.block\.0 has 2"
        ):
            block.one("q")


def test_wrapped_layers_are_the_parts_of_a_model_with_adapters(tiny_transformer: Any) -> None:
    from peft import LoraConfig, get_peft_model

    for kind, target in (("llama", "o_proj"), ("gpt2", "attn.c_proj")):
        model = get_peft_model(
            tiny_transformer(kind)[0], LoraConfig(target_modules=[target])
        ).get_base_model()
        block = anatomy(model).blocks[0]
        assert hasattr(block.one("o").module, "base_layer")
        assert block.head_dim == 8


def test_a_model_without_blocks_is_refused_with_its_names() -> None:
    import torch

    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    with pytest.raises(
        ParameterError, match=r"none of these was recognised: 0\.weight, 0\.bias, 1\.weight, 1\.bias"
    ):
        anatomy(model)
