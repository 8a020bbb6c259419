"""What LEVI finds out about its models, and what it refuses: layers, the kind of view and its size, labels."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from tunesmith.core.errors import DataError, ParameterError
from tunesmith.models.levi.config import LeviConfig
from tunesmith.models.levi.core import even_layers

__all__ = ["check_labels", "checked_layers", "first_tensor", "view_inputs", "view_kind"]


def checked_layers(wanted: Any, depth: int | None) -> list[int]:
    """Return the layers to use, out of 0 to ``depth``."""
    if depth is None:
        raise ParameterError(
            "example", "LEVI", "one batch of inputs, to find how many layers this base has", None
        )
    if wanted is None:
        return even_layers(depth)
    if wanted == "all":
        return list(range(1, depth + 1))
    ints = isinstance(wanted, (list, tuple)) and all(type(i) is int and 0 <= i <= depth for i in wanted)
    if not ints or not wanted or len(set(wanted)) != len(wanted):
        raise ParameterError("layers", "LEVI", f"'all' or a list of distinct ints in [0, {depth}]", wanted)
    return list(wanted)


def view_kind(base: nn.Module, example: dict[str, Any] | None) -> str:
    """Return which view fits what the base reads."""
    name = getattr(base, "main_input_name", None) if isinstance(base, PreTrainedModel) else None
    if name in ("input_ids", "pixel_values"):
        return "text" if name == "input_ids" else "image"
    x = first_tensor(example)
    if x is None:
        return "custom"
    if x.ndim == 2:
        return "vector" if x.is_floating_point() else "text"
    return "image" if x.ndim == 4 else "custom"


def view_inputs(kind: str, base: nn.Module, example: dict[str, Any] | None) -> int:
    """Return the vocabulary, channels, or numbers per row that the view reads."""
    config = getattr(base, "config", None)
    found = getattr(config, {"text": "vocab_size", "image": "num_channels"}.get(kind, ""), None)
    x = first_tensor(example)
    if found is None and x is not None and kind != "text":
        found = x.shape[1]
    if not isinstance(found, int):
        what = {"text": "the size of the vocabulary", "image": "the images' channels"}.get(
            kind, "numbers per row"
        )
        raise ParameterError("view_inputs", "LEVI", f"{what}, which this base does not tell", None)
    return found


def first_tensor(example: dict[str, Any] | None) -> torch.Tensor | None:
    """Return the first input of a batch."""
    tensors = [v for k, v in (example or {}).items() if isinstance(v, torch.Tensor) and k != "labels"]
    return tensors[0] if tensors else None


def check_labels(labels: torch.Tensor, rows: int, config: LeviConfig) -> None:
    """Refuse labels that do not fit ``rows`` rows or the head."""
    C = config.num_labels
    if config.problem_type == "single_label_classification":
        if labels.is_floating_point() or labels.numel() != rows:
            raise DataError(
                f"labels must be {rows} ints, one per row, not {labels.dtype} {tuple(labels.shape)}."
            )
        wrong = (labels != -100) & ((labels < 0) | (labels >= C))
        if bool(wrong.any()):
            raise DataError(
                f"a label is {int(labels[wrong][0])}, outside the head's {C} classes, 0 to {C - 1} (-100: no label). "
                "Set num_labels."
            )
    elif labels.numel() != rows * C:
        raise DataError(f"labels must be ({rows}, {C}) numbers, not {tuple(labels.shape)}.")
