"""A merged adapter is the same model, in memory and on disk, tied embeddings included."""

from __future__ import annotations

import pytest
import torch

from tunesmith.core.errors import ParameterError, TrainingError
from tunesmith.engine.models import load_model
from tunesmith.merge import merge_adapter

BATCH = [[5, 9, 77, 130, 3, 42], [8, 8, 200, 11, 60, 7]]


def adapter(folder: str, dtype: str = "float32", scale: float = 0.1, **options):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    options = {"target_modules": "all-linear", **options}
    model = get_peft_model(load_model(folder, dtype=dtype), LoraConfig(r=4, task_type="CAUSAL_LM", **options))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and ("lora_B" in name or "modules_to_save" in name):
                parameter.add_(torch.randn_like(parameter) * scale)
    return model.eval()


def logits(model):
    with torch.inference_mode():
        return model(input_ids=torch.tensor(BATCH)).logits.float()


def test_three_models_agree(tiny_model_dir, tiny_tokenizer, tmp_path):
    model = adapter(tiny_model_dir)
    before = logits(model)
    assert (before - logits(load_model(tiny_model_dir, dtype="float32"))).abs().max() > 0.01
    report = merge_adapter(model, tmp_path / "out", BATCH, tokenizer=tiny_tokenizer)
    assert report.adapter_vs_merged <= 1e-4
    assert report.merged_vs_reloaded <= 1e-5
    assert (report.dtype, report.untied) == ("float32", False)
    assert report.to_dict()["largest_logit"] == pytest.approx(float(before.abs().max()))
    reloaded = load_model(str(tmp_path / "out"), dtype="float32")
    assert torch.allclose(logits(reloaded), before, atol=1e-4)
    assert reloaded.get_input_embeddings().weight is reloaded.get_output_embeddings().weight
    assert (tmp_path / "out" / "tokenizer.json").exists()


def test_bfloat16_base_is_merged_in_float32(tiny_model_dir, tmp_path):
    model = adapter(tiny_model_dir, dtype="bfloat16", scale=0.002)
    weight = model.get_base_model().model.layers[0].mlp.up_proj
    exact = weight.base_layer.weight.float() + weight.get_delta_weight("default").float()
    report = merge_adapter(model, tmp_path / "out", BATCH)
    assert report.dtype == "bfloat16"
    assert report.adapter_vs_merged <= 1e-4
    assert 0 < report.merged_vs_reloaded <= 0.05 * max(1, report.largest_logit)
    saved = load_model(str(tmp_path / "out"), dtype="bfloat16").model.layers[0].mlp.up_proj.weight
    assert torch.equal(saved, exact.to(torch.bfloat16))


@pytest.mark.parametrize(
    "options",
    [
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["embed_tokens"]},
        {"target_modules": ["lm_head", "q_proj"]},
        {"target_modules": ["embed_tokens", "q_proj"]},
    ],
)
def test_tied_embeddings_come_apart_when_one_is_trained(options, tiny_model_dir, tmp_path):
    model = adapter(tiny_model_dir, **options)
    before = logits(model)
    report = merge_adapter(model, tmp_path / "out", BATCH)
    assert report.untied
    reloaded = load_model(str(tmp_path / "out"), dtype="float32")
    assert not reloaded.config.tie_word_embeddings
    assert torch.allclose(logits(reloaded), before, atol=1e-4)


def test_a_merge_that_is_not_exact_writes_nothing(tiny_model_dir, tmp_path, monkeypatch):
    from peft.tuners.lora.layer import Linear

    model = adapter(tiny_model_dir)
    original = Linear.get_delta_weight
    monkeypatch.setattr(Linear, "get_delta_weight", lambda self, name: 2 * original(self, name))
    with pytest.raises(
        TrainingError,
        match=r"The merged model is not the adapter model: their logits differ by .* Nothing was written",
    ):
        merge_adapter(model, tmp_path / "out", BATCH)
    assert not (tmp_path / "out").exists()


def test_a_reload_that_differs_writes_nothing(tiny_model_dir, tmp_path, monkeypatch):
    from tunesmith.merge import adapter as module

    model = adapter(tiny_model_dir)
    monkeypatch.setattr(module, "load_model", lambda *_, **__: load_model(tiny_model_dir, dtype="float32"))
    with pytest.raises(
        TrainingError,
        match=r"The merged model changed on its way to disk: read back as float32, its logits differ by",
    ):
        merge_adapter(model, tmp_path / "out", BATCH)
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_merged(tiny_model_dir, tmp_path):
    model = load_model(tiny_model_dir, dtype="float32")
    with pytest.raises(
        ParameterError,
        match=r"'model' parameter of merge_adapter must be a PeftModel whose method can be merged into",
    ):
        merge_adapter(model, tmp_path / "out", BATCH)
    from peft import PromptTuningConfig, get_peft_model

    prompt = get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(ParameterError, match=r"can be merged into weights\. Got .*PROMPT_TUNING"):
        merge_adapter(prompt, tmp_path / "out", BATCH)


def test_a_quantised_base_is_refused(tiny_model_dir, tmp_path):
    model = adapter(tiny_model_dir)
    model.get_base_model().is_quantized = True
    with pytest.raises(
        ParameterError,
        match=r"must be on an unquantised base, since a quantised one rounds the update away: load the "
        r"base in 16 or",
    ):
        merge_adapter(model, tmp_path / "out", BATCH)
