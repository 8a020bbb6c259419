"""Putting the demo sets together: split first, then spoil the pool's side only."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, fields, replace
from random import Random
from typing import TYPE_CHECKING, Any

from tunesmith.core.errors import ParameterError, UnknownNameError
from tunesmith.core.seeds import child_seed
from tunesmith.data.demo.function_calls import read_calls
from tunesmith.data.demo.items import Item
from tunesmith.data.demo.mess import corrupt, duplicate, off_topic
from tunesmith.data.demo.reasoning import FAMILIES, make_tasks
from tunesmith.data.edits import invented_facts

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["NAMES", "Mix", "load"]

NAMES = ("messy", "test", "validation", "facts", "facts-rephrased")
HELD_OUT = {"test": 0.3, "validation": 0.1}
"""Shares of the functions that only the test, and only the validation rows, ask for."""
TASKS = {"test": 30, "validation": 10}
"""Tasks of each reasoning family set aside for the test and the validation rows."""
MAX_PER_GROUP = 3
"""Most rows of one function in test and validation, so that no single function decides."""


@dataclass(frozen=True)
class Mix:
    """How much of what the demo sets hold.

    Attributes:
        rows: rows of the pool.
        duplicates: share of the pool that copies other rows of it.
        corrupted: share of the pool with the answer of another row.
        off_topic: share of the pool about something else.
        calls: share of function calls among the rows that are on topic; the rest is spread evenly over the
            reasoning families.
        test_rows: rows of ``test``.
        validation_rows: rows of ``validation``.
        facts: invented facts of ``facts``, and of ``facts-rephrased``.
    """

    rows: int = 400
    duplicates: float = 0.15
    corrupted: float = 0.5
    off_topic: float = 0.15
    calls: float = 0.75
    test_rows: int = 100
    validation_rows: int = 40
    facts: int = 50


def load(name: str, seed: int = 0, **options: Any) -> Dataset:
    """Return a demo set as canonical rows.

    The first three are disjoint: a function that the test asks for never occurs in the pool, and no question of a
    reasoning family is in two sets. Equal seeds and options give equal rows on every machine, given the same
    versions of the two wheels.

    Args:
        name: ``"messy"`` (the pool), ``"test"`` or ``"validation"`` (both clean); ``"facts"`` (facts that no model
            can know, for editing) or ``"facts-rephrased"`` (the same facts, asked in other words).
        seed: of everything that is drawn.
        **options: attributes of `Mix`.

    Returns:
        Rows with ``messages`` (system, user, assistant), ``task`` (JSON for ``metrics.tasks.score_task``; on
        a corrupted row it belongs to the question), ``source``, ``family``, ``defect`` (``none``,
        ``duplicate``, ``corrupted`` or ``off_topic``; for reports and checks, never a feature), ``_row`` and
        ``_source``.

    Raises:
        UnknownNameError: there is no such set.
        ParameterError: an option is unknown or outside its range, or asks for more rows than there are.
        TunesmithError: a wheel is not installed.
    """
    from datasets import Dataset

    if name not in NAMES:
        raise UnknownNameError("demo set", name, NAMES)
    mix = _checked(options)
    if name.startswith("facts"):
        return Dataset.from_list(_facts(name, seed, mix))
    items = _pool(seed, mix) if name == "messy" else _clean(name, seed, mix)
    rows = [item.row() | {"_row": i, "_source": f"demo:{name}"} for i, item in enumerate(items)]
    return Dataset.from_list(rows)


def _facts(name: str, seed: int, mix: Mix) -> list[dict[str, Any]]:
    column = "rephrase_prompt" if name == "facts-rephrased" else "prompt"
    rows = []
    for i, fact in enumerate(invented_facts(mix.facts, child_seed(seed, "demo", "facts") % 2**32)):
        item = Item(fact[column], fact["target_new"], {}, "invented", "fact")
        rows.append(
            {k: v for k, v in item.row().items() if k != "task"} | {"_row": i, "_source": f"demo:{name}"}
        )
    return rows


def _checked(options: dict[str, Any]) -> Mix:
    known = {field.name: field for field in fields(Mix)}
    for key, value in options.items():
        if key not in known:
            raise ParameterError("options", "demo.load", f"attributes of Mix ({', '.join(known)})", key)
        if isinstance(known[key].default, int):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ParameterError(key, "demo.load", "an int >= 1", value)
        elif isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
            raise ParameterError(key, "demo.load", "a float in [0, 1]", value)
    mix = replace(Mix(), **options)
    if (spoiled := mix.duplicates + mix.corrupted + mix.off_topic) >= 1:
        raise ParameterError("duplicates + corrupted + off_topic", "demo.load", "a sum below 1", spoiled)
    return mix


def _pool(seed: int, mix: Mix) -> list[Item]:
    copies, wrong, strange = (round(mix.rows * s) for s in (mix.duplicates, mix.corrupted, mix.off_topic))
    rng = Random(child_seed(seed, "demo", "pool"))
    items = _on_topic("messy", seed, mix, mix.rows - copies - strange)
    rng.shuffle(items)
    bad = corrupt(_spread(items), wrong, rng)
    spoiled = {item.question for item in bad}
    clean = [item for item in items if item.question not in spoiled]
    rows = [
        *clean,
        *bad,
        *duplicate(clean, copies, rng),
        *off_topic(strange, seed, Random(child_seed(seed, "demo", "off-topic"))),
    ]
    rng.shuffle(rows)
    return rows


def _clean(name: str, seed: int, mix: Mix) -> list[Item]:
    items = _on_topic(name, seed, mix, mix.test_rows if name == "test" else mix.validation_rows)
    Random(child_seed(seed, "demo", name)).shuffle(items)
    return items


def _on_topic(name: str, seed: int, mix: Mix, count: int) -> list[Item]:
    """Return ``count`` different clean items of the set ``name``: calls, then each family's share."""
    calls = round(count * mix.calls)
    items = _take(_calls(name, seed), calls, "function calls", name)
    left = count - calls
    for i, (family, options) in enumerate(FAMILIES.items()):
        share = left // len(FAMILIES) + (i < left % len(FAMILIES))
        first = {"test": 0, "validation": TASKS["test"], "messy": sum(TASKS.values())}[name]
        tasks = make_tasks(family, first + share, seed, options)[first:]
        last = first + TASKS[name] if name in TASKS else None
        items += _take(tasks[:last], share, f"{family} tasks", name)
    return items


def _take(items: list[Item], count: int, what: str, name: str) -> list[Item]:
    if len(items) < count:
        raise ParameterError(
            "rows" if name == "messy" else f"{name}_rows",
            "demo.load",
            f"small enough that demo:{name} needs no more than the {len(items)} {what} there are",
            f"a share of {count}",
        )
    return items[:count]


def _calls(name: str, seed: int) -> list[Item]:
    """Return the function calls of one set, shuffled; whole functions go to one set."""
    groups: dict[str, list[Item]] = defaultdict(list)
    for item in read_calls():
        groups[item.group].append(item)
    order = sorted(groups)
    rng = Random(child_seed(seed, "demo", "functions"))
    rng.shuffle(order)
    test = math.floor(len(order) * HELD_OUT["test"])
    validation = test + math.floor(len(order) * HELD_OUT["validation"])
    span = {"test": order[:test], "validation": order[test:validation], "messy": order[validation:]}[name]
    most = None if name == "messy" else MAX_PER_GROUP
    items = [item for group in span for item in groups[group][:most]]
    rng.shuffle(items)
    return items


def _spread(items: list[Item]) -> list[Item]:
    """Return ``items`` in an order of which any beginning holds about the same share of every family."""
    families: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        families[item.family].append(item)
    ranked = [((i + 0.5) / len(group), item) for group in families.values() for i, item in enumerate(group)]
    return [item for _, item in sorted(ranked, key=lambda pair: pair[0])]
