"""PEFT configs by name, and target modules checked before training."""

from __future__ import annotations

import pytest

from tunesmith.core.errors import ConfigError, ParameterError, UnknownNameError
from tunesmith.tuners import check_target_modules, peft_config, tuner_names


@pytest.fixture(scope="module")
def model(tiny_model_dir):
    from tunesmith.engine.models import load_model

    return load_model(tiny_model_dir, dtype="float32")


def test_lora_defaults_are_ours_and_stated():
    config = peft_config("lora", r=4)
    assert (config.r, config.lora_alpha, config.lora_dropout) == (4, 8, 0)
    assert config.target_modules == "all-linear"
    assert config.task_type == "CAUSAL_LM"
    assert peft_config("lora", r=4, lora_alpha=5).lora_alpha == 5


def test_every_method_of_peft_has_a_name():
    from peft import PeftType

    assert {"lora", "ia3", "oft", "vera", "prompt_tuning"} <= set(tuner_names())
    known = {kind.value.lower() for kind in PeftType}
    assert all(name in known or f"tunesmith_{name}" in known for name in tuner_names())


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("lora", {}),
        ("ia3", {}),
        ("vera", {}),
        ("loha", {"target_modules": ["q_proj"]}),
        ("lokr", {"target_modules": ["q_proj"]}),
        ("oft", {"target_modules": ["q_proj"]}),
        ("boft", {"target_modules": ["q_proj"]}),
        ("miss", {"target_modules": ["q_proj"]}),
        ("ln_tuning", {}),
        ("prompt_tuning", {"num_virtual_tokens": 3}),
        ("prefix_tuning", {"num_virtual_tokens": 3}),
    ],
)
def test_the_config_makes_a_model_with_something_to_train(name, parameters, tiny_model_dir):
    from peft import get_peft_model

    from tunesmith.engine.models import load_model

    base = load_model(tiny_model_dir, dtype="float32")
    config = peft_config(name, **parameters)
    check_target_modules(base, config)
    tuned = get_peft_model(base, config)
    assert 0 < sum(p.numel() for p in tuned.parameters() if p.requires_grad) < tuned.num_parameters()


def test_unknown_type_names_the_nearest():
    with pytest.raises(
        UnknownNameError, match=r"There is no tuner named 'lorra'\. Did you mean 'lora'\? Valid names:"
    ):
        peft_config("lorra")


@pytest.mark.parametrize(
    ("field", "near"), [("rank", "r"), ("lora_alfa", "lora_alpha"), ("alpha", "lora_alpha")]
)
def test_unknown_field_names_the_nearest(field, near):
    with pytest.raises(
        ParameterError,
        match=rf"The '{field}' parameter of LoraConfig must be left out: LoraConfig has no such field\. "
        rf"Did you mean '{near}'\? Its fields: .*lora_dropout.* Got 16 instead",
    ):
        peft_config("lora", **{field: 16})


def test_values_that_peft_refuses():
    with pytest.raises(ConfigError, match="The tuner 'oft' refuses its parameters: "):
        peft_config("oft", r=3, oft_block_size=5)


def test_each_target_must_match_even_if_another_does(model):
    with pytest.raises(
        ParameterError,
        match=r"The 'target_modules' parameter of LoraConfig must be names of modules in the model; "
        r"'v_prj' matches "
        r"none\. Did you mean 'v_proj'\? Linear layers found: down_proj, gate_proj, k_proj, lm_head, o_proj",
    ):
        check_target_modules(model, peft_config("lora", target_modules=["q_proj", "v_prj"]))


def test_a_pattern_must_match_something(model):
    check_target_modules(model, peft_config("lora", target_modules=r".*layers\.0.*q_proj"))
    with pytest.raises(ParameterError, match=r"'\.\*attention\.query' matches none"):
        check_target_modules(model, peft_config("lora", target_modules=".*attention.query"))


def test_qualified_names_match(model):
    check_target_modules(model, peft_config("lora", target_modules=["layers.1.mlp.up_proj"]))
    with pytest.raises(ParameterError, match=r"'layers\.7\.mlp\.up_proj' matches none"):
        check_target_modules(model, peft_config("lora", target_modules=["layers.7.mlp.up_proj"]))
