"""Short tasks with verifiable answers from the wheel ``reasoning-gym``.

`FAMILIES` are asked in the test, `OTHER_FAMILIES` only litter the pool. How they were chosen, and what the
demo model makes of each, stands in docs/how-to/demo.md.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from tunesmith.core.seeds import child_seed
from tunesmith.data.demo.items import Item, package_folder

__all__ = ["FAMILIES", "OTHER_FAMILIES", "make_tasks", "score"]

FAMILIES: dict[str, dict[str, Any]] = {
    "needle_haystack": {"min_num_statements": 3, "max_num_statements": 3},
    "number_filtering": {"min_numbers": 2, "max_numbers": 4, "max_decimals": 0},
    "number_format": {"min_num_candidates": 2, "max_num_candidates": 3},
    "sentence_reordering": {"min_words_in_sentence": 4, "max_words_in_sentence": 6},
    "word_sorting": {"min_words": 3, "max_words": 3},
    "word_sequence_reversal": {"min_words": 3, "max_words": 4},
    "calendar_arithmetic": {},
    "number_sequence": {"min_terms": 4, "max_terms": 5, "max_complexity": 1},
}
OTHER_FAMILIES: dict[str, dict[str, Any]] = {
    "coin_flip": {},
    "leg_counting": {"min_animals": 2, "max_animals": 2, "max_instances": 4},
    "fraction_simplification": {"styles": ["plain"]},
}


def make_tasks(family: str, count: int, seed: int, options: dict[str, Any]) -> list[Item]:
    """Return ``count`` tasks of a family with different questions.

    Args:
        family: a dataset of reasoning-gym.
        count: how many; fewer when the family has fewer different questions among ``4 * count``.
        seed: equal seeds give equal tasks, and a longer list starts with the shorter one.
        options: of the dataset's config.

    Raises:
        TunesmithError: the wheel is not installed.
    """
    package_folder("reasoning_gym", "reasoning-gym")
    if count == 0:  # reasoning-gym refuses an empty set
        return []
    import reasoning_gym

    data = reasoning_gym.create_dataset(family, seed=child_seed(seed, family), size=4 * count, **options)
    items: dict[str, Item] = {}
    for entry in data:
        question = " ".join(entry["question"].split())
        if len(items) == count:
            break
        if question not in items:
            plain = json.loads(json.dumps(entry, default=str))
            items[question] = Item(
                question=question,
                answer=str(plain["answer"]).strip(),
                task={"kind": "reasoning_gym", "dataset": family, "entry": plain},
                source="reasoning-gym",
                family=family,
            )
    return list(items.values())


def score(item: Item, answer: str) -> float:
    """Return reasoning-gym's own score, in [0, 1], of ``answer`` to the question of ``item``."""
    value = _scorer(item.family).score_answer(answer=answer, entry=item.task["entry"])
    return float(value)


@cache
def _scorer(family: str) -> Any:
    import reasoning_gym

    return reasoning_gym.create_dataset(family, seed=0, size=1)
