"""The verb ``tuners``: what can be tuned how, and what it costs for a given model."""

from __future__ import annotations

from typing import Any

from tunesmith._cli.tables import table
from tunesmith.core.errors import shorten

__all__ = ["list_methods", "sizes_for"]

TOKENS = 4096  # of the step that is estimated: 8 rows of 512


def list_methods(family: str | None, mergeable: bool | None, every: bool) -> list[str]:
    """Return the catalogue as lines: those that are installed, or all."""
    from tunesmith.tuners.catalogue import find

    found = find(family=family, mergeable=mergeable, available=None if every else True)
    rows = [
        (
            entry.key,
            entry.title,
            f"{entry.family}, {entry.subfamily}",
            entry.mergeable,
            entry.implemented_by if entry.available or entry.implemented_by == "none" else "planned",
            entry.mechanism,
        )
        for entry in found
    ]
    head = ["name", "method", "family", "merges", "by", "what it does"]
    return [table(head, rows, wrap=5), "", f"{len(found)} methods."]


def sizes_for(model: str, family: str | None, mergeable: bool | None) -> list[str]:
    """Return what each installed method trains in a model, with memory and time of a step, as lines.

    Memory: the weights in their type, and gradient and two moments in float32 for what is trained; activations come on
    top and are much the same for all. Time: of 4,096 tokens on this machine, from a matrix product measured now, at the
    share of its speed that training reaches.

    Raises:
        MissingModelError: there is no such model.
    """
    from tunesmith.engine.models import auto_dtype
    from tunesmith.recipe.footprint import BYTES, EFFICIENCY, matmul_speed, model_config
    from tunesmith.recipe.schema import ModelSpec
    from tunesmith.tuners.catalogue import Size, find, size_of

    config = model_config(ModelSpec(id=model))
    dtype = auto_dtype()
    speed, each = matmul_speed(dtype) * EFFICIENCY, BYTES[dtype]
    found = [
        (entry, size_of(entry, config))
        for entry in find(family=family, mergeable=mergeable, available=True)
        if entry.implemented_by in ("peft", "tunesmith")
    ]
    full = Size("full", found[0][1].total, found[0][1].total) if found else None
    lines, rows, failed = [], [], []
    for entry, size in sorted(found, key=lambda pair: (pair[1].trained or 0, pair[0].key)):
        if size.trained is None:
            failed.append(f"{entry.key}: {shorten(size.why_not, 120)}")
            continue
        rows.append(_row(entry.key, entry.family, size, entry.mergeable, each, speed))
    if full is not None:
        rows.append(_row("full", "all weights", full, True, each, speed))
        lines.append(
            f"{model}: {full.total:,} weights in {dtype}. Defaults of each method, for a first comparison."
        )
    head = ["name", "family", "trained", "share in %", "memory in GB", "s per step", "merges"]
    lines += ["", table(head, rows)]
    if failed:
        lines += ["", "Not counted:", *(f"  {line}" for line in failed)]
    return lines


def _row(key: str, family: str, size: Any, mergeable: bool, each: int, speed: float) -> tuple[Any, ...]:
    """One line; a step is forward, gradient of activations, and gradient of the weights that are trained."""
    memory = (size.total * each + size.trained * 12) / 1e9
    seconds = 2 * TOKENS * (2 * size.total + size.trained) / speed
    return key, family, size.trained, 100 * size.trained / size.total, memory, seconds, mergeable
