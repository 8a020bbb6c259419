"""HFT on a model: rounds of a drawn half, kept for resuming and for the record."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tunesmith.core.errors import ParameterError, TrainingError
from tunesmith.core.files import read_json, write_json
from tunesmith.core.seeds import child_seed
from tunesmith.tuners.hft.selection import matrices_of, select_half

if TYPE_CHECKING:
    from tunesmith.tuners.hft.callback import HalfFineTuningCallback

__all__ = ["FILE", "HalfFineTuning", "Round"]

FILE = "half_fine_tuning.json"


@dataclass(frozen=True)
class Round:
    """One drawn half.

    Attributes:
        index: number of the round, from 0.
        seed: with the index, determines the draw.
        trained: names of the parameters of the layers that this round trains; those outside of the layers are trained
            or frozen in every round alike.
    """

    index: int
    seed: int
    trained: tuple[str, ...]


class HalfFineTuning:
    """Half fine-tuning (Hui et al., ACL 2025, arXiv 2404.18466): train half of each layer, keep the other half.

    A round is a stage of training (a fine-tuning, a preference stage, one task of a sequence), not an epoch. Draw it
    **before** the trainer makes its optimizer; any trainer that respects ``requires_grad`` then works unchanged,
    and frozen weights have no gradient and no optimizer state::

        half = HalfFineTuning(model, seed=0)
        half.new_round()
        SFTTrainer(model, ..., callbacks=[half.callback()]).train()
        half.new_round()  # for the next task, with a new trainer
        DPOTrainer(model, ..., callbacks=[half.callback()]).train()

    The result is an ordinary dense model. Nothing is drawn or changed before the first `new_round`. Under FSDP or ZeRO
    draw before wrapping; FSDP needs ``use_orig_params=True``. All processes draw the same half from the same seed.

    Args:
        model: a transformers model with transformer layers, not quantised, without adapters. Changed in place: only
            the ``requires_grad`` flags.
        ratio: share of the matrices that a round trains, in [0, 1].
        level: ``"category"`` (the method), ``"layer"`` or ``"model"``, see `select_half`.
        balance: ``"matrices"``, or ``"params"`` to keep the share for numbers too under grouped-query attention.
        train_outside: train what lies outside of the layers (embeddings, final norm, head), as in the paper, whose
            ablation without scores lower. In small models it is a large part: see `trainable_parameters`.
        seed: of the draws; each round draws independently.

    Attributes:
        rounds: the rounds so far, the current one last.

    Warns:
        UserWarning: the layers hold fused matrices, which cannot be split by ``requires_grad``.

    Raises:
        ParameterError: a parameter is outside its set, the layers hold tensors of unknown category, the model is
            quantised or has adapters.
    """

    def __init__(
        self,
        model: Any,
        *,
        ratio: float = 0.5,
        level: str = "category",
        balance: str = "matrices",
        train_outside: bool = True,
        seed: int = 0,
    ) -> None:
        select_half(
            [], np.random.default_rng(0), ratio=ratio, level=level, balance=balance
        )  # checks the values
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise ParameterError("seed", self, "an int", seed)
        self.model, self.ratio, self.level, self.balance = model, float(ratio), level, balance
        self.train_outside, self.seed = bool(train_outside), seed
        self.matrices, self.outside = matrices_of(model)
        self.rounds: list[Round] = []
        fused = [matrix.parameters[0] for matrix in self.matrices if matrix.fused]
        if fused and 0 < ratio < 1:
            warnings.warn(
                f"{fused[0]}{f' and {len(fused) - 1} more tensors' if len(fused) > 1 else ''} hold several matrices in "
                "one: requires_grad cannot split them, so each counts as one matrix and the trained share of the "
                "layers' numbers may drift from the ratio (balance='params' keeps it over all layers).",
                stacklevel=2,
            )

    def new_round(self, seed: int | None = None) -> Round:
        """Draw the next round and set the model's ``requires_grad`` flags; stale gradients of frozen weights go.

        Make the trainer (its optimizer) after this.

        Args:
            seed: of this and the following draws; by default the one of the constructor. Equal seed and round number
                give the equal half.

        Returns:
            The round.

        Raises:
            ParameterError: ``seed`` is no int.
        """
        if seed is not None:
            if isinstance(seed, bool) or not isinstance(seed, int):
                raise ParameterError("seed", "new_round", "an int or None", seed)
            self.seed = seed
        index = len(self.rounds)
        rng = np.random.default_rng(child_seed(self.seed, "hft", index))
        chosen = select_half(self.matrices, rng, ratio=self.ratio, level=self.level, balance=self.balance)
        names = [name for matrix in self.matrices for name in matrix.parameters if name in chosen]
        self.rounds.append(Round(index, self.seed, tuple(names)))
        self.apply()
        return self.rounds[-1]

    def apply(self) -> None:
        """Set the flags of the current round again, for example after something has released all weights.

        Raises:
            TrainingError: no round has been drawn.
        """
        trained = self.trained
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in trained)
            if name not in trained:
                parameter.grad = None

    @property
    def trained(self) -> set[str]:
        """Names of the parameters that the current round trains, with those outside of the layers."""
        if not self.rounds:
            raise TrainingError("No half has been drawn: call new_round() before the trainer is made.")
        return {*self.rounds[-1].trained, *(self.outside if self.train_outside else ())}

    @property
    def frozen(self) -> set[str]:
        """Names of the parameters that the current round leaves as they are."""
        return {name for name, _ in self.model.named_parameters()} - self.trained

    @property
    def trainable(self) -> dict[str, bool]:
        """For each parameter whether the current round trains it."""
        trained = self.trained
        return {name: name in trained for name, _ in self.model.named_parameters()}

    def trainable_parameters(self) -> tuple[int, int]:
        """Return how many numbers the current round trains, and how many the model has; tied ones count once."""
        trained = self.trained
        sizes = {name: p.numel() for name, p in self.model.named_parameters()}
        return sum(size for name, size in sizes.items() if name in trained), sum(sizes.values())

    def layer_share(self) -> float:
        """Return the share of the layers' numbers that the current round trains."""
        trained = self.trained
        total = sum(matrix.size for matrix in self.matrices)
        return sum(matrix.size for matrix in self.matrices if matrix.parameters[0] in trained) / total

    def print_trainable_parameters(self) -> None:
        """Print the counts in the form of PEFT's method of that name."""
        trained, total = self.trainable_parameters()
        print(
            f"trainable params: {trained:,} || all params: {total:,} || trainable%: {100 * trained / total:.4f}"
        )

    def callback(self) -> HalfFineTuningCallback:
        """Return a callback for the trainer.

        It stops a training whose optimizer was made before the round or whose flags something has changed, writes
        the rounds into every checkpoint, and refuses to resume from a checkpoint of another half.
        """
        from tunesmith.tuners.hft.callback import HalfFineTuningCallback

        return HalfFineTuningCallback(self)

    def state_dict(self) -> dict[str, Any]:
        """Return settings and rounds as plain values for JSON."""
        return {
            "method": "half fine-tuning, arXiv 2404.18466",
            "ratio": self.ratio,
            "level": self.level,
            "balance": self.balance,
            "train_outside": self.train_outside,
            "rounds": [{"index": r.index, "seed": r.seed, "trained": list(r.trained)} for r in self.rounds],
        }

    def save(self, folder: str | Path) -> Path:
        """Write the rounds to ``half_fine_tuning.json`` in a folder; return its path."""
        path = Path(folder) / FILE
        write_json(path, self.state_dict())
        return path

    @classmethod
    def load(cls, model: Any, folder: str | Path) -> HalfFineTuning:
        """Take up what `save` or a checkpoint of the callback has kept, and set the flags of its last round.

        Args:
            model: of the same architecture.
            folder: with the file in it, or the file.

        Raises:
            ParameterError: there is no such file, or its rounds name parameters that the model does not have.
        """
        path = Path(folder)
        path = path / FILE if path.is_dir() else path
        if not path.exists():
            raise ParameterError("folder", "HalfFineTuning.load", f"a folder with {FILE} in it", str(folder))
        state: Mapping[str, Any] = read_json(path)
        settings = {name: state[name] for name in ("ratio", "level", "balance", "train_outside")}
        rounds = [Round(r["index"], r["seed"], tuple(r["trained"])) for r in state["rounds"]]
        half = cls(model, **settings, seed=rounds[-1].seed if rounds else 0)
        known = {name for matrix in half.matrices for name in matrix.parameters}
        strange = sorted({name for r in rounds for name in r.trained} - known)
        if strange:
            raise ParameterError(
                "model",
                "HalfFineTuning.load",
                f"the one that {path} was written for; it has no {strange[0]}",
                type(model).__name__,
            )
        half.rounds = rounds
        if rounds:
            half.apply()
        return half
