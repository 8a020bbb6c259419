"""The stage ``audit``: the best tuned model is examined, its report kept, and the run's report points there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tunesmith.audit import Report
from tunesmith.core.errors import ConfigError
from tunesmith.recipe import run


@pytest.fixture
def recipe(tmp_path: Path, write_jsonl: Any, tiny_model_dir: str, tiny_encoder_dir: str) -> Path:
    rows = [{"prompt": f"say {i}", "completion": "word " * 6} for i in range(12)]
    write_jsonl(tmp_path / "pool.jsonl", rows)
    text = {
        "model": {"id": tiny_model_dir, "dtype": "float32"},
        "data": {"train": str(tmp_path / "pool.jsonl")},
        "train": {"type": "sft", "epochs": 3, "learning_rate": 0.01},
        "audit": [{"type": "novelty", "n": 6, "length": 12, "start": "word", "encoder": tiny_encoder_dir}],
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(text))
    return path


def test_what_a_run_taught_is_reported(recipe: Path, tmp_path: Path) -> None:
    result = run(recipe, tmp_path / "run")
    found = Report.read(tmp_path / "run" / "audit" / "0-novelty" / "report")
    assert found["level"] == "suspicious"  # the tuned model says 'word' again and again
    assert found["numbers"]["texts"] == 6
    assert found["numbers"]["nats per token, highest"] > 0.02
    page = result.report.read_text()
    assert 'href="audit/0-novelty/report/report.html"' in page
    assert "What hides in the model" in page
    again = (tmp_path / "run" / "audit" / "0-novelty" / "report" / "report.json").stat().st_mtime_ns
    run(recipe, tmp_path / "run")
    assert (tmp_path / "run" / "audit" / "0-novelty" / "report" / "report.json").stat().st_mtime_ns == again


def test_a_setting_that_it_does_not_have_is_told(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"unknown key 'alfa' in audit of type 'novelty'\. Did you mean 'alpha'"
    ):
        run(recipe, tmp_path / "run", overrides=["audit.0.alfa=0.2"])
