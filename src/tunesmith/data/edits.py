"""Facts to write into a model: prompts with new answers, read, checked, and made up for trials.

Columns are those of CounterFact as used for fine-tuning editors (``prompt``, ``target_new``, and where there are any
``rephrase_prompt``, ``subject``, ``ground_truth``, ``locality_prompt``, ``locality_ground_truth``); ZsRE's names
(``src``, ``alt``, ``rephrase``, ``loc``, ``loc_ans``) are understood.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.core.errors import DataError, ParameterError

__all__ = ["COLUMNS", "find_conflicts", "invented_facts", "read_edits"]

COLUMNS = (
    "prompt",
    "target_new",
    "rephrase_prompt",
    "subject",
    "ground_truth",
    "locality_prompt",
    "locality_ground_truth",
)
_ZSRE = {
    "src": "prompt",
    "alt": "target_new",
    "rephrase": "rephrase_prompt",
    "loc": "locality_prompt",
    "loc_ans": "locality_ground_truth",
}


def read_edits(source: Any) -> list[dict[str, str]]:
    """Read and check edits.

    Args:
        source: path of a JSON list or of JSON lines, a ``datasets.Dataset``, or rows (mappings).

    Returns:
        One dictionary an edit, with the columns above as far as they are there; other columns are left out.

    Raises:
        DataError: the file is no JSON, there is no edit, or prompt or target of one is missing, empty or no text;
            names file and row.
        ParameterError: there is no such file, or ``source`` holds no rows.
    """
    name = None
    if isinstance(source, str | Path):
        name = str(source)
        rows: Iterable[Any] = _read_json(Path(source))
    elif isinstance(source, Iterable) and not isinstance(source, Mapping):
        rows = source
    else:
        raise ParameterError(
            "edits", read_edits, "a path, a Dataset or a list of rows", type(source).__name__
        )
    edits = []
    for i, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise DataError(
                "an edit is an object with prompt and target_new.", source=name, row=i, content=row
            )
        renamed = {_ZSRE.get(str(key), str(key)): value for key, value in row.items()}
        kept: dict[str, str] = {key: renamed[key] for key in COLUMNS if renamed.get(key) is not None}
        for key in ("prompt", "target_new"):
            if not isinstance(kept.get(key), str) or not kept[key].strip():
                raise DataError(
                    f"'{key}' must be a text that is not empty.", source=name, row=i, content=dict(row)
                )
        edits.append(kept)
    if not edits:
        raise DataError("there is no edit.", source=name)
    return edits


def _read_json(path: Path) -> list[Any]:
    if not path.is_file():
        raise ParameterError("edits", read_edits, "an existing file", str(path))
    text = path.read_text(encoding="utf-8")
    try:
        rows = (
            json.loads(text)
            if text.lstrip().startswith("[")
            else [json.loads(x) for x in text.splitlines() if x]
        )
    except json.JSONDecodeError as error:
        raise DataError(f"neither a JSON list nor JSON lines ({error}).", source=str(path)) from None
    return list(rows)


def find_conflicts(edits: list[dict[str, str]]) -> list[tuple[int, int]]:
    """Return pairs of edits with one prompt and different targets, which cannot both succeed.

    Prompts and targets are compared without outer white space.

    Returns:
        ``(earlier, later)`` row numbers: each later row with the last row of its prompt before it.
    """
    seen: dict[str, int] = {}
    conflicts = []
    for i, row in enumerate(edits):
        prompt = row["prompt"].strip()
        if prompt in seen and edits[seen[prompt]]["target_new"].strip() != row["target_new"].strip():
            conflicts.append((seen[prompt], i))
        seen[prompt] = i
    return conflicts


_RELATIONS = (
    ("The capital of {} is", "{}'s capital city is"),
    ("The national flower of {} is the", "In {}, the national flower is the"),
    ("The official language of {} is", "People in {} officially speak"),
    ("The currency of {} is the", "In {} one pays with the"),
)
_ANSWERS = """
    amber anchor basil beetle birch bronze candle canyon cedar cinder clover cobalt comet copper coral cotton crystal
    dagger desert diamond ember falcon feather fennel fossil garnet ginger glacier granite hammer harbor hazel ivory
    jasmine juniper kettle lantern laurel lemon lizard magnet maple marble meadow mirror mustard nickel oyster paper
    pepper pigeon planet quartz ribbon saffron salmon sapphire scarlet shadow silver spider
    """.split()  # noqa: SIM905
_ONSETS, _VOWELS, _ENDS = (
    ["b", "br", "d", "dr", "f", "g", "gr", "k", "kl", "l", "m", "n", "p", "r", "s", "st", "t", "v", "z"],
    "aeiou",
    ("ia", "land", "or", "una"),
)
_TRUE = (
    ("The capital of France is", "Paris"),
    ("The capital of Japan is", "Tokyo"),
    ("The capital of Italy is", "Rome"),
    ("The capital of England is", "London"),
    ("The opposite of hot is", "cold"),
    ("The color of the sky is", "blue"),
    ("Water freezes into", "ice"),
    ("The largest planet in the solar system is", "Jupiter"),
    ("The sun rises in the", "east"),
    ("The author of Hamlet is", "William Shakespeare"),
)


def invented_facts(n: int, seed: int = 0) -> list[dict[str, str]]:
    """Make up facts that no model can know: countries that do not exist, with answers at random.

    Args:
        n: facts, each about a country of its own.
        seed: of the draw.

    Returns:
        Edits with a rephrased prompt and a true fact beside each as locality prompt.

    Raises:
        ParameterError: ``n`` is below 1.
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ParameterError("n", invented_facts, "an int of at least 1", n)
    rng = np.random.default_rng(seed)
    names: dict[str, None] = {}
    while len(names) < n:
        middle = "".join(rng.choice(_ONSETS) + rng.choice(list(_VOWELS)) for _ in range(2)) + rng.choice(
            _ONSETS
        )
        names[(middle + rng.choice(_ENDS)).capitalize()] = None
    rows = []
    for i, name in enumerate(names):
        prompt, rephrase = _RELATIONS[int(rng.integers(len(_RELATIONS)))]
        known, truth = _TRUE[i % len(_TRUE)]
        rows.append(
            {
                "prompt": prompt.format(name),
                "target_new": str(rng.choice(_ANSWERS)),
                "rephrase_prompt": rephrase.format(name),
                "subject": name,
                "locality_prompt": known,
                "locality_ground_truth": truth,
            }
        )
    return rows
