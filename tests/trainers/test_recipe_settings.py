"""The guide's settings for three libraries, and its search over one of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tunesmith.core.errors import ParameterError, UnknownNameError
from tunesmith.trainers.recipe_guide import grid_search_1d, samples_after, sft_recipe, steps_per_epoch


@pytest.mark.parametrize("kind", ["trl", "transformers"])
def test_settings_of_the_study(kind, tmp_path) -> None:
    from transformers import TrainingArguments
    from trl import SFTConfig

    config = sft_recipe(
        3840, world=8, per_device=4, kind=kind, output_dir=str(tmp_path), use_cpu=True, bf16=False
    )
    assert type(config) is {"trl": SFTConfig, "transformers": TrainingArguments}[kind]
    assert config.gradient_accumulation_steps == 120
    assert config.per_device_train_batch_size == 4
    assert (config.learning_rate, config.lr_scheduler_type, config.warmup_steps) == (2e-5, "constant", 0)
    assert (config.adam_beta1, config.adam_beta2, config.adam_epsilon) == (0.9, 0.95, 1e-8)
    assert (config.weight_decay, config.max_grad_norm, config.num_train_epochs) == (0.0, 1.0, 10)
    assert config.average_tokens_across_devices
    assert config.logging_steps == 1


def test_arguments_of_train_sft_are_its_own() -> None:
    import inspect

    from tunesmith.trainers import train_sft
    from tunesmith.trainers.sft import _checked_overrides

    found = sft_recipe(128, world=2, per_device=8, preset="tulu", kind="train_sft", save_every=7)
    assert (found["batch_size"], found["accumulate"], found["schedule"], found["warmup"]) == (
        8,
        8,
        "linear",
        0.03,
    )
    assert (found["learning_rate"], found["epochs"], found["save_every"]) == (2e-5, 2.0, 7)
    own = set(inspect.signature(train_sft).parameters)
    _checked_overrides({k: v for k, v in found.items() if k not in own})


def test_rates_and_presets() -> None:
    def rate(**given: Any) -> Any:
        return sft_recipe(world=1, kind="train_sft", **given)["learning_rate"]

    assert rate(model="mistralai/Mistral-7B-v0.1") == 1e-6
    assert rate(model="granite-7b") == rate() == 2e-5
    assert rate(model="Mistral-7B", learning_rate=3e-6) == 3e-6
    assert rate(preset="tulu++", batch=128) == 3e-5
    assert sft_recipe(preset="tulu++", world=1, kind="train_sft")["epochs"] == 4


def test_world_is_what_the_launcher_says(monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert sft_recipe(3840, per_device=4, kind="train_sft")["accumulate"] == 120
    monkeypatch.delenv("WORLD_SIZE")
    assert sft_recipe(3840, per_device=4, kind="train_sft")["accumulate"] == 960


def test_a_batch_that_cannot_be_reached() -> None:
    message = (
        r"The 'batch' parameter of sft_recipe must be a multiple of per_device \* world = 32 \(round_up=True "
    )
    with pytest.raises(ParameterError, match=rf"^{message}takes 3,872\)\. Got 3850 instead\.$"):
        sft_recipe(3850, world=8, per_device=4, kind="train_sft")
    with pytest.warns(
        UserWarning,
        match=r"^The effective batch is 3,872 sequences instead of 3,850, the next multiple of 32",
    ):
        found = sft_recipe(3850, world=8, per_device=4, kind="train_sft", round_up=True)
    assert found["accumulate"] * 32 == 3872


def test_a_batch_for_the_size_of_the_data() -> None:
    def batch(n: int, given: int | None = None) -> int:
        found = sft_recipe(given, world=1, per_device=4, n_examples=n, kind="train_sft")
        return int(found["batch_size"] * found["accumulate"])

    assert batch(825_487) == 3840
    assert batch(10_000) == 200, "at least 50 steps an epoch"
    assert batch(60) == 4
    with pytest.raises(
        ParameterError,
        match=r"^The 'batch' parameter of sft_recipe must be at most n_examples = 1,000\. Got 3840",
    ):
        batch(1000, 3840)
    with pytest.warns(
        UserWarning,
        match=r"^An epoch has 3 optimiser steps of 400 sequences; with fewer than 50 a large batch",
    ):
        assert batch(1000, 400) == 400


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"batch": 0}, "The 'batch' parameter of sft_recipe must be an int of at least 1, or None. Got 0 instead."),
        ({"world": 0}, "The 'world' parameter of sft_recipe must be an int of at least 1. Got 0 instead."),
        ({"per_device": 2.0}, "The 'per_device' parameter of sft_recipe must be an int of at least 1. Got 2.0"),
        ({"n_examples": -1}, "The 'n_examples' parameter of sft_recipe must be an int of at least 1, or None. Got -1"),
        ({"learning_rate": 0}, "The 'learning_rate' parameter of sft_recipe must be a float above 0. Got 0 instead."),
        ({"epochs": -1.0}, "The 'epochs' parameter of sft_recipe must be a float above 0. Got -1.0 instead."),
        ({"kind": "axolotl"}, "The 'kind' parameter of sft_recipe must be 'trl', 'transformers' or 'train_sft'. Got"),
    ],
)  # fmt: skip
def test_numbers_outside_their_sets(given, message) -> None:
    with pytest.raises(ParameterError) as error:
        sft_recipe(**given)
    assert str(error.value).startswith(message)


def test_unknown_preset() -> None:
    with pytest.raises(
        UnknownNameError, match=r"^There is no preset of sft_recipe named 'lap'\. Did you mean 'lab'\?"
    ):
        sft_recipe(preset="lap")  # type: ignore[arg-type]


def test_steps_of_an_epoch() -> None:
    assert steps_per_epoch(825_487, 3840) == (214, 3727)
    assert steps_per_epoch(825_487, 128)[0] + 1 == 6450
    with pytest.raises(
        ParameterError,
        match=r"^The 'batch' parameter of steps_per_epoch must be an int in \[1, n_examples\] = \[1, 5\]",
    ):
        steps_per_epoch(5, 6)
    with pytest.raises(
        ParameterError, match=r"^The 'n_examples' parameter of steps_per_epoch must be an int of at least 1"
    ):
        steps_per_epoch(0, 1)
    assert [samples_after(step, 10, 4) for step in range(7)] == [0, 4, 8, 10, 14, 18, 20]
    assert samples_after(2, 3, 8) == 6


@pytest.mark.parametrize(
    ("optimum", "best", "evaluations"), [(7e-5, 8e-5, 5), (1e-3, 1.28e-3, 9), (1e-6, 1.25e-6, 7)]
)
def test_search_on_a_unimodal_objective(optimum: float, best: float, evaluations: int) -> None:
    calls: list[float] = []

    def objective(x: float) -> float:
        calls.append(x)
        return -abs(float(np.log(x / optimum)))

    found = grid_search_1d(objective, 2e-5)
    assert found.best == pytest.approx(best, rel=1e-12)
    assert len(calls) == len(set(calls)) == len(found.evaluated) == evaluations
    assert found.score == found.evaluated[found.best] == max(found.evaluated.values())
    assert found.finished


@given(st.floats(-8, 8), st.floats(1.2, 10))
@hypothesis_settings(max_examples=60, deadline=None)
def test_search_finds_the_best_of_the_grid(shift: float, factor: float) -> None:
    optimum = 2e-5 * float(np.exp(shift))
    found = grid_search_1d(
        lambda x: -abs(float(np.log(x / optimum))), 2e-5, factor=factor, max_evaluations=200
    )
    grid = [2e-5 * factor**k for k in range(-60, 61)]
    assert found.score == pytest.approx(max(-abs(np.log(x / optimum)) for x in grid), abs=1e-9)


def test_search_stays_on_a_tie_and_knows_what_was_evaluated() -> None:
    assert grid_search_1d(lambda x: 1.0, 8.0).evaluated.keys() == {8.0, 16.0, 4.0}
    assert grid_search_1d(lambda x: 1.0, 8.0).best == 8.0
    found = grid_search_1d(lambda x: -abs(x - 16), 8.0, known={16.0: 0.0, 4.0: -12.0, 5.0: 99.0})
    assert found.best == 16.0
    assert found.evaluated == {8.0: -8.0, 32.0: -16.0}


def test_search_keeps_in_bounds_and_ends() -> None:
    assert grid_search_1d(lambda x: x, 1.0, high=5.0).best == 4.0
    assert grid_search_1d(lambda x: -x, 1.0, low=0.2).best == 0.25
    endless = grid_search_1d(lambda x: x, 1.0, max_evaluations=6)
    assert len(endless.evaluated) == 6
    assert endless.best == 16.0
    assert not endless.finished
    diverged = grid_search_1d(lambda x: float("nan") if x > 2 else x, 1.0)
    assert diverged.best == 2.0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"start": 0.0}, "The 'start' parameter of grid_search_1d must be a float above 0. Got 0.0 instead."),
        ({"factor": 1.0}, "The 'factor' parameter of grid_search_1d must be a float above 1. Got 1.0 instead."),
        ({"start": 9.0, "high": 5}, "The 'start' parameter of grid_search_1d must be in [low, high] = [0, 5]."),
        ({"max_evaluations": 0}, "The 'max_evaluations' parameter of grid_search_1d must be an int of at least 1."),
    ],
)  # fmt: skip
def test_search_outside_its_sets(given, message) -> None:
    with pytest.raises(ParameterError) as error:
        grid_search_1d(lambda x: x, **given)
    assert str(error.value).startswith(message)
