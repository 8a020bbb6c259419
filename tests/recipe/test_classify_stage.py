"""A recipe whose model is a classifier: trained, compared with the commonest class, and what does not go with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tunesmith.core.errors import ConfigError, DataError
from tunesmith.recipe import run
from tunesmith.recipe.loading import load


@pytest.fixture
def recipe(tmp_path: Path, write_jsonl: Any, tiny_bert_dir: str) -> Path:
    words = {"warm": "sun fire summer", "cold": "ice snow winter", "wet": "rain sea river"}
    names = list(words)
    rows = [{"text": f"{words[names[i % 3]]} day {i}", "kind": names[i % 3]} for i in range(42)]
    write_jsonl(tmp_path / "pool.jsonl", rows)
    write_jsonl(tmp_path / "test.jsonl", [{**row, "text": row["text"] + " evening"} for row in rows[:20]])
    text = {
        "model": {"id": tiny_bert_dir},
        "data": {"train": str(tmp_path / "pool.jsonl"), "test": str(tmp_path / "test.jsonl")},
        "tuner": {"type": "full"},
        "train": {
            "type": "classify",
            "label": "kind",
            "epochs": 12,
            "learning_rate": 0.003,
            "max_length": 32,
        },
        "evaluate": [{"type": "accuracy"}],
        "compare": {"train.objective": ["cross_entropy", "core_tuning"], "seeds": [0]},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(text))
    return path


@pytest.mark.slow
def test_it_is_trained_and_beats_the_commonest_class(recipe: Path, tmp_path: Path) -> None:
    result = run(recipe, tmp_path / "run", overrides=["export={merged: false}"])
    found = {row["arm"]: row["accuracy"] for row in result.summary}
    assert found["base"] == 7 / 20  # 'cold', the first of three equally common ones, is every third row
    assert found["cross_entropy"] > 0.6
    assert found["core_tuning"] > 0.5  # mixed features learn more slowly
    arm = tmp_path / "run" / "arms" / "core_tuning" / "seed-0"
    assert json.loads((arm / "train" / "classes.json").read_text()) == ["cold", "warm", "wet"]
    assert len((arm / "evaluate" / "predictions.jsonl").read_text().splitlines()) == 20
    assert (tmp_path / "run" / "model" / "weights" / "config.json").exists()
    report = result.report.read_text()
    assert "core_tuning" in report
    assert "accuracy" in report
    events = (tmp_path / "run" / "events.jsonl").stat().st_size
    assert run(recipe, tmp_path / "run", overrides=["export={merged: false}"]).summary == result.summary
    assert "training steps" not in (tmp_path / "run" / "events.jsonl").read_text()[events:]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["evaluate=[{type: exact_match}]"],
            "the metric 'exact_match' needs a language model, not train.type 'classify'",
        ),
        (["train.type=sft", "train.label=null"], "the metric 'accuracy' needs train.type 'classify'"),
        (["export={merged: true}"], "export.merged merges adapters of language models; leave it out"),
        (["tuner.type=hft"], "There is no tuner named 'hft'.*head"),
        (["tuner.rank=3"], "unknown key 'rank' in tuner of a classifier of type 'full'"),
        (
            ["compare={train.objective: [cross_entropy, coretuning]}"],
            "There is no objective named 'coretuning'",
        ),
        (
            ["train.objectives=core_tuning"],
            r"unknown key 'objectives' in train of type 'classify'\. Did you mean 'objective'",
        ),
    ],
)
def test_what_does_not_go_together_is_said_before_anything_runs(
    overrides: list[str], message: str, recipe: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(recipe, tmp_path / "run", overrides=overrides)


def test_rows_without_classes(recipe: Path, tmp_path: Path, write_jsonl: Any) -> None:
    with pytest.raises(
        DataError, match=r"the rows have no column 'kinds' with their classes\. Did you mean 'kind'"
    ):
        run(recipe, tmp_path / "one", overrides=["train.label=kinds"])
    write_jsonl(tmp_path / "test.jsonl", [{"text": "ice", "kind": "cold"}, {"text": "what", "kind": None}])
    with pytest.raises(
        DataError, match="1 of 2 test rows have no class in the column 'kind': leave such rows out"
    ):
        run(recipe, tmp_path / "two", overrides=["train.epochs=1", "compare=null"])


def test_the_estimate_counts_a_classifier(recipe: Path) -> None:
    from tunesmith.recipe.estimating import estimate

    found = estimate(load(recipe).recipe)
    assert found.model is not None
    assert (found.model.vocabulary, found.model.dtype) == (0, "float32")
    assert found.logits_bytes == 0
