"""The settings that a study of full fine-tuning found best for small language models, for three libraries.

Pareja et al. 2024, "Unveiling the Secret Recipe" (arXiv 2412.13337): large effective batches, a low learning rate that
is not scaled up with them, no warm-up, no decay. Values are for full fine-tuning; LoRA usually wants about ten times
the rate.
"""

from __future__ import annotations

import os
import warnings
from typing import Any, Literal

from tunesmith.core.errors import ParameterError, UnknownNameError

__all__ = ["PRESETS", "samples_after", "sft_recipe", "steps_per_epoch"]

MIN_STEPS = 50
"""Optimiser steps an epoch should have at least; the paper's sets are so large that it never meets the question."""
MISTRAL_RATE = 1e-6

# batch in sequences, learning rate, schedule, warm-up (share of the steps), epochs.
PRESETS: dict[str, dict[str, Any]] = {
    "lab": {"batch": 3840, "learning_rate": 2e-5, "schedule": "constant", "warmup": 0.0, "epochs": 10},
    "tulu": {"batch": 128, "learning_rate": 2e-5, "schedule": "linear", "warmup": 0.03, "epochs": 2},
    "tulu++": {"batch": 128, "learning_rate": 3e-5, "schedule": "constant", "warmup": 0.0, "epochs": 4},
}
"""``lab`` is the recommended one. The epochs of ``tulu`` are ours: the paper does not state them."""


def sft_recipe(
    batch: int | None = None,
    *,
    world: int | None = None,
    per_device: int = 4,
    n_examples: int | None = None,
    preset: Literal["lab", "tulu", "tulu++"] = "lab",
    model: Any = None,
    learning_rate: float | None = None,
    epochs: float | None = None,
    round_up: bool = False,
    kind: Literal["trl", "transformers", "train_sft"] = "trl",
    **overrides: Any,
) -> Any:
    """Return the study's settings as ``trl.SFTConfig``, ``transformers.TrainingArguments`` or arguments of `train_sft`.

    AdamW with betas 0.9 and 0.95, eps 1e-8 and no weight decay; gradients clipped to norm 1; the loss is the mean over
    all trained tokens of the effective batch, over all accumulated batches and processes; every step is logged. Source:
    Pareja et al. 2024, arXiv 2412.13337, and the optimiser step of its code.

    Args:
        batch: effective batch, in sequences: ``per_device * gradient_accumulation_steps * world``. By default the
            preset's (3,840 for ``lab``; 7,680 was a little better still), lowered where ``n_examples`` are given so
            that an epoch has at least 50 steps.
        world: processes; by default what the launcher says (``WORLD_SIZE``), else 1.
        per_device: sequences per forward pass and process, as the memory allows.
        n_examples: rows of the training set, to check the batch against.
        preset: ``lab``, or one of the two settings that it was compared with.
        model: the model or its name; a Mistral gets the rate 1e-6.
        learning_rate: 2e-5 by default (3e-5 for ``tulu++``). Do not scale it up with the batch.
        epochs: passes over the data; 10 by default (``tulu`` 2, ``tulu++`` 4): keep checkpoints and take the best.
        round_up: take the next batch that ``per_device * world`` divides, with a warning, instead of refusing.
        kind: what is returned; ``"train_sft"`` is a dict.
        **overrides: further fields of the result, such as ``output_dir``; they come last.

    Returns:
        The configuration.

    Raises:
        ParameterError: a number is outside its set, the batch cannot be reached with this ``per_device`` and
            ``world``, or it is larger than the training set.
        UnknownNameError: there is no such preset.
    """
    if preset not in PRESETS:
        raise UnknownNameError("preset of sft_recipe", preset, PRESETS)
    if kind not in ("trl", "transformers", "train_sft"):
        raise ParameterError("kind", sft_recipe, "'trl', 'transformers' or 'train_sft'", kind)
    world = int(os.environ.get("WORLD_SIZE", "1")) if world is None else world
    for name, value in {
        "world": world,
        "per_device": per_device,
        "n_examples": n_examples,
        "batch": batch,
    }.items():
        optional = name in ("n_examples", "batch")
        if not (optional and value is None) and (
            isinstance(value, bool) or not isinstance(value, int) or value < 1
        ):
            raise ParameterError(name, sft_recipe, "an int of at least 1" + optional * ", or None", value)
    values = PRESETS[preset]
    size = _batch(batch, int(values["batch"]), world * per_device, n_examples, round_up)
    rate = learning_rate
    if rate is None:
        rate = MISTRAL_RATE if preset == "lab" and _is_mistral(model) else values["learning_rate"]
    epochs = values["epochs"] if epochs is None else epochs
    for name, number in {"learning_rate": rate, "epochs": epochs}.items():
        if not number > 0:
            raise ParameterError(name, sft_recipe, "a float above 0", number)
    adam = {
        "adam_beta1": 0.9,
        "adam_beta2": 0.95,
        "adam_epsilon": 1e-8,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "average_tokens_across_devices": True,
    }
    if kind == "train_sft":
        return {
            "batch_size": per_device,
            "accumulate": size // (world * per_device),
            "learning_rate": rate,
            "epochs": float(epochs),
            "schedule": values["schedule"],
            "warmup": values["warmup"],
            # rows of one length in a step would be of one kind; the study shuffles all rows
            "train_sampling_strategy": "random",
            **adam,
            **overrides,
        }
    if kind == "trl":
        from trl import SFTConfig as Config
    else:
        from transformers import TrainingArguments as Config  # type: ignore[assignment]
    fields = {
        "per_device_train_batch_size": per_device,
        "gradient_accumulation_steps": size // (world * per_device),
        "learning_rate": rate,
        "num_train_epochs": float(epochs),
        "lr_scheduler_type": values["schedule"],
        "warmup_steps": values["warmup"],
        "logging_steps": 1,
        **adam,
    }
    return Config(**{**fields, **overrides})


def _batch(batch: int | None, default: int, unit: int, n_examples: int | None, round_up: bool) -> int:
    """Return the effective batch: a multiple of ``unit``, not larger than the training set."""
    if batch is None:
        size = default
        if n_examples is not None and n_examples < default * MIN_STEPS:
            size = max(unit, n_examples // MIN_STEPS // unit * unit)
    else:
        size = batch
    if size % unit:
        more = -(-size // unit) * unit
        if not round_up:
            raise ParameterError(
                "batch",
                sft_recipe,
                f"a multiple of per_device * world = {unit:,} (round_up=True takes {more:,})",
                size,
            )
        warnings.warn(
            f"The effective batch is {more:,} sequences instead of {size:,}, the next multiple of {unit:,}.",
            stacklevel=3,
        )
        size = more
    if n_examples is not None and size > n_examples:
        raise ParameterError("batch", sft_recipe, f"at most n_examples = {n_examples:,}", size)
    if n_examples is not None and n_examples < size * MIN_STEPS:
        warnings.warn(
            f"An epoch has {-(-n_examples // size):,} optimiser steps of {size:,} sequences; with fewer than "
            f"{MIN_STEPS} a large batch leaves the model too few of them. Lower the batch, or leave it out.",
            stacklevel=3,
        )
    return size


def _is_mistral(model: Any) -> bool:
    if model is None:
        return False
    config = getattr(model, "config", model)
    return "mistral" in str(getattr(config, "model_type", model)).lower()


def steps_per_epoch(n_examples: int, batch: int) -> tuple[int, int]:
    """Return the full optimiser steps of an epoch, and the rows of the last, partial one (0: there is none).

    825,487 examples at 3,840 give 214 steps and 3,727 rows.

    Args:
        n_examples: rows, at least ``batch``.
        batch: effective batch.

    Raises:
        ParameterError: a number is below 1, or the batch is larger than the data.
    """
    if n_examples < 1:
        raise ParameterError("n_examples", steps_per_epoch, "an int of at least 1", n_examples)
    if not 1 <= batch <= n_examples:
        raise ParameterError(
            "batch", steps_per_epoch, f"an int in [1, n_examples] = [1, {n_examples:,}]", batch
        )
    return divmod(n_examples, batch)


def samples_after(step: int, n_examples: int, batch: int) -> int:
    """Return how many rows, counted over epochs, the first ``step`` optimiser steps have seen.

    The last step of an epoch takes what is left.

    Args:
        step: optimiser steps, at least 0.
        n_examples: rows of the training set.
        batch: effective batch; one that is larger than the data is the data.
    """
    epochs, into = divmod(step, -(-n_examples // batch))
    return epochs * n_examples + min(n_examples, into * batch)
