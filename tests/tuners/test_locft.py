"""Where LocFT-BF edits: settings, layers carried over, and names of weights."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from tunesmith.core.errors import ParameterError
from tunesmith.tuners import LocFTConfig, proportional_layer
from tunesmith.tuners.locft import default_layer, find_sites

SMALL = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}


def llama(n_layers: int = 3) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**SMALL, num_hidden_layers=n_layers))


def names(model: Any, **settings: Any) -> list[str]:
    return [site.name for site in find_sites(model, LocFTConfig(**settings))[0]]


def test_layers_carry_over_to_deeper_models_of_the_family() -> None:
    assert [proportional_layer(6, 28, deep) for deep in (48, 64, 80)] == [11, 15, 19]
    assert all(proportional_layer(layer, 28, 28) == layer for layer in range(28))
    assert proportional_layer(0, 28, 2) == 0
    with pytest.raises(
        ParameterError, match=r"'layer' parameter of proportional_layer must be an int in \[0, 27\]"
    ):
        proportional_layer(28, 28, 48)
    with pytest.raises(ParameterError, match="'n_target' parameter of proportional_layer must be an int of"):
        proportional_layer(3, 28, 0)


def test_the_layer_is_at_70_percent_of_the_depth_by_default() -> None:
    assert [default_layer(n) for n in (1, 10, 30, 32)] == [0, 7, 21, 22]
    assert names(llama(10)) == ["model.layers.7.mlp.down_proj.weight"]


def test_layer_2_of_30_is_no_layer_of_the_twenties() -> None:
    model = llama(30)
    assert names(model, layer=2) == ["model.layers.2.mlp.down_proj.weight"]
    assert len(names(model, layer=2, module="layer")) == 9
    assert all(name.startswith("model.layers.2.") for name in names(model, layer=2, module="layer"))


def test_modules_of_a_layer() -> None:
    model = llama()
    inside = {
        "mlp_up": ["mlp.up_proj"],
        "mlp": ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"],
        "attn": [f"self_attn.{name}_proj" for name in "qkvo"],
        "mlp.gate_proj": ["mlp.gate_proj"],
        "self_attn.o_proj.weight": ["self_attn.o_proj"],
    }
    for module, wanted in inside.items():
        found = names(model, layer=1, module=module)
        assert found == [f"model.layers.1.{name}.weight" for name in wanted]
    assert names(model, module="model") == [name for name, _ in model.named_parameters()]


def test_of_a_fused_matrix_only_the_upper_rows_are_tuned() -> None:
    from transformers import Phi3Config, Phi3ForCausalLM

    model = Phi3ForCausalLM(Phi3Config(**SMALL, num_hidden_layers=2))
    (site,), layer = find_sites(model, LocFTConfig(layer=1, module="mlp_up"))
    assert (site.name, site.rows, layer) == ("model.layers.1.mlp.gate_up_proj.weight", (24, 48), 1)


def test_of_experts_the_shared_one_is_tuned() -> None:
    from transformers import MixtralConfig, MixtralForCausalLM, Qwen2MoeConfig, Qwen2MoeForCausalLM

    shared = Qwen2MoeForCausalLM(
        Qwen2MoeConfig(
            **SMALL,
            num_hidden_layers=2,
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=8,
            shared_expert_intermediate_size=8,
        )
    )
    assert names(shared, layer=1) == ["model.layers.1.mlp.shared_expert.down_proj.weight"]
    routed = MixtralForCausalLM(MixtralConfig(**SMALL, num_hidden_layers=2, num_local_experts=4))
    with pytest.raises(
        ParameterError, match=r"has 0 'down' matrices, and a routed expert sees only part of the ed"
    ):
        names(routed, layer=1)
    assert names(routed, layer=1, module="mlp.experts.down_proj") == ["model.layers.1.mlp.experts.down_proj"]
    assert any("experts" in name for name in names(routed, layer=1, module="mlp"))


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("layer", -1, "an int of at least 0 or None"),
        ("batch_size", 0, "an int of at least 1"),
        ("max_epochs", 0, "an int of at least 1"),
        ("n_prefixes", -1, "an int of at least 0"),
        ("seed", 0.5, "an int of at least 0"),
        ("learning_rate", 0.0, "a float above 0 or None"),
        ("loss_threshold", -1.0, "a float of at least 0"),
        ("pipeline", "both", "one of breadth_first, depth_first"),
        ("loss", "mean", "one of sample, token"),
        ("module", "", "a name"),
    ],
)
def test_values_outside_their_set(name: str, value: Any, wanted: str) -> None:
    message = f"The '{name}' parameter of LocFTConfig must be {wanted}. Got {value!r} instead."
    with pytest.raises(ParameterError, match=re.escape(message)):
        LocFTConfig(**{name: value})


def test_rates_follow_what_is_tuned() -> None:
    assert LocFTConfig().rate == 5e-4
    assert LocFTConfig(module="layer").rate == 5e-5
    assert LocFTConfig(module="layer", learning_rate=1e-3).rate == 1e-3


def test_places_that_a_model_does_not_have() -> None:
    model = llama()
    with pytest.raises(ParameterError, match=r"must be an int in \[0, 2\] for this model. Got 3 instead"):
        names(model, layer=3)
    with pytest.raises(
        ParameterError, match=r"a name inside the layer such as .*mlp.down_proj.*Got 'mlp.down_porj'"
    ):
        names(model, layer=1, module="mlp.down_porj")
    weight = model.model.layers[1].mlp.down_proj
    weight.weight = torch.nn.Parameter(weight.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(ParameterError, match=r"in floating point, because its weight is tuned"):
        names(model, layer=1)


def test_adapters_are_refused() -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(llama(), LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ParameterError, match="without adapters \\(merge them first\\)"):
        names(model)
