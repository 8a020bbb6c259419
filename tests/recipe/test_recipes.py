"""Every recipe that ships runs from end to end, with a tiny model in place of the real one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tunesmith.recipe import load, run

FOLDER = Path(__file__).resolve().parents[2] / "recipes"
RECIPES = sorted(FOLDER.rglob("*.yaml"))


# In the default tier each stage has tests of its own, and the demo is the first of these recipes.
@pytest.mark.slow
@pytest.mark.parametrize("path", [pytest.param(path, id=str(path.relative_to(FOLDER))) for path in RECIPES])
def test_recipe_runs(path, tiny_model_dir, tiny_encoder_dir, tmp_path):
    loaded = load(path)
    overrides = [f"model.id={tiny_model_dir}", f"features.encoder={tiny_encoder_dir}", "train.epochs=1"]
    if loaded.recipe.data.train.startswith("demo:"):
        overrides.append("data.max_rows=60")
    if loaded.recipe.features.scorer is not None:
        overrides.append(f"features.scorer={tiny_model_dir}")
    if loaded.recipe.classifies:
        overrides.append("train.max_length=400")  # the tiny tokenizer makes more of a text
    if loaded.recipe.compare is not None:
        overrides.append("compare.seeds=[0]")
        if loaded.recipe.compare.early_stop:
            overrides.append("compare.early_stop=false")  # a window needs ten steps
    overrides += [
        f"evaluate.{i}.max_new_tokens=2" for i, m in enumerate(loaded.recipe.evaluate) if m.parameters
    ]
    for i, method in enumerate(loaded.recipe.curate):
        if "nli" in method.parameters:  # asks a language model about every row
            overrides += [f"curate.{i}.nli=embedding:{tiny_encoder_dir}", f"curate.{i}.max_new_tokens=4"]
    result = run(path, tmp_path / "run", overrides=overrides)
    assert result.report.stat().st_size > 20_000
    arms = [row["arm"] for row in result.summary]
    compared = json.loads((tmp_path / "run" / "compare.json").read_text())
    assert set(compared["arms"]) == set(arms), "an arm has no score"
    assert all(0 < row["rows"] < 60 for row in result.summary if row["arm"] != "base")
