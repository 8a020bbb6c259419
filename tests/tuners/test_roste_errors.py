"""RoSTE: the message of everything that is refused."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from _tiny_transformers import build
from tunesmith.core.errors import DataError, MissingModelError, ParameterError
from tunesmith.tuners import RosteConfig, apply_roste, load_roste, search_rotations
from tunesmith.tuners.roste import RosteExport, export, roste_state


def tiny(width: int = 8) -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(width, 8), torch.nn.Linear(8, 2))


def refused(message: str, call: Any, *arguments: Any, error: type = ParameterError, **named: Any) -> None:
    with pytest.raises(error, match=re.escape(message)):
        call(*arguments, **named)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("weight_bits", 1, "an int in [2, 16], or None to leave the numbers as they are. Got 1"),
        ("activation_bits", 17, "an int in [2, 16], or None to leave the numbers as they are. Got 17"),
        ("kv_bits", True, "an int in [2, 16], or None to leave the numbers as they are. Got True"),
        ("clip", 0, "a float in (0, 1]. Got 0"),
        ("clip", 1.5, "a float in (0, 1]. Got 1.5"),
        ("group_size", 1, "an int of at least 2, or None. Got 1"),
        ("rotation", "some", "one of 'adaptive', 'none', 'all'. Got 'some'"),
        ("layout", "merged", "one of 'online', 'folded'. Got 'merged'"),
        ("symmetric", 1, "True or False. Got 1"),
        ("block_fallback", None, "True or False. Got None"),
        ("cache_weights", "yes", "True or False. Got 'yes'"),
        ("seed", 0.5, "an int. Got 0.5"),
    ],
)
def test_a_field_outside_its_set(field: str, value: Any, message: str) -> None:
    refused(
        f"The '{field}' parameter of RosteConfig must be {message} instead.", RosteConfig, **{field: value}
    )


def test_fields_that_do_not_go_together_or_do_not_exist() -> None:
    refused(
        "The 'target_modules' parameter of RosteConfig must be None with layout='folded', which changes every matrix "
        "of the blocks. Got ['q_proj'] instead.",
        RosteConfig,
        layout="folded",
        target_modules=["q_proj"],
    )
    refused(
        "The 'bits' parameter of RosteConfig must be left out: it is no field.",
        RosteConfig.from_dict,
        {"bits": 4},
    )
    assert RosteConfig.from_dict(RosteConfig(clip=0.9).to_dict()) == RosteConfig(clip=0.9)


@pytest.mark.parametrize("batches", [None, []])
@pytest.mark.parametrize("call", [apply_roste, search_rotations])
def test_no_calibration_batch(call: Any, batches: Any) -> None:
    refused(
        f"The 'calibration_batches' parameter of {call.__name__} must be at least one batch of inputs with "
        "rotation='adaptive', which measures errors on them. Got [] instead.",
        call,
        tiny(),
        calibration_batches=batches,
        config=RosteConfig(),
    )


def test_a_folded_model_that_is_refused_stays_as_it_was() -> None:
    model, _ = build("llama-tied")
    before = copy.deepcopy(model.state_dict())
    refused("at least one batch", apply_roste, model, RosteConfig(layout="folded"), [])
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert all(torch.equal(a, before[n]) for n, a in model.state_dict().items())


@pytest.mark.parametrize("batch", ["text", {}, {"a": 1}, (torch.zeros(1, 8),)])
def test_a_batch_of_another_kind(batch: Any) -> None:
    refused(
        "must be batches that are a tensor or a dictionary of the model's inputs. Got "
        f"'{type(batch).__name__}' instead.",
        search_rotations,
        tiny(),
        [batch],
    )


def test_widths_without_a_rotation_are_refused_before_anything_changes() -> None:
    for rotation, batches in (("adaptive", [torch.zeros(1, 6)]), ("all", None)):
        model = tiny(6)
        refused(
            "The 'block_fallback' parameter of RosteConfig must be True for a model with a layer of width 6, which is "
            "no power of two. Got False instead.",
            apply_roste,
            model,
            RosteConfig(rotation=rotation, block_fallback=False),
            batches,
        )
        assert [type(m) for m in model] == [torch.nn.Linear] * 2
    apply_roste(tiny(6), RosteConfig(rotation="none", block_fallback=False))
    model, _ = build("llama-tied")
    before = copy.deepcopy(model.state_dict())
    refused(
        "a layer of width 48",
        apply_roste,
        model,
        RosteConfig(rotation="all", layout="folded", block_fallback=False),
    )
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert all(torch.equal(a, before[n]) for n, a in model.state_dict().items())


def test_models_with_adapters_quantised_weights_or_a_second_time() -> None:
    import peft

    adapted = peft.get_peft_model(tiny(), peft.LoraConfig(target_modules=["0"]))
    refused("must be a model without adapters: merge them first (merge_and_unload).", apply_roste, adapted)
    quantised = tiny()
    quantised[1].weight = torch.nn.Parameter(torch.zeros(2, 4, dtype=torch.uint8), requires_grad=False)
    refused(
        "The 'model' parameter of apply_roste must be in floating point, because its weights are trained and rounded "
        "anew at each step: load the base in 16 or 32 bits. Got '1: Linear' instead.",
        apply_roste,
        quantised,
    )
    twice = apply_roste(tiny(), RosteConfig(rotation="none"))
    for call in (apply_roste, search_rotations):
        refused(
            f"The 'model' parameter of {call.__name__} must be a model that has not been transformed yet. Got "
            "'Sequential' instead.",
            call,
            twice,
            calibration_batches=[torch.zeros(1, 8)],
        )


def test_layers_that_cannot_be_found() -> None:
    def call(**fields: Any) -> None:
        apply_roste(build("llama")[0], RosteConfig(rotation="none", **fields))

    refused(
        "The 'target_modules' parameter of RosteConfig must be names of linear layers in the model; 'q_prj' matches "
        "none. Did you mean 'q_proj'? Linear layers: down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, "
        "v_proj. Got ['q_prj'] instead.",
        call,
        target_modules=["q_prj"],
    )
    refused("The 'exclude_modules' parameter of RosteConfig must be names of", call, exclude_modules=["none"])
    refused(
        "The 'target_modules' parameter of RosteConfig must be a valid regular expression (",
        call,
        target_modules="(",
    )
    refused(
        "a model with linear layers to quantise; none is left. Got 'LlamaForCausalLM'",
        call,
        target_modules=["q_proj"],
        exclude_modules=["q_proj"],
    )
    refused("none is left. Got 'Sequential'", apply_roste, torch.nn.Sequential(torch.nn.ReLU()))
    refused(
        "The 'group_size' parameter of RosteConfig must be a divisor of the input width 32 of "
        "model.layers.0.self_attn.q_proj, or None. Got 5 instead.",
        call,
        group_size=5,
    )


def test_a_choice_without_a_site() -> None:
    refused(
        "The 'rotations' parameter of apply_roste must be a finding for each of 2 sites. Got 'none for 1' instead.",
        apply_roste,
        tiny(),
        rotations={"0": True},
    )


def test_caches_that_cannot_be_reached() -> None:
    from tunesmith.tuners.roste.attention import head_dim, route

    model, inputs = build("llama")
    model.config._attn_implementation_internal = "flex_attention"
    refused(
        "The 'kv_bits' parameter of RosteConfig must be None unless the model is loaded with "
        "attn_implementation='sdpa' or 'eager'. Got \"attention 'flex_attention'\" instead.",
        apply_roste,
        model,
        RosteConfig(rotation="none"),
    )
    apply_roste(model, RosteConfig(rotation="none", kv_bits=None))

    class Deaf(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = type("Config", (), {"_attn_implementation": "eager"})()

        def set_attn_implementation(self, name: str) -> None:
            """Does not listen."""

    not_there = (
        "must be None for this model, whose attention does not go through transformers' AttentionInterface."
    )
    refused(f"{not_there} Got 'Deaf'", route, Deaf())
    refused("None for this model: there does not tell the width of its heads", head_dim, Deaf(), "there")

    model, inputs = build("llama")
    for layer in model.model.layers:
        layer.self_attn.is_causal = False
    refused(
        "None for this model: none of its modules is marked as causal attention, so its cache cannot be reached. Got "
        "'LlamaForCausalLM' instead.",
        apply_roste,
        model,
        RosteConfig(rotation="none"),
    )

    class AttentionOfItsOwn(torch.nn.Module):
        is_causal, head_dim = True, 8

        def forward(self, hidden_states: torch.Tensor, **_: Any) -> tuple[torch.Tensor, None]:
            return hidden_states, None

    model, inputs = build("llama")
    model.model.layers[1].self_attn.forward = AttentionOfItsOwn().forward
    refused(f"{not_there} Got 'model.layers.1.self_attn'", search_rotations, model, [inputs])


@pytest.mark.parametrize("kind", ["gpt2", "bert"])
def test_the_folded_layout_wants_a_llama(kind: str) -> None:
    refused(
        "The 'layout' parameter of RosteConfig must be 'online' unless the model has a causal language model with a "
        "final norm and an output head. Got \"'folded' for",
        apply_roste,
        build(kind)[0],
        RosteConfig(layout="folded", rotation="none"),
    )


def test_blocks_that_do_not_fit_the_folded_layout() -> None:
    import transformers as tf

    def call(model: Any) -> None:
        apply_roste(model, RosteConfig(layout="folded", rotation="none"))

    small: dict[str, Any] = {
        "vocab_size": 50, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1,
    }  # fmt: skip
    refused(
        "one linear layer each for query, key, value, output, gate, up and down",
        call,
        tf.Phi3ForCausalLM(tf.Phi3Config(**small)),
    )
    refused(
        "Llama-like blocks with two norms, both before what they scale",
        call,
        tf.Gemma2ForCausalLM(tf.Gemma2Config(**small, head_dim=8)),
    )
    refused(
        "root-mean-square norms (LayerNorm also shifts and centres, which a rotation does not keep). Got \"'folded' "
        'for LayerNorm"',
        call,
        tf.StableLmForCausalLM(tf.StableLmConfig(**small)),
    )
    model, _ = build("llama")
    model.model.layers[0].register_parameter("extra", torch.nn.Parameter(torch.zeros(3)))
    refused("must be 'online' unless the model has Llama-like blocks.", call, model)


def test_what_cannot_be_exported(tmp_path: Path) -> None:
    refused(
        "The 'model' parameter of roste_state must be a model that apply_roste returned. Got 'Sequential' instead.",
        export,
        tiny(),
    )
    refused("must be a model that apply_roste returned", roste_state, tiny())
    refused(
        "The 'weight_bits' parameter of export must be an int in [2, 16] to export integers. Got None instead.",
        export,
        apply_roste(tiny(), RosteConfig(rotation="none", weight_bits=None)),
    )
    model = apply_roste(tiny(), RosteConfig(rotation="none"))
    part = apply_roste(tiny(), RosteConfig(rotation="none", target_modules=["1"]))
    refused(
        "The 'model' parameter of RosteExport.load_into must be the model that was exported; '0' differs.",
        export(model).load_into,
        part,
    )
    refused(
        "The 'model' parameter of RosteExport.save must be a transformers model, whose configuration is saved too.",
        export(model).save,
        tmp_path / "out",
    )
    refused(
        "holds no exported model: roste.safetensors is missing. Give a folder that RosteExport.save wrote.",
        RosteExport.model,
        tmp_path,
        error=MissingModelError,
    )


def test_folders_that_cannot_be_loaded(tmp_path: Path) -> None:
    missing = "holds no model under RoSTE: config.json is missing or has no entry 'roste'."
    refused(missing, load_roste, tmp_path, error=MissingModelError)
    build("llama")[0].save_pretrained(tmp_path)
    refused(missing, load_roste, tmp_path, error=MissingModelError)

    model, _ = build("llama")
    apply_roste(model, RosteConfig(rotation="all")).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())

    def damaged(message: str, **changes: Any) -> None:
        entry = {k: v for k, v in {**values["roste"], **changes}.items() if v is not None}
        path.write_text(json.dumps({**values, "roste": entry}))
        refused(message, load_roste, tmp_path, error=DataError)

    damaged("config.json: the entry 'roste' has format 2, and this version reads format 1.", format=2)
    damaged("the entry 'roste' cannot be read: 'rotate'", rotate=None)
    damaged("the entry 'roste' cannot be read: ", signs={"32": "zz"})
    damaged("the entry 'roste' cannot be read: 33 signs for width 32", signs={"32": "1ffffffff"})
    damaged("the entry 'roste' cannot be read: The 'bits' parameter of RosteConfig", config={"bits": 4})
    damaged("the entry 'roste' has no choice for the site 'model.layers.0.self_attn.q_proj'.", rotate={})
    path.write_text(json.dumps({**values, "roste": [1]}))
    refused("has format None", load_roste, tmp_path, error=DataError)
