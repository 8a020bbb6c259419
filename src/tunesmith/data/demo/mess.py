"""What makes the pool messy: duplicates, answers of other rows, and rows about something else."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from random import Random

from tunesmith.data.demo.items import Item, package_folder
from tunesmith.data.demo.reasoning import OTHER_FAMILIES, make_tasks, score

__all__ = ["corrupt", "duplicate", "off_topic"]

OPENINGS = (
    "Please help me with this: ",
    "Hi! ",
    "Quick question. ",
    "Could you do this for me? ",
    "I need this: ",
)
CLOSINGS = (" Thanks!", " Thank you.", " Please be quick.", " That is all I need.")
NOVEL_WORDS = (6, 22)
"""Shortest and longest sentence of the novel that becomes a row, in words."""


def duplicate(items: Sequence[Item], count: int, rng: Random) -> list[Item]:
    """Return ``count`` copies of rows of ``items``.

    As in scraped data few rows are copied often: the source of each copy is drawn with probability
    proportional to 1 / (1 + its place) in a shuffled order. A third of the copies is exact, a third differs
    in case and spacing, a third is reworded by an opening or a closing phrase.
    """
    order = list(items)
    rng.shuffle(order)
    weights = [1 / (1 + place) for place in range(len(order))]
    changes = (lambda text: text, lambda text: _respace(text, rng), lambda text: _reword(text, rng))
    return [
        item.but(question=changes[i % 3](item.question), defect="duplicate")
        for i, item in enumerate(rng.choices(order, weights, k=count))
    ]


def corrupt(items: Sequence[Item], count: int, rng: Random) -> list[Item]:
    """Return the first ``count`` of ``items`` that can be spoiled, each with the answer of another row.

    The other row is of the same family, and its answer is wrong here: a call of another function, or an
    answer that reasoning-gym does not accept. An item without such a partner is passed over.
    """
    families: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        families[item.family].append(item)
    corrupted: list[Item] = []
    for item in items:
        if len(corrupted) == count:
            break
        partners = [other for other in families[item.family] if _is_wrong(item, other)]
        if partners:
            corrupted.append(item.but(answer=rng.choice(partners).answer, defect="corrupted"))
    return corrupted


def off_topic(count: int, seed: int, rng: Random) -> list[Item]:
    """Return ``count`` rows about something else than the test.

    Half asks to go on with a sentence of a novel (Verne, "In the Year 2889", the text that comes with
    reasoning-gym), half are tasks of `reasoning.OTHER_FAMILIES`.
    """
    tasks = [
        item
        for family, options in OTHER_FAMILIES.items()
        for item in make_tasks(family, count, seed, options)[: -(-count // (2 * len(OTHER_FAMILIES)))]
    ]
    story = _story()
    rng.shuffle(story)
    rows = story[: count - count // 2] + tasks[: count // 2]
    return [item.but(defect="off_topic") for item in rows[:count]]


def _is_wrong(item: Item, other: Item) -> bool:
    if item.family == "function_call":
        return item.group != other.group
    return score(item, other.answer) < 0.5


def _story() -> list[Item]:
    path = package_folder("reasoning_gym", "reasoning-gym") / "data" / "in_the_year_2889.txt"
    text = path.read_text(encoding="utf-8")
    text = text[text.index("*** START") : text.index("*** END")]  # the novel, without the licence around it
    sentences = re.split(r"(?<=[.!?])\s+", " ".join(text.split()))
    low, high = NOVEL_WORDS
    return [
        Item(
            question=f"What comes next in the story? {first}",
            answer=second,
            task={"kind": "exact", "answer": second},
            source="reasoning-gym:in_the_year_2889",
            family="story",
        )
        for first, second in pairwise(sentences[2:])
        if low <= len(first.split()) <= high and low <= len(second.split()) <= high
    ]


def _respace(text: str, rng: Random) -> str:
    """Change case or spacing of the request; a function's signature keeps its letters."""
    request, line, signature = text.partition("\n")
    request = rng.choice([str.lower, str.upper, str.capitalize])(request) if line else request
    words = request.split(" ")
    gap = rng.randrange(len(words))
    words[gap] = f" {words[gap]} "
    return f"{' '.join(words)}{line}{signature}"


def _reword(text: str, rng: Random) -> str:
    request, line, signature = text.partition("\n")
    request = f"{rng.choice(OPENINGS)}{request}" if rng.random() < 0.5 else f"{request}{rng.choice(CLOSINGS)}"
    return f"{request}{line}{signature}"
