"""Dominated arms of a comparison end early: only where arms can be judged by one another, and the same after a kill."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from tunesmith.core.errors import ConfigError
from tunesmith.core.events import EventLog, read_events
from tunesmith.recipe import load, run
from tunesmith.recipe.early import build_verdict, comparable_arms, ended_arms, window_of
from tunesmith.recipe.loading import expand

WORDS = ["red", "green", "blue", "cat", "dog", "bird", "sun", "moon", "star", "one", "two", "three"]
BASE = "data: {train: demo:messy}\nmodel: {id: smollm2-135m-instruct}\ntrain: {type: sft}\n"


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
def recipe_file(tmp_path_factory, tiny_model_dir, write_jsonl) -> Path:
    folder = tmp_path_factory.mktemp("early")
    write_jsonl(folder / "pool.jsonl", rows(40, 0))
    write_jsonl(folder / "test.jsonl", rows(4, 1))
    path = folder / "recipe.yaml"
    path.write_text(
        f"""
name: sweep
model: {{id: {tiny_model_dir}, dtype: float32}}
data: {{train: {folder}/pool.jsonl, test: {folder}/test.jsonl}}
tuner: {{type: lora, r: 2}}
train: {{epochs: 2, learning_rate: 0.003, schedule: constant, warmup: 0, save_every: 4}}
evaluate: [{{type: perplexity}}]
compare: {{train.batch_size: [4, 1], seeds: [0], base: false, early_stop: 0.5}}
"""
    )
    return path


class Killed(Exception):
    pass


def kill_at(**wanted: Any):
    def listen(event: dict[str, Any]) -> None:
        if all(event.get(key) == value for key, value in wanted.items()):
            raise Killed

    return listen


@pytest.fixture(scope="module")
def straight(recipe_file, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("straight") / "run"
    result = run(recipe_file, output)
    assert [row["arm"] for row in result.summary] == ["4", "1"]
    assert result.summary[1] == {"arm": "1", "seeds": 1, "rows": 40, "ended": "dominated by 4"}
    return output


@pytest.mark.slow
def test_a_dominated_arm_ends_and_the_report_says_so(straight) -> None:
    compared = json.loads((straight / "compare.json").read_text())
    assert compared["ended"] == {"1": {"dominated_by": ["4"], "samples": 40.0}}
    assert list(compared["arms"]) == ["4"]
    assert compared["pairs"] == []
    assert not (straight / "arms/1/seed-0/train").exists()
    assert not (straight / "arms/1/seed-0/early/checkpoints").exists(), "they are of no use any more"
    assert len((straight / "arms/1/seed-0/early/signals.jsonl").read_text().splitlines()) == 1 + 40
    assert json.loads((straight / "arms/4/seed-0/train/train.json").read_text())["steps"] == 20
    messages = [e["message"] for e in read_events(straight / "events.jsonl") if e["kind"] == "message"]
    assert "The arm 1 ends here: after 40 samples it is dominated by 4 under every seed." in messages
    steps = [
        e["step"] for e in read_events(straight / "events.jsonl") if e["kind"] == "metric" and e["arm"] == "4"
    ]
    assert steps == [*range(1, 21)], "no step is trained twice"
    page = (straight / "report.html").read_text()
    assert "Ended early and not compared: 1." in page
    assert "Early signals" in page
    assert page.count("dominated by 4") == 1


@pytest.mark.slow
def test_killed_anywhere_and_continued_equals_the_straight_run(recipe_file, straight, tmp_path) -> None:
    kills = [
        {"kind": "metric", "arm": "4", "seed": 0, "step": 10},
        {"kind": "metric", "arm": "1", "seed": 0, "step": 23},
        {"kind": "metric", "arm": "4", "seed": 0, "step": 17},
    ]
    for kill in kills:
        with pytest.raises(Killed):
            run(recipe_file, tmp_path / "run", listeners=[kill_at(**kill)])
    run(recipe_file, tmp_path / "run")
    for name in ("compare.json", "early/ranking.json", "arms/1/seed-0/early/signals.jsonl"):
        assert (tmp_path / "run" / name).read_text() == (straight / name).read_text(), name
    place = "arms/4/seed-0/train/tuned/adapter_model.safetensors"
    ours, theirs = load_file(tmp_path / "run" / place), load_file(straight / place)
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.slow
def test_a_finished_run_repeats_nothing_and_the_arms_that_went_on_are_those_of_a_run_without(
    recipe_file, straight, tmp_path
) -> None:
    before = len(list(read_events(straight / "events.jsonl")))
    run(recipe_file, straight)
    again = list(read_events(straight / "events.jsonl"))[before:]
    assert {e["status"] for e in again if e["kind"] == "stage"} == {"skipped"}

    without = "compare={train.batch_size: [4, 8], seeds: [0], base: false}"
    run(recipe_file, tmp_path / "run", overrides=[without])
    place = "arms/4/seed-0/train/tuned/adapter_model.safetensors"
    ours, theirs = load_file(tmp_path / "run" / place), load_file(straight / place)
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
    compared = json.loads((tmp_path / "run" / "compare.json").read_text())
    assert "ended" not in compared
    assert list(compared["arms"]) == ["4", "8"]
    assert not (tmp_path / "run" / "early").exists()


def test_a_window_of_too_few_steps(recipe_file, tmp_path) -> None:
    with pytest.raises(ConfigError) as error:
        run(recipe_file, tmp_path / "run", overrides=["compare.early_stop=true"])
    assert str(error.value) == (
        "The arm '4' takes 2 optimiser steps in the first 10% of the samples, and its signals need 10. Set "
        "compare.early_stop to 0.50 or more, or leave it out."
    )
    with pytest.raises(
        ConfigError, match=r"10\. Leave compare\.early_stop out: the runs are too short for it\.$"
    ):
        run(recipe_file, tmp_path / "short", overrides=["train.epochs=1"])


def test_it_is_off_by_default_and_takes_a_share() -> None:
    def window(compare: str) -> float | None:
        return window_of(load(BASE + f"compare: {{train.learning_rate: [1.0e-4, 2.0e-4]{compare}}}\n").recipe)

    assert window_of(load(BASE).recipe) is None
    assert window("") is None
    assert window(", early_stop: false") is None
    assert window(", early_stop: true") == 0.1
    assert window(", early_stop: 0.25") == 0.25
    for value in ("0.0", "1.0", "-0.1"):
        with pytest.raises(
            ConfigError,
            match=r"The 'compare\.early_stop' key must be true, false or a share of the samples in \(0, 1\)\. "
            rf"Got {value} instead\.",
        ):
            window(f", early_stop: {value}")


@pytest.mark.parametrize(
    ("compare", "groups"),
    [
        ("train.epochs: [1, 2], train.batch_size: [4, 8]", [["1+4", "1+8", "2+4", "2+8"]]),
        ("train.epochs: [1, 2], select.type: [random, mig]", [["1+random", "2+random"], ["1+mig", "2+mig"]]),
        ("train.epochs: [1, 2], train.loss: [completion, all]", [["1+completion", "2+completion"], ["1+all", "2+all"]]),
    ],
)  # fmt: skip
def test_arms_are_judged_by_those_that_differ_in_how_they_step_alone(compare, groups) -> None:
    recipe = load(BASE + f"compare: {{{compare}, early_stop: true}}\n").recipe
    assert [[arm.name for arm in group] for group in comparable_arms(expand(recipe))] == groups


@pytest.mark.parametrize(
    "compare",
    ["select.type: [random, mig]", "model.id: [a, b]", "tuner.r: [4, 8]", "train.loss: [completion, all]",
     "train.max_steps: [100, 200]", "train.learning_rate: [1.0e-4, 2.0e-4], overrides: {'0.0002': {select.type: mig}}"],
)  # fmt: skip
def test_arms_that_cannot_be_judged(compare) -> None:
    with pytest.raises(
        ConfigError,
        match=r"line 4:1: compare\.early_stop judges arms of train\.type 'sft' that differ only in how they step",
    ):
        load(BASE + f"compare: {{{compare}, early_stop: true}}\n")
    load(BASE + f"compare: {{{compare}}}\n")


def signals(folder: Path, arm: str, seed: int, norm: float, loss: float) -> Path:
    path = folder / "arms" / arm / f"seed-{seed}" / "early"
    path.mkdir(parents=True)
    losses = [3.0, *[loss] * 19]
    lines = [
        {"samples_seen": 10 * i + 10, "loss": x, "grad_norm": norm, "lr": 1e-4} for i, x in enumerate(losses)
    ]
    (path / "signals.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (path / "window.json").write_text(json.dumps({"samples": 200}))
    (path / "checkpoints").mkdir()
    return path


def test_an_arm_ends_if_every_seed_says_so_and_nobody_is_compared_with_it(tmp_path) -> None:
    norms = {"calm": (1.0, 1.0), "once": (2.0, 0.5), "loud": (2.0, 2.0), "baseline": (3.0, 3.0)}
    losses = {"calm": 2.0, "once": 1.0, "loud": 1.5, "baseline": 0.5}
    runs = {
        "g": {arm: [signals(tmp_path, arm, s, norms[arm][s], losses[arm]) for s in (0, 1)] for arm in norms}
    }
    facts = build_verdict(tmp_path, runs, "baseline")
    assert facts == {"ended": ["loud"], "arms": 4}
    events: list[dict[str, Any]] = []
    ended = ended_arms(tmp_path, tmp_path, EventLog(listeners=[events.append]))
    assert ended == {"loud": {"dominated_by": ["calm"], "samples": 200}}
    assert [e["message"] for e in events] == [
        "The arm loud ends here: after 200 samples it is dominated by calm under every seed.",
        "The arm baseline is dominated, but others are compared with it: it goes on.",
    ]
    left = sorted(path.parts[-4] for path in tmp_path.glob("arms/*/seed-0/early/checkpoints"))
    assert left == ["baseline", "calm", "once"]
