"""The stage ``curate``: seeds, the recipe's model and training where a method needs them, and going on after a kill."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest

from tunesmith.core.seeds import child_seed
from tunesmith.recipe import load, run
from tunesmith.recipe.curating import depends_on, make_curator

JUDGE = {"beta": 0.0, "max_new_tokens": 4, "reflections": 1}


def recipe_of(model: str, train: str = "rows.jsonl", **more: Any) -> Any:
    values = {
        "seed": 3,
        "model": {"id": model, "dtype": "float32"},
        "data": {"train": train},
        "train": {"type": "sft", "epochs": 1, "learning_rate": 0.01},
        "tuner": {"type": "lora", "r": 2, "target_modules": "all-linear"},
        "curate": [{"type": "dedup"}, {"type": "clear", **JUDGE, "candidate_tokens": 4, **more}],
    }
    return load(values, [])


@pytest.fixture
def rows(tmp_path: Path, write_jsonl: Any) -> str:
    return write_jsonl(
        tmp_path / "rows.jsonl", [{"prompt": f"what is {i} ?", "completion": f"{i} it is"} for i in range(12)]
    )


def test_seeds_and_the_recipes_model() -> None:
    recipe = recipe_of("some/model").recipe
    method = make_curator(recipe, recipe.curate[1], 1)
    assert method.random_state == child_seed(3, "curate", 1)
    assert (method.llm.model, method.llm.dtype) == ("some/model", "float32")
    own = recipe_of("some/model", llm="another/model", random_state=7).recipe
    method = make_curator(own, own.curate[1], 1)
    assert (method.llm, method.random_state) == ("another/model", 7)
    assert make_curator(recipe, recipe.curate[0], 0).get_params() == {"on": "row"}


def test_what_the_stage_depends_on() -> None:
    hashes = {"model": "abc", "train": "def"}
    found = depends_on(recipe_of("some/model").recipe, hashes)
    assert found["model"] == ["abc", "float32"]
    assert found["train"][0]["learning_rate"] == 0.01
    own = depends_on(recipe_of("some/model", llm="another/model", candidate="third/model").recipe, hashes)
    assert own == {}
    plain = load({"data": {"train": "x"}, "curate": [{"type": "dedup"}]}, []).recipe
    assert depends_on(plain, hashes) == {}


@pytest.mark.slow
def test_candidates_come_from_the_recipes_training_and_a_killed_run_goes_on(
    rows: str, tmp_path: Path, tiny_model_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tunesmith.curate import AutoCorrect
    from tunesmith.trainers import sft

    trained: list[int] = []
    plain = sft.train_sft

    @functools.wraps(plain)
    def train(model: Any, tokenizer: Any, encoded: Any, **options: Any) -> Any:
        trained.append(len(encoded))
        return plain(model, tokenizer, encoded, **options)

    def killed(self: Any, dataset: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(sft, "train_sft", train)
    loaded = recipe_of(tiny_model_dir, rows, threshold="25%", min_keep=9)
    with monkeypatch.context() as patch:
        patch.setattr(AutoCorrect, "transform", killed)
        with pytest.raises(KeyboardInterrupt):
            run(loaded, tmp_path / "run")
    assert trained == [9], "M1 learns from the rows that pass"
    run(loaded, tmp_path / "run")
    assert len(trained) == 2, "the second training is the recipe's own; M1 was found finished"
    folder = tmp_path / "run" / "curate"
    (step,) = [part for part in json.loads((folder / "report.json").read_text()) if part["type"] == "clear"]
    assert (step["rows_in"], step["rows_out"]) == (12, trained[1])
    gone = [json.loads(line) for line in (folder / "dropped.jsonl").read_text().splitlines()]
    assert len(gone) == 12 - trained[1]
    assert {line["type"] for line in gone} <= {"clear"}
    straight = run(loaded, tmp_path / "straight")
    assert (straight.directory / "curate" / "dropped.jsonl").read_text() == (
        folder / "dropped.jsonl"
    ).read_text()
    assert (straight.directory / "curate" / "changed.jsonl").read_text() == (
        folder / "changed.jsonl"
    ).read_text()


def test_the_estimate_warns_of_methods_that_ask_a_model(rows: str, tiny_model_dir: str) -> None:
    from tunesmith.recipe import estimate

    warnings = estimate(recipe_of(tiny_model_dir, rows).recipe).warnings
    assert warnings[-1] == (
        "curate.clear asks a language model at least 1 times about each of 12 rows; its time is not in the estimate. "
        "Try it with data.max_rows first."
    )


def test_changes_are_in_the_report(
    rows: str, tmp_path: Path, tiny_model_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import numpy as np

    from tunesmith.curate import AutoCorrect

    def better(self: Any, dataset: Any, pairs: Any, why: Any) -> Any:
        self.candidates_ = ["<b>new</b>"] * len(pairs)
        return np.arange(len(pairs)) / len(pairs)

    monkeypatch.setattr(AutoCorrect, "_better", better)
    recipe = recipe_of(tiny_model_dir, rows, threshold="25%", min_keep=9, candidate=tiny_model_dir)
    recipe.recipe.train = None
    result = run(recipe, tmp_path / "run")
    changed = [json.loads(line) for line in (tmp_path / "run/curate/changed.jsonl").read_text().splitlines()]
    assert [line["row"] for line in changed] == [10, 11]  # 10 of 12 is 0.83, above 0.8
    assert changed[0]["old"] == "10 it is"
    page = result.report.read_text(encoding="utf-8")
    assert "<td>10 it is</td><td>&lt;b&gt;new&lt;/b&gt;</td>" in page
    assert "changed: the candidate is confidently better" in page


def test_the_rows_that_a_filter_compares_with_are_part_of_the_stage(tmp_path: Path) -> None:
    path = tmp_path / "test.jsonl"
    block = {"type": "contamination", "against": [str(path), "demo:test"]}
    recipe = load({"data": {"train": "x"}, "curate": [block]}, []).recipe
    path.write_text('{"text": "a"}\n')
    before = depends_on(recipe, {})["against"]
    path.write_text('{"text": "b"}\n')
    after = depends_on(recipe, {})["against"]
    assert before[0] != after[0]
    assert before[1] == after[1]
