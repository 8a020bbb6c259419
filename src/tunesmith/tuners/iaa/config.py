"""The settings of IAA."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

from tunesmith.core.errors import ParameterError
from tunesmith.tuners._base import TunerConfig
from tunesmith.tuners.iaa.core import NONLINEARITIES

__all__ = ["HOSTS", "VARIANTS", "IAAConfig"]

VARIANTS = ("layer", "sublayer", "chain", "none")
HOSTS = ("adapter", "lora", "none")


@dataclass
class IAAConfig(TunerConfig):
    """Inside and aside: adapters in the layers, joined by trainable modules beside the layers. A reconstruction.

    Ma, Guo, Zhang, Fan, Cheng: *Scattered or Connected? An Optimized Parameter-efficient Tuning Approach for
    Information Retrieval*, CIKM 2022, arXiv 2208.09847. What is confirmed of the paper: adapters and LoRA put their
    trainable modules into the layers, separated by frozen ones; IAA injects further modules alongside the network that
    join them into one trainable pathway, in three ways of inserting them. Its formulas were not available to us and no
    code is public: wiring, initialisation and constants here are inferred from that idea, so this is IAA-style, not a
    reproduction of the paper's numbers.

    With F_l the frozen layer and its hosts, B_l a bottleneck beside it (zero at first, so the tuned model starts as the
    base model):

    - ``layer``: ``H_l = F_l(H_{l-1}) + B_l(H_{l-1})``.
    - ``sublayer``: the same beside attention and beside the feed-forward part, residuals included.
    - ``chain``: a state of its own runs beside the network, ``c_l = c_{l-1} + B_l(c_{l-1} + a_l)``, where a_l is
      what the hosts of layer l add to the residual stream; the increment is added to H_l. c starts as the input of
      the first layer.
    - ``none``: hosts alone, scattered: plain adapter or LoRA tuning, the baseline.

    For an equal budget halve the host when asides are added: ``r_host=16, r_aside=16`` trains what ``r_host=32,
    variant="none"`` trains, but for d numbers per layer. Costs 4 d r_aside operations per token and layer, which stay
    at inference: asides stand beside nonlinear layers, so nothing can be merged. In training a layer keeps (B, T,
    r_aside) activations more, and a chain its states (B, T, d). Works on quantised bases, whose weights it never
    touches.

    Attributes:
        r_host: width of the hosts' bottleneck, or LoRA's rank.
        r_aside: width of the asides' bottleneck.
        variant: ``"layer"``, ``"sublayer"``, ``"chain"`` or ``"none"``.
        host: ``"adapter"`` (a bottleneck with residual on the output of the feed-forward part; of attention too with
            ``variant="sublayer"``), ``"lora"`` (attention output and feed-forward output) or ``"none"``.
            ``target_modules`` names other places.
        nonlinearity: ``"gelu"``, ``"relu"``, ``"silu"``, ``"tanh"`` or ``"identity"``, in all bottlenecks.
        dropout: on the input of each branch while training, in [0, 1).
        layer_norm: a trained LayerNorm on the input of each aside.
        scale: fixed factor of the asides.
        init_scale: standard deviation of the down-projections at first.
        lora_alpha: LoRA hosts are scaled by ``lora_alpha / r_host``; ``r_host`` by default.
        init_weights: False draws the up-projections too, so that the start is not the base model (for tests).

    Raises:
        ParameterError: a setting outside its set, or neither hosts nor asides.
    """

    tuner_name: ClassVar[str] = "iaa"

    r_host: int = field(default=16, metadata={"help": "Bottleneck width of hosts, or LoRA's rank."})
    r_aside: int = field(default=16, metadata={"help": "Bottleneck width of asides."})
    variant: str = field(default="layer", metadata={"help": "layer, sublayer, chain or none."})
    host: str = field(default="adapter", metadata={"help": "adapter, lora or none."})
    nonlinearity: str = field(default="gelu", metadata={"help": "gelu, relu, silu, tanh or identity."})
    dropout: float = field(default=0.0, metadata={"help": "On the input of each branch."})
    layer_norm: bool = field(default=False, metadata={"help": "A trained LayerNorm before each aside."})
    scale: float = field(default=1.0, metadata={"help": "Fixed factor of the asides."})
    init_scale: float = field(default=0.02, metadata={"help": "Standard deviation of down-projections."})
    lora_alpha: float | None = field(default=None, metadata={"help": "LoRA hosts' alpha; r_host by default."})
    init_weights: bool = field(default=True, metadata={"help": "False: up-projections are drawn too."})

    def __post_init__(self) -> None:
        """Check each setting, and that there is something to train."""
        super().__post_init__()
        _one_of("variant", self.variant, VARIANTS)
        _one_of("host", self.host, HOSTS)
        _one_of("nonlinearity", self.nonlinearity, tuple(sorted(NONLINEARITIES)))
        if self.variant == "none" and self.host == "none":
            raise ParameterError("host", IAAConfig, "'adapter' or 'lora' where variant is 'none'", "none")
        if self.host != "none":
            _rank("r_host", self.r_host)
        if self.variant != "none":
            _rank("r_aside", self.r_aside)
        if not 0 <= self.dropout < 1:
            raise ParameterError("dropout", IAAConfig, "a float in [0, 1)", self.dropout)
        for name in ("scale", "init_scale", "lora_alpha"):
            value = getattr(self, name)
            if value is not None and not (0 < value < math.inf):
                raise ParameterError(name, IAAConfig, "a float above 0", value)


def _one_of(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ParameterError(name, IAAConfig, " or ".join(repr(option) for option in allowed), value)


def _rank(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ParameterError(name, IAAConfig, "an int of at least 1", value)
