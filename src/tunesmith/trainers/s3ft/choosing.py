"""The rule of S3FT, and what makes a candidate fit to be judged (arXiv 2502.08130, Figure 1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tunesmith.core.errors import ParameterError

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["LEAKS", "SOURCES", "choose_targets", "gold_targets", "refusal"]

SOURCES = ("model", "paraphrase", "gold")
LEAKS = (
    "as in the reference",
    "the reference answer",
    "the reference response",
    "the reference solution",
    "the given answer",
    "the given response",
    "the provided answer",
    "the provided response",
    "the correct response above",
)
"""What tells that the writer had the answer before it; a paraphrase with it in any case is refused."""


def choose_targets(
    y: Sequence[str],
    y_hat: Sequence[str],
    J_hat: Sequence[bool],
    y_tilde: Sequence[str],
    J_tilde: Sequence[bool],
) -> tuple[list[str], list[str]]:
    """Return the target of each row and where it comes from.

    ``t_i = y_hat_i`` if ``J(x_i, y_hat_i, y_i)``, else ``y_tilde_i`` if ``J(x_i, y_tilde_i, y_i)``, else ``y_i``.

    Args:
        y: n gold answers.
        y_hat: the base model's predictions for the prompts; not looked at where the verdict is no.
        J_hat: the judge's verdicts on them.
        y_tilde: its paraphrases of the gold answers; likewise.
        J_tilde: the verdicts on these.

    Returns:
        n targets, and n of ``"model"``, ``"paraphrase"``, ``"gold"``.

    Raises:
        ParameterError: the lengths differ.
    """
    n = len(y)
    for name, values in (("y_hat", y_hat), ("J_hat", J_hat), ("y_tilde", y_tilde), ("J_tilde", J_tilde)):
        if len(values) != n:
            raise ParameterError(
                name, choose_targets, f"as long as y, which has {n} items", f"{len(values)} items"
            )
    sources = [
        "model" if own else "paraphrase" if other else "gold"
        for own, other in zip(J_hat, J_tilde, strict=True)
    ]
    texts = {"model": y_hat, "paraphrase": y_tilde, "gold": y}
    return [texts[source][i] for i, source in enumerate(sources)], sources


def refusal(candidate: str, cut_short: bool, leaks: Sequence[str] = ()) -> str | None:
    """Return why a candidate is refused before any judge sees it, ``None`` where it is not.

    Args:
        candidate: the text.
        cut_short: whether it reached the longest length without an end.
        leaks: phrases it must not have, in any case.
    """
    if not candidate.strip():
        return "empty"
    if cut_short:
        return "cut short"
    folded = candidate.casefold()
    return next((f"says '{leak}'" for leak in leaks if leak.casefold() in folded), None)


def gold_targets(dataset: Dataset, generate: Any = None, **_: Any) -> Dataset:
    """Return the rows as they are, marked as gold: the baseline that other targets are compared with in a recipe.

    Args:
        dataset: rows with gold answers.
        generate: not asked.
    """
    return dataset.add_column("source", ["gold"] * len(dataset))
