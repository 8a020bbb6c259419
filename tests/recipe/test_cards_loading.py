"""The code on a card loads what is in the folder: each kind of model, run as it stands there."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard

from tunesmith.engine.logits import fixed_batch, logits_of
from tunesmith.recipe.cards import model_card


def run_code(folder: Path, work: Path, monkeypatch: pytest.MonkeyPatch, base: str | None = None) -> Any:
    """Run the code on the card of a folder, from the folder above it."""
    card = model_card(folder)
    if work != folder.parent:
        (work / folder.name).symlink_to(folder)
    if base is not None:
        (work / Path(base).name).symlink_to(base)
    monkeypatch.chdir(work)
    found: dict[str, Any] = {}
    code = re.search(r"```python\n(.*?)\n```", str(card), re.DOTALL)
    assert code
    with contextlib.redirect_stdout(io.StringIO()):
        exec(code.group(1), found)
    return card, found["model"]


def test_the_code_for_a_whole_model(
    tiny_model_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tunesmith.engine.models import load_model

    card, model = run_code(Path(tiny_model_dir), tmp_path, monkeypatch)
    head = card.data.to_dict()
    assert head == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["tunesmith"],
    }
    reference = load_model(tiny_model_dir, dtype="float32")
    assert torch.equal(logits_of(model, fixed_batch(model)), logits_of(reference, fixed_batch(model)))
    assert "How it was trained is not known here" in card.text


def test_the_code_for_an_adapter_of_ours(
    tiny_model_dir: str, tiny_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft import get_peft_model

    from tunesmith.engine.models import load_model
    from tunesmith.trainers import save_tuned
    from tunesmith.tuners import peft_config

    model = get_peft_model(load_model(tiny_model_dir, dtype="float32"), peft_config("mosa"))
    save_tuned(model, tiny_tokenizer, tmp_path / "adapter")
    card, loaded = run_code(tmp_path / "adapter", tmp_path, monkeypatch, tiny_model_dir)
    assert torch.equal(logits_of(loaded, fixed_batch(model)), logits_of(model.eval(), fixed_batch(model)))
    assert card.data.library_name == "peft"
    assert "The folder holds a MOSA adapter of" in card.text
    assert tiny_model_dir not in str(card)


def test_the_code_for_a_sparse_difference(
    tiny_model_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tunesmith.engine.models import load_model
    from tunesmith.tuners import SparseDelta

    tuned = load_model(tiny_model_dir, dtype="float32")
    with torch.no_grad():
        tuned.model.norm.weight.mul_(2)
    SparseDelta.from_models(Path(tiny_model_dir), tuned, k=9).save_pretrained(tmp_path / "delta")
    (tmp_path / "the base model").symlink_to(tiny_model_dir)
    card, model = run_code(tmp_path / "delta", tmp_path, monkeypatch)
    assert int((model.model.norm.weight != load_model(tiny_model_dir).model.norm.weight).sum()) == 9
    assert card.data.library_name == "tunesmith"


@pytest.mark.slow
def test_the_code_for_roste_and_levi(
    tiny_model_dir: str, tiny_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tunesmith.engine.models import load_model
    from tunesmith.models import LEVI
    from tunesmith.models.levi import LeviConfig
    from tunesmith.trainers import save_tuned
    from tunesmith.tuners import RosteConfig, apply_roste

    model = apply_roste(load_model(tiny_model_dir, dtype="float32"), RosteConfig(rotation="all")).eval()
    save_tuned(model, tiny_tokenizer, tmp_path / "roste")
    card, loaded = run_code(tmp_path / "roste", tmp_path, monkeypatch)
    assert torch.equal(logits_of(loaded, fixed_batch(model)), logits_of(model, fixed_batch(model)))
    assert (card.data.library_name, card.data.pipeline_tag) == ("tunesmith", "text-generation")
    levi = LEVI(LeviConfig(num_labels=3), load_model(tiny_model_dir, dtype="float32").model)
    levi.save_pretrained(tmp_path / "levi")
    card, loaded = run_code(tmp_path / "levi", tmp_path, monkeypatch)
    assert isinstance(loaded, LEVI)
    assert "from tunesmith.models import LEVI" in card.text


@pytest.mark.slow
def test_the_code_for_an_adapter_of_a_classifier(
    tiny_bert_dir: str, tmp_path: Path, write_jsonl: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from functools import partial

    from tunesmith.recipe import Recipe, run
    from tunesmith.trainers import load_tuned
    from tunesmith.trainers.classify import load_classifier_for

    rows = [{"text": f"{('sun', 'ice', 'rain')[i % 3]} day {i}", "kind": "abc"[i % 3]} for i in range(24)]
    write_jsonl(tmp_path / "pool.jsonl", rows)
    recipe = {
        "name": "kinds",
        "model": {"id": tiny_bert_dir},
        "data": {"train": str(tmp_path / "pool.jsonl")},
        "train": {"type": "classify", "label": "kind", "max_length": 32},
        "evaluate": [{"type": "accuracy"}],
        "export": {"merged": False},
    }
    run(Recipe.model_validate(recipe), tmp_path / "run")
    text = (tmp_path / "run" / "model" / "weights" / "README.md").read_text()
    (tmp_path / "model").symlink_to(tmp_path / "run" / "model")
    (tmp_path / Path(tiny_bert_dir).name).symlink_to(tiny_bert_dir)
    monkeypatch.chdir(tmp_path)
    code = re.search(r"```python\n(.*?)\n```", text, re.DOTALL)
    assert code
    found: dict[str, Any] = {}
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(code.group(1), found)
    assert said.getvalue().strip() in "abc"
    base = partial(load_classifier_for, tiny_bert_dir, list("abc"))
    reference = load_tuned(tmp_path / "model" / "weights", base)
    inputs = found["tokenizer"]("sun day", return_tensors="pt")
    assert torch.allclose(found["model"](**inputs).logits, reference(**inputs).logits)
    head = ModelCard(text).data.to_dict()
    assert (head["pipeline_tag"], head["library_name"]) == ("text-classification", "peft")
    data = (tmp_path / "run" / "cards" / "data.md").read_text()
    assert re.search(
        r"Rows by kind:\n\n\| kind \| rows \| share \|\n\|---\|---:\|---:\|\n\| \w \| \d+ \|", data
    )
    assert "- text-classification" in data
