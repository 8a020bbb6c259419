"""RoSTE on whole models: any subset of rotations, the folded layout, the cache, training."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from _tiny_transformers import build, output_of
from tunesmith.numerics import RandomHadamard
from tunesmith.tuners import RosteConfig, RotatedQuantLinear, apply_roste, search_rotations
from tunesmith.tuners.roste import Quantizer, fake_quant, quantizers_off, roste_layers
from tunesmith.tuners.roste.attention import ATTRIBUTE, CacheQuantizer, _cached, causal_attention

FULL: dict[str, Any] = {"weight_bits": None, "activation_bits": None, "kv_bits": None}


def run(model: Any, inputs: Any) -> torch.Tensor:
    with torch.no_grad():
        return output_of(model(**inputs))


def biased(kind: str = "Llama", **more: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """Grouped queries, tied, and biases wherever the family has them."""
    import transformers as tf

    if kind == "Llama":
        more = {"attention_bias": True, "mlp_bias": True, **more}
    if kind in ("Gemma", "Qwen3"):
        more = {"head_dim": 16, **more}
    config = getattr(tf, f"{kind}Config")(
        vocab_size=99, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True, pad_token_id=0, bos_token_id=1, eos_token_id=2, **more,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(tf, f"{kind}ForCausalLM")(config).eval()
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.data.add_(0.3 * torch.randn_like(parameter))
    return model, build("llama")[1]


def subsets(sites: list[str]) -> list[dict[str, bool]]:
    """None, all, and each site's bit of 1..4, so that neighbours differ in every way."""
    found = [dict.fromkeys(sites, False), dict.fromkeys(sites, True)]
    return found + [{s: bool((i * 7 + 3) >> bit & 1) for i, s in enumerate(sites)} for bit in range(4)]


def near(got: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_any_subset_of_online_rotations_keeps_the_outputs(kind: str) -> None:
    model, inputs = build(kind)
    before = run(model, inputs)
    for rotations in subsets(list(search_rotations(model, [inputs]))):
        changed = apply_roste(copy.deepcopy(model), RosteConfig(), rotations=rotations)
        with quantizers_off(changed):
            off = float((run(changed, inputs) - before).abs().max())
        assert off <= 1e-4
        assert float((run(changed, inputs) - before).abs().max()) > max(10 * off, 1e-5)


@pytest.mark.parametrize("kind", ["Llama", "Qwen2", "Qwen3", "Gemma", "Mistral"])
def test_any_subset_of_r1_to_r4_keeps_the_outputs(kind: str) -> None:
    model, inputs = biased(kind)
    before = run(model, inputs)
    config = RosteConfig(layout="folded")
    for rotations in subsets(list(search_rotations(model, [inputs], config))):
        changed = apply_roste(copy.deepcopy(model), config, rotations=rotations)
        with quantizers_off(changed):
            off = float((run(changed, inputs) - before).abs().max())
        assert off <= 1e-4
        assert float((run(changed, inputs) - before).abs().max()) > max(10 * off, 1e-5)


def test_what_the_folded_layout_does_to_a_block() -> None:
    base, _ = biased()
    model = apply_roste(copy.deepcopy(base), RosteConfig(layout="folded", rotation="all"))
    R1, R2 = RandomHadamard.drawn(32, 0), RandomHadamard.drawn(8, 0)
    old, new = base.model.layers[0], model.model.layers[0]
    # Untied: the embeddings are rotated, the head has the final norm's scale and is rotated.
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    assert not model.config.tie_word_embeddings
    near(model.model.embed_tokens.weight, R1(base.model.embed_tokens.weight))
    near(model.lm_head.weight, R1(base.lm_head.weight * base.model.norm.weight))
    for norm in (new.input_layernorm, new.post_attention_layernorm, model.model.norm):
        assert torch.equal(norm.weight, torch.ones(32))
        assert not norm.weight.requires_grad
    # Readers of the stream: scale and R1. Writers: R1 on the output side, their bias too.
    near(new.self_attn.q_proj.weight, R1(old.self_attn.q_proj.weight * old.input_layernorm.weight))
    near(new.mlp.up_proj.weight, R1(old.mlp.up_proj.weight * old.post_attention_layernorm.weight))
    assert torch.equal(new.self_attn.q_proj.bias, old.self_attn.q_proj.bias)
    near(new.mlp.down_proj.weight, R1(old.mlp.down_proj.weight.T).T)
    near(new.mlp.down_proj.bias, R1(old.mlp.down_proj.bias))
    near(new.self_attn.o_proj.bias, R1(old.self_attn.o_proj.bias))
    # R2, online: per head of the values (two heads, bias too) and of the output layer's input (four heads).
    weight, bias = new.self_attn.v_proj.rotated()
    heads = (R1(old.self_attn.v_proj.weight * old.input_layernorm.weight)).view(2, 8, 32)
    near(weight, R2(heads.movedim(1, 2)).movedim(2, 1).reshape(16, 32))
    near(bias, R2(old.self_attn.v_proj.bias.view(2, 8)).flatten())
    weight, bias = new.self_attn.o_proj.rotated()
    near(weight, R2(R1(old.self_attn.o_proj.weight.T).T.reshape(32, 4, 8)).reshape(32, 32))
    near(bias, R1(old.self_attn.o_proj.bias))
    # R4 on both sides of the down-projection's input; head and embeddings stay in floating point.
    assert new.mlp.down_proj.rotate_input
    assert new.mlp.down_proj.rotation.block == 16
    assert not new.self_attn.o_proj.rotate_input
    assert new.self_attn.q_proj.rotation is None
    assert len(roste_layers(model)) == 14
    assert type(model.lm_head) is torch.nn.Linear
    cache = getattr(new.self_attn, ATTRIBUTE)
    assert torch.equal(cache.key.signs, R2.signs)
    assert cache.value is None  # values arrive rotated


def test_keys_and_values_are_rounded_per_token_and_head() -> None:
    k, v = torch.randn(2, 3, 5, 8, dtype=torch.float64), torch.randn(2, 3, 5, 8, dtype=torch.float64)
    R = RandomHadamard.drawn(8, 0)
    module = torch.nn.Module()
    assert _cached(module, k, v)[0] is k
    setattr(module, ATTRIBUTE, CacheQuantizer(Quantizer(4), R, None))
    key, value = _cached(module, k, v)
    assert torch.equal(key, R.inverse(fake_quant(R(k))))
    assert torch.equal(value, fake_quant(v))
    # R3: turning rounded keys back is the same as rotating queries.
    q = torch.randn(2, 3, 5, 8, dtype=torch.float64)
    torch.testing.assert_close(q @ key.mT, R(q) @ fake_quant(R(k)).mT, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_decoding_with_a_cache_gives_the_logits_of_one_pass(kind: str) -> None:
    model, inputs = build(kind)
    before = run(model, inputs)
    model = apply_roste(model, RosteConfig(weight_bits=None, activation_bits=None), [inputs])
    assert len(causal_attention(model)) == 2
    assert not roste_layers(model)[
        "model.layers.0.mlp.up_proj" if kind == "llama" else "transformer.h.0.mlp.c_fc"
    ].weight_quantizer.bits
    whole = run(model, inputs)
    assert float((whole - before).abs().max()) > 1e-3
    past, steps = None, []
    with torch.no_grad():
        for ids in inputs["input_ids"].split(1, dim=1):
            result = model(ids, past_key_values=past, use_cache=True)
            past = result.past_key_values
            steps.append(result.logits)
    near(torch.cat(steps, 1), whole)
    eager = copy.deepcopy(model)
    eager.config._attn_implementation_internal = "roste_eager"
    near(run(eager, inputs), whole)
    longer = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert longer.shape == (2, 12)


def test_encoders_have_no_cache() -> None:
    model, inputs = build("bert")
    before = run(model, inputs)
    model = apply_roste(model, RosteConfig(weight_bits=None, activation_bits=None, kv_bits=2), [inputs])
    assert torch.equal(run(model, inputs), before)


def test_conv1d_is_rotated_and_rounded_as_a_linear_layer_is() -> None:
    base, _ = build("gpt2")
    model = apply_roste(copy.deepcopy(base), RosteConfig(rotation="all", kv_bits=None))
    layer, conv = model.transformer.h[0].mlp.c_fc, base.transformer.h[0].mlp.c_fc
    assert isinstance(layer, RotatedQuantLinear)
    assert layer.weight.shape == conv.weight.shape == (32, 128)
    x, R = torch.randn(3, 32), RandomHadamard.drawn(32, 0)
    expected = fake_quant(R(x)) @ fake_quant(R(conv.weight.T)).T + conv.bias
    near(layer(x), expected)
    layer(x).sum().backward()
    assert layer.weight.grad.shape == (32, 128)
    dw = R.inverse(torch.ones(3, 128).T @ fake_quant(R(x)))
    near(layer.weight.grad, dw.T)


def losses(model: Any, inputs: Any, steps: int = 4, checkpointing: bool = False) -> list[float]:
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    found = []
    for _ in range(steps):
        loss = model(**inputs, labels=inputs["input_ids"]).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        found.append(float(loss.detach()))
    return found


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_sixteen_bits_are_ordinary_tuning_nearly_and_none_are_it_to_the_bit(kind: str) -> None:
    base, inputs = build(kind)
    expected = losses(copy.deepcopy(base), inputs)
    sixteen = RosteConfig(weight_bits=16, activation_bits=16, kv_bits=16, rotation="all")
    assert losses(apply_roste(copy.deepcopy(base), sixteen), inputs) == pytest.approx(expected, rel=2e-5)
    off = apply_roste(copy.deepcopy(base), RosteConfig(**FULL, rotation="none"))
    assert losses(off, inputs) == expected
    four = losses(apply_roste(copy.deepcopy(base), RosteConfig(rotation="all")), inputs)
    assert four != pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("layout", ["online", "folded"])
def test_gradient_checkpointing_changes_nothing(layout: str) -> None:
    base, inputs = build("llama")
    model = apply_roste(base, RosteConfig(layout=layout, rotation="all"))
    again = copy.deepcopy(model)
    model.train()
    assert losses(model, inputs) == losses(again, inputs, checkpointing=True)
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["online", "folded"])
def test_tuning_lowers_the_loss_and_follows_its_seed(layout: str) -> None:
    base, inputs = build("llama-tied")

    def trained(seed: int) -> list[float]:
        config = RosteConfig(layout=layout, rotation="all", seed=seed)
        return losses(apply_roste(copy.deepcopy(base), config), inputs, steps=30)

    one = trained(0)
    assert one[-1] < 0.8 * one[0]
    assert trained(0) == one
    assert trained(1) != one


@pytest.mark.parametrize("layout", ["online", "folded"])
def test_bfloat16(layout: str) -> None:
    model, inputs = build("llama", torch.bfloat16)
    before = run(model, inputs)
    model = apply_roste(model, RosteConfig(layout=layout), [inputs])
    with quantizers_off(model):
        torch.testing.assert_close(run(model, inputs), before, rtol=0, atol=0.05)
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    for parameter in model.parameters():
        assert parameter.dtype == torch.bfloat16
        assert not parameter.requires_grad or parameter.grad.dtype == torch.bfloat16


def test_only_the_blocks_are_quantised_unless_asked() -> None:
    model, _ = build("llama")
    one = apply_roste(copy.deepcopy(model), RosteConfig(rotation="none"))
    assert all(name.startswith("model.layers.") for name in roste_layers(one))
    two = apply_roste(
        copy.deepcopy(model), RosteConfig(rotation="none", target_modules=["lm_head", "0.mlp.up_proj"])
    )
    assert set(roste_layers(two)) == {"lm_head", "model.layers.0.mlp.up_proj"}
    three = apply_roste(copy.deepcopy(model), RosteConfig(rotation="none", target_modules=r".*\.[qk]_proj"))
    assert {n.rsplit(".", 1)[1] for n in roste_layers(three)} == {"q_proj", "k_proj"}
    four = apply_roste(model, RosteConfig(rotation="none", exclude_modules=["down_proj"]))
    assert len(roste_layers(four)) == 12
    assert "W4A4, rotated=False" in repr(four)


def test_weights_in_no_linear_layer_are_named_and_left_alone() -> None:
    import transformers as tf

    model = tf.Qwen3MoeForCausalLM(
        tf.Qwen3MoeConfig(
            vocab_size=99, hidden_size=32, intermediate_size=48, moe_intermediate_size=16, num_hidden_layers=1,
            num_attention_heads=4, num_key_value_heads=2, head_dim=8, num_experts=2, num_experts_per_tok=1,
        )
    )  # fmt: skip
    with pytest.warns(UserWarning, match=r"stay in floating point: model\.layers\.0\.mlp\.experts\."):
        model = apply_roste(model, RosteConfig(rotation="none"))
    assert "model.layers.0.self_attn.q_proj" in roste_layers(model)
