"""Perplexity of captions given their images: the scorer of the POINTS filter (arXiv 2409.04828, eq. 3).

Deviations from the released code: the answer's tokens are found by the processor's chat template, where that code
drops a fixed count of 14; log-probabilities are taken in float32, where it rounds probabilities to bfloat16 first;
items that fail are named, where it skips them silently, and a lack of memory is an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.core.errors import DataError, ParameterError
from tunesmith.select.perplexity import perplexity

__all__ = ["ImageTextScorer"]


class ImageTextScorer:
    """Callable from rows with image and text to the perplexity of the text, for `PerplexitySelector`.

    ``exp(-(1/N) sum_i log P(w_i | image, instruction, w_<i))`` over the text's tokens and its end of turn. One
    forward pass per row, no generation. After an interruption a call with the same rows goes on with those that
    have no score yet.

    Args:
        model: a transformers image-text-to-text model in evaluation mode.
        processor: its processor.
        instruction: the user's turn beside the image; the default is the paper's code's.
        image: key of the image in a row: a `PIL.Image.Image`, a path, or ``None`` for text alone.
        text: key of the text.
        batch_size: rows per forward pass. Rows with images and without are never in one batch.

    Attributes:
        nll_: float64 ``(n,)`` nats, summed over the text's tokens; NaN where it failed.
        tokens_: int64 ``(n,)`` number of those.
        failures_: row number to what was wrong with its image or text.

    Raises:
        ParameterError: ``batch_size`` is not positive, or the model has an encoder for text.

    Example:
        >>> from transformers import AutoModelForImageTextToText, AutoProcessor  # doctest: +SKIP
        >>> scorer = ImageTextScorer(AutoModelForImageTextToText.from_pretrained(folder).eval(),
        ...                          AutoProcessor.from_pretrained(folder))  # doctest: +SKIP
        >>> PerplexitySelector(scorer=scorer).fit(rows).keep(0.2)  # doctest: +SKIP
    """

    model: Any
    processor: Any
    instruction: str
    image: str
    text: str
    batch_size: int
    nll_: NDArray[np.float64]
    tokens_: NDArray[np.int64]
    failures_: dict[int, str]

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        instruction: str = "please generate a caption for this image.",
        image: str = "image",
        text: str = "text",
        batch_size: int = 8,
    ) -> None:
        if isinstance(batch_size, bool) or not isinstance(batch_size, Integral) or batch_size < 1:
            raise ParameterError("batch_size", self, "an int >= 1", batch_size)
        if getattr(model.config, "is_encoder_decoder", False):
            raise ParameterError("model", self, "decoder-only", type(model).__name__)
        self.model = model
        self.processor = processor
        self.instruction = instruction
        self.image = image
        self.text = text
        self.batch_size = int(batch_size)
        self._rows: Any = None  # under way

    def __call__(self, X: Sequence[Any]) -> NDArray[np.float64]:
        """Score rows; NaN for those whose text is empty or whose image cannot be read.

        Args:
            X: n mappings with the two keys, such as a `datasets.Dataset`.

        Returns:
            float64 ``(n,)`` perplexities.

        Raises:
            DataError: a row without these keys, or a template that hides the answer (see
                `tunesmith.engine.image_text_nll`).
        """
        if X is not self._rows:
            self._rows = X
            self.nll_ = np.full(len(X), np.nan)
            self.tokens_ = np.zeros(len(X), dtype=np.int64)
            self.failures_ = {}
        waiting: dict[bool, list[tuple[int, Any, str]]] = {True: [], False: []}
        for k in range(len(X)):
            if self.tokens_[k] or k in self.failures_:
                continue
            row = X[k]
            if self.text not in row or self.image not in row:
                raise DataError(
                    f"ImageTextScorer needs the keys '{self.image}' and '{self.text}' in each row.",
                    row=k,
                    content=", ".join(map(str, row)),
                )
            try:
                image, text = self._opened(row)
            except DataError as error:
                self.failures_[k] = str(error)
                continue
            same = waiting[image is not None]
            same.append((k, image, text))
            if len(same) == self.batch_size:
                self._score(same)
        for rest in waiting.values():
            if rest:
                self._score(rest)
        self._rows = None  # a later call scores anew: the model may have changed
        return perplexity(self.nll_, self.tokens_)

    def _opened(self, row: Any) -> tuple[Any, str]:
        from tunesmith.engine.image_text import open_image

        text = row[self.text]
        if not isinstance(text, str) or not text.strip():
            raise DataError("the text is empty.")
        return (None if row[self.image] is None else open_image(row[self.image])), text

    def _score(self, batch: list[tuple[int, Any, str]]) -> None:
        """Score a batch and empty it."""
        from tunesmith.engine.image_text import image_text_nll

        rows, images, texts = map(list, zip(*batch, strict=True))
        self.nll_[rows], self.tokens_[rows] = image_text_nll(
            self.model, self.processor, images, texts, self.instruction
        )
        batch.clear()
