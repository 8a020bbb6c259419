"""Perplexity of held-out answers: how surprised a model is by text that it was not trained on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike

from tunesmith.core.errors import DataError, ParameterError

__all__ = ["HeldOutPerplexity"]


class HeldOutPerplexity:
    """exp of the mean negative log-likelihood per trained token; 1 is certainty, lower is better.

    Args:
        batch_size: rows per forward pass.
    """

    name: ClassVar[str] = "perplexity"
    needs: ClassVar[str] = "model"
    higher_is_better: ClassVar[bool] = False

    def __init__(self, batch_size: int = 16) -> None:
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ParameterError("batch_size", type(self), "an int of at least 1", batch_size)
        self.batch_size = batch_size

    def compute(self, *, predictions: ArrayLike, references: ArrayLike) -> dict[str, Any]:
        """Compute from sums, as a metric does from answers.

        Args:
            predictions: (n,) negative log-likelihoods, each summed over a row's trained tokens, in nats.
            references: (n,) numbers of those tokens; rows without any are counted and left out of all means.

        Returns:
            ``perplexity`` (over all tokens), ``mean_nll`` (nats per token), ``n_tokens``, ``n_empty`` and
            ``scores``: each row's own nats per token (NaN without tokens), which paired comparisons use.

        Raises:
            ParameterError: the shapes differ.
            DataError: no row has a token.
        """
        nll = np.asarray(predictions, dtype=np.float64)
        counts = np.asarray(references, dtype=np.float64)
        if nll.shape != counts.shape or nll.ndim != 1:
            raise ParameterError(
                "predictions", self, f"of the shape of references, {counts.shape}", nll.shape
            )
        total = float(counts.sum())
        if total == 0:
            raise DataError("no held-out row has a token to be scored, so there is no perplexity.")
        mean = float(nll.sum()) / total
        with np.errstate(invalid="ignore", divide="ignore"):
            scores = np.where(counts > 0, nll / counts, np.nan)
        return {
            self.name: math.exp(mean) if mean < 700 else math.inf,
            "mean_nll": mean,
            "n_tokens": int(total),
            "n_empty": int((counts == 0).sum()),
            "scores": scores.tolist(),
        }

    def evaluate(self, model: Any, tokenizer: Any, rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
        """Score encoded rows with a model.

        Args:
            model: a causal language model.
            tokenizer: its tokenizer; only its padding id is used.
            rows: what `data.preflight.encode_dataset` returns: ``input_ids`` and ``labels``.

        Raises:
            DataError: the rows are not encoded, or none has a trained token.
        """
        from tunesmith.engine.lm import completion_nll

        ids: list[Sequence[int]] = []
        trained: list[list[bool]] = []
        for i, row in enumerate(rows):
            if "input_ids" not in row or "labels" not in row:
                raise DataError(
                    "perplexity needs encoded rows; pass them through encode_dataset first.", row=i
                )
            ids.append(row["input_ids"])
            trained.append([label != -100 for label in row["labels"]])
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        sums, counts = completion_nll(model, ids, trained, pad, batch_size=self.batch_size)
        return self.compute(predictions=sums, references=counts)
