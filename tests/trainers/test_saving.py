"""What is written is what was trained."""

from __future__ import annotations

import pytest
import torch

from tunesmith.core.errors import MissingModelError, TrainingError
from tunesmith.engine.logits import fixed_batch, logits_of
from tunesmith.engine.models import load_model
from tunesmith.trainers import load_tuned, save_tuned


def tuned(folder, **options):
    from peft import get_peft_model

    from tunesmith.tuners import peft_config

    torch.manual_seed(3)
    model = get_peft_model(load_model(folder, dtype="float32"), peft_config(**options))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


@pytest.mark.parametrize(
    "options",
    [
        {"r": 4},
        {"r": 4, "modules_to_save": ["lm_head"]},
        {"r": 4, "trainable_token_indices": [5, 9]},
        {"r": 4, "use_dora": True},
    ],
)
def test_adapter_round_trip(options, tiny_model_dir, tiny_tokenizer, tmp_path):
    model = tuned(tiny_model_dir, **options)
    before = logits_of(model, fixed_batch(model))
    weights = {name: p.clone() for name, p in model.named_parameters()}
    save_tuned(model, tiny_tokenizer, tmp_path / "out")
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters()), (
        "the model is as it was"
    )
    for base in (tiny_model_dir, lambda: load_model(tiny_model_dir, dtype="float32")):
        loaded = load_tuned(tmp_path / "out", base, dtype="float32")
        assert torch.allclose(logits_of(loaded, fixed_batch(loaded)), before, atol=1e-5)
    assert (tmp_path / "out" / "tokenizer.json").exists()
    save_tuned(loaded, tiny_tokenizer, tmp_path / "again")
    assert sorted(p.name for p in (tmp_path / "again").iterdir()) == sorted(
        p.name for p in (tmp_path / "out").iterdir()
    )


def test_prompt_tuning_round_trip(tiny_model_dir, tiny_tokenizer, tmp_path):
    from peft import get_peft_model

    from tunesmith.tuners import peft_config

    model = get_peft_model(
        load_model(tiny_model_dir, dtype="float32"), peft_config("prompt_tuning", num_virtual_tokens=3)
    )
    save_tuned(model, tiny_tokenizer, tmp_path / "out")
    loaded = load_tuned(tmp_path / "out", tiny_model_dir, dtype="float32")
    batch = fixed_batch(model)
    assert torch.allclose(logits_of(loaded, batch), logits_of(model, batch), atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_whole_model_round_trip(dtype, tiny_model_dir, tiny_tokenizer, tmp_path):
    model = load_model(tiny_model_dir, dtype=dtype)
    with torch.no_grad():
        model.model.norm.weight.mul_(2)
    save_tuned(model, tiny_tokenizer, tmp_path / "out")
    loaded = load_tuned(tmp_path / "out", "not used")
    assert loaded.dtype == model.dtype
    assert torch.equal(loaded.model.norm.weight, model.model.norm.weight)


def test_weights_that_are_not_in_the_file_are_noticed(tiny_model_dir, tiny_tokenizer, tmp_path):
    model = tuned(tiny_model_dir, r=4)
    embeddings = model.get_input_embeddings().weight  # trained, but no adapter and not in modules_to_save
    embeddings.requires_grad_(True)
    with torch.no_grad():
        embeddings.add_(0.1)
    with pytest.raises(
        TrainingError,
        match=r"The saved model is not the trained one: read back from .*out, its logits differ by .* "
        r"name trained modules "
        r"in modules_to_save",
    ):
        save_tuned(model, tiny_tokenizer, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(
        MissingModelError,
        match=r"holds neither an adapter \(adapter_config\.json\) nor a model \(config\.json\)",
    ):
        load_tuned(tmp_path, "base")
