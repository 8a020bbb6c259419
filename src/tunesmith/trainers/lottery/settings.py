"""What a lottery-ticket training is told: budget, phases, regularisation, and which weights may be chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from tunesmith.core.errors import ParameterError, nearest

__all__ = ["LotteryTicket", "phase_length"]

METHODS = ("lottery_ticket", "random")
DENSITY = 0.01


@dataclass
class LotteryTicket:
    """Settings of LT-SFT (arXiv 2110.07560), with the released code's defaults unless the paper says otherwise.

    Attributes:
        num_params: K, how many entries are tuned; overrides ``density``.
        density: K as a share of the maskable entries, in (0, 1]; 0.01 by default.
        n_iterations: R; K / R entries are added in each (the last ones so that there are K in all).
        method: ``"lottery_ticket"`` ranks by movement in a dense phase, ``"random"`` draws positions uniformly and has
            no dense phase (the paper's baseline).
        dense_steps: optimiser steps of the dense phase at most, T1.
        dense_epochs: its passes over the rows at most.
        sparse_steps: of the sparse phase, T2; without ``sparse_steps`` and ``sparse_epochs`` as the dense phase.
        sparse_epochs: its passes over the rows at most.
        min_steps: steps of each phase at least, where its epochs are fewer; see `phase_length`.
        l1_dense: lambda of J = lambda / N * sum |theta - theta0| in the dense phase; N counts all parameters.
        l1_sparse: lambda in the sparse phase.
        l1_maskable_only: leave dense tensors (the head) out of J.
        maskable: weights that may be chosen, as names or beginnings of names up to a dot; by default the trainable
            ones below the model's ``base_model_prefix``, and the weight of an output layer over the vocabulary.
        dense: weights that are trained whole, in the same form; by default the other trainable ones (a head).
        freeze_layer_norm: leave all normalisation layers as they are (so in every script of the authors).
        freeze_output_embedding: untie the output layer over the vocabulary from the embeddings and leave it as it is
            (so in the authors' masked language modelling).
        threshold: differences of at most this size are dropped from the result.
        seed: of the random mask; the trainer's by default.

    Raises:
        ParameterError: a value is outside its set, or the length of the phases is not given.
    """

    num_params: int | None = None
    density: float | None = None
    n_iterations: int = 1
    method: str = "lottery_ticket"
    dense_steps: int | None = None
    dense_epochs: float | None = None
    sparse_steps: int | None = None
    sparse_epochs: float | None = None
    min_steps: int | None = None
    l1_dense: float = 0.0
    l1_sparse: float = 0.0
    l1_maskable_only: bool = False
    maskable: Sequence[str] | None = None
    dense: Sequence[str] | None = None
    freeze_layer_norm: bool = True
    freeze_output_embedding: bool = False
    threshold: float = 1e-7
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.num_params is not None and not (_whole(self.num_params) and self.num_params >= 0):
            raise ParameterError("num_params", self, "an int >= 0 or None", self.num_params)
        if self.density is not None and not 0 < self.density <= 1:
            raise ParameterError("density", self, "a float in (0, 1] or None", self.density)
        if not (_whole(self.n_iterations) and self.n_iterations >= 1):
            raise ParameterError("n_iterations", self, "an int >= 1", self.n_iterations)
        if self.method not in METHODS:
            raise ParameterError("method", self, f"one of {', '.join(METHODS)}", self.method)
        for name in ("dense_steps", "sparse_steps", "min_steps"):
            value = getattr(self, name)
            if value is not None and not (_whole(value) and value >= 1):
                raise ParameterError(name, self, "an int >= 1 or None", value)
        for name in ("dense_epochs", "sparse_epochs"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ParameterError(name, self, "a float above 0 or None", value)
        for name in ("l1_dense", "l1_sparse", "threshold"):
            if not getattr(self, name) >= 0:
                raise ParameterError(name, self, "a float >= 0", getattr(self, name))
        if self.maskable is not None and self.dense is not None:
            raise ParameterError("dense", self, "None where 'maskable' is given: it is the rest", self.dense)
        if self.sparse_steps is None and self.sparse_epochs is None:
            self.sparse_steps, self.sparse_epochs = self.dense_steps, self.dense_epochs
        needed = ("dense", "sparse") if self.method == "lottery_ticket" else ("sparse",)
        for phase in needed:
            steps, epochs = getattr(self, f"{phase}_steps"), getattr(self, f"{phase}_epochs")
            if steps is None and epochs is None:
                raise ParameterError(
                    f"{phase}_steps",
                    self,
                    f"an int, or '{phase}_epochs' a float: a phase needs a length",
                    None,
                )
            if steps is not None and self.min_steps is not None and self.min_steps > steps:
                raise ParameterError("min_steps", self, f"at most {phase}_steps = {steps}", self.min_steps)

    @classmethod
    def of(cls, value: Any) -> LotteryTicket:
        """Return settings from settings or from a mapping of their fields.

        Raises:
            ParameterError: it is neither, a field is unknown, or a value is outside its set.
        """
        if isinstance(value, cls):
            return value
        if not isinstance(value, Mapping):
            raise ParameterError("lottery", cls, "a LotteryTicket, or a mapping of its fields", value)
        known = [f.name for f in fields(cls)]
        for name in value:
            if name not in known:
                raise ParameterError("lottery", cls, f"of {', '.join(known)}.{nearest(name, known)}", name)
        return cls(**value)

    def budget(self, maskable: int) -> int:
        """Return K for a number of maskable entries.

        Raises:
            ParameterError: K exceeds it, or nothing is maskable.
        """
        if maskable == 0:
            raise ParameterError(
                "maskable", self, "of at least one trainable weight of the model", self.maskable
            )
        if self.num_params is None:
            return max(1, round((DENSITY if self.density is None else self.density) * maskable))
        if self.num_params > maskable:
            raise ParameterError(
                "num_params", self, f"at most {maskable:,}, the maskable entries", self.num_params
            )
        return self.num_params

    def describe(self) -> dict[str, Any]:
        """Return the settings as JSON-able values, for telling two trainings apart."""
        return {name: list(v) if isinstance(v, (list, tuple, set)) else v for name, v in asdict(self).items()}


def phase_length(
    min_steps: int | None,
    max_steps: int | None,
    max_epochs: float | None,
    n_examples: int,
    batch: int,
    accumulation: int,
) -> tuple[int, float | None]:
    """Return a phase's ``(max_steps, epochs)`` as a trainer takes them; max_steps -1 means that the epochs rule.

    The epochs count unless they are longer than ``max_steps``, or shorter than ``min_steps`` (which then rules).

    Args:
        min_steps: optimiser steps at least; matters only with ``max_epochs``.
        max_steps: optimiser steps at most.
        max_epochs: passes at most.
        n_examples: rows.
        batch: rows per micro-batch, over all processes.
        accumulation: micro-batches per step.

    Raises:
        ParameterError: neither ``max_steps`` nor ``max_epochs`` is given, or the least exceeds the most.
    """
    if max_steps is None and max_epochs is None:
        raise ParameterError("max_steps", phase_length, "an int, or 'max_epochs' a float", None)
    if min_steps is not None and max_steps is not None and min_steps > max_steps:
        raise ParameterError("min_steps", phase_length, f"at most max_steps = {max_steps}", min_steps)
    if max_epochs is None:
        assert max_steps is not None
        return max_steps, None
    steps = int(max_epochs * n_examples / (batch * accumulation))
    if max_steps is not None and max_steps <= steps:
        return max_steps, None
    if min_steps is not None and steps < min_steps:
        return min_steps, None
    return -1, max_epochs


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
