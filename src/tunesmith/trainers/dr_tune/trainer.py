"""``transformers.Trainer`` with DR-Tune's loss (arXiv 2308.12058)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sized
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from tunesmith.core.errors import ParameterError, TrainingError
from tunesmith.trainers.dr_tune.calibration import LOSS_SCALES, combine, loss_terms
from tunesmith.trainers.dr_tune.frozen import FrozenEncoder
from tunesmith.trainers.dr_tune.kept import KeptFeatures
from tunesmith.trainers.dr_tune.rates import head_lr_factor as one_plus_ratio
from tunesmith.trainers.dr_tune.rates import raise_head_lr
from tunesmith.trainers.dr_tune.regularizer import DRTuneRegularizer, check_bank
from tunesmith.trainers.pooled import PooledTrainer
from tunesmith.trainers.pooled.step import Step

__all__ = ["DRTuneTrainer"]

FROZEN = "frozen.sums"


class DRTuneTrainer(PooledTrainer):
    """Fine-tunes a classifier whose head must also be right on calibrated features of the pre-trained encoder.

    For any classifier with pooled features: text and image classifiers of transformers, timm's and your own modules,
    with or without PEFT. Only the head is regularised; the encoder stays free. The saved model is the plain one, at the
    plain cost of inference. DR-Tune (Zhou, Chen and Huang, ICCV 2023, arXiv 2308.12058): loss of Eq. 14, banks as in
    `DRTuneRegularizer`, filled before the first step.

    Args:
        *args: of ``transformers.Trainer``.
        bank_size: K, rows of each bank; 0 is plain fine-tuning.
        weight: lambda; by default K / N for steps of N rows (over accumulation and processes), the paper's. 0 is plain
            fine-tuning.
        loss_scale: "mean" divides the loss by 1 + lambda, as the authors' code, whose learning rates the paper gives;
            "eq14" does not.
        head_lr_factor: the head's learning rate over the encoder's; 1 + lambda by default, the paper's, for SGD. Under
            Adam that is a true rise: choose it yourself. An optimiser that you pass is left as it is.
        rotate_every: steps from one rotation to the next.
        reuse_rotation: rotate by the last rotation in between; False as in the authors' code.
        calibration: "both", "rotation", "translation" or "none".
        normalize: the scaling of the authors' code; False: the paper's equations on raw features.
        keep_features: keep the frozen encoder's features of each row, so that it runs in the first epoch alone; for
            rows that are not augmented. d float32 per row.
        features: ``features(model, inputs)`` -> (B, d), where they are not simply what the head takes.
        head: name of the model's last linear layer; found by default.
        **kwargs: of ``transformers.Trainer``.

    Time: a forward pass of the frozen encoder per step, about a third of a step (see ``keep_features``), and the head
    on K rows more. Memory: the frozen encoder (none with adapters, which are switched off instead) and 2 K d float32.
    Logged: ``ce``, ``dr``.

    Raises:
        ParameterError: a setting outside its range, or a head that is not trained: nothing else is regularised.
        TrainingError: a checkpoint of another bank, or of another pre-trained model.
    """

    def __init__(
        self,
        *args: Any,
        bank_size: int = 2048,
        weight: float | None = None,
        loss_scale: str = "mean",
        head_lr_factor: float | None = None,
        rotate_every: int = 10,
        reuse_rotation: bool = False,
        calibration: str = "both",
        normalize: bool = True,
        keep_features: bool = False,
        features: Callable[..., Any] | None = None,
        head: str | None = None,
        **kwargs: Any,
    ) -> None:
        check_bank(self, bank_size, rotate_every, calibration)
        if weight is not None and not 0 <= weight < float("inf"):
            raise ParameterError("weight", self, "a float of at least 0 or None", weight)
        if loss_scale not in LOSS_SCALES:
            raise ParameterError("loss_scale", self, "'mean' or 'eq14'", loss_scale)
        if head_lr_factor is not None and not 0 < head_lr_factor < float("inf"):
            raise ParameterError("head_lr_factor", self, "a float above 0 or None", head_lr_factor)
        super().__init__(*args, features=features, head=head, **kwargs)
        if not any(p.requires_grad for p in self.pool.module(self.model).parameters()):
            raise ParameterError(
                "head",
                self,
                "a layer that is trained (under PEFT: name it in modules_to_save)",
                self.pool.head,
            )
        self.weight, self.loss_scale = weight, loss_scale
        bank_size = 0 if weight == 0 else bank_size
        rows = (
            self.args.train_batch_size
            * self.args.gradient_accumulation_steps
            * self.accelerator.num_processes
        )
        self.chosen_factor = head_lr_factor
        self.head_lr_factor = head_lr_factor or (
            one_plus_ratio(bank_size, rows) if weight is None or not bank_size else 1 + weight
        )
        self.frozen = FrozenEncoder(self.model, self.pool.head) if bank_size else None
        self.regularizer = DRTuneRegularizer(
            self.dim,
            bank_size,
            rotate_every=rotate_every,
            reuse_rotation=reuse_rotation,
            calibration=calibration,
            normalize=normalize,
        ).to(self.args.device)
        sized = isinstance(self.train_dataset, Sized)
        self.kept = KeptFeatures(len(self.train_dataset) if sized else None) if keep_features else None
        self._warn_of_sizes(bank_size, rows)

    @classmethod
    def settings_for(cls, n_rows: int) -> dict[str, Any]:
        """Return a head that learns at the encoder's rate (AdamW undoes the loss's division), and banks of n rows."""
        return {"head_lr_factor": 1.0, "bank_size": min(2048, n_rows)}

    def _warn_of_sizes(self, bank_size: int, rows: int) -> None:
        if 0 < bank_size < rows:
            warnings.warn(
                f"Banks of {bank_size:,} rows are smaller than a step of {rows:,}: each step replaces them by its last "
                f"{bank_size:,} rows.",
                stacklevel=3,
            )
        data = self.train_dataset
        if isinstance(data, Sized) and 0 < len(data) < bank_size:
            warnings.warn(
                f"Banks of {bank_size:,} rows are larger than the data set of {len(data):,}: they hold rows several "
                "times. Set bank_size to at most its size.",
                stacklevel=3,
            )

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """Return the trainer's optimiser, with the head in groups of its own rate."""
        fresh = self.optimizer is None
        optimizer = super().create_optimizer(*args, **kwargs)
        if fresh and self.head_lr_factor != 1:
            raise_head_lr(optimizer, self.pool.module(self.model), self.head_lr_factor)
            if self.chosen_factor is None and not isinstance(optimizer, torch.optim.SGD):
                warnings.warn(
                    f"The head learns at {self.head_lr_factor:g} times the encoder's rate, which is meant for SGD: "
                    f"{type(optimizer).__name__} undoes the division of the loss by itself. Choose head_lr_factor=.",
                    stacklevel=2,
                )
        return optimizer

    def companions(self, model: nn.Module, inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Return the frozen encoder's features of a micro-batch, (B, d)."""
        if self.frozen is None:
            return {}
        frozen = self.frozen

        def run(part: dict[str, Any]) -> torch.Tensor:
            with self.accelerator.autocast(), frozen.of(model) as encoder:
                return self.pool(encoder, part)[0].detach().float()

        return {"pre": run(inputs) if self.kept is None else self.kept(inputs, run)}

    def prepare_loss(self, model: nn.Module) -> None:
        """Fill the banks, both with features of the frozen encoder; the data are read as often as it takes."""
        if self.frozen is None:
            return
        loader: Any = self.get_train_dataloader()
        loader = getattr(
            loader, "base_dataloader", loader
        )  # accelerate's loader would count as the current one

        def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            more = True
            while more:
                more = False  # of an empty data set
                for batch in loader:
                    inputs = self._prepare_inputs(batch)
                    y = self._labels(inputs)
                    with torch.no_grad():
                        z = self.companions(model, inputs)["pre"]
                    step = Step([len(y)], self.accelerator)
                    yield step.gather([z]), step.gather([y])
                    more = True

        self.regularizer.warm_up(batches())

    def step_loss(
        self,
        z: torch.Tensor,
        y: torch.Tensor,
        head: Callable[[torch.Tensor], torch.Tensor],
        generator: torch.Generator,
        companions: dict[str, torch.Tensor],
    ) -> torch.Tensor:
        """Return the loss of one step, and store its features."""
        if self.frozen is None:
            return cross_entropy(head(z), y)
        bank, labels = self.regularizer(z, companions["pre"], y, self.pool.module(self.model))
        L_CE, R_DR = loss_terms(z, y, bank, labels, head)
        if R_DR is not None:
            self.report(ce=L_CE.detach(), dr=R_DR.detach())
        weight = len(bank) / len(z) if self.weight is None else self.weight
        return combine(L_CE, R_DR, weight, self.loss_scale)

    def loss_state(self) -> dict[str, torch.Tensor]:
        """Return the banks, and by what the pre-trained model is known again."""
        if self.frozen is None:
            return {}
        return {**self.regularizer.state_dict(), FROZEN: self.frozen.sums}

    def load_loss_state(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take up the banks of a checkpoint.

        Raises:
            TrainingError: they have another size, or the model given is not the one that training began with.
        """
        own = self.loss_state()
        if {name: t.shape for name, t in own.items()} != {name: t.shape for name, t in tensors.items()}:
            raise TrainingError(
                "The checkpoint's banks have another size or form than this trainer's: bank_size, reuse_rotation and "
                "the head must be as they were."
            )
        if self.frozen is None:
            return
        sums = tensors.pop(FROZEN).cpu()
        if not torch.allclose(sums, self.frozen.sums, rtol=1e-6):
            raise TrainingError(
                "The model given to the trainer is not the pre-trained one that this training began with: load that "
                "one again, and let resume_from_checkpoint bring the trained weights."
            )
        self.regularizer.load_state_dict(tensors)
