"""Stage 1 of Fine-T2I: the grid of tasks, categories, styles and templates that prompts are drawn from."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.core.errors import DataError, ParameterError, nearest
from tunesmith.core.seeds import child_seed

__all__ = ["Cell", "Taxonomy"]


@dataclass(frozen=True)
class Cell:
    """One draw from the grid.

    Attributes:
        concept: id that every version and image of the prompt shares.
        category: what is shown.
        style: how it is shown.
        tasks: one or two elementary tasks that the prompt must pose.
        template: form of the sentence.
        seed: for the writer of the prompt.
    """

    concept: str
    category: str
    style: str
    tasks: tuple[str, ...]
    template: str
    seed: int


@dataclass(frozen=True)
class Taxonomy:
    """Weighted lists of categories, styles, task combinations and templates.

    Weights are numbers >= 0 with a positive sum, per list; they are scaled to 1. The list in ``taxonomy.yaml`` beside
    this module is the default.

    Attributes:
        categories: name -> weight.
        styles: name -> weight.
        tasks: combination of elementary tasks -> weight.
        templates: name -> weight.
        groups: category -> group, for tables; may be empty.

    Raises:
        ParameterError: a list is empty, or its weights are not numbers >= 0 with a positive sum.
    """

    categories: Mapping[str, float]
    styles: Mapping[str, float]
    tasks: Mapping[tuple[str, ...], float]
    templates: Mapping[str, float]
    groups: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("categories", "styles", "tasks", "templates"):
            object.__setattr__(self, name, _shares(getattr(self, name), name))

    @classmethod
    def load(cls, path: str | os.PathLike[str] | None = None) -> Taxonomy:
        """Read a taxonomy from YAML, by default the one that comes with the package.

        Raises:
            DataError: the file cannot be read or lacks a part.
            ParameterError: weights are not valid.
        """
        from ruamel.yaml import YAML
        from ruamel.yaml.error import YAMLError

        file = Path(__file__).with_name("taxonomy.yaml") if path is None else Path(path)
        try:
            values = YAML(typ="safe", pure=True).load(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, YAMLError) as error:
            raise DataError(f"the taxonomy cannot be read: {error}", source=str(file)) from error
        missing = {"groups", "styles", "tasks", "templates"} - set(values if isinstance(values, dict) else ())
        if missing:
            raise DataError(f"the taxonomy lacks {', '.join(sorted(missing))}.", source=str(file))
        categories: dict[str, float] = {}
        groups: dict[str, str] = {}
        for group, part in values["groups"].items():
            for category in part["categories"]:
                categories[category] = part["share"] / len(part["categories"])
                groups[category] = group
        single = _shares(values["tasks"], "tasks")
        pair_share = float(values.get("pair_share", 0))
        pairs = list(itertools.combinations(single, 2))
        tasks: dict[tuple[str, ...], float] = {(t,): w * (1 - pair_share) for t, w in single.items()}
        total = sum(single[a] * single[b] for a, b in pairs) or 1.0
        tasks |= {(a, b): pair_share * single[a] * single[b] / total for a, b in pairs}
        return cls(categories, values["styles"], tasks, values["templates"], groups)

    def sample(self, n: int, random_state: int = 0) -> list[Cell]:
        """Draw n cells, each axis on its own by its weights; equal seeds give equal cells, and a longer draw begins
        with the shorter one.

        Args:
            n: cells, >= 0.
            random_state: seed.
        """
        if isinstance(n, bool) or not isinstance(n, int) or n < 0:
            raise ParameterError("n", "Taxonomy.sample", "an int >= 0", n)
        columns = [
            _draw(weights, n, child_seed(random_state, "taxonomy", name))
            for name, weights in (
                ("categories", self.categories),
                ("styles", self.styles),
                ("tasks", self.tasks),
                ("templates", self.templates),
            )
        ]
        return [
            Cell(
                f"c{random_state}-{i:07d}",
                category,
                style,
                tasks,
                template,
                child_seed(random_state, "prompt", i),
            )
            for i, (category, style, tasks, template) in enumerate(zip(*columns, strict=True))
        ]

    def check_labels(self, labels: Sequence[str | None], axis: str = "categories") -> None:
        """Check that labels are among the names of an axis; ``None`` is passed over.

        Raises:
            DataError: one is not; names the row and the nearest name.
        """
        known = getattr(self, axis)
        for i, label in enumerate(labels):
            if label is not None and label not in known:
                what = {"categories": "category", "styles": "style", "templates": "template"}[axis]
                raise DataError(
                    f"there is no {what} '{label}' in the taxonomy.{nearest(label, known)} "
                    f"Known: {', '.join(known)}.",
                    row=i,
                )


def _shares(weights: Any, name: str) -> dict[Any, float]:
    expected = "names with weights >= 0 whose sum is positive"
    if not isinstance(weights, Mapping) or not weights:
        raise ParameterError(name, Taxonomy, expected, weights)
    values = []
    for weight in weights.values():
        if isinstance(weight, bool) or not isinstance(weight, (int, float, np.floating, np.integer)):
            raise ParameterError(name, Taxonomy, expected, weights)
        values.append(float(weight))
    array = np.asarray(values)
    if not np.isfinite(array).all() or (array < 0).any() or array.sum() <= 0:
        raise ParameterError(name, Taxonomy, expected, weights)
    return {key: float(value / array.sum()) for key, value in zip(weights, values, strict=True)}


def _draw(weights: Mapping[Any, float], n: int, seed: int) -> list[Any]:
    """Draw by the inverse of the cumulative weights, so that a longer draw begins with the shorter one."""
    names = list(weights)
    ends = np.cumsum(list(weights.values()))
    places = np.searchsorted(ends, np.random.default_rng(seed).random(n) * ends[-1], side="right")
    return [names[min(int(i), len(names) - 1)] for i in places]
