"""What every audit of a tuned language model must hold: a new one adds a row."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch

from tunesmith import methods
from tunesmith.audit._report import LEVELS, Report
from tunesmith.core.errors import ParameterError
from tunesmith.engine.models import load_model, load_tokenizer

# name -> settings that make it quick
ROWS: dict[str, dict[str, Any]] = {"audit.novelty": {"n": 4, "length": 8, "start": "word"}}


@pytest.fixture
def models(tiny_model_dir: str) -> tuple[Any, Any, Any]:
    base = load_model(tiny_model_dir, dtype="float32")
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    return tuned, base, load_tokenizer(tiny_model_dir)


def run(name: str, models: tuple[Any, Any, Any], encoder: str, **more: Any) -> Report:
    given = {**ROWS[name], "encoder": encoder, "subject": "m", **more}
    return methods.get(name)(*models, **given)


@pytest.mark.parametrize("name", ROWS)
def test_a_report_that_can_be_kept_and_repeated(
    name: str, models: Any, tiny_encoder_dir: str, tmp_path: Any
) -> None:
    before = [{k: v.clone() for k, v in model.state_dict().items()} for model in models[:2]]
    report = run(name, models, tiny_encoder_dir)
    assert report.level in LEVELS
    assert report.verdict
    assert report.subject == "m"
    saved = Report.read(report.save(tmp_path / "report"))
    assert saved == json.loads(json.dumps(report.to_dict()))
    assert run(name, models, tiny_encoder_dir).to_dict() == report.to_dict()
    for model, state in zip(models[:2], before, strict=True):
        assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("name", ROWS)
def test_a_model_beside_itself_is_clean(name: str, models: Any, tiny_encoder_dir: str) -> None:
    _, base, tokenizer = models
    assert run(name, (copy.deepcopy(base), base, tokenizer), tiny_encoder_dir).level == "clean"


@pytest.mark.parametrize("name", ROWS)
def test_what_does_not_belong_together_is_refused(name: str, models: Any, tiny_encoder_dir: str) -> None:
    tuned, base, tokenizer = models
    base.resize_token_embeddings(base.config.vocab_size + 8)
    with pytest.raises(ParameterError, match="vocabulary"):
        run(name, (tuned, base, tokenizer), tiny_encoder_dir)
