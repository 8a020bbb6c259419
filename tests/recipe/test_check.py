"""Method blocks are checked against the registered methods; the JSON Schema lists them."""

from __future__ import annotations

import pytest

from tunesmith import methods
from tunesmith.core.errors import TunesmithError, UnknownNameError
from tunesmith.recipe import check, json_schema, load
from tunesmith.recipe.checking import parameters_of

BASE = """\
data: {train: pool.jsonl}
model: {id: some-model}
select: {type: mig, budget: 10%}
tuner: {type: lora, r: 4}
train: {type: sft, weight_decay: 0.1}
evaluate:
  - {type: exact_match, max_new_tokens: 16}
"""


def problems(text: str, *overrides: str) -> list[str]:
    return [str(problem) for problem in check(load(text, overrides))]


def test_a_good_recipe_has_no_problem() -> None:
    assert problems(BASE) == []
    assert problems(BASE, "tuner={type: full}") == []
    assert problems(BASE, "tuner={type: ia3}") == []


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "type: mig",
            "type: mgi",
            "line 3:10: There is no method named 'select.mgi'. Did you mean 'select.mig'? Valid names: select.",
        ),
        (
            "budget: 10%",
            "treshold: 0.8",
            "line 3:21: unknown key 'treshold' in select of type 'mig'. Did you mean 'threshold'? Valid keys: ",
        ),
        (
            "type: exact_match, ",
            "type: exact, ",
            "line 7:6: There is no method named 'evaluate.exact'. ",
        ),
        (
            "max_new_tokens: 16",
            "max_tokens: 16",
            "line 7:25: unknown key 'max_tokens' in evaluate of type 'exact_match'. Did you mean 'max_new_tokens'?",
        ),
        (
            "type: lora",
            "type: lorra",
            "line 4:9: There is no tuner named 'lorra'. Did you mean 'lora'? Valid names: ",
        ),
        (
            "r: 4",
            "rank: 4",
            "line 4:21: unknown key 'rank' in tuner of type 'lora'. Did you mean 'r'? Valid keys: ",
        ),
        (
            "r: 4",
            "layers_pattern: x",
            "line 4:1: The tuner 'lora' refuses its parameters: `layers_pattern` cannot be used when",
        ),
        (
            "type: lora, r: 4",
            "type: full, r: 4",
            "line 4:21: unknown key 'r' in tuner of type 'full'. Valid keys: type.",
        ),
        (
            "weight_decay",
            "wieght_decay",
            "line 5:20: unknown key 'wieght_decay' in train of type 'sft'. Did you mean 'weight_decay'? Valid keys: "
            "accumulate, batch_size, consistency, epochs, learning_rate, loss, masked, max_length, online, save_every, "
            "schedule, type, warmup, and the fields of trl.SFTConfig.",
        ),
        (
            "weight_decay: 0.1",
            "lr: 0.1",
            "line 5:20: unknown key 'lr' in train of type 'sft'. Did you mean 'learning_rate'?",
        ),
        (
            "weight_decay: 0.1",
            "num_train_epochs: 2",
            "line 5:20: the key 'num_train_epochs' is called 'epochs' in a recipe.",
        ),
        (
            "weight_decay: 0.1",
            "output_dir: x",
            "line 5:20: the key 'output_dir' is set by tunesmith itself; leave it out of train.",
        ),
    ],
)
def test_a_problem_names_place_and_nearest(old: str, new: str, expected: str) -> None:
    assert old in BASE
    (found,) = problems(BASE.replace(old, new))
    assert found.startswith(expected)


def test_several_problems_are_listed() -> None:
    text = BASE.replace("type: mig", "type: mgi").replace("weight_decay", "seed")
    assert [p.split(": ")[0] for p in problems(text)] == ["line 3:10", "line 5:20"]


def test_an_override_is_named_in_place_of_a_line() -> None:
    (found,) = problems(BASE, "select.treshold=0.8")
    assert found.startswith("override 'select.treshold=0.8': unknown key 'treshold' in select of type 'mig'.")


def test_each_arm_is_checked_and_named() -> None:
    text = BASE + "compare:\n  seeds: [0]\n  select.type: [random, mgi]\n"
    (found,) = problems(text)
    assert found.startswith("line 3:10: arm 'mgi': There is no method named 'select.mgi'.")
    parameter = BASE + "compare:\n  seeds: [0]\n  select.treshold: [0.7, 0.8]\n"
    (found,) = problems(parameter)
    assert found.startswith("line 10:3: arm '0.7': unknown key 'treshold' in select of type 'mig'.")


def test_a_parameter_of_one_arm_is_wrong_for_another() -> None:
    text = (
        BASE.replace("budget: 10%", "threshold: 0.8") + "compare: {select.type: [mig, random], seeds: [0]}\n"
    )
    (found,) = problems(text)
    assert found.startswith("line 3:21: arm 'random': unknown key 'threshold' in select of type 'random'.")


def test_a_required_parameter_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Needs:
        def __init__(self, target: str, size: int = 3, *more: int, **rest: int) -> None: ...

    monkeypatch.setattr(methods, "get", lambda name: Needs)
    assert problems("data: {train: x}\nselect: {type: needs}\n") == [
        "line 2:1: the key 'target' is missing in select of type 'needs'."
    ]
    assert problems("data: {train: x}\nselect: {type: needs, target: a}\n") == []
    assert parameters_of("select", "needs").named == {"target", "size"}


def test_a_method_that_cannot_be_imported_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise TunesmithError(f"The method '{name}' is registered as x:y but cannot be imported: no x")

    monkeypatch.setattr(methods, "get", broken)
    assert problems("data: {train: x}\nselect: {type: mig}\n") == [
        "line 2:1: The method 'select.mig' is registered as x:y but cannot be imported: no x"
    ]


def test_an_audit_needs_a_tuned_language_model() -> None:
    (found,) = problems("data: {train: x}\naudit: [{type: novelty}]\n")
    assert found == (
        "line 2:10: audit.novelty examines a tuned language model: train one, not train.type 'classify'."
    )


def test_parameters_of_an_unknown_method() -> None:
    with pytest.raises(UnknownNameError, match=r"There is no method named 'select\.x'\."):
        parameters_of("select", "x")


def test_the_json_schema_lists_methods_and_keeps_blocks_open() -> None:
    schema = json_schema()
    select = schema["$defs"]["SelectSpec"]
    assert {"mig", "kmeans", "random"} <= set(select["properties"]["type"]["enum"])
    assert select["additionalProperties"] is True
    assert schema["additionalProperties"] is False
    assert "dedup" in schema["properties"]["curate"]["items"]["properties"]["type"]["enum"]
    assert schema["$defs"]["CompareSpec"]["properties"]["seeds"]["default"] == [0, 1, 2]


def test_every_key_of_the_json_schema_says_what_it_means() -> None:
    schema = json_schema()
    for name, block in schema["$defs"].items():
        assert [key for key, value in block["properties"].items() if not value.get("description")] == [], name
    assert schema["$defs"]["SelectSpec"]["properties"]["budget"]["anyOf"][-1]["type"] == "string"


@pytest.mark.parametrize(
    ("online", "expected"),
    [
        ("{policy: usd}", "There is no method named 'online.usd'. Did you mean 'online.uds'?"),
        (
            "{policy: uds, keep: 9}",
            "The 'keep' parameter of OnlineSelection must be at most the batch's 8 rows. Got 9",
        ),
        ("{policy: uds, alpha: -1}", "The 'alpha' parameter of UDSPolicy must be a float >= 0. Got -1"),
    ],
)
def test_a_policy_is_checked_before_anything_runs(online: str, expected: str) -> None:
    assert "train: {" in BASE
    (found,) = problems(BASE.replace("train: {", f"train: {{online: {online}, batch_size: 8, ", 1))
    assert expected in found
