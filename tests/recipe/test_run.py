"""The run as a whole: it finishes, it continues after any kill, and it repeats nothing that is done."""

from __future__ import annotations

import errno
import json
import random
from pathlib import Path

import numpy as np
import pytest
from run_worker import run_in_process
from safetensors.numpy import load_file

from tunesmith.core.errors import ConfigError, DiskFullError, RunDirectoryError
from tunesmith.core.events import read_events
from tunesmith.recipe import run, stages

WORDS = ["red", "green", "blue", "cat", "dog", "bird", "sun", "moon", "star", "one", "two", "three"]


def rows(count: int, seed: int) -> list[dict]:
    draw = random.Random(seed)
    out = []
    for _ in range(count):
        words = draw.sample(WORDS, 3)
        out.append(
            {"prompt": f"Repeat: {' '.join(words)} {draw.randrange(10**6)}", "completion": " ".join(words)}
        )
    return out


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory, tiny_model_dir, tiny_encoder_dir, write_jsonl) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    pool = rows(40, 0)
    write_jsonl(folder / "pool.jsonl", pool + pool[:4])
    write_jsonl(folder / "test.jsonl", rows(6, 1))
    path = folder / "recipe.yaml"
    path.write_text(
        f"""
name: tiny
seed: 3
model: {{id: {tiny_model_dir}, dtype: float32}}
data: {{train: {folder}/pool.jsonl, test: {folder}/test.jsonl}}
curate: [{{type: dedup}}]
features: {{encoder: {tiny_encoder_dir}, batch_size: 8}}
select: {{type: random, budget: 16}}
tuner: {{type: lora, r: 2}}
train: {{type: sft, epochs: 1, batch_size: 4, save_every: 1, learning_rate: 0.01}}
evaluate: [{{type: exact_match, max_new_tokens: 4}}, {{type: perplexity}}]
compare: {{select.type: [random, mig], seeds: [0]}}
export: {{merged: true}}
"""
    )
    return path


@pytest.fixture(scope="module")
def straight(recipe_file, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("straight") / "run"
    assert run_in_process(recipe_file, output, output.with_name("cache")) == 0
    return output


KILLS = [
    {"kind": "stage", "stage": "data", "status": "started"},
    {"kind": "stage", "stage": "curate", "status": "started"},
    {"kind": "stage", "stage": "curate", "status": "finished"},
    {"kind": "stage", "stage": "map", "status": "finished"},
    {"kind": "stage", "stage": "evaluate", "arm": "base", "status": "started"},
    {"kind": "stage", "stage": "train", "arm": "random", "status": "started"},
    {"kind": "metric", "arm": "random", "step": 1},
    {"kind": "metric", "arm": "random", "step": 3},
    {"kind": "stage", "stage": "select", "arm": "mig", "status": "started"},
    {"kind": "stage", "stage": "select", "arm": "mig", "status": "finished"},
    {"kind": "metric", "arm": "mig", "step": 2},
    {"kind": "stage", "stage": "evaluate", "arm": "mig", "status": "finished"},
    {"kind": "stage", "stage": "export", "status": "started"},
]


def test_killed_at_every_stage_and_continued_equals_the_straight_run(recipe_file, straight, tmp_path):
    output, cache = tmp_path / "run", tmp_path / "cache"
    for kill_at in KILLS:
        assert run_in_process(recipe_file, output, cache, kill_at) == -9, kill_at
    assert run_in_process(recipe_file, output, cache) == 0
    for arm in ("random", "mig"):
        mine, theirs = output / "arms" / arm / "seed-0", straight / "arms" / arm / "seed-0"
        assert np.array_equal(np.load(mine / "select/indices.npy"), np.load(theirs / "select/indices.npy"))
        ours, reference = (load_file(p / "train/tuned/adapter_model.safetensors") for p in (mine, theirs))
        assert ours.keys() == reference.keys()
        for name, tensor in reference.items():
            assert np.array_equal(ours[name], tensor), name
        scores = [json.loads((p / "evaluate/scores.json").read_text()) for p in (mine, theirs)]
        assert scores[0] == scores[1]
    assert json.loads((output / "compare.json").read_text()) == json.loads(
        (straight / "compare.json").read_text()
    )
    ours, reference = (load_file(p / "model/weights/model.safetensors") for p in (output, straight))
    assert all(np.array_equal(ours[name], reference[name]) for name in reference)
    assert "tiny" in (output / "report.html").read_text()


def test_a_finished_run_repeats_nothing(recipe_file, straight):
    before = len(list(read_events(straight / "events.jsonl")))
    assert run_in_process(recipe_file, straight, straight.with_name("cache")) == 0
    again = list(read_events(straight / "events.jsonl"))[before:]
    assert {e["status"] for e in again if e["kind"] == "stage"} == {"skipped"}


def test_changed_training_repeats_training_and_what_follows_only(recipe_file, straight, tmp_path):
    changed = tmp_path / "recipe.yaml"
    changed.write_text(recipe_file.read_text().replace("learning_rate: 0.01", "learning_rate: 0.02"))
    before = len(list(read_events(straight / "events.jsonl")))
    assert run_in_process(changed, straight, straight.with_name("cache")) == 0
    again = [e for e in list(read_events(straight / "events.jsonl"))[before:] if e["kind"] == "stage"]
    repeated = {(e["stage"], e.get("arm")) for e in again if e["status"] == "finished"}
    assert repeated == {
        *((stage, arm) for stage in ("train", "evaluate") for arm in ("random", "mig")),
        ("export", None),
    }


SELECT_ONLY = "data: {{train: {path}}}\nselect: {{type: random, budget: {budget}}}\n"


@pytest.fixture
def select_recipe(tmp_path, write_jsonl) -> Path:
    write_jsonl(tmp_path / "pool.jsonl", rows(20, 2))
    path = tmp_path / "recipe.yaml"
    path.write_text(SELECT_ONLY.format(path=tmp_path / "pool.jsonl", budget="25%"))
    return path


def test_selection_alone_needs_no_model(select_recipe, tmp_path):
    result = run(select_recipe, tmp_path / "out")
    assert result.summary == [{"arm": "random", "seeds": 1, "rows": 5}]
    assert result.report.exists()


def test_changed_data_refuses_to_continue(select_recipe, tmp_path, write_jsonl):
    run(select_recipe, tmp_path / "out")
    write_jsonl(tmp_path / "pool.jsonl", rows(21, 2))
    with pytest.raises(RunDirectoryError, match=r"The train data changed since the run in .* began"):
        run(select_recipe, tmp_path / "out")


def test_two_runs_in_one_directory(select_recipe, tmp_path):
    from tunesmith.recipe.workspace import RunDirectory

    with (
        RunDirectory(tmp_path / "out").lock(),
        pytest.raises(RunDirectoryError, match=r"The run directory .* is in use by process \d+"),
    ):
        run(select_recipe, tmp_path / "out")


def test_a_folder_with_other_things_is_left_alone(select_recipe, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(RunDirectoryError, match="is not empty and holds no run"):
        run(select_recipe, tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_output_that_is_a_file(select_recipe, tmp_path):
    (tmp_path / "out").write_text("x")
    with pytest.raises(RunDirectoryError, match="is a file; give a folder"):
        run(select_recipe, tmp_path / "out")


def test_full_disk_keeps_what_is_finished_and_continues(select_recipe, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(stages, "write_json", full)
        patch.setattr(stages, "build_data", lambda work, folder: full())
        with pytest.raises(DiskFullError, match=r"The disk is full: .* Everything finished before is intact"):
            run(select_recipe, tmp_path / "out")
    assert run(select_recipe, tmp_path / "out").summary[0]["rows"] == 5


def test_budget_larger_than_the_pool_names_the_range(select_recipe, tmp_path):
    from tunesmith.core.errors import ParameterError

    with pytest.raises(
        ParameterError,
        match=r"The 'budget' parameter of RandomSelector must be an int in \[1, 20\] or a float in \(0, 1\]\. Got 21",
    ):
        run(select_recipe, tmp_path / "out", overrides=["select.budget=21"])
    failed = [e for e in read_events(tmp_path / "out" / "events.jsonl") if e.get("status") == "failed"]
    assert [e["kind"] for e in failed] == ["stage", "run"]
    assert (tmp_path / "out" / "report.html").exists(), "a failed run has its report too"


def test_unknown_override_is_a_configuration_error(select_recipe, tmp_path):
    with pytest.raises(ConfigError, match="buget"):
        run(select_recipe, tmp_path / "out", overrides=["select.buget=3"])
