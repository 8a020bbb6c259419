"""Metrics of predicted classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from tunesmith.core.errors import DataError, ParameterError

__all__ = ["Accuracy"]


class Accuracy:
    """Share of rows whose predicted class is theirs; with the mean over classes of each one's share beside it."""

    name: ClassVar[str] = "accuracy"
    needs: ClassVar[str] = "classes"
    higher_is_better: ClassVar[bool] = True

    def compute(self, *, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, Any]:
        """Compare classes.

        Args:
            predictions: n classes.
            references: n classes.

        Returns:
            ``{"accuracy": share, "balanced_accuracy": mean share per class of the references, "scores": [n of 0.0 or
            1.0]}``.

        Raises:
            ParameterError: the lengths differ.
            DataError: there is nothing to compare.
        """
        if len(predictions) != len(references):
            raise ParameterError(
                "predictions", self, f"as many as references ({len(references)})", len(predictions)
            )
        if not len(references):
            raise DataError("accuracy: there is nothing to compare.")
        scores = [float(a == b) for a, b in zip(predictions, references, strict=True)]
        per_class: dict[Any, list[float]] = {}
        for reference, score in zip(references, scores, strict=True):
            per_class.setdefault(reference, []).append(score)
        balanced = sum(sum(s) / len(s) for s in per_class.values()) / len(per_class)
        return {"accuracy": sum(scores) / len(scores), "balanced_accuracy": balanced, "scores": scores}
