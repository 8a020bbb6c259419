"""Probability that one text contradicts another: an inference model, or sentence embeddings in its place."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tunesmith.core.errors import ParameterError

__all__ = ["Contradiction", "EmbeddingContradiction", "NLIModel", "open_nli"]

Contradiction = Callable[[Sequence[str], Sequence[str]], Any]
"""Premises and hypotheses, b each -> ``(b,)`` probabilities that the hypothesis contradicts the premise."""


class NLIModel:
    """A sequence-pair classifier with a label for contradiction, read from its ``id2label``.

    The label is the one whose name contains "contradict", wherever it stands. Pairs longer than the model's window
    are cut at the longer text, with a warning. Time: one forward pass a pair, in batches of similar length.

    Args:
        model: folder or Hub id of a sequence-classification model, or such a model with its ``tokenizer``.
        tokenizer: the tokenizer of a model that is given as an object.
        batch_size: pairs per forward pass.
        max_length: longest pair in tokens.
        device: by default the GPU when there is one.

    Raises:
        ParameterError: the model has no label, or several, for contradiction.
        MissingModelError: the model cannot be found or reached.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        *,
        batch_size: int = 32,
        max_length: int = 512,
        device: str | None = None,
    ) -> None:
        from tunesmith.engine.models import default_device, load_classifier

        if isinstance(model, str):
            model, tokenizer = load_classifier(model)
        self.model, self.tokenizer = model.to(device or default_device()).eval(), tokenizer
        self.batch_size, self.max_length = batch_size, max_length
        labels = {int(i): str(name) for i, name in model.config.id2label.items()}
        found = [i for i, name in labels.items() if "contradict" in name.lower()]
        if len(found) != 1:
            raise ParameterError(
                "nli", "BSDetector", "a model with one label for contradiction", list(labels.values())
            )
        self.index = found[0]

    def __call__(self, premises: Sequence[str], hypotheses: Sequence[str]) -> NDArray[np.float64]:
        """Return ``(b,)`` softmax probabilities of contradiction."""
        import torch

        order = sorted(range(len(premises)), key=lambda i: -len(premises[i]) - len(hypotheses[i]))
        p, cut = np.zeros(len(premises)), 0
        for begin in range(0, len(order), self.batch_size):
            rows = order[begin : begin + self.batch_size]
            pairs = [[premises[i] for i in rows], [hypotheses[i] for i in rows]]
            lengths = self.tokenizer(*pairs, truncation=False, verbose=False)["input_ids"]
            cut += sum(len(ids) > self.max_length for ids in lengths)
            batch = self.tokenizer(
                *pairs,
                truncation="longest_first",
                max_length=self.max_length,
                padding=True,
                return_tensors="pt",
            )
            with torch.inference_mode():
                logits = self.model(**batch.to(self.model.device)).logits
            p[rows] = logits.float().softmax(-1)[:, self.index].cpu().double().numpy()
        if cut:
            warnings.warn(
                f"{cut} of {len(p)} pairs of answers were longer than {self.max_length} tokens and cut for the "
                "inference model.",
                stacklevel=2,
            )
        return p

    def __deepcopy__(self, memo: Any) -> Self:
        return self


class EmbeddingContradiction:
    """``1 - max(0, cosine)`` of sentence embeddings: what stands in where no inference model is at hand.

    It tells a different subject from the same one, hardly "yes" from "no", and numbers badly: the method's own
    choice is an inference model.

    Args:
        encoder: ``"minilm"`` (bundled), a folder, or a Hub id of a sentence-transformers model.
    """

    def __init__(self, encoder: str = "minilm") -> None:
        self.encoder = encoder
        self._loaded: Any = None

    def __call__(self, premises: Sequence[str], hypotheses: Sequence[str]) -> NDArray[np.float64]:
        """Return ``(b,)`` numbers in [0, 1], the same in both orders."""
        from tunesmith.engine.models import load_encoder

        if self._loaded is None:
            self._loaded = load_encoder(self.encoder)
        texts = sorted({*premises, *hypotheses})
        vectors = self._loaded.encode(texts, normalize_embeddings=True, show_progress_bar=False)
        at = {text: i for i, text in enumerate(texts)}
        a, b = (
            np.asarray(vectors, dtype=np.float64)[[at[t] for t in part]] for part in (premises, hypotheses)
        )
        return 1.0 - np.clip((a * b).sum(axis=1), 0.0, 1.0)

    def __deepcopy__(self, memo: Any) -> Self:
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_loaded": None}


def open_nli(spec: Any, owner: Any) -> Contradiction:
    """Return what judges contradiction.

    Args:
        spec: a callable of the form of `Contradiction`; ``"embedding"``, or ``"embedding:ENCODER"`` for another
            encoder than the bundled one; or the folder or Hub id of an inference model.
        owner: whose parameter ``nli`` it is.

    Raises:
        ParameterError: it is none of these, or the model has no label for contradiction.
    """
    if isinstance(spec, str) and spec:
        name, _, encoder = spec.partition(":")
        return EmbeddingContradiction(encoder or "minilm") if name == "embedding" else NLIModel(spec)
    if callable(spec):
        return spec  # type: ignore[no-any-return]
    raise ParameterError("nli", owner, "a model's id, 'embedding' or a callable", spec)
