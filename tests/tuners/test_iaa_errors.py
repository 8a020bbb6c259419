"""IAA says what it cannot do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import nn

from tunesmith.core.errors import ParameterError
from tunesmith.tuners import IAAConfig

Tiny = Callable[..., tuple[Any, dict[str, Any]]]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"variant": "both"}, "'layer' or 'sublayer' or 'chain' or 'none'. Got 'both' instead."),
        ({"host": "ia3"}, "'adapter' or 'lora' or 'none'. Got 'ia3' instead."),
        (
            {"host": "none", "variant": "none"},
            "'adapter' or 'lora' where variant is 'none'. Got 'none' instead.",
        ),
        ({"nonlinearity": "sine"}, "'gelu' or 'identity' or 'relu' or 'silu' or 'tanh'. Got 'sine' instead."),
        ({"r_host": 0}, "an int of at least 1. Got 0 instead."),
        ({"r_aside": 0}, "an int of at least 1. Got 0 instead."),
        ({"r_aside": True}, "an int of at least 1. Got True instead."),
        ({"dropout": 1.0}, "a float in [0, 1). Got 1.0 instead."),
        ({"scale": 0.0}, "a float above 0. Got 0.0 instead."),
        ({"init_scale": -1.0}, "a float above 0. Got -1.0 instead."),
        ({"lora_alpha": 0.0}, "a float above 0. Got 0.0 instead."),
    ],
)
def test_settings_outside_their_sets(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(ParameterError) as caught:
        IAAConfig(**settings)
    assert str(caught.value) == f"The '{next(iter(settings))}' parameter of IAAConfig must be {expected}"


def test_a_rank_that_is_not_used_may_be_anything() -> None:
    assert IAAConfig(variant="none", r_aside=0).r_aside == 0
    assert IAAConfig(host="none", r_host=0).r_host == 0


NO_NUMBER = "block numbers in [0, 2), at least one."
NO_LIST = (
    "the name of a list of blocks with linear layers (and left out with variant='sublayer'); lists here: "
    "model.layers."
)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"layers_to_transform": [0, 2]}, f"{NO_NUMBER} Got [0, 2] instead."),
        ({"layers_to_transform": -1}, f"{NO_NUMBER} Got -1 instead."),
        ({"layers_to_transform": []}, f"{NO_NUMBER} Got [] instead."),
        (
            {"target_modules": ["o_proj", "down_porj"]},
            "names of linear layers in the blocks; 'down_porj' matches none. Did you mean 'down_proj'? Found: "
            "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj. Got ['down_porj', 'o_proj'] instead.",
        ),
        (
            {"target_modules": ["q_proj"]},
            "outputs of attention or of the feed-forward part where host is 'adapter' ('lora' may sit anywhere). Got "
            "'model.layers.0.self_attn.q_proj' instead.",
        ),
        (
            {"target_modules": r".*0.mlp.down_proj"},
            "such that each chosen block has a host (model.layers.1 has none), or host 'none'. Got "
            "'.*0.mlp.down_proj' instead.",
        ),
        (
            {"exclude_modules": "model.layers.[01]"},
            "such that blocks are left. Got 'model.layers.[01]' instead.",
        ),
        ({"layers_pattern": "lyers"}, f"{NO_LIST} Got 'lyers' instead."),
        ({"layers_pattern": "layers", "variant": "sublayer"}, f"{NO_LIST} Got 'layers' instead."),
    ],
)
def test_places_that_are_not_there(tiny_transformer: Tiny, settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(ParameterError) as caught:
        get_peft_model(tiny_transformer("llama")[0], IAAConfig(**settings))
    assert str(caught.value) == f"The '{next(iter(settings))}' parameter of IAAConfig must be {expected}"


def test_merging_is_refused_with_the_reason(tiny_transformer: Tiny, output_of: Any) -> None:
    model, inputs = tiny_transformer("llama")
    model = get_peft_model(model, IAAConfig(init_weights=False))
    before = output_of(model(**inputs))
    for merge in (model.merge_and_unload, model.merge_adapter):
        with pytest.raises(
            ParameterError, match="beside layers that are not linear, so no weight can take them in"
        ):
            merge()
    assert torch.equal(output_of(model(**inputs)), before)


def test_models_with_two_halves_are_refused() -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    model = T5ForConditionalGeneration(
        T5Config(d_model=16, d_ff=16, num_layers=1, num_heads=2, d_kv=8, vocab_size=20)
    )
    with pytest.raises(ParameterError) as caught:
        get_peft_model(model, IAAConfig())
    assert str(caught.value) == (
        "The 'model' parameter of IAAConfig must be an encoder or a decoder; models of both are not supported. "
        "Got 'T5ForConditionalGeneration' instead."
    )


def test_models_without_blocks_are_refused_by_the_parameters_they_have() -> None:
    with pytest.raises(ParameterError, match=r"none of these was recognised: 0\.weight, 0\.bias"):
        get_peft_model(nn.Sequential(nn.Linear(2, 2)), IAAConfig())


SPECIAL: dict[str, dict[str, Any]] = {
    "Gemma2": {"num_key_value_heads": 2, "head_dim": 8},
    "Olmo2": {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1},
}


def _small(name: str, **more: Any) -> Any:
    import transformers as tf

    more = {**SPECIAL.get(name, {}), **more}
    usual = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = getattr(tf, f"{name}Config")(**{**usual, "vocab_size": 20, **more})
    kind = {"GPTNeoX": "GPTNeoXForCausalLM"}.get(name, f"{name}ForCausalLM")
    return getattr(tf, kind)(config).eval()


def test_sublayer_needs_a_place_between_attention_and_feed_forward() -> None:
    ids = {"input_ids": torch.tensor([[3, 4, 5]])}
    with pytest.raises(
        ParameterError, match=r"'sublayer' needs blocks with attention and two norms; .* has 4 norms"
    ):
        get_peft_model(_small("Gemma2"), IAAConfig(variant="sublayer"))
    neox = get_peft_model(_small("GPTNeoX"), IAAConfig(variant="sublayer"))
    with pytest.raises(
        ParameterError, match="feed-forward part: attention and feed-forward part read the same input"
    ):
        neox(**ids)
    sequential = _small("GPTNeoX", use_parallel_residual=False)
    before = sequential(**ids).logits
    assert torch.equal(get_peft_model(sequential, IAAConfig(variant="sublayer"))(**ids).logits, before)
    olmo = get_peft_model(_small("Olmo2"), IAAConfig(variant="sublayer"))
    with pytest.raises(ParameterError, match="its first norm stands between attention and the residual sum"):
        olmo(**ids)
    for name in ("Gemma2", "GPTNeoX", "Olmo2"):
        model = _small(name)
        before = model(**ids).logits
        for variant in ("layer", "chain"):
            tuned = get_peft_model(model, IAAConfig(variant=variant))
            assert torch.equal(tuned(**ids).logits, before)
            model = tuned.unload()


def test_blocks_with_a_forward_of_their_own_are_refused(tiny_transformer: Tiny) -> None:
    model, _ = tiny_transformer("llama")
    model.model.layers[1].forward = model.model.layers[1].forward
    with pytest.raises(
        ParameterError, match=r"blocks run the forward of their class; model\.layers\.1 has its own"
    ):
        get_peft_model(model, IAAConfig())
