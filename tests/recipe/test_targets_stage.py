"""The stage ``targets``: answers rewritten by the base model, shared by arms and seeds, and trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from datasets import load_from_disk

from tunesmith.core.errors import ConfigError
from tunesmith.core.events import read_events
from tunesmith.recipe import run


@pytest.fixture
def recipe(tmp_path: Path, write_jsonl: Any, tiny_model_dir: str) -> Path:
    rows = [{"prompt": f"say {i}", "completion": f"word {i}", "source": "book"} for i in range(12)]
    write_jsonl(tmp_path / "pool.jsonl", rows)
    text = {
        "model": {"id": tiny_model_dir, "dtype": "float32"},
        "data": {"train": str(tmp_path / "pool.jsonl")},
        "select": {"type": "random", "budget": 8},
        "targets": {"type": "gold"},
        "train": {"type": "sft"},
        "compare": {
            "targets.type": ["gold", "s3ft"], "seeds": [0, 1],
            "overrides": {"s3ft": {"targets.judge": "match", "targets.max_new_tokens": 4}},
        },
    }  # fmt: skip
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(text))
    return path


def test_answers_are_rewritten_and_trained_on(recipe: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="No candidate of any of the 8 rows was accepted"):
        run(recipe, tmp_path / "run")
    arm = tmp_path / "run" / "arms" / "s3ft" / "seed-0"
    built = load_from_disk(str(arm / "targets" / "dataset"))
    assert built["source"][:] == ["gold"] * 8  # a model of random weights says nothing right
    assert built["row_source"][:] == ["book"] * 8
    assert json.loads((arm / "targets" / "targets.json").read_text())["sources"]["gold"] == 8
    gold = tmp_path / "run" / "arms" / "gold" / "seed-0" / "targets" / "targets.json"
    assert json.loads(gold.read_text()) == {"n_rows": 8, "sources": {"gold": 8}}
    assert (arm / "train" / "tuned" / "adapter_config.json").exists()
    events = list(read_events(tmp_path / "run" / "events.jsonl"))
    counts = [e for e in events if e["kind"] == "rows" and e["stage"] == "targets"]
    assert len(counts) == 4
    assert {e["rows_out"] for e in counts} == {8}
    before = len(events)
    run(recipe, tmp_path / "run")
    later = list(read_events(tmp_path / "run" / "events.jsonl"))[before:]
    assert {e["status"] for e in later if e["kind"] == "stage"} == {"skipped"}


def test_judged_right_answers_are_the_targets(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tunesmith.trainers.s3ft import NormalisedMatch

    monkeypatch.setattr(NormalisedMatch, "__call__", lambda self, *args: True)
    run(
        recipe,
        tmp_path / "run",
        overrides=["compare=null", "targets={type: s3ft, judge: match, max_new_tokens: 4}"],
    )
    (folder,) = (tmp_path / "run").glob("arms/*/seed-0/targets")
    built = load_from_disk(str(folder / "dataset"))
    taken = [row for row in built if row["source"] == "model"]
    assert all(row["messages"][-1]["content"] == row["s3ft_prediction"] for row in taken)
    assert [row["messages"][0]["content"] for row in built] != []
    assert all(row["messages"][0]["content"].startswith("say ") for row in built)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["compare=null", "targets={type: s3ft}"], "the key 'judge' is missing in targets of type 's3ft'"),
        (["compare=null", "targets={type: sft}"], r"There is no method named 'targets\.sft'"),
        (["train={type: classify}", "compare=null"], "targets rewrites answers, and a classifier learns none"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said_first(
    overrides: list[str], message: str, recipe: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(recipe, tmp_path / "run", overrides=overrides)
