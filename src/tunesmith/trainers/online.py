"""Choosing the rows of each batch while training, in any trainer of transformers or TRL.

The candidates of an optimiser step are scored by the model as it stands, without gradients and in evaluation mode, so
the random state of the training (dropout, order of rows) is what it would be without selection. Rows are chosen within
each micro-batch, before the trained tokens of the step are counted: with the count of all candidates a loss that is
divided by it would shrink with the share that is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import cross_entropy
from transformers import TrainerCallback

from tunesmith import methods
from tunesmith.core.errors import DataError, ParameterError, TrainingError
from tunesmith.core.files import atomic_open
from tunesmith.engine.lm import has_plain_head, last_states
from tunesmith.select.online import Candidates, OnlinePolicy, OutputLayer

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer  # what the mixin expects behind it
else:
    _Trainer = object

__all__ = ["OnlineSelection", "OnlineSelectionMixin"]

_ELEMENTS = 2**28  # of logits at once: 1 GiB in float32
_PLAIN = {"input_ids", "attention_mask", "labels"}


@dataclass
class OnlineSelection:
    """Which rows of a candidate batch are trained on.

    Attributes:
        policy: an `OnlinePolicy`, or the name of a registered one without its prefix (``"uds"``, ``"random"``,
            ``"max_loss"``).
        keep: K, rows of each micro-batch (int), or share of them (float in (0, 1], rounded, at least one row).
        warmup_steps: optimiser steps on whole batches before the selection begins.
        log_losses: also compute the loss of each candidate (part of an output layer's work) and log its mean over
            kept and dropped rows: a policy may prefer rows that are already learned.
        parameters: of the policy, where ``policy`` is a name.

    Raises:
        ParameterError: a value is outside its set.
        UnknownNameError: no such policy is registered.
    """

    policy: OnlinePolicy | str = "uds"
    keep: int | float = 0.5
    warmup_steps: int = 0
    log_losses: bool = False
    parameters: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        keep = self.keep
        share = isinstance(keep, float) and 0 < keep <= 1
        if isinstance(keep, bool) or not (share or (isinstance(keep, int) and keep >= 1)):
            raise ParameterError("keep", self, "an int >= 1 (rows) or a float in (0, 1] (share)", keep)
        if (
            isinstance(self.warmup_steps, bool)
            or not isinstance(self.warmup_steps, int)
            or self.warmup_steps < 0
        ):
            raise ParameterError("warmup_steps", self, "an int >= 0", self.warmup_steps)
        if isinstance(self.policy, str):
            target = methods.get(f"online.{self.policy}")
            try:
                self.policy = target(**self.parameters)
            except TypeError as error:  # a name it does not know
                raise ParameterError(
                    "parameters", self, f"of {target.__name__} ({error})", self.parameters
                ) from None

    @classmethod
    def of(cls, value: Any, seed: int = 0) -> OnlineSelection:
        """Return what a recipe's block stands for: the fields above, and the policy's parameters beside them.

        Args:
            value: ``{"policy": "uds", "keep": 0.5, "alpha": 2.0}``, or a selection, which is returned as it is.
            seed: for the policy's ``random_state``, unless the block sets it.

        Raises:
            ParameterError: it is neither, or a value is outside its set.
            UnknownNameError: no such policy is registered.
        """
        if isinstance(value, cls):
            return value
        if not isinstance(value, Mapping):
            raise ParameterError("online", "train_sft", "a mapping such as {policy: uds, keep: 0.5}", value)
        own = {
            name: value[name] for name in ("policy", "keep", "warmup_steps", "log_losses") if name in value
        }
        parameters = {name: v for name, v in value.items() if name not in own}
        name = own.get("policy", "uds")
        if isinstance(name, str) and "random_state" in _parameters(name):
            parameters = {"random_state": seed, **parameters}
        return cls(**own, parameters=parameters)

    def describe(self) -> str:
        """Return what the selection is made of, for telling two trainings apart."""
        import inspect

        policy: Any = self.policy
        names = sorted(inspect.signature(type(policy)).parameters)
        own = ", ".join(f"{name}={getattr(policy, name, None)!r}" for name in names)
        return f"{type(policy).__name__}({own}), keep={self.keep!r}, warmup_steps={self.warmup_steps}"

    def rows(self, batch_size: int) -> int:
        """Return K for batches of that size.

        Raises:
            ParameterError: more rows are to be kept than there are.
        """
        if isinstance(self.keep, float):
            return max(1, round(self.keep * batch_size))
        if self.keep > batch_size:
            raise ParameterError("keep", self, f"at most the batch's {batch_size} rows", self.keep)
        return self.keep


def _parameters(name: str) -> set[str]:
    import inspect

    return set(inspect.signature(methods.get(f"online.{name}")).parameters)


class OnlineSelectionMixin(_Trainer):
    """Train on some rows of each batch: put it in front of a trainer.

    Example::

        class Selecting(OnlineSelectionMixin, SFTTrainer):
            pass

        Selecting(model, args, train_dataset=rows, online={"policy": "uds", "keep": 0.5}).train()

    Works with any trainer that stands on ``transformers.Trainer`` and whose batches hold one example per row. The
    number of optimiser steps stays; a last batch with at most K rows is kept whole; with K = B nothing is scored and
    the training is the plain one. Cost of a step: a forward pass over B rows (up to the output layer where it is
    frozen; none for ``random``) and the training of K.

    Checkpoints hold the policy's state, one file per process, and continue exactly. Under DDP each process chooses
    among its own rows with its own memory, and equal K keeps the processes in step. With FSDP or ZeRO-3 the scoring
    pass goes through the wrapped model (not tested here).

    Args:
        online: an `OnlineSelection`, or a mapping for `OnlineSelection.of`.
        *args: of the trainer.
        **kwargs: of the trainer.

    Attributes:
        policy: the policy, with its counts ``seen_`` and ``kept_``.
        keeps: K.

    Raises:
        ParameterError: rows are packed, K exceeds the batch, or a value is outside its set.
    """

    def __init__(self, *args: Any, online: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        selection = OnlineSelection.of(online, seed=self.args.seed)
        for name in ("packing", "padding_free"):
            if getattr(self.args, name, False):
                raise ParameterError(
                    name, type(self).__name__, "False: in packed batches a row is no longer an example", True
                )
        self.online = selection
        self.policy: Any = selection.policy
        self.keeps = selection.rows(self.args.train_batch_size)
        self._layer: tuple[Any, OutputLayer] | None = None
        self._notes: list[dict[str, float]] = []
        self.add_callback(_PolicyState(self))

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Train as the trainer does, with the policy's state of the checkpoint, or none.

        Raises:
            TrainingError: the checkpoint holds no state of a policy.
        """
        path = resume_from_checkpoint
        if path is True:
            from transformers.trainer_utils import get_last_checkpoint

            path = get_last_checkpoint(self.args.output_dir)
        if path:
            self.restore_policy(Path(path))
        else:
            self.policy.reset()
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: Any) -> Any:
        """Return the micro-batches of an optimiser step with the kept rows, and the count of their trained tokens."""
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.state.global_step < self.online.warmup_steps:
            return batches, count
        kept = [self.select(batch) for batch in batches]
        return super().get_batch_samples(iter(kept), len(kept), device)

    def select(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return the rows of a batch that are kept, without columns that are padding in all of them."""
        count = len(batch["input_ids"])
        if count <= self.keeps:
            return batch
        measures = {} if self.policy.needs is None and not self.online.log_losses else self._measures(batch)
        index = self.policy.choose(self.keeps, count, measures)
        self._notes.append({"kept": self.keeps / count, **self.policy.report(index, measures)})
        self.on_selection(batch, index, measures)
        return _take(batch, index)

    def on_selection(
        self, batch: dict[str, Any], index: torch.Tensor, measures: dict[str, torch.Tensor]
    ) -> None:
        """Called with each decision; for subclasses that want to look."""

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log, with the means of what was noted about the decisions since the last time."""
        if "loss" in logs and self._notes:
            for name in sorted({name for note in self._notes for name in note}):
                values = [note[name] for note in self._notes if name in note]
                logs[f"online/{name}"] = sum(values) / len(values)
            self._notes.clear()
        super().log(logs, *args, **kwargs)

    def _measures(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Run the model over a batch and return what the policy needs of it."""
        model = self.model_wrapped if _is_sharded(self) else self.accelerator.unwrap_model(self.model)
        inputs = {k: v.to(self.args.device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
        with _evaluating(model), torch.no_grad(), self.compute_loss_context_manager():
            parts = [
                self.policy.measure(self._candidates(model, part)) for part in self._parts(model, inputs)
            ]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _parts(self, model: Any, inputs: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield groups of rows whose logits are not too many, or all rows where no logits are made."""
        count, length = inputs["input_ids"].shape
        size = getattr(model.config.get_text_config(), "vocab_size", 1)
        rows = count if self._takes_states(model, inputs) else max(1, _ELEMENTS // (length * size))
        for begin in range(0, count, rows):
            yield _rows(inputs, slice(begin, begin + rows))

    def _candidates(self, model: Any, inputs: dict[str, Any]) -> Candidates:
        ids, labels = inputs["input_ids"], inputs.get("labels")
        seen = inputs.get("attention_mask")
        seen = torch.ones_like(ids) if seen is None else seen
        found = Candidates(mask=seen.bool(), labels=labels)
        if self._takes_states(model, inputs):
            found.states = last_states(model, ids, seen)
            if self.policy.needs == "logits":
                found.layer = self._output_layer(model)
        else:
            given = {name: value for name, value in inputs.items() if name != "labels"}
            found.logits = getattr(model(**given, use_cache=False), "logits", None)
            if found.logits is None:
                raise DataError(
                    "Online selection needs a model that returns logits, and this one returned none."
                )
        if self.policy.needs == "losses" or self.online.log_losses:
            found.losses = _row_losses(model, found)
        return found

    def _takes_states(self, model: Any, inputs: dict[str, Any]) -> bool:
        """Whether the forward pass may end before the output layer."""
        if _is_sharded(self) or not set(inputs) <= _PLAIN or not has_plain_head(model, inputs["input_ids"]):
            return False
        if self.policy.needs != "logits":
            return True
        head = model.get_output_embeddings()
        return (
            getattr(self.policy, "takes_states", False)
            and type(head) is torch.nn.Linear
            and not any(p.requires_grad for p in head.parameters())
        )

    def _output_layer(self, model: Any) -> OutputLayer:
        head = model.get_output_embeddings()
        key = (id(head.weight), head.weight._version)
        if self._layer is None or self._layer[0] != key:
            center = getattr(self.policy, "center", False)
            self._layer = (key, OutputLayer(head.weight, head.bias, center=center))
        return self._layer[1]

    def _state_file(self, checkpoint: Path) -> Path:
        rank = "" if self.args.world_size == 1 else f"-{self.args.process_index}"
        return checkpoint / f"online_policy{rank}.safetensors"

    def restore_policy(self, checkpoint: Path) -> None:
        """Load the policy's state of a checkpoint.

        Raises:
            TrainingError: it holds none.
        """
        from safetensors.torch import load_file

        path = self._state_file(checkpoint)
        if not path.exists():
            raise TrainingError(
                f"{checkpoint} holds no state of a policy ({path.name}): it is of a training without online "
                "selection, or of another number of processes."
            )
        self.policy.load_state_dict(load_file(path))


class _PolicyState(TrainerCallback):
    """Write the policy's state into each checkpoint."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the trainer when the checkpoint's files are written."""
        from safetensors.torch import save

        path = self.trainer._state_file(Path(args.output_dir, f"checkpoint-{state.global_step}"))
        tensors = {name: t.contiguous() for name, t in self.trainer.policy.state_dict().items()}
        with atomic_open(path, "wb") as stream:
            stream.write(save(tensors))


def _is_sharded(trainer: Any) -> bool:
    return bool(trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled)


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _row_losses(model: Any, rows: Candidates) -> torch.Tensor:
    """Return the mean nll, float32 ``(b,)``, of each row's trained tokens; 0 where there is none."""
    if rows.labels is None:
        raise DataError("The losses of rows need labels, and the batch has none.")
    wanted = rows.labels[:, 1:] != -100
    row, position = wanted.nonzero(as_tuple=True)
    targets = rows.labels[row, position + 1]
    if rows.states is not None:
        head, found = model.get_output_embeddings(), rows.states[row, position]
    else:
        assert rows.logits is not None
        head, found = torch.nn.Identity(), rows.logits[row, position]
    size = 2048  # tokens whose logits are held at once
    nll = [
        cross_entropy(head(found[i : i + size]).float(), targets[i : i + size], reduction="none")
        for i in range(0, len(targets), size)
    ]
    sums = torch.zeros(len(rows.labels), device=rows.labels.device)
    if nll:
        sums.index_add_(0, row, torch.cat(nll))
    return sums / wanted.sum(1).clamp(min=1)


def _rows(batch: dict[str, Any], index: Any) -> dict[str, Any]:
    """Return some rows of every tensor of a batch that has one entry per row."""
    count = len(batch["input_ids"])
    return {
        name: value[index]
        if isinstance(value, torch.Tensor) and value.ndim and len(value) == count
        else value
        for name, value in batch.items()
    }


def _take(batch: dict[str, Any], index: torch.Tensor) -> dict[str, Any]:
    """Return the rows of ``index``; trailing columns that are padding in all of them go.

    Leading ones stay: a model that counts positions from the first column would see its rows moved.
    """
    rows = _rows(batch, index.to(batch["input_ids"].device))
    mask = rows.get("attention_mask")
    if mask is None or mask.ndim != 2:
        return rows
    length = int(mask.any(0).nonzero().max()) + 1 if bool(mask.any()) else mask.shape[1]
    return {
        name: value[:, :length]
        if isinstance(value, torch.Tensor) and value.shape[:2] == mask.shape
        else value
        for name, value in rows.items()
    }
