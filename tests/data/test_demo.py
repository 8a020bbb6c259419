"""The demo sets: stated rates, disjointness, determinism, and answers that are right or wrong as they say."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections import Counter

import pytest

from tunesmith.core.errors import ParameterError, TunesmithError, UnknownNameError
from tunesmith.data import demo
from tunesmith.data.demo import Mix, render_call
from tunesmith.data.demo.function_calls import read_calls, render_signature
from tunesmith.data.demo.items import SYSTEM
from tunesmith.data.demo.reasoning import FAMILIES, OTHER_FAMILIES, make_tasks
from tunesmith.metrics.tasks import score_task


@pytest.fixture(scope="module")
def sets():
    return {name: demo.load(name) for name in ("messy", "test", "validation")}


def question(row):
    return row["messages"][1]["content"]


def answer(row):
    return row["messages"][2]["content"]


def digest(dataset):
    return hashlib.sha256(json.dumps(dataset.to_list()).encode()).hexdigest()


def plain(text):
    """A question without what `mess.duplicate` may change: case, spaces."""
    return re.sub(r"\s+", "", text).lower()


def test_rates_hold_exactly(sets):
    mix = Mix()
    defects = Counter(sets["messy"]["defect"])
    assert len(sets["messy"]) == mix.rows
    assert defects["duplicate"] == round(mix.rows * mix.duplicates)
    assert defects["corrupted"] == round(mix.rows * mix.corrupted)
    assert defects["off_topic"] == round(mix.rows * mix.off_topic)
    for name, rows in (("test", mix.test_rows), ("validation", mix.validation_rows)):
        assert len(sets[name]) == rows
        assert set(sets[name]["defect"]) == {"none"}
        assert Counter(sets[name]["family"])["function_call"] == round(rows * mix.calls)


def test_rows_are_canonical(sets):
    for name, dataset in sets.items():
        assert dataset["_row"] == list(range(len(dataset)))
        assert set(dataset["_source"]) == {f"demo:{name}"}
        for row in dataset:
            assert [m["role"] for m in row["messages"]] == ["system", "user", "assistant"]
            assert row["messages"][0]["content"] == SYSTEM
            assert question(row).strip()
            assert answer(row).strip() == answer(row) != ""


def test_every_set_asks_calls_and_at_least_eight_families(sets):
    assert len(FAMILIES) >= 8
    assert not set(FAMILIES) & set(OTHER_FAMILIES)
    for name, dataset in sets.items():
        on_topic = {row["family"] for row in dataset if row["defect"] != "off_topic"}
        assert on_topic == {"function_call", *FAMILIES}, name
    strange = {row["family"] for row in sets["messy"] if row["defect"] == "off_topic"}
    assert strange == {"story", *OTHER_FAMILIES}


@pytest.mark.parametrize("seed", [0, 1])
def test_no_item_is_in_two_sets(seed):
    sets = {name: demo.load(name, seed=seed) for name in ("messy", "test", "validation")}
    for one, other in (("messy", "test"), ("messy", "validation"), ("test", "validation")):
        asked = {plain(question(row)) for row in sets[one]}
        assert not asked & {plain(question(row)) for row in sets[other]}
        called = [
            {answer(row).split("(")[0] for row in sets[name] if row["family"] == "function_call"}
            for name in (one, other)
        ]
        assert not called[0] & called[1]


def test_clean_answers_score_one_and_corrupted_ones_do_not(sets):
    for dataset in sets.values():
        for row in dataset:
            score = score_task(answer(row), json.loads(row["task"]))
            if row["defect"] == "corrupted":
                assert score < 0.5, row
            else:
                assert score == 1.0, row


def test_a_corrupted_answer_is_another_rows_answer(sets):
    by_family = {}
    for item in read_calls():
        by_family.setdefault("function_call", set()).add(item.answer)
    for row in sets["messy"]:
        if row["defect"] == "corrupted" and row["family"] == "function_call":
            assert answer(row) in by_family["function_call"]


def test_duplicates_copy_a_clean_row_of_the_pool(sets):
    rows = sets["messy"].to_list()
    clean = [row for row in rows if row["defect"] == "none"]
    kinds = Counter()
    for row in rows:
        if row["defect"] != "duplicate":
            continue
        same = [question(c) for c in clean if (answer(c), c["task"]) == (answer(row), row["task"])]
        copy = question(row)
        if copy in same:
            kinds["exact"] += 1
        elif plain(copy) in map(plain, same):
            kinds["respaced"] += 1
        else:  # an opening before or a closing behind the request, everything else as it was
            assert any(set(text.split()) <= set(copy.split()) for text in same)
            kinds["reworded"] += 1
    copies = round(Mix().rows * Mix().duplicates)
    assert sum(kinds.values()) == copies
    assert min(kinds["exact"], kinds["respaced"], kinds["reworded"]) == copies // 3


def test_no_two_originals_ask_the_same(sets):
    originals = [question(r) for r in sets["messy"] if r["defect"] in ("none", "corrupted", "off_topic")]
    assert len(originals) == len(set(originals))


def test_same_rows_in_another_process_and_other_rows_under_another_seed(sets):
    code = (
        "import hashlib, json; from tunesmith.data import demo;"
        "print(hashlib.sha256(json.dumps(demo.load('messy').to_list()).encode()).hexdigest())"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "12345"},
    )
    assert result.stdout.strip() == digest(sets["messy"])
    assert digest(demo.load("messy", seed=1)) != digest(sets["messy"])


def test_options_change_the_mix():
    pool = demo.load("messy", rows=100, duplicates=0, corrupted=0.1, off_topic=0, calls=1.0)
    assert Counter(pool["defect"]) == {"none": 90, "corrupted": 10}
    assert set(pool["family"]) == {"function_call"}


@pytest.mark.parametrize("family", [*FAMILIES, *OTHER_FAMILIES])
def test_a_longer_list_of_tasks_starts_with_the_shorter(family):
    options = FAMILIES.get(family, OTHER_FAMILIES.get(family))
    few, many = (make_tasks(family, n, 3, options) for n in (5, 20))
    assert few == many[:5]
    assert len({item.question for item in many}) == 20


def test_calls_are_python_and_hold_the_truth():
    items = read_calls()
    assert len(items) > 500
    assert {item.source for item in items} == {"bfcl:live_simple", "bfcl:simple_python"}
    for item in items:
        call = ast.parse(item.answer, mode="eval").body
        assert isinstance(call, ast.Call)
        assert not call.args
        (name, accepted), *_ = item.task["truth"].items()
        assert ast.unparse(call.func) == name
        for keyword in call.keywords:
            assert ast.literal_eval(keyword.value) in accepted[keyword.arg]


def test_render_call_by_hand():
    arguments = {"user_id": 7890, "special": 'a "b"\n', "on": True, "at": [1.5, None], "é": "ü"}
    assert render_call("a.get_user", arguments) == (
        'a.get_user(user_id=7890, special="a \\"b\\"\\n", on=True, at=[1.5, None], é="ü")'
    )
    assert render_call("now", {}) == "now()"


def test_render_signature_by_hand():
    function = {
        "name": "ride",
        "parameters": {
            "required": ["loc", "kind"],
            "properties": {
                "loc": {"type": "string"},
                "kind": {"type": "string", "enum": ["plus", "black"]},
                "time": {"type": "integer", "default": 5},
                "tags": {"type": "array"},
            },
        },
    }
    assert render_signature(function) == (
        'ride(loc: str, kind: "plus"|"black", time: int = 5, tags: list = None)'
    )


def test_unknown_set():
    with pytest.raises(UnknownNameError, match=r"There is no demo set named 'mesy'.* Did you mean 'messy'"):
        demo.load("mesy")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"row": 3}, "The 'options' parameter of demo.load must be attributes of Mix (rows, "),
        ({"rows": 0}, "The 'rows' parameter of demo.load must be an int >= 1. Got 0 instead."),
        ({"rows": True}, "The 'rows' parameter of demo.load must be an int >= 1. Got True instead."),
        ({"calls": 1.5}, "The 'calls' parameter of demo.load must be a float in [0, 1]. Got 1.5 instead."),
        (
            {"duplicates": 0.5, "corrupted": 0.5},
            "The 'duplicates + corrupted + off_topic' parameter of demo.load must be a sum below 1. Got 1.15",
        ),
        (
            {"rows": 100_000},
            "The 'rows' parameter of demo.load must be small enough that demo:messy needs no more than the ",
        ),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ParameterError, match=re.escape(message)):
        demo.load("messy", **options)


@pytest.mark.parametrize(
    ("package", "advice"),
    [
        (
            "bfcl_eval",
            "The demo data needs the package bfcl-eval, which is not installed. Run "
            "`pip install --no-deps bfcl-eval`.",
        ),
        (
            "reasoning_gym",
            "The demo data needs the package reasoning-gym, which is not installed. Run "
            "`pip install reasoning-gym`.",
        ),
    ],
)
def test_missing_wheel(monkeypatch, package, advice):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == package else real(name, *rest)
    )
    with pytest.raises(TunesmithError, match=re.escape(advice)):
        demo.load("messy")


def test_facts_are_asked_in_two_ways_with_one_answer():
    facts, rephrased = demo.load("facts", facts=20), demo.load("facts-rephrased", facts=20)
    assert len(facts) == len(rephrased) == 20
    for row, other in zip(facts, rephrased, strict=True):
        assert row["messages"][-1] == other["messages"][-1]
        assert row["messages"][1]["content"] != other["messages"][1]["content"]
        assert (row["family"], row["source"], row["defect"]) == ("fact", "invented", "none")
    assert len({row["messages"][1]["content"] for row in facts}) == 20
    assert demo.load("facts", seed=1)[0] != facts[0]
