"""The trainer under losses that compare the rows of a batch, or hold a queue of features.

Such a loss is no mean over rows, so the usual gradient accumulation and data parallelism change it: pairs exist only
within a micro-batch. Here a subclass writes the loss of one whole optimiser step, and the base makes it so however the
step is cut: where there are several micro-batches or processes, a pass without gradients first collects all features
Z, the loss L(Z) and its gradient are computed once, and each micro-batch is then run with the linear loss
<z, dL/dZ>, whose gradient is the same (the gradient cache of Gao et al. 2021, arXiv 2101.06983).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import Trainer, TrainerCallback

from tunesmith.core.errors import DataError, TrainingError
from tunesmith.core.files import atomic_open
from tunesmith.core.seeds import child_seed
from tunesmith.trainers.pooled.features import PooledFeatures
from tunesmith.trainers.pooled.step import Step, keeping_statistics, same_draws

__all__ = ["PooledTrainer"]

STATE_FILE = "pooled_loss.safetensors"
EXTRA = "extra."


class PooledTrainer(Trainer):
    """``transformers.Trainer`` for classifiers with a loss on pooled features; subclasses write `step_loss`.

    ``gradient_accumulation_steps=k`` with batches of b, or k processes, learn what one batch of k b learns (up to
    dropout, whose masks follow the batches, and batch normalisation). Cost: with k > 1 or several processes one pass
    without gradients more, about a third of a step; memory: the features (N, d) of a step. Evaluation is the plain
    cross-entropy, and the saved model is the plain model.

    Args:
        *args: of ``transformers.Trainer``.
        features: ``features(model, inputs)`` -> (B, d), where they are not simply what the head takes.
        head: name of the model's last linear layer; found by default.
        **kwargs: of ``transformers.Trainer``.

    Attributes:
        pool: the `PooledFeatures`.
        dim: d.
        n_classes: C.
        extra: the modules of `build_extra`, None without.

    Raises:
        ParameterError: no head is found, or ``features`` is no callable.
        TrainingError: weights are sharded (FSDP, DeepSpeed) or the model is run by ``DataParallel``.
    """

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        *args: Any,
        features: Callable[..., Any] | None = None,
        head: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if not getattr(self, "label_names", None):  # of a plain module, whose forward takes no labels
            self.label_names: list[str] = ["labels"]
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise TrainingError(
                f"{type(self).__name__} needs the head's whole weights on each process: use plain data parallelism, "
                "not FSDP or DeepSpeed."
            )
        if self.args.n_gpu > 1:
            raise TrainingError(
                f"{type(self).__name__} runs one process per device: start it with `accelerate launch` or `torchrun`, "
                "or show it one device (CUDA_VISIBLE_DEVICES=0)."
            )
        self.pool = PooledFeatures(self.model, head, features, owner=type(self))
        self.dim, self.n_classes = self.pool.dim, self.pool.n_classes
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(child_seed(self.args.seed, "extra"))
            self.extra = self.build_extra(self.dim, self.n_classes)
        if self.extra is not None:
            self.extra.to(self.args.device)
        self._notes: dict[str, list[float]] = {}
        self._batches: list[Any] = []
        self._position, self._ready = 0, False
        self._solved: tuple[Step, torch.Tensor, list[Any], torch.Tensor] | None = None
        self.add_callback(_LossState(self))

    # What subclasses write.

    @classmethod
    def settings_for(cls, n_rows: int) -> dict[str, Any]:
        """Return parameters that should differ from the defaults under AdamW, with so many rows; none by default."""
        return {}

    def build_extra(self, d: int, n_classes: int) -> nn.Module | None:
        """Return modules that are trained beside the model and left out of it afterwards; None by default."""
        return None

    def companions(self, model: nn.Module, inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Return further tensors (B, ...) of a micro-batch, made without gradients; none by default."""
        return {}

    def prepare_loss(self, model: nn.Module) -> None:
        """Called once before the first step, unless a checkpoint brings the state."""

    def step_loss(
        self,
        z: torch.Tensor,
        y: torch.Tensor,
        head: Callable[[torch.Tensor], torch.Tensor],
        generator: torch.Generator,
        companions: dict[str, torch.Tensor],
    ) -> torch.Tensor:
        """Return the loss of one whole optimiser step; called once per step.

        Args:
            z: features (N, d), float32, of all micro-batches on all processes.
            y: labels (N,), int64 in [0, C).
            head: (M, d) -> logits (M, C).
            generator: for draws on the CPU, seeded by the trainer's seed and the step.
            companions: tensors (N, ...) of `companions`.
        """
        raise NotImplementedError

    def loss_state(self) -> dict[str, torch.Tensor]:
        """Return what the loss remembers between steps (queues, pointers), for checkpoints."""
        return {}

    def load_loss_state(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take up what `loss_state` returned."""

    def report(self, **values: float | torch.Tensor) -> None:
        """Add numbers to the next log entry (their mean over its steps)."""
        for name, value in values.items():
            self._notes.setdefault(name, []).append(float(value))

    # What the base makes of it.

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Train as ``transformers.Trainer`` does, with the loss's state of the checkpoint.

        Raises:
            TrainingError: the checkpoint holds no such state.
        """
        path = resume_from_checkpoint
        if path is True:
            from transformers.trainer_utils import get_last_checkpoint

            path = get_last_checkpoint(self.args.output_dir)
        self._ready = False
        if path:
            self._restore(Path(path))
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _restore(self, checkpoint: Path) -> None:
        from safetensors.torch import load_file

        if not (checkpoint / STATE_FILE).exists():
            raise TrainingError(
                f"{checkpoint} holds no {STATE_FILE}: it is of a training with another trainer than "
                f"{type(self).__name__}."
            )
        tensors = load_file(checkpoint / STATE_FILE, device=str(self.args.device))
        if self.extra is not None:
            own = {name.removeprefix(EXTRA): t for name, t in tensors.items() if name.startswith(EXTRA)}
            self.extra.load_state_dict(own)
        self.load_loss_state({name: t for name, t in tensors.items() if not name.startswith(EXTRA)})
        self._ready = True

    def restore(self, checkpoint: Path) -> None:
        """Load the weights and the loss's state of a checkpoint without training on."""
        self._load_from_checkpoint(
            str(checkpoint)
        )  # private, and the only place that knows adapters and shards
        self._restore(checkpoint)

    def saved_state(self) -> dict[str, torch.Tensor]:
        """Return what a checkpoint holds of the loss: the extra modules and `loss_state`."""
        extra = {} if self.extra is None else self.extra.state_dict()
        return {**{EXTRA + name: t for name, t in extra.items()}, **self.loss_state()}

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """Return the trainer's optimiser, with a group for the extra modules."""
        fresh = self.optimizer is None
        optimizer = super().create_optimizer(*args, **kwargs)
        if fresh and self.extra is not None:
            optimizer.add_param_group({"params": list(self.extra.parameters())})
        return optimizer

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: Any) -> Any:
        """Return the micro-batches of a step, and remember them."""
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._batches, self._position, self._solved = batches, 0, None
        if self.extra is not None:
            self.extra.zero_grad()  # the trainer zeroes the model's gradients, not the optimiser's
        return batches, count

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return this micro-batch's share of the step's loss, and the logits where they are asked for.

        Raises:
            DataError: labels are missing, no class numbers, or outside the head.
            TrainingError: the loss is not finite, or features cannot be had (see `PooledFeatures`).
        """
        inner = self.accelerator.unwrap_model(model)
        y = self._labels(inputs)
        if not model.training:
            _, logits = self.pool(model, inputs, inner=inner)
            loss = cross_entropy(logits.float(), y)
            return (loss, {"loss": loss, "logits": logits}) if return_outputs else loss
        if not self._ready:
            self._ready = True
            with same_draws(self.args.device):
                torch.manual_seed(child_seed(self.args.seed, "prepare"))
                self.prepare_loss(inner)
        if len(self._batches) <= 1 and self.accelerator.num_processes == 1:
            with torch.no_grad():
                companions = self.companions(inner, inputs)
            z, logits = self.pool(model, inputs, inner=inner)
            loss = self._loss(inner, z.float(), y, companions)
        else:
            if self._solved is None:
                self._solved = self._solve(inner)
            j, self._position = self._position, self._position + 1
            z, logits = self.pool(model, inputs, inner=inner)
            loss = self._share(inner, z.float(), j)
        return (loss, {"loss": loss, "logits": logits}) if return_outputs else loss

    def _labels(self, inputs: Any) -> torch.Tensor:
        y = inputs.get("labels")
        if not isinstance(y, torch.Tensor):
            raise DataError(
                f"{type(self).__name__} needs a tensor 'labels' in each batch, one class number per row. The batch "
                f"holds: {', '.join(inputs) or 'nothing'}."
            )
        if y.dim() != 1 or y.is_floating_point() or y.dtype == torch.bool:
            raise DataError(
                f"Labels must be class numbers: integers of shape (rows,). Got {y.dtype} of shape {tuple(y.shape)}: "
                "several labels per row, soft labels and regression have no classes to compare."
            )
        if len(y) and (int(y.min()) < 0 or int(y.max()) >= self.n_classes):
            raise DataError(
                f"Labels must lie in [0, {self.n_classes}), one per output of the head '{self.pool.head}'. Got "
                f"{int(y.min())} to {int(y.max())}."
            )
        return y.long()

    def _loss(
        self, inner: nn.Module, z: torch.Tensor, y: torch.Tensor, companions: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        generator = torch.Generator().manual_seed(child_seed(self.args.seed, "step", self.state.global_step))
        loss = self.step_loss(z, y, lambda x: self.pool.logits(inner, x), generator, companions)
        if not torch.isfinite(loss):
            raise TrainingError(f"The loss at step {self.state.global_step + 1} is {loss.item()}.")
        return loss

    def _solve(self, inner: nn.Module) -> tuple[Step, torch.Tensor, list[Any], torch.Tensor]:
        """Return where rows lie, dL/dZ, the gradients of head and extra modules, and L."""
        features, labels, others = [], [], []
        with torch.no_grad(), same_draws(self.args.device), keeping_statistics(inner):
            for batch in self._batches:
                inputs = self._prepare_inputs(batch)
                labels.append(self._labels(inputs))
                others.append(self.companions(inner, inputs))
                features.append(self.pool(inner, inputs)[0].float())
        step = Step([len(y) for y in labels], self.accelerator)
        companions = {name: step.gather([part[name] for part in others]) for name in others[0]}
        Z = step.gather(features).requires_grad_()
        loss = self._loss(inner, Z, step.gather(labels), companions)
        moved = self._moved(inner)
        found = torch.autograd.grad(loss, [Z, *moved], allow_unused=True)
        return step, found[0], list(found[1:]), loss.detach()

    def _moved(self, inner: nn.Module) -> list[nn.Parameter]:
        extra = [] if self.extra is None else list(self.extra.parameters())
        return [p for p in [*self.pool.module(inner).parameters(), *extra] if p.requires_grad]

    def _share(self, inner: nn.Module, z: torch.Tensor, j: int) -> torch.Tensor:
        """Return L / k with the gradient of this micro-batch's part of it."""
        assert self._solved is not None
        step, dZ, dmoved, loss = self._solved
        k = len(self._batches)
        linear = (
            step.processes * (z * dZ[step.slot(j)]).sum()
        )  # data parallelism takes the mean over processes
        for parameter, gradient in zip(self._moved(inner), dmoved, strict=True):
            if gradient is not None:
                linear = linear + (parameter * gradient).sum() / k
        return linear - linear.detach() + loss / k

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log, with the means of what was reported since the last time."""
        if "loss" in logs:
            for name, values in self._notes.items():
                logs[name] = sum(values) / len(values)
            self._notes = {}
        super().log(logs, *args, **kwargs)


class _LossState(TrainerCallback):
    """Write the loss's state into each checkpoint; it is the same on every process."""

    def __init__(self, trainer: PooledTrainer) -> None:
        self.trainer = trainer

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the trainer when the checkpoint's files are written."""
        from safetensors.torch import save

        if not state.is_world_process_zero:
            return
        path = Path(args.output_dir, f"checkpoint-{state.global_step}", STATE_FILE)
        tensors = {name: t.detach().cpu().contiguous() for name, t in self.trainer.saved_state().items()}
        with atomic_open(path, "wb") as stream:
            stream.write(save(tensors))
