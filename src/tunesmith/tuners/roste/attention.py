"""Keys and values as a quantised cache would hold them, in any model that uses transformers' attention interface.

The interface hands every attention function the keys behind the rotary embedding, which is what a cache stores. Ours
rounds them and calls the function that was set before. Keys and values are rounded per token and head, so doing it
anew for each new token gives what rounding once would have given.

A rotation of keys (R3) needs no rotation of queries here: ``(q R) . Q(k R)`` is ``q . Q(k R) R^T``; a kernel that
keeps codes rotates the queries instead. The same holds for values and the attention's output.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from tunesmith.core.errors import ParameterError
from tunesmith.numerics.hadamard import RandomHadamard
from tunesmith.tuners.roste.quantizer import Quantizer, rotate_fake_quant

__all__ = ["CacheQuantizer", "causal_attention", "head_dim", "recording", "route"]

ATTRIBUTE = "roste_cache"
PREFIX = "roste_"

_recorders: list[Callable[[Any, torch.Tensor, torch.Tensor], None]] = []


@dataclass
class CacheQuantizer:
    """What happens to the keys and values of one attention module.

    Attributes:
        quantizer: Q.
        key: rotation of keys ``(..., head_dim)`` (R3), or None.
        value: rotation of values, or None.
        active: False leaves both alone.
    """

    quantizer: Quantizer
    key: RandomHadamard | None = None
    value: RandomHadamard | None = None
    active: bool = True


def causal_attention(model: Any) -> dict[str, Any]:
    """Return the causal attention modules by name: those that keep a cache."""
    return {
        name: module
        for name, module in model.named_modules()
        if "Attention" in type(module).__name__
        and getattr(module, "is_causal", False)
        and not getattr(module, "is_cross_attention", False)
        and not any("Attention" in type(child).__name__ for child in module.children())
    }


def head_dim(module: Any, name: str) -> int:
    """Return the width of one head.

    Raises:
        ParameterError: the module does not tell.
    """
    for attribute in ("head_dim", "head_size", "attention_head_size"):
        if isinstance(width := getattr(module, attribute, None), int):
            return width
    raise ParameterError(
        "kv_bits",
        "RosteConfig",
        f"None for this model: {name} does not tell the width of its heads",
        type(module).__name__,
    )


def route(model: Any) -> None:
    """Let the attention of ``model`` pass through ours.

    Raises:
        ParameterError: the model does not use transformers' attention interface, or another function than
            ``"sdpa"`` or ``"eager"``.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask, sdpa_mask

    now = getattr(getattr(model, "config", None), "_attn_implementation", None)
    if isinstance(now, str) and now.startswith(PREFIX):
        return
    if now not in ("sdpa", "eager"):
        raise ParameterError(
            "kv_bits",
            "RosteConfig",
            "None unless the model is loaded with attn_implementation='sdpa' or 'eager'",
            f"attention {now!r}",
        )
    for base, function, mask in (("sdpa", _sdpa, sdpa_mask), ("eager", _eager, eager_mask)):
        AttentionInterface.register(PREFIX + base, function)
        AttentionMaskInterface.register(PREFIX + base, mask)
    model.set_attn_implementation(PREFIX + now)
    if model.config._attn_implementation != PREFIX + now:
        raise ParameterError(
            "kv_bits",
            "RosteConfig",
            "None for this model, whose attention does not go through transformers' AttentionInterface",
            type(model).__name__,
        )


@contextmanager
def recording(note: Callable[[Any, torch.Tensor, torch.Tensor], None]) -> Iterator[None]:
    """Call ``note(module, key, value)`` at each routed attention within the block."""
    _recorders.append(note)
    try:
        yield
    finally:
        _recorders.remove(note)


def _cached(module: Any, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    for note in _recorders:
        note(module, key, value)
    cache: CacheQuantizer | None = getattr(module, ATTRIBUTE, None)
    if cache is None or not cache.active:
        return key, value
    return (
        rotate_fake_quant(key, cache.quantizer, cache.key, back=True),
        rotate_fake_quant(value, cache.quantizer, cache.value, back=True),
    )


def _sdpa(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **kwargs: Any) -> Any:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    key, value = _cached(module, key, value)
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


def _eager(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **kwargs: Any) -> Any:
    key, value = _cached(module, key, value)
    # Each modeling file has an eager function of its own.
    function = sys.modules[type(module).__module__].eager_attention_forward  # type: ignore[attr-defined]
    return function(module, query, key, value, attention_mask, **kwargs)
