"""A LoFiT model folds into its base, and the folded model is read back from disk as it was written, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from peft import get_peft_model

from _tiny_transformers import KINDS, build, output_of
from tunesmith.core.errors import ParameterError
from tunesmith.tuners.lofit import LofitConfig, LofitLayer

IDS = torch.tensor([[5, 9, 17, 31, 2, 40]])
SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 32,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}


def decoder(name: str, **sizes: Any) -> Any:
    config = getattr(tf, f"{name}Config")(**{**SIZES, **sizes})
    torch.manual_seed(0)
    model = getattr(tf, f"{name}ForCausalLM")(config).eval()
    for key, value in model.named_parameters():
        if key.endswith("bias"):
            value.data.normal_()
    return model


def run(model: Any, inputs: dict[str, torch.Tensor] | None = None) -> torch.Tensor:
    with torch.no_grad():
        return output_of(model(**(inputs or {"input_ids": IDS})))


def far(a: torch.Tensor, b: torch.Tensor) -> float:
    """Greatest difference relative to the largest logit."""
    return float((a - b).abs().max() / b.abs().max())


def reread(model: Any, folder: Path) -> Any:
    model.save_pretrained(folder)
    return type(model).from_pretrained(folder).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_folded_written_and_read_every_family_is_the_same(kind: str, tmp_path: Path) -> None:
    base, inputs = build(kind)
    before = run(base, inputs)
    model = get_peft_model(base, LofitConfig(heads=[[1, 2], [0, 3]], init_std=1.0)).eval()
    expected = run(model, inputs)
    assert far(expected, before) > 1e-3
    merged = model.merge_and_unload(safe_merge=True)
    assert far(run(merged, inputs), expected) < 1e-5
    assert far(run(reread(merged, tmp_path), inputs), expected) < 1e-5


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("Llama", {}),
        ("Qwen3", {}),
        ("Gemma", {"head_dim": 16}),
        ("Gemma3", {"head_dim": 16}),
        ("Granite", {}),
    ],
)
def test_classes_with_attention_bias_in_their_config(
    name: str, sizes: dict[str, Any], tmp_path: Path
) -> None:
    if name == "Gemma3":
        config = tf.Gemma3TextConfig(**{**SIZES, **sizes})
        torch.manual_seed(0)
        base = tf.Gemma3ForCausalLM(config).eval()
    else:
        base = decoder(name, **sizes)
    model = get_peft_model(base, LofitConfig(heads=[[1, 2]], init_std=1.0)).eval()
    expected = run(model)
    (layer,) = [m for m in model.modules() if isinstance(m, LofitLayer)]
    folded = layer.weight @ layer.flat_offsets(["default"])
    merged = model.merge_and_unload()
    assert merged.config.attention_bias is True
    first, second = (block.self_attn for block in merged.model.layers)
    assert float((second.o_proj.bias - folded).abs().max()) < 1e-6
    zeros = [first.o_proj, *(getattr(a, f"{p}_proj") for a in (first, second) for p in "qkv")]
    assert all(float(module.bias.abs().max()) == 0 for module in zeros)
    assert far(run(merged), expected) < 1e-6
    again = reread(merged, tmp_path)
    assert torch.equal(again.model.layers[1].self_attn.o_proj.bias, second.o_proj.bias)
    assert far(run(again), expected) < 1e-6


def test_a_bias_of_the_value_projection_serves_where_each_head_has_its_own(tmp_path: Path) -> None:
    base = decoder("Qwen2", num_key_value_heads=4)
    model = get_peft_model(base, LofitConfig(heads=[[1, 2], [0, 0]], init_std=1.0)).eval()
    expected = run(model)
    (offset,) = model.base_model.model.model.layers[1].self_attn.o_proj.lofit_v["default"].detach().clone()
    before = base.model.layers[1].self_attn.v_proj.bias.detach().clone()
    merged = model.merge_and_unload()
    attention = merged.model.layers[1].self_attn
    assert attention.o_proj.bias is None
    change = attention.v_proj.bias.detach() - before
    assert torch.allclose(change[16:24], offset)
    assert float(change.abs().sum() - change[16:24].abs().sum()) == 0
    assert far(run(merged), expected) < 1e-5
    assert far(run(reread(merged, tmp_path)), expected) < 1e-5


def test_a_group_of_query_heads_must_share_its_offset(tmp_path: Path) -> None:
    def grouped() -> Any:
        return get_peft_model(decoder("Qwen2"), LofitConfig(heads=[[1, 2], [1, 3]], init_std=1.0)).eval()

    model = grouped()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(
        ParameterError, match="The 'model' parameter of merge_and_unload must be one whose class makes"
    ):
        model.merge_and_unload()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    rows = model.base_model.model.model.layers[1].self_attn.o_proj.lofit_v["default"].data
    rows[1] = rows[0]
    expected = run(model)
    assert far(run(reread(model.merge_and_unload(), tmp_path)), expected) < 1e-5


@pytest.mark.parametrize(
    ("name", "sizes"),
    [("Mistral", {}), ("Qwen2", {"num_key_value_heads": 4, "attention_dropout": 0.1})],
)
def test_what_would_be_lost_on_reading_is_refused_but_folds_in_memory(
    name: str, sizes: dict[str, Any]
) -> None:
    base = decoder(name, **sizes)
    before = run(base)
    model = get_peft_model(base, LofitConfig(heads=[[1, 2]], init_std=1.0)).eval()
    expected = run(model)
    with pytest.raises(ParameterError, match="keep the adapter, or fold it in memory alone with"):
        model.merge_and_unload()
    model.merge_adapter()
    assert far(run(model), expected) < 1e-6
    with pytest.raises(ParameterError, match=f"Got '{name}ForCausalLM' instead"):
        model.merge_and_unload()
    model.unload()
    assert torch.equal(run(base), before)
    assert base.model.layers[1].self_attn.o_proj.bias is None


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("stage", ["bias", "select"])
def test_merging_in_memory_is_undone_to_the_bit(kind: str, stage: str) -> None:
    base, inputs = build(kind)
    before = run(base, inputs)
    state = {name: value.clone() for name, value in base.state_dict().items()}
    model = get_peft_model(base, LofitConfig(stage=stage, init_std=0.5)).eval()
    expected = run(model, inputs)
    assert far(expected, before) > 1e-3
    model.merge_adapter(safe_merge=True)
    assert far(run(model, inputs), expected) < 1e-5
    with model.disable_adapter():
        assert torch.equal(run(model, inputs), before)
    model.unmerge_adapter()
    assert torch.equal(run(model, inputs), expected)
    model.merge_adapter()
    merged = model.merge_and_unload()
    assert far(run(merged, inputs), expected) < 1e-5
    if stage == "bias":  # no weight was touched
        assert all(torch.equal(merged.state_dict()[n], v) for n, v in state.items() if n.endswith("weight"))
    else:
        assert merged.state_dict().keys() == state.keys()


def test_adapters_merged_one_after_the_other_add_up(tmp_path: Path) -> None:
    base, inputs = build("llama")
    model = get_peft_model(base, LofitConfig(heads=[[0, 1]], init_std=1.0)).eval()
    model.add_adapter("scales", LofitConfig(stage="select", init_std=0.5))
    model.add_adapter("other", LofitConfig(heads=[[0, 1], [1, 1]], init_std=1.0, seed=5))
    model.base_model.set_adapter(["default", "scales", "other"])
    expected = run(model, inputs)
    model.merge_adapter(["default"])
    with pytest.warns(UserWarning, match="additionally merging scales,other"):
        model.merge_adapter(["default", "scales", "other"])
    # z is scaled before it is shifted, so scales do not enter the bias
    assert far(run(model, inputs), expected) < 1e-5
    assert far(run(reread(model.merge_and_unload(), tmp_path), inputs), expected) < 1e-5


def test_values_that_are_not_finite_are_not_folded() -> None:
    model = get_peft_model(build("llama")[0], LofitConfig(heads=[[0, 1]]))
    layer = model.base_model.model.model.layers[0].self_attn.o_proj
    layer.lofit_v["default"].data[0, 0] = float("nan")
    with pytest.raises(ParameterError) as error:
        model.merge_adapter(safe_merge=True)
    assert "adapters with finite values (model.layers.0.self_attn.o_proj). Got ['default'] instead." in str(
        error.value
    )
    assert not layer.merged
    assert layer.bias is None


def test_a_whole_model_is_written_with_its_biases(tmp_path: Path) -> None:
    from tunesmith.engine.models import load_model
    from tunesmith.merge import merge_adapter

    for dtype in (torch.float32, torch.bfloat16):
        model = get_peft_model(
            build("llama-tied", dtype)[0], LofitConfig(heads=[[1, 2]], init_std=1.0)
        ).eval()
        report = merge_adapter(model, tmp_path / "merged", [[5, 6, 7, 8]])
        assert report.adapter_vs_merged <= 1e-6 * report.largest_logit
        assert report.dtype == str(dtype).removeprefix("torch.")
        again = load_model(str(tmp_path / "merged"), dtype=report.dtype)
        assert again.config.attention_bias is True
        assert float(again.model.layers[1].self_attn.o_proj.bias.abs().max()) > 0
        assert float(again.model.layers[0].self_attn.o_proj.bias.abs().max()) == 0
