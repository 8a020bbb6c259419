"""Overrides on the command line, and the arms of a comparison."""

from __future__ import annotations

import pytest

from tunesmith.core.errors import ConfigError
from tunesmith.recipe import expand, load
from tunesmith.recipe.overrides import parse_override

BASE = """\
data: {train: pool.jsonl}
model: {id: some-model}
select: {type: mig, budget: 10%}
train: {type: sft}
evaluate:
  - {type: exact_match, max_new_tokens: 16}
"""
COMPARE = BASE + "compare:\n  select.type: [random, mig]\n  seeds: [0]\n"


def message(text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(text, overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("select.budget=5%", "select.budget", 0.05),
        ("select.budget=200", "select.budget", 200),
        ("train.epochs=3", "train.epochs", 3.0),
        ("train.learning_rate=1e-3", "train.learning_rate", 1e-3),
        ("evaluate.0.type=perplexity", "evaluate.0.type", "perplexity"),
        ("data.columns={q: prompt}", "data.columns", {"q": "prompt"}),
        ("data.test=a=b.jsonl", "data.test", "a=b.jsonl"),
        ("features.encoder=static", "features.encoder", "static"),
        ("name=a, b {", "name", "a, b {"),
        ("compare.seeds=[0, 1]", "compare.seeds", [0, 1]),
    ],
)
def test_an_override_sets_a_key(override: str, path: str, value: object) -> None:
    found: object = load(COMPARE, [override]).recipe
    for part in path.split("."):
        found = found[int(part)] if isinstance(found, list) else getattr(found, part)
    assert found == value


def test_a_dotted_key_of_compare() -> None:
    recipe = load(BASE, ["compare.select.type=[random, kmeans]", "compare.seeds=[5]"]).recipe
    assert recipe.compare is not None
    assert recipe.compare.axes == {"select.type": ["random", "kmeans"]}
    assert recipe.compare.seeds == [5]


def test_an_empty_value_takes_a_key_out() -> None:
    assert load(COMPARE, ["compare="]).recipe.compare is None


def test_the_last_override_wins() -> None:
    recipe = load(BASE, ["train.epochs=3", "train.epochs=5"]).recipe
    assert recipe.train is not None
    assert recipe.train.epochs == 5


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("budget", "An override reads key.sub=value. Got 'budget' instead."),
        ("=5", "An override reads key.sub=value. Got '=5' instead."),
        ("select..budget=5", "An override reads key.sub=value. Got 'select..budget=5' instead."),
        (
            "slect.budget=5",
            "override 'slect.budget=5': unknown key 'slect' in the recipe. Did you mean 'select'? Valid keys: audit, "
            "cluster, compare, curate, data, evaluate, export, features, model, name, preflight, seed, select, "
            "targets, train, tuner.",
        ),
        (
            "model.dtpe=auto",
            "override 'model.dtpe=auto': unknown key 'dtpe' in model. Did you mean 'dtype'? Valid keys: dtype, id, "
            "revision, trust_remote_code.",
        ),
        (
            "select.budget=10%%",
            "override 'select.budget=10%%': The 'budget' parameter must be an int >= 1 (rows), a float in (0, 1] "
            "(share) or a percentage such as '10%'. Got '10%%' instead.",
        ),
        (
            "evaluate.3.type=x",
            "override 'evaluate.3.type=x': 'evaluate' is a list of 1 and has no '3'.",
        ),
        ("evaluate.type=x", "override 'evaluate.type=x': 'evaluate' is a list of 1 and has no 'type'."),
        ("select.type.x=1", "override 'select.type.x=1': 'select.type' is 'mig' and has no 'x'."),
        ("select.0=1", "override 'select.0=1': 'select' is a mapping and has no '0'."),
    ],
)
def test_an_override_that_cannot_be(override: str, expected: str) -> None:
    assert message(BASE, override) == expected


def test_parse_override_keeps_what_is_no_yaml() -> None:
    assert parse_override("name={a").value == "{a"
    assert parse_override("evaluate.0.type=x").path == ("evaluate", 0, "type")


def test_one_arm_without_a_comparison() -> None:
    assert [arm.name for arm in expand(load(BASE).recipe)] == ["mig"]
    assert [arm.name for arm in expand(load({"data": {"train": "x"}}).recipe)] == ["all"]


def test_one_arm_per_combination_with_its_overrides() -> None:
    text = COMPARE + '  train.epochs: [1, 2.5]\n  overrides: {mig+2.5: {"select.threshold": 0.8}}\n'
    arms = {arm.name: arm.recipe for arm in expand(load(text).recipe)}
    assert list(arms) == ["random+1", "random+2.5", "mig+1", "mig+2.5"]
    assert [r.train.epochs for r in arms.values() if r.train] == [1, 2.5, 1, 2.5]
    assert [r.select.parameters for r in arms.values() if r.select] == [{}, {}, {}, {"threshold": 0.8}]
    assert all(recipe.compare is None for recipe in arms.values())


def test_names_of_arms_are_plain_folder_names() -> None:
    text = BASE + 'compare: {data.train: ["a/b c.jsonl", "../x.jsonl"], seeds: [0]}\n'
    assert [arm.name for arm in expand(load(text).recipe)] == ["a-b-c.jsonl", "x.jsonl"]


@pytest.mark.parametrize(
    ("compare", "expected"),
    [
        (
            "{seeds: [0]}",
            "line 7:1: compare needs a dotted key with its values, such as select.type: [random, mig]",
        ),
        ("{select.type: [mig]}", "line 7:1: compare.select.type must be a list of at least two values"),
        ("{select.type: mig}", "line 7:1: compare.select.type must be a list of at least two values"),
        (
            "{select.type: [a, b], overrides: {c: {select.budget: 1}}}",
            "line 7:1: compare.overrides names no arm 'c'. Arms: a, b.",
        ),
        (
            "{select.type: [random, mig], overrides: {mgi: {select.budget: 1}}}",
            "line 7:1: compare.overrides names no arm 'mgi'. Did you mean 'mig'? Arms: random, mig.",
        ),
        ("{select.type: [mig, mig]}", "line 7:1: compare has two arms of one name: mig, mig."),
        ('{data.train: ["a b", "a/b"]}', "line 7:1: compare has two arms of one name: a-b, a-b."),
        (
            "{train.epochs: [1, 0]}",
            "line 7:1: arm '0': The 'train.epochs' key must be greater than 0. Got 0 instead.",
        ),
        (
            "{modl.id: [a, b]}",
            "line 7:1: arm 'a': unknown key 'modl' in the recipe. Did you mean 'model'? Valid keys: audit, "
            "cluster, compare, curate, data, evaluate, export, features, model, name, preflight, seed, select, "
            "targets, train, tuner.",
        ),
        (
            "{evaluate.4.type: [a, b]}",
            "line 7:1: compare.evaluate.4.type: 'evaluate' is a list of 1 and has no '4'.",
        ),
        (
            "{select.type: [a, b], seeds: []}",
            "line 7:32: The 'compare.seeds' key must be a list of at least 1. Got [] instead.",
        ),
    ],
)
def test_a_comparison_that_cannot_be(compare: str, expected: str) -> None:
    assert message(f"{BASE}compare: {compare}\n").startswith(expected)
