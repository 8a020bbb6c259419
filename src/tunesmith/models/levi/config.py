"""The settings of LEVI."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, AutoConfig

from tunesmith.core.errors import ParameterError
from tunesmith.models.levi.core import AGGREGATES, LOSSES, POOLINGS

__all__ = ["LeviConfig"]

VIEWS = ("auto", "text", "image", "vector", "custom")


class LeviConfig(PretrainedConfig):
    """How LEVI joins its two models; what it learns about them at first (sizes, layers) is written here too.

    Attributes:
        layers: hidden states of the base to use, ints in [0, L]: l is what block l returns, 0 what enters the first.
            ``"all"`` for 1 to L; by default 4 evenly spaced ones with the last.
        blocks: names of the base's modules that count as its blocks 1 to L, for a plain ``nn.Module``; each returns one
            tensor. By default the base is asked for ``hidden_states``.
        pooling: ``"mean"`` over tokens, ``"cls"`` or ``"last"``, all without padding.
        adapter_width: r; 0 makes each adapting layer one linear layer.
        norm: a LayerNorm on each pooled layer.
        aggregate: the prediction is the mean of the heads' ``"logits"`` or of their ``"probs"``.
        loss: ``"per_head"`` (mean of the heads' losses) or ``"joint"`` (loss of the mean).
        view: ``"text"`` (small transformer), ``"image"`` (small CNN), ``"vector"`` (MLP), ``"custom"`` (a module of
            yours), or ``"auto"``: what the base reads.
        view_size: m; by default the largest of 32, 64, 128, 256 that keeps the view within 5 % of the base, or 32.
        view_layers: blocks of the view; 2, or 3 for images.
        view_inputs: vocabulary, channels, or numbers per vector; taken from the base or an example.
        view_dropout: on h, in [0, 1); raises the weight of the base.
        freeze_base: keep the base as it is, in evaluation mode and without gradients.
        lora: settings of ``peft.LoraConfig`` trained in the frozen base; True for a base that has LoRA already.
        save_base: False leaves the frozen base's weights out of checkpoints; loading takes them from where they were,
            ``base_name_or_path``, or from a base that is handed over.
        ablate: train and predict without the ``"view"`` or the ``"base"`` (zeros for it), a control.
        feature_sizes: width of each used layer.
        base_depth: L.
        base_config: configuration of a transformers base.
        base_class: its class.
        base_name_or_path: where it was loaded from.

    ``num_labels=1`` is regression. ``problem_type`` as elsewhere in transformers.

    Raises:
        ParameterError: a setting outside its set.
    """

    model_type = "levi"
    sub_configs = {"base_config": AutoConfig}
    keys_to_ignore_at_inference = ["layer_logits"]

    layers: Any = None
    blocks: Any = None
    pooling: str = "mean"
    adapter_width: int = 256
    norm: bool = True
    aggregate: str = "logits"
    loss: str = "per_head"
    view: str = "auto"
    view_size: int | None = None
    view_layers: int | None = None
    view_inputs: int | None = None
    view_dropout: float = 0.0
    freeze_base: bool = True
    lora: Any = None
    save_base: bool = True
    ablate: str | None = None
    feature_sizes: Any = None
    base_depth: int | None = None
    base_config: Any = None
    base_class: str | None = None
    base_name_or_path: str | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Check each setting that can be checked without the models."""
        if isinstance(self.base_config, dict):
            values = dict(self.base_config)
            self.base_config = CONFIG_MAPPING[values.pop("model_type")](**values)
        super().__post_init__(**kwargs)
        for name, allowed in (
            ("pooling", POOLINGS),
            ("aggregate", AGGREGATES),
            ("loss", LOSSES),
            ("view", VIEWS),
            ("ablate", (None, "view", "base")),
        ):
            if getattr(self, name) not in allowed:
                options = " or ".join(repr(option) for option in allowed)
                raise ParameterError(name, LeviConfig, options, getattr(self, name))
        for name, least in (("adapter_width", 0), ("view_size", 1), ("view_layers", 1), ("view_inputs", 1)):
            value = getattr(self, name)
            wrong = isinstance(value, bool) or not isinstance(value, int) or value < least
            if wrong and not (value is None and name != "adapter_width"):
                raise ParameterError(name, LeviConfig, f"an int of at least {least}", value)
        if not 0 <= self.view_dropout < 1:
            raise ParameterError("view_dropout", LeviConfig, "a float in [0, 1)", self.view_dropout)
        if self.lora is not None and not (self.lora is True or isinstance(self.lora, dict)):
            raise ParameterError("lora", LeviConfig, "a dict of LoraConfig's fields, True or None", self.lora)
        if self.lora is not None and not self.freeze_base:
            raise ParameterError("lora", LeviConfig, "None where freeze_base is False", self.lora)
        if not self.save_base and not self.freeze_base:
            raise ParameterError("save_base", LeviConfig, "True where freeze_base is False", False)
        if self.aggregate == "probs" and (self.problem_type == "regression" or self.num_labels == 1):
            raise ParameterError("aggregate", LeviConfig, "'logits' for regression", "probs")
