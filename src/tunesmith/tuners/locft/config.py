"""Settings of LocFT-BF (Yang et al., ICLR 2026, arXiv 2509.22072)."""

from __future__ import annotations

from dataclasses import dataclass

from tunesmith.core.errors import ParameterError

__all__ = ["LocFTConfig"]

PIPELINES = ("breadth_first", "depth_first")
LOSSES = ("sample", "token")
MATRIX_RATE, MODULE_RATE = 5e-4, 5e-5


@dataclass(frozen=True)
class LocFTConfig:
    """Where a model is edited, and how it is fine-tuned there.

    Attributes:
        layer: number of the layer, from 0; by default 70 % of the depth. Tune it on edits of its own, not on those
            that are reported.
        module: what of the layer is tuned: ``"mlp_down"`` or ``"mlp_up"`` (one matrix), ``"mlp"``, ``"attn"``,
            ``"layer"``, or a name inside the layer such as ``"mlp.shared_expert.down_proj"``. ``"model"`` tunes
            everything: the comparison that costs general ability.
        learning_rate: of Adam, constant; 5e-4 for one matrix and 5e-5 for more by default (as in the authors' settings
            for models of 7 to 8 billion weights; small models need more).
        batch_size: edits per step. Larger keeps general ability better and generalises slightly less; the authors take
            100 for thousands of edits.
        max_epochs: passes over all edits at most; for ``depth_first`` steps on each edit at most.
        loss_threshold: a batch below it takes no step, and an epoch whose mean is below it is the last; in nats.
        pipeline: ``"breadth_first"`` (the method), or ``"depth_first"``: one edit after the other until it sticks,
            the baseline that forgets.
        loss: ``"sample"`` (mean over an edit's tokens, then over edits) or ``"token"`` (mean over all tokens).
        append_eos: learn to stop after the target.
        n_prefixes: copies of each edit behind a sampled sentence (the paper's appendix: 5): generalises better.
        cache_states: keep what enters the tuned layer instead of running the frozen layers below it in every epoch
            (exact but for rounding; memory: edits x tokens x width).
        seed: of order and prefixes.

    Raises:
        ParameterError: a value is outside its set.
    """

    layer: int | None = None
    module: str = "mlp_down"
    learning_rate: float | None = None
    batch_size: int = 32
    max_epochs: int = 25
    loss_threshold: float = 1e-2
    pipeline: str = "breadth_first"
    loss: str = "sample"
    append_eos: bool = True
    n_prefixes: int = 0
    cache_states: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the values."""
        for name, least in (
            ("layer", 0),
            ("batch_size", 1),
            ("max_epochs", 1),
            ("n_prefixes", 0),
            ("seed", 0),
        ):
            value = getattr(self, name)
            if name == "layer" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                more = " or None" if name == "layer" else ""
                raise ParameterError(name, self, f"an int of at least {least}{more}", value)
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise ParameterError("learning_rate", self, "a float above 0 or None", self.learning_rate)
        if not self.loss_threshold >= 0:
            raise ParameterError("loss_threshold", self, "a float of at least 0", self.loss_threshold)
        if self.pipeline not in PIPELINES:
            raise ParameterError("pipeline", self, f"one of {', '.join(PIPELINES)}", self.pipeline)
        if self.loss not in LOSSES:
            raise ParameterError("loss", self, f"one of {', '.join(LOSSES)}", self.loss)
        if not isinstance(self.module, str) or not self.module:
            raise ParameterError("module", self, "a name", self.module)

    @property
    def rate(self) -> float:
        """The learning rate that applies."""
        if self.learning_rate is not None:
            return self.learning_rate
        return MODULE_RATE if self.module in ("mlp", "attn", "layer", "model") else MATRIX_RATE
