"""What LoFiT refuses: configs, models it cannot read, adapters of another model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from peft import PeftModel, get_peft_model
from torch import nn

from _tiny_transformers import build
from tunesmith.core.errors import ParameterError
from tunesmith.tuners.lofit import LofitConfig, LofitLayer


def layers_of(model: Any) -> list[LofitLayer]:
    return [module for module in model.modules() if isinstance(module, LofitLayer)]


def narrow() -> Any:
    """A Llama of the same blocks and heads as the tiny one, with heads of width 2 instead of 8."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 8, "intermediate_size": 6, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=99, pad_token_id=0, bos_token_id=1, eos_token_id=2, **sizes)
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"stage": "both"},
            "The 'stage' parameter of LofitConfig must be 'bias' or 'select'. Got 'both' instead.",
        ),
        (
            {"init_std": -1},
            "The 'init_std' parameter of LofitConfig must be a finite number of at least 0. Got -1",
        ),
        (
            {"heads": []},
            "at least one (layer, head) pair, each given once and counted from 0. Got [] instead.",
        ),
        ({"heads": 3}, "The 'heads' parameter of LofitConfig must be a list of at least one"),
        ({"heads": [[0, 1, 2]]}, "Got [0, 1, 2] instead."),
        ({"heads": [[0, -1]]}, "Got [0, -1] instead."),
        ({"heads": [[0, 1], [1, 1], [0, 1]]}, "each given once and counted from 0. Got [0, 1] instead."),
        ({"heads": [[0, 4]]}, "pairs of this model: layers 0-1, heads in [0, 3]. Got [0, 4] instead."),
        ({"heads": [[2, 0]]}, "pairs of this model: layers 0-1, heads in [0, 3]. Got [2, 0] instead."),
        ({"heads": [[1, 0]], "layers_to_transform": [0]}, "layers 0, heads in [0, 3]. Got [1, 0] instead."),
        ({"layers_to_transform": [0, 2]}, "must be block numbers in [0, 1]. Got [0, 2] instead."),
        ({"target_modules": ["o_porj"]}, "'o_porj' matches none. Did you mean 'o_proj'?"),
        ({"target_modules": ["o_proj", "o_porj"]}, "'o_porj' matches none. Did you mean 'o_proj'?"),
        (
            {"target_modules": ["q_proj"]},
            "names of attention output projections, here self_attn.o_proj. Got {'q_proj'}",
        ),
    ],
)
def test_bad_configs(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError) as error:
        get_peft_model(build("llama")[0], LofitConfig(**fields))
    assert message in str(error.value)


def test_models_it_cannot_read() -> None:
    with pytest.raises(ParameterError, match=r"none of these was recognised: 0\.weight"):
        get_peft_model(nn.Sequential(nn.Linear(4, 4)), LofitConfig())
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"vocab_size": 50, "d_model": 16, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 4}
    t5 = T5ForConditionalGeneration(T5Config(**sizes))
    with pytest.raises(ParameterError, match=r"the 2 output projections of decoder\.block\.0 apart"):
        get_peft_model(t5, LofitConfig())
    model = get_peft_model(t5, LofitConfig(target_modules=["SelfAttention.o"]))
    assert [layer.name for layer in layers_of(model)] == [
        f"{side}.block.0.layer.0.SelfAttention.o" for side in ("encoder", "decoder")
    ]


def test_an_adapter_is_refused_by_another_model(tmp_path: Path) -> None:
    get_peft_model(build("llama")[0], LofitConfig(heads=[[1, 2]])).save_pretrained(tmp_path / "few")
    with pytest.raises(ParameterError) as error:
        PeftModel.from_pretrained(narrow(), str(tmp_path / "few"))
    assert (
        "like the one the adapter is for, with 2 blocks of 4 heads of width 8. Got '2 blocks of 4 heads"
        in str(error.value)
    )
    get_peft_model(build("llama")[0], LofitConfig()).save_pretrained(tmp_path / "all")
    with pytest.raises(
        ParameterError, match=r"with 8 heads of width 2. Got '8 of these heads and values of shape \[8"
    ):
        PeftModel.from_pretrained(narrow(), str(tmp_path / "all"))
    config = tmp_path / "few" / "adapter_config.json"
    config.write_text(config.read_text().replace('"stage": "bias"', '"stage": "select"'))
    with pytest.raises(ParameterError, match=r"a file with lofit_a \[K, d_h\] and lofit_heads \[K, 2\]"):
        PeftModel.from_pretrained(build("llama")[0], str(tmp_path / "few"))
