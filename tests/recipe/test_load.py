"""Loading a recipe: strict, every problem with its place, overrides, and the lock file."""

from __future__ import annotations

from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tunesmith.core.errors import ConfigError
from tunesmith.recipe import Recipe, load, lock

GOOD = """\
name: mine
data: {train: pool.jsonl}
model: {id: some-model}
select:
  type: mig
  budget: 10%
train:
  epochs: 2
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)

    def write(text: str) -> str:
        Path("recipe.yaml").write_text(text, encoding="utf-8")
        return "recipe.yaml"

    return write


def message(recipe: object, overrides: list[str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load(recipe, overrides or [])  # type: ignore[arg-type]
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_a_good_recipe_and_the_places_of_its_keys(write) -> None:
    loaded = load(write(GOOD))
    assert loaded.recipe.select is not None
    assert (loaded.recipe.select.type, loaded.recipe.select.budget) == ("mig", 0.1)
    assert loaded.recipe.train is not None
    assert loaded.recipe.train.epochs == 2.0
    assert loaded.source == "recipe.yaml"
    assert loaded.positions[("select", "budget")] == (6, 3)
    assert loaded.positions[("data", "train")] == (2, 8)
    assert loaded.values["select"] == {"type": "mig", "budget": "10%"}


def test_text_mapping_and_object_load_alike() -> None:
    first = load(GOOD).recipe
    assert load({"name": "mine", **YAML(typ="safe").load(GOOD)}).recipe == first
    assert load(first).recipe == first


def test_a_mapping_is_not_changed() -> None:
    mine = {"data": {"train": "x"}, "select": {"type": "mig"}}
    load(mine, ["select.budget=5"])
    assert mine == {"data": {"train": "x"}, "select": {"type": "mig"}}


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "  budget: 10%",
            "  budget: 10%\nevalute: []",
            "recipe.yaml:7:1: unknown key 'evalute' in the recipe. Did you mean 'evaluate'? Valid keys: audit, "
            "cluster, compare, curate, data, evaluate, export, features, model, name, preflight, seed, select, "
            "targets, train, tuner.",
        ),
        (
            "{id: some-model}",
            "{id: some-model, dtpe: auto}",
            "recipe.yaml:3:25: unknown key 'dtpe' in model. Did you mean 'dtype'? Valid keys: dtype, id, revision, "
            "trust_remote_code.",
        ),
        (
            "{id: some-model}",
            "{id: some-model, dtype: bfloat}",
            "recipe.yaml:3:25: The 'model.dtype' key must be 'auto', 'float32', 'bfloat16' or 'float16'. "
            "Got 'bfloat' instead. Did you mean 'bfloat16'?",
        ),
        ("data: {train: pool.jsonl}", "data: {}", "recipe.yaml:2:1: the key 'train' is missing in data."),
        (
            "data: {train: pool.jsonl}",
            "data: pool.jsonl",
            "recipe.yaml:2:1: The 'data' key must be a mapping of keys. Got 'pool.jsonl' instead.",
        ),
        (
            "epochs: 2",
            "epochs: two",
            "recipe.yaml:8:3: The 'train.epochs' key must be a valid number, unable to parse string as a number. "
            "Got 'two' instead.",
        ),
        (
            "epochs: 2",
            "epochs: -1",
            "recipe.yaml:8:3: The 'train.epochs' key must be greater than 0. Got -1 instead.",
        ),
        (
            "model: {id: some-model}\n",
            "",
            "recipe.yaml: the stage 'train' needs a model: add model: {id: ...}",
        ),
        (
            "name: mine",
            "name: [mine]",
            "recipe.yaml:1:1: The 'name' key must be a valid string. Got ['mine'] instead.",
        ),
        ("  type: mig\n", "", "recipe.yaml:4:1: the key 'type' is missing in select."),
    ],
)
def test_a_problem_names_place_and_what_would_be_right(write, old: str, new: str, expected: str) -> None:
    assert old in GOOD
    assert message(write(GOOD.replace(old, new))) == expected


@pytest.mark.parametrize("budget", ["'10%%'", "0", "-1", "1.5", "abc", "true", "'0%'", "[1]"])
def test_a_budget_that_is_none(write, budget: str) -> None:
    got = repr(YAML(typ="safe").load(budget))
    assert message(write(GOOD.replace("10%", budget))) == (
        "recipe.yaml:6:3: The 'budget' parameter must be an int >= 1 (rows), a float in (0, 1] (share) or a "
        f"percentage such as '10%'. Got {got} instead."
    )


@pytest.mark.parametrize(
    ("text", "value"), [("200", 200), ("0.1", 0.1), ("'10%'", 0.1), ("'200'", 200), ("1.0", 1.0)]
)
def test_a_budget_as_people_write_it(write, text: str, value: float) -> None:
    select = load(write(GOOD.replace("10%", text))).recipe.select
    assert select is not None
    assert select.budget == value
    assert type(select.budget) is type(value)


def test_all_problems_are_told_at_once_in_order(write) -> None:
    text = GOOD.replace("epochs: 2", "epochs: 0").replace("10%", "0") + "slect: {}\n"
    lines = message(write(text)).splitlines()
    assert [line.split(": ")[0] for line in lines] == [
        "recipe.yaml:6:3",
        "recipe.yaml:8:3",
        "recipe.yaml:9:1",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: [a\ndata: b\n", "recipe.yaml:2:5: this is not YAML: expected ',' or ']', but got ':'"),
        (
            "name: a\nname: b\n",
            'recipe.yaml:2:1: this is not YAML: found duplicate key "name" with value "b"',
        ),
        ("a: b: c\n", "recipe.yaml:1:5: this is not YAML: mapping values are not allowed here"),
        ("name: a\n---\nname: b\n", "recipe.yaml:2:1: this is not YAML: but found another document"),
        ("", "recipe.yaml:1: A recipe is a mapping of stages (data:, select:, train:, …)."),
        ("- a\n- b\n", "recipe.yaml:1: A recipe is a mapping of stages (data:, select:, train:, …)."),
        ("name: a\nseed: \x00\n", "recipe.yaml:2:7: the character '\\x00' is not permitted in YAML."),
    ],
)
def test_what_is_no_yaml_or_no_mapping(write, text: str, expected: str) -> None:
    assert message(write(text)).startswith(expected)


def test_aliases_that_multiply_and_nesting_without_end(write) -> None:
    bomb = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{b}: &{b} [{','.join(['*' + a] * 10)}]\n" for a, b in zip("abcd", "bcde", strict=True)
    )
    assert message(write(bomb)) == "there are more than 10,000 values; an alias may stand for too many."
    deep = "a: " + "[" * 400 + "]" * 400
    assert message(write(deep)) == "recipe.yaml: the recipe is nested too deeply."


def test_merge_keys_are_read(write) -> None:
    text = "data: {train: x}\nfeatures: &f\n  batch_size: 4\nselect:\n  <<: *f\n  type: mig\n"
    loaded = load(write(text))
    assert loaded.recipe.select is not None
    assert loaded.recipe.select.parameters == {"batch_size": 4}
    assert loaded.positions[("select", "batch_size")][0] in (4, 5)


def test_a_missing_file_names_the_nearest(write, tmp_path: Path) -> None:
    write(GOOD)
    assert message("recipe.yml") == "There is no recipe recipe.yml. Did you mean 'recipe.yaml'?"
    assert message("nowhere/x.yaml") == "There is no recipe nowhere/x.yaml."
    (tmp_path / "latin.yaml").write_bytes("name: Zoë".encode("latin-1"))
    assert message("latin.yaml").startswith(
        "The recipe latin.yaml cannot be read: 'utf-8' codec can't decode"
    )
    assert message(str(tmp_path)).startswith(f"The recipe {tmp_path} cannot be read: ")


def test_the_lock_holds_every_default_versions_and_hashes(write) -> None:
    loaded = load(write(GOOD), ["select.budget=5"])
    locked = YAML(typ="safe").load(lock(loaded, {"train": "abc"}))
    assert locked["recipe"]["select"] == {"type": "mig", "budget": 5}
    assert locked["recipe"]["preflight"] == {"max_truncated": 0.2, "max_dropped": 0.2}
    assert locked["hashes"] == {"train": "abc"}
    assert {"python", "torch", "transformers", "peft", "trl", "datasets"} <= set(locked["versions"])
    assert Recipe.model_validate(locked["recipe"]) == loaded.recipe
