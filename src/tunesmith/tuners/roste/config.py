"""What RoSTE quantises and where it may rotate."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from tunesmith.core.errors import ParameterError, nearest

__all__ = ["RosteConfig"]

LAYOUTS = ("online", "folded")
ROTATIONS = ("adaptive", "none", "all")
BITS = ("weight_bits", "activation_bits", "kv_bits")


@dataclass(frozen=True)
class RosteConfig:
    """Rotated straight-through quantisation-aware tuning (RoSTE, ICML 2025, arXiv 2502.09003).

    The defaults are the paper's W4A4KV4: asymmetric, weights per output channel, activations per token, keys and
    values per token and head.

    Attributes:
        weight_bits: 2 to 16; None leaves weights as they are.
        activation_bits: of what the linear layers read.
        kv_bits: of keys (behind the rotary embedding) and values in causal attention, as a cache would hold them.
            Models without causal attention have no cache, and nothing of theirs is touched.
        symmetric: levels around 0 instead of between the least and the greatest number of a group.
        clip: c in (0, 1]: share of a group's range that is kept; the paper tries 1, 0.95 and 0.9.
        group_size: quantise weights and activations in stretches of so many inputs; None: the whole width.
        rotation: ``"adaptive"`` rotates a site where that lowers its quantisation error on calibration data;
            ``"none"`` is plain straight-through tuning; ``"all"`` rotates every site.
        layout: ``"online"`` rotates each linear layer's input and weight as it runs (any model);
            ``"folded"`` is the paper's R1 to R4 for Llama-like blocks: most rotations move into the weights, which
            leaves the input of the down-projection and the cache.
        target_modules: linear layers by name, end of name, or regular expression (a string); None: those inside the
            transformer's blocks, else every linear layer but the output head. Only with ``layout="online"``.
        exclude_modules: the same, left in floating point.
        block_fallback: rotate a width that is no power of two in blocks of its largest power of two; False refuses.
        cache_weights: keep the quantised weights until the weights change: once per optimiser step, however many
            batches it accumulates. Takes the memory of the weights once more.
        seed: of the random signs.

    Raises:
        ParameterError: a value is outside its set.
    """

    weight_bits: int | None = 4
    activation_bits: int | None = 4
    kv_bits: int | None = 4
    symmetric: bool = False
    clip: float = 1.0
    group_size: int | None = None
    rotation: str = "adaptive"
    layout: str = "online"
    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    block_fallback: bool = True
    cache_weights: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every field."""
        for name in BITS:
            bits = getattr(self, name)
            if bits is not None and (
                isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= 16
            ):
                raise ParameterError(
                    name, self, "an int in [2, 16], or None to leave the numbers as they are", bits
                )
        if isinstance(self.clip, bool) or not isinstance(self.clip, (int, float)) or not 0 < self.clip <= 1:
            raise ParameterError("clip", self, "a float in (0, 1]", self.clip)
        size = self.group_size
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 2):
            raise ParameterError("group_size", self, "an int of at least 2, or None", size)
        for name, permitted in (("rotation", ROTATIONS), ("layout", LAYOUTS)):
            if getattr(self, name) not in permitted:
                raise ParameterError(
                    name, self, f"one of {', '.join(map(repr, permitted))}", getattr(self, name)
                )
        for name in ("symmetric", "block_fallback", "cache_weights"):
            if not isinstance(getattr(self, name), bool):
                raise ParameterError(name, self, "True or False", getattr(self, name))
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise ParameterError("seed", self, "an int", self.seed)
        if self.layout == "folded" and (self.target_modules or self.exclude_modules):
            raise ParameterError(
                "target_modules",
                self,
                "None with layout='folded', which changes every matrix of the blocks",
                self.target_modules or self.exclude_modules,
            )

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RosteConfig:
        """Return the config of such a dictionary.

        Raises:
            ParameterError: a key is no field; names the nearest.
        """
        fields = {field.name for field in dataclasses.fields(cls)}
        for name, value in values.items():
            if name not in fields:
                raise ParameterError(
                    name,
                    cls,
                    f"left out: it is no field.{nearest(name, fields)} Fields: {', '.join(sorted(fields))}",
                    value,
                )
        return cls(**values)
