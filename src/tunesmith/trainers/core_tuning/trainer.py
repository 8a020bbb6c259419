"""Core-tuning in transformers' trainer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from tunesmith.core.errors import DataError, ParameterError
from tunesmith.core.seeds import child_seed
from tunesmith.trainers.core_tuning.losses import (
    CoreTuningLoss,
    ProjectionHead,
    check_loss_settings,
    core_tuning_loss,
)
from tunesmith.trainers.core_tuning.sampler import ClassBalancedSampler
from tunesmith.trainers.pooled import PooledTrainer

__all__ = ["CoreTuningTrainer"]


class CoreTuningTrainer(PooledTrainer):
    """``transformers.Trainer`` that fine-tunes a classifier with Core-tuning.

    Beside the cross-entropy, which learns on mixed features, a projection of the pooled features learns that rows of
    one class belong together, hard pairs above all. For encoders pre-trained by instance discrimination (MoCo, SimCLR
    and alike), all weights tuned; on a frozen encoder nothing but smoother cross-entropy is left. Core-tuning (Zhang et
    al. 2021, arXiv 2102.06605).

    Rows are paired over the whole optimiser step: all micro-batches on all processes. One pass of the model per step
    where there is one batch on one process (see `PooledTrainer` for the others). Beyond that, time O(N² (d + k) + N
    d²) and memory O(N² + N d) for N rows of width d and projections of width k. Features are mixed before the head,
    which should be linear. Logged: ``ce``, ``contrast`` and ``anchors``, the share of rows that have a positive.

    Args:
        *args: of ``transformers.Trainer``.
        eta: weight of the contrast, at least 0; 0 leaves the cross-entropy of mixed features.
        alpha: of the Beta distribution of shares, above 0.
        clip: least share of the other class in generated negatives, in [0, 1].
        tau: temperature, above 0.
        projection_dim: k.
        focal: weigh positives by 1 - p.
        mixup: generate hard pairs; False, with ``focal=False``, is cross-entropy with SupCon.
        positives: ``"class"`` or ``"exact-label"``; by the variant if None.
        normalise: ``"positives"`` or ``"rows"``; by the variant if None. ``eta`` belongs to it.
        detach_originals: no gradient through unmixed features; by the variant if None.
        variant: ``"official"`` is the authors' code.
        strict: refuse a step whose rows are all of one class.
        rows_per_class: batches of so many rows each of ``per_device_train_batch_size / rows_per_class`` classes
            (`ClassBalancedSampler`); in random order if None.
        **kwargs: of `PooledTrainer` (``features``, ``head``) and ``transformers.Trainer``.

    Raises:
        ParameterError: a parameter outside its set.
        DataError: labels are missing, no class numbers or outside the head; a step of fewer than 2 rows, or of one
            class where ``strict``.
    """

    def __init__(
        self,
        *args: Any,
        eta: float = 0.1,
        alpha: float = 1.0,
        clip: float = 0.8,
        tau: float = 0.07,
        projection_dim: int = 256,
        focal: bool = True,
        mixup: bool = True,
        positives: str | None = None,
        normalise: str | None = None,
        detach_originals: bool | None = None,
        variant: str = "paper",
        strict: bool = False,
        rows_per_class: int | None = None,
        **kwargs: Any,
    ) -> None:
        self.loss_settings: dict[str, Any] = {
            "eta": eta,
            "tau": tau,
            "focal": focal,
            "mixup": mixup,
            "positives": positives,
            "normalise": normalise,
            "detach_originals": detach_originals,
            "variant": variant,
            "alpha": alpha,
            "clip": clip,
            "strict": strict,
        }
        check_loss_settings(type(self), self.loss_settings)
        if projection_dim < 1:
            raise ParameterError("projection_dim", self, "an int of at least 1", projection_dim)
        self.projection_dim, self.rows_per_class = projection_dim, rows_per_class
        self._balanced: ClassBalancedSampler | None = None
        super().__init__(*args, **kwargs)
        if rows_per_class is not None:
            batch = self.args.per_device_train_batch_size
            if rows_per_class < 2 or batch % rows_per_class:
                raise ParameterError(
                    "rows_per_class",
                    self,
                    f"an int of at least 2 that divides per_device_train_batch_size={batch}",
                    rows_per_class,
                )
            self.add_callback(_Epochs(self))

    def build_extra(self, d: int, n_classes: int) -> nn.Module:
        """Return the projection G, d -> ``projection_dim``."""
        return ProjectionHead(d, self.projection_dim)

    def step_loss(
        self,
        z: torch.Tensor,
        y: torch.Tensor,
        head: Callable[[torch.Tensor], torch.Tensor],
        generator: torch.Generator,
        companions: dict[str, torch.Tensor],
    ) -> torch.Tensor:
        """Return `core_tuning_loss` of the rows of the step."""
        if len(y) < 2:
            raise DataError(
                "Core-tuning pairs rows, and this step has one: raise per_device_train_batch_size or "
                "gradient_accumulation_steps, or set dataloader_drop_last=True if it is the rest of an epoch."
            )
        assert self.extra is not None
        found: CoreTuningLoss = core_tuning_loss(
            z, y, head, self.extra, self.n_classes, generator=generator, **self.loss_settings
        )
        anchors = (torch.bincount(y)[y] > 1).float().mean()
        self.report(ce=found.ce.detach(), contrast=found.contrast.detach(), anchors=anchors)
        return found.loss

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if self.rows_per_class is None:
            return super()._get_train_sampler(dataset)
        self._balanced = ClassBalancedSampler(
            self._classes(dataset),
            self.args.per_device_train_batch_size // self.rows_per_class,
            self.rows_per_class,
            seed=child_seed(self.args.seed, "sampler"),
        )
        return self._balanced

    def _classes(self, dataset: Any) -> Any:
        """Return the class of each row, without a look at the inputs where that can be avoided."""
        names = [*self.label_names, "labels", "label"]
        columns = getattr(dataset, "column_names", None) or ()
        for name in names:
            if name in columns:
                return dataset[name][:]
        for name in ("targets", "labels"):
            if hasattr(dataset, name):
                return getattr(dataset, name)
        if hasattr(dataset, "__len__") and len(dataset) and isinstance(dataset[0], dict):
            key = next((n for n in names if n in dataset[0]), None)
            if key is not None:
                return [int(dataset[i][key]) for i in range(len(dataset))]
        raise DataError(
            "rows_per_class needs the classes of all rows before training: a column 'labels' or 'label', or an "
            "attribute 'targets' or 'labels' of the dataset."
        )


class _Epochs(TrainerCallback):
    """Tell the sampler its epoch: after a resume on several processes nothing else does."""

    def __init__(self, trainer: CoreTuningTrainer) -> None:
        self.trainer = trainer

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the trainer before it reads the epoch's batches."""
        if self.trainer._balanced is not None:
            self.trainer._balanced.set_epoch(int(state.epoch or 0))
