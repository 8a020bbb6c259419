"""Stage 1: train a scale per head entry under an L1 penalty, and rank the heads by how far their scales moved."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch

from tunesmith.core.errors import ParameterError, TrainingError
from tunesmith.core.seeds import child_seed
from tunesmith.tuners.lofit.config import LofitConfig
from tunesmith.tuners.lofit.heads import head_scores, noise_level, rank_heads, sparsity
from tunesmith.tuners.lofit.layer import LofitLayer
from tunesmith.tuners.lofit.sites import by_block

__all__ = ["HeadSelection", "head_importance", "select_heads", "with_heads"]


@dataclass(frozen=True)
class HeadSelection:
    """What `select_heads` found.

    Attributes:
        heads: the ``(layer, head)`` pairs kept, most important first.
        ranking: all heads, in the same order; ``heads`` is its beginning.
        scores: ``[L, H]``, not-a-number where there is no such head or its layer was left out.
        noise: score that the initialisation alone can reach; a best score no higher says nothing.
    """

    heads: list[tuple[int, int]]
    ranking: list[tuple[int, int]] = field(repr=False)
    scores: np.ndarray[Any, Any] = field(repr=False)
    noise: float

    @property
    def is_noise(self) -> bool:
        """Whether no score stands out from the initialisation."""
        return bool(np.nanmax(self.scores) <= self.noise)

    def top(self, k: int | float) -> list[tuple[int, int]]:
        """Return the ``k`` best heads of the same run (an int, or a share of all); smaller sets lie in larger ones.

        Raises:
            ParameterError: ``k`` outside [1, number of heads] or (0, 1].
        """
        return self.ranking[: _count(k, len(self.ranking), HeadSelection.top)]

    def config(self, **fields: Any) -> LofitConfig:
        """Return the config of stage 2 for these heads; ``fields`` are those of `LofitConfig`."""
        return LofitConfig(heads=[list(pair) for pair in self.heads], **fields)


def select_heads(
    model: Any,
    data: Iterable[Any] | None = None,
    k: int | float = 0.1,
    *,
    trainer: Callable[[Any], Any] | None = None,
    loss: Callable[[Any, Any], torch.Tensor] | None = None,
    l1: float = 1e-3,
    learning_rate: float = 5e-3,
    epochs: int = 5,
    batch_size: int | None = None,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    accumulate: int = 1,
    max_grad_norm: float = 1.0,
    seed: int = 0,
    **config: Any,
) -> HeadSelection:
    """Choose the attention heads that matter for a task (LoFiT, stage 1; arXiv 2406.01563, section 3.1).

    A scale ``1 + A`` on each head's output is trained with everything else frozen, on the task's loss plus
    ``l1 * sum |A|``; a head's score is ``||A||_2``. The model is left as it was. Rows used here must not be test rows.

    With ``data``: AdamW without weight decay, linear decay to 0, no warm-up, gradients clipped; deterministic, and
    torch's global random state is untouched. With ``trainer``: whatever it trains by, the penalty added to its loss.

    Time: that of a short fine-tuning with backward to the first layer but without gradients of weights. Memory beyond
    the forward and backward pass: three times ``L * H * d_h`` numbers.

    Args:
        model: a transformers model without adapters.
        data: batches (dictionaries of tensors) for the model, gone through once per epoch, in their own order each
            time as a DataLoader gives it; or, with ``batch_size``, a dataset whose rows are shuffled and collated here.
            A one-way iterator is kept in memory.
        k: heads to keep: an int, or a share of all in (0, 1] (rounded down).
        trainer: instead of ``data``, a function that takes the model with its scales and returns a transformers or TRL
            trainer for it. Its ``compute_loss`` gets the penalty, once per micro-batch.
        loss: ``loss(model, batch)``, a scalar, the mean over the batch; by default ``model(**batch).loss``.
        l1: weight of the penalty, a plain sum over all entries; 5e-4 to 5e-3 in the paper's scripts, 0 allowed.
        learning_rate: 5e-4 to 5e-3 in the paper's scripts.
        epochs: passes over ``data``.
        batch_size: rows per batch, if ``data`` is a dataset.
        collate_fn: turns a list of rows into a batch; torch's default otherwise.
        accumulate: micro-batches per step; the sum of loss and penalty is divided by it.
        max_grad_norm: of each step.
        seed: of row order, dropout and initial values.
        **config: fields of `LofitConfig` that restrict the choice or the start (``layers_to_transform``,
            ``target_modules``, ``init_std``).

    Returns:
        Heads, ranking and scores.

    Raises:
        ParameterError: a value outside its set, a model with adapters, or data without a loss.
        TrainingError: the loss is not finite.

    Warns:
        UserWarning: no score exceeds what the initialisation can reach: the ranking is noise.
    """
    _check(select_heads, l1=l1, learning_rate=learning_rate, max_grad_norm=max_grad_norm)
    _check_counts(
        select_heads, epochs=epochs, accumulate=accumulate, batch_size=1 if batch_size is None else batch_size
    )
    if (data is None) == (trainer is None):
        raise ParameterError("trainer", select_heads, "given if and only if 'data' is not", trainer)
    if hasattr(model, "peft_config"):
        raise ParameterError(
            "model", select_heads, "a model without adapters: merge or unload them", type(model).__name__
        )
    stage_1 = LofitConfig(stage="select", seed=seed, **config)
    with _scaled(model, stage_1) as tuned:
        layers = [module for module in tuned.modules() if isinstance(module, LofitLayer)]
        n = _count(k, sum(layer.n_heads for layer in layers), select_heads)
        if trainer is not None:
            _run_trainer(trainer(tuned), layers, l1)
        else:
            batches = _batches(data, batch_size, collate_fn, seed)
            with _own_random_state(tuned, seed):
                _train(tuned, layers, batches, loss, l1, learning_rate, epochs, accumulate, max_grad_norm)
        scores, noise = _scores(layers, stage_1)
    ranking = rank_heads(scores)
    found = HeadSelection(ranking[:n], ranking, scores, noise)
    if found.is_noise:
        warnings.warn(
            f"The best head's score ({np.nanmax(scores):.3g}) does not exceed what the initialisation can reach "
            f"({noise:.3g}): the ranking is noise. Lower l1, raise learning_rate, or train longer.",
            stacklevel=2,
        )
    return found


def with_heads(model: Any, config: LofitConfig, data: Iterable[Any], **parameters: Any) -> LofitConfig:
    """Return ``config`` with ``config.k`` heads chosen on ``data``; ``config`` itself where it has heads or no ``k``.

    Args:
        model: as for `select_heads`.
        config: of stage 2.
        data: as for `select_heads`.
        **parameters: further ones of `select_heads`.

    Raises:
        ParameterError: as `select_heads`.
    """
    if config.heads is not None or config.k is None:
        return config
    kept = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "init_std")
    fields = {name: getattr(config, name) for name in kept}
    found = select_heads(model, data, config.k, l1=config.l1, **{"seed": config.seed, **fields, **parameters})
    return replace(config, heads=[list(pair) for pair in found.heads])


def head_importance(model: Any, data: Iterable[Any] | None = None, **parameters: Any) -> np.ndarray[Any, Any]:
    """Return stage 1's scores ``||A||_2`` of all heads, ``[L, H]`` float64, as a look into the model.

    Args:
        model: as for `select_heads`.
        data: as for `select_heads`.
        **parameters: those of `select_heads` but ``k``.

    Raises:
        ParameterError: as `select_heads`.
    """
    return select_heads(model, data, 1.0, **parameters).scores


@contextmanager
def _scaled(model: Any, config: LofitConfig) -> Iterator[Any]:
    """Give the model with scales in it; take them out again, whatever happened."""
    from peft import get_peft_model

    trainable = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    training = model.training
    tuned = get_peft_model(model, config)
    try:
        yield tuned
    finally:
        tuned.unload()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trainable.get(name, parameter.requires_grad))
        model.train(training)


@contextmanager
def _own_random_state(model: Any, seed: int) -> Iterator[None]:
    device = model.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(child_seed(seed, "lofit", "dropout"))
        yield


def _batches(data: Any, batch_size: int | None, collate_fn: Any, seed: int) -> Any:
    if batch_size is not None:
        from torch.utils.data import DataLoader

        order = torch.Generator().manual_seed(child_seed(seed, "lofit", "order"))
        return DataLoader(data, batch_size=batch_size, shuffle=True, generator=order, collate_fn=collate_fn)
    return data if hasattr(data, "__len__") else list(data)


def _train(
    model: Any,
    layers: list[LofitLayer],
    batches: Any,
    loss: Callable[[Any, Any], torch.Tensor] | None,
    l1: float,
    learning_rate: float,
    epochs: int,
    accumulate: int,
    max_grad_norm: float,
) -> None:
    scales = [layer.lofit_a["default"] for layer in layers]
    per_epoch = math.ceil(len(batches) / accumulate)
    if per_epoch == 0:
        raise ParameterError("data", select_heads, "at least one batch", "none")
    optimizer = torch.optim.AdamW(scales, lr=learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / (per_epoch * epochs))
    model.train()
    for _ in range(epochs):
        for i, batch in enumerate(batches):
            task = _loss(model, batch, loss)
            if not bool(torch.isfinite(task)):
                raise TrainingError(f"the loss of head selection is {task.item()}")
            # A last group of fewer micro-batches is divided by how many it has.
            group = min(accumulate, len(batches) - i // accumulate * accumulate)
            torch.autograd.backward((task + sparsity(scales, l1).to(task.device)) / group)
            if (i + 1) % accumulate == 0 or i + 1 == len(batches):
                torch.nn.utils.clip_grad_norm_(scales, max_grad_norm)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()


def _loss(model: Any, batch: Any, loss: Callable[[Any, Any], torch.Tensor] | None) -> torch.Tensor:
    if hasattr(batch, "items"):
        batch = {k: v.to(model.device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
    value = model(**batch).loss if loss is None else loss(model, batch)
    if not isinstance(value, torch.Tensor) or value.dim() != 0:
        raise ParameterError(
            "loss",
            select_heads,
            "a function that returns a scalar, or rows must carry labels for the model's own",
            value,
        )
    return value


def _run_trainer(trainer: Any, layers: list[LofitLayer], l1: float) -> None:
    """Train by a transformers or TRL trainer whose loss gets the penalty.

    Where the trainer's loss is normalised over the whole accumulated batch, the trainer does not divide it by the
    number of micro-batches; the penalty then must be.
    """
    if not callable(getattr(trainer, "compute_loss", None)) or not callable(getattr(trainer, "train", None)):
        raise ParameterError(
            "trainer", select_heads, "a function that returns a trainer with compute_loss and train", trainer
        )
    scales = [layer.lofit_a["default"] for layer in layers]
    compute_loss = trainer.compute_loss

    def with_penalty(
        model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None, **kwargs: Any
    ) -> Any:
        result = compute_loss(model, inputs, return_outputs, num_items_in_batch=num_items_in_batch, **kwargs)
        task = result[0] if return_outputs else result
        if model.training:
            scaled = trainer.loss_is_scaled_for_ga
            if scaled is None:
                normalised = trainer.model_accepts_loss_kwargs and num_items_in_batch is not None
                scaled = normalised or trainer.compute_loss_func is not None
            penalty = sparsity(scales, l1).to(task.device)
            task = task + (penalty / trainer.current_gradient_accumulation_steps if scaled else penalty)
        return (task, *result[1:]) if return_outputs else task

    trainer.compute_loss = with_penalty
    trainer.train()


def _scores(layers: list[LofitLayer], config: LofitConfig) -> tuple[np.ndarray[Any, Any], float]:
    blocks = by_block(config.layout)
    scores = np.full((len(blocks), max(heads for heads, _ in blocks)), np.nan)
    for layer in layers:
        scores[layer.index, : layer.n_heads] = head_scores(layer.lofit_a["default"]).cpu().numpy()
    return scores, noise_level(config.init_std, max(layer.head_dim for layer in layers))


def _count(k: Any, total: int, owner: Any) -> int:
    whole = isinstance(k, Integral) and not isinstance(k, bool)
    if whole and 1 <= k <= total:
        return int(k)
    if not whole and isinstance(k, Real) and not isinstance(k, bool) and 0 < float(k) <= 1:
        return max(1, math.floor(float(k) * total + 1e-9))
    raise ParameterError("k", owner, f"an int in [1, {total}] or a float in (0, 1]", k)


def _check(owner: Any, **numbers: Any) -> None:
    for name, value in numbers.items():
        low = "at least" if name == "l1" else "above"
        if (
            not isinstance(value, Real)
            or not math.isfinite(value)
            or value < 0
            or (value == 0 and name != "l1")
        ):
            raise ParameterError(name, owner, f"a finite number {low} 0", value)


def _check_counts(owner: Any, **counts: Any) -> None:
    for name, value in counts.items():
        if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
            raise ParameterError(name, owner, "an int of at least 1", value)
