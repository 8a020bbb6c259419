"""IAA's equations on tensors (reconstruction of arXiv 2208.09847): bottlenecks, and one step of each wiring.

Symbols: ``H`` hidden states (..., d); ``F`` a frozen layer with its hosts inside; ``B`` an aside, a map (..., d) ->
(..., d); ``c`` the running state of the chain; ``a`` what the hosts of a layer add to the residual stream.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.nn import functional

__all__ = ["NONLINEARITIES", "bottleneck", "bottleneck_size", "chain_step", "layer_step", "sublayer_step"]

Map = Callable[[Any], Any]

NONLINEARITIES: dict[str, Map] = {
    "gelu": functional.gelu,
    "identity": lambda x: x,
    "relu": functional.relu,
    "silu": functional.silu,
    "tanh": lambda x: x.tanh(),
}


def bottleneck(x: Any, W_down: Any, b_down: Any, W_up: Any, b_up: Any, phi: Map, s: float = 1.0) -> Any:
    """Return ``s [W_up phi(W_down x + b_down) + b_up]``, the increment of an adapter and of an aside.

    Args:
        x: (..., d_in).
        W_down: (r, d_in).
        b_down: (r,) or None.
        W_up: (d_out, r).
        b_up: (d_out,) or None.
        phi: the nonlinearity.
        s: fixed scale.

    Returns:
        (..., d_out). Time O(r (d_in + d_out)) per position.
    """
    increment = functional.linear(phi(functional.linear(x, W_down, b_down)), W_up, b_up)
    return increment if s == 1.0 else s * increment


def layer_step(F: Map, B: Map, H: Any) -> Any:
    """Variant ``layer``: ``H' = F(H) + B(H)``."""
    return F(H) + B(H)


def sublayer_step(attention: Map, ffn: Map, B_attention: Map, B_ffn: Map, H: Any) -> Any:
    """Variant ``sublayer``: ``U = Att(H) + B_att(H)``, ``H' = FFN(U) + B_ffn(U)``; both maps with their residuals."""
    U = attention(H) + B_attention(H)
    return ffn(U) + B_ffn(U)


def chain_step(B: Map, c: Any, a: Any | None = None) -> tuple[Any, Any]:
    """Variant ``chain``: return ``delta = B(c + a)`` and the next state ``c + delta``; then ``H' = F(H) + delta``.

    Only the increment enters the main stream, so nothing is counted more than once, and no frozen weight lies between
    one aside and the next.
    """
    delta = B(c if a is None else c + a)
    return delta, c + delta


def bottleneck_size(d: int, r: int, layer_norm: bool = False) -> int:
    """Trained numbers of a bottleneck on width ``d``: ``2dr + d + r``, and 2d more with a layer norm."""
    return 2 * d * r + d + r + (2 * d if layer_norm else 0)
