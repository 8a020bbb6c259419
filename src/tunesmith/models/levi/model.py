"""LEVI as a transformers model.

Roh et al., *LEVI: Generalizable Fine-tuning via Layer-wise Ensemble of Different Views*, ICML 2024, arXiv 2402.04644.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from tunesmith.core.errors import ParameterError
from tunesmith.models.levi import bases, loading
from tunesmith.models.levi.config import LeviConfig
from tunesmith.models.levi.core import AdaptingLayer, Heads, aggregate, ensemble_loss, pool
from tunesmith.models.levi.sizes import check_labels, checked_layers, view_inputs, view_kind
from tunesmith.models.levi.views import READS, make_view

__all__ = ["LEVI", "LEVIOutput"]


@dataclass
class LEVIOutput(SequenceClassifierOutput):
    """What LEVI returns.

    Attributes:
        loss: scalar, where labels were given.
        logits: (B, C), the aggregate of the heads.
        layer_logits: (n, B, C), one head per used layer. Trainers leave it out of predictions.
    """

    layer_logits: torch.Tensor | None = None


class LEVI(PreTrainedModel):
    """Layer-wise ensemble of a pre-trained model and a small one from scratch. A reconstruction.

    A base, frozen, tuned by LoRA or tuned, gives hidden states H_i; a small view model trained from scratch on the raw
    input gives h; for each used layer i an adapting layer predicts from both: ``o_i = A_i([LN(pool(H_i)); h])``. The
    prediction is the mean of the heads. It helps where the base's features and the training data are each misleading,
    but not in the same way, and the test data have shifted.

    The paper's text and code were not available to us. Confirmed are the ingredients: a pre-trained model, frozen or
    fine-tuned, a small randomly initialised one for the task, adapting layers on the concatenation of intermediate
    outputs of the one with the output of the other, several layers under one objective, and that it works with LoRA.
    Ours are: the shape of an adapting layer (LayerNorm, two linear layers, GELU, width 256), its zero start, pooling,
    the choice of 4 evenly spaced layers, mean of logits, mean of the heads' losses, and the view models.

    Nothing in it removes a misleading cue that the training data themselves hold: the view learns it too. Choose
    layers, widths and when to stop on data from the training distribution, and report both kinds of test data.

    Time of a forward pass: the base's plus O(B n (d + m) r) plus the view's; training a frozen base needs no backward
    pass through it. Trained numbers: the view and ``n ((d + m) r + r + r C + C + 2 d)``. Memory: hidden states
    (B, T, d) of all layers while the base runs, without its activations where it is frozen. `cache_features` drops the
    base from training altogether. arXiv 2402.04644, section 4 and figure 3.

    Args:
        config: the settings; what it leaves open is filled in on a copy, ``model.config``.
        base: a transformers encoder, decoder or image model (its task head is dropped), or an ``nn.Module`` that
            returns ``hidden_states`` or has ``config.blocks``. It is changed in place (frozen, LoRA). From
            ``config.base_config`` with random weights if None.
        view: a module that returns (B, m); it is called with those of the inputs that its ``forward`` names. By default
            a small one is made for what the base reads.
        example: one batch of inputs, for a base whose layers differ in width or whose config does not tell them.

    Raises:
        ParameterError: a layer outside [0, L] or twice; a base with adapters but no ``lora``; ``"cls"`` over a causal
            model; sizes that cannot be found or do not fit; or see `LeviConfig`.
    """

    config_class = LeviConfig
    main_input_name = "inputs"
    accepts_loss_kwargs = True
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = True

    def __init__(
        self,
        config: LeviConfig,
        base: nn.Module | None = None,
        view: nn.Module | None = None,
        example: dict[str, torch.Tensor] | None = None,
    ) -> None:
        config = copy.deepcopy(config)
        wrapped = loading.base_from_config(config) if base is None else base
        base = bases.backbone(wrapped)
        if isinstance(base, PreTrainedModel):
            config.base_config, config.base_class = base.config, type(base).__name__
            config.base_name_or_path = config.base_name_or_path or base.name_or_path or None
        if config.problem_type is None:
            config.problem_type = "regression" if config.num_labels == 1 else "single_label_classification"
        super().__init__(config)
        base = self._prepared(wrapped, base)
        self._find_sizes(base, example)
        self.base = base
        self.view, m = self._make_view(base, view, example)
        self.dropout = nn.Dropout(config.view_dropout)
        self.heads = Heads(
            AdaptingLayer(d, m, config.adapter_width, config.num_labels, config.norm)
            for d in config.feature_sizes
        )
        self.supports_gradient_checkpointing = getattr(base, "supports_gradient_checkpointing", False)
        for module in self.modules():  # all of them have their start, or their weights, already
            module._is_hf_initialized = True  # type: ignore[assignment]
        self.post_init()
        if not config.save_base:
            trained = {name for name, p in base.named_parameters() if p.requires_grad}
            self._keys_to_ignore_on_save = {f"base.{k}" for k in base.state_dict() if k not in trained}
        self.train(self.training)

    @property
    def frozen(self) -> bool:
        """Whether the base runs without gradients."""
        return not any(parameter.requires_grad for parameter in self.base.parameters())

    def _prepared(self, wrapped: Any, base: nn.Module) -> nn.Module:
        """Return the base with the parameters that are to be trained, and no others, set to train."""
        config = self.config
        adapted = bases.adapters_of(base)
        if adapted and config.lora is None:
            raise ParameterError(
                "lora", LEVI, "True where the base has adapters, unless they are merged first", None
            )
        if config.lora is True:
            config.lora = bases.lora_of(wrapped)
        elif config.lora is not None and not adapted:
            return bases.inject(base, config.lora)
        if not adapted:
            base.requires_grad_(not config.freeze_base)
        return base

    def _find_sizes(self, base: nn.Module, example: dict[str, torch.Tensor] | None) -> None:
        config = self.config
        if config.pooling == "cls" and bases.is_causal(base):
            raise ParameterError("pooling", LEVI, "'mean' or 'last' over a causal model", "cls")
        states = None
        if example is not None:
            base.eval()
            with torch.no_grad():
                states = bases.hidden_states(base, config.blocks, *self._for_base(base, example))
        depth = bases.depth_of(base, config.blocks) if states is None else len(states) - 1
        config.base_depth = config.base_depth if depth is None else depth
        config.layers = checked_layers(config.layers, config.base_depth)
        sizes = bases.widths_of(base, config.blocks, config.layers)
        if states is not None:
            sizes = [states[i].shape[1 if states[i].ndim == 4 else -1] for i in config.layers]
        given = config.feature_sizes
        if given is not None and (len(given) != len(config.layers) or (sizes or given) != list(given)):
            raise ParameterError("feature_sizes", LEVI, f"the widths of layers {config.layers}", given)
        config.feature_sizes = sizes or given
        if config.feature_sizes is None:
            raise ParameterError("example", LEVI, "one batch of inputs, to find this base's widths", example)

    def _make_view(
        self, base: nn.Module, view: nn.Module | None, example: dict[str, Any] | None
    ) -> tuple[nn.Module, int]:
        config = self.config
        self._view_takes = None if view is None else bases.accepted(view)
        if view is not None:
            config.view = "custom"
        elif config.view == "auto":
            config.view = view_kind(base, example)
        if config.view == "custom":
            if view is None:
                raise ParameterError("view", LEVI, "a module that returns (B, m), for this base", None)
            if config.view_size is None:
                config.view_size = self._size_of(view, example)
            return view, config.view_size
        if config.view_inputs is None:
            config.view_inputs = view_inputs(config.view, base, example)
        count = sum(p.numel() for p in base.parameters())
        view, m, config.view_layers = make_view(
            config.view, config.view_inputs, config.view_size, config.view_layers, count
        )
        config.view_size = m
        self._view_takes = bases.accepted(view)
        return view, m

    def _size_of(self, view: nn.Module, example: dict[str, Any] | None) -> int:
        if example is None:
            raise ParameterError("view_size", LEVI, "m, the width of what your view returns", None)
        was = view.training
        with torch.no_grad():
            h = self._view_output(view.eval(), example, None)
        view.train(was)
        return int(h.shape[1])

    def train(self, mode: bool = True) -> LEVI:
        """Set the mode of all parts; a frozen base stays in evaluation mode."""
        super().train(mode)
        if "base" in self._modules:
            if self.frozen:
                self.base.eval()
            elif self.config.lora is not None:
                for module in self.base.modules():
                    if isinstance(module, nn.modules.batchnorm._BatchNorm):
                        module.eval()
        return self

    def get_input_embeddings(self) -> nn.Module:
        """Return the base's."""
        found: nn.Module = cast(Any, self.base).get_input_embeddings()
        return found

    def _init_weights(self, module: nn.Module) -> None:
        """Do nothing: each part draws its own start."""

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """Write settings and weights (safetensors), the base's among them unless ``save_base`` is False."""
        # Under the names that the modules have, not those of the base's older checkpoints, which mean nothing here.
        super().save_pretrained(save_directory, **{**kwargs, "save_original_format": False})

    @classmethod
    def from_pretrained(
        cls, folder: Any, base: nn.Module | None = None, view: nn.Module | None = None, **kwargs: Any
    ) -> LEVI:
        """Load what ``save_pretrained`` wrote, every weight in the type it was saved in, in evaluation mode.

        Args:
            folder: path or Hub id.
            base: the pre-trained model; needed for a plain module, and for one that was not saved and has moved.
            view: the view, if it was your own.
            **kwargs: ``config``, and ``revision``, ``token``, ``cache_dir``, ``local_files_only`` for the Hub. What
                else transformers takes (quantisation, devices) is for the base: load it so, and hand it over.

        Raises:
            ParameterError: another argument, or a base or view is needed.
            MissingModelError: no weights there, or not those of this model.
        """
        config, state = loading.read(folder, kwargs)
        with loading.no_draws(base is None and config.save_base):
            if base is None and not config.save_base:
                base = loading.base_from_origin(config)
            model = cls(config, base, view)
        loading.put(model, state, folder)
        return model.eval()

    def _for_base(self, base: nn.Module, inputs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Split inputs into those by place and those by name."""
        first, named = _split(inputs, bases.accepted(base))
        if first is None:
            return (), named
        if isinstance(base, PreTrainedModel):
            return (), {base.main_input_name: first, **named}
        return (first,), named

    def compute_layer_features(self, **inputs: Any) -> torch.Tensor:
        """Return the pooled layers side by side, (B, sum of feature sizes), in at least float32."""
        config = self.config
        args, kwargs = self._for_base(self.base, inputs)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            states = bases.hidden_states(self.base, config.blocks, args, kwargs)
            mask = inputs.get("attention_mask")
            zs = []
            for i, d in zip(config.layers, config.feature_sizes, strict=True):
                z = pool(states[i], config.pooling, mask if states[i].ndim == 3 else None)
                if z.shape[1] != d:
                    raise ParameterError(
                        "feature_sizes",
                        LEVI,
                        f"the widths of layers {config.layers}",
                        f"{d}, not {z.shape[1]}",
                    )
                zs.append(z)
            return torch.cat(zs, dim=1)

    def _view_output(self, view: nn.Module, inputs: dict[str, Any], m: int | None) -> torch.Tensor:
        first, given = _split(inputs, self._view_takes)
        wanted = READS.get(self.config.view)
        if wanted is not None and first is None and wanted not in given:
            raise ParameterError(wanted, LEVI, "given, since the view reads it", None)
        h = view(**given) if first is None else view(first, **given)
        if not isinstance(h, torch.Tensor) or h.ndim != 2:
            what = tuple(h.shape) if isinstance(h, torch.Tensor) else type(h).__name__
            raise ParameterError("view", LEVI, "a module that returns a tensor (B, m)", what)
        if m is not None and h.shape[1] != m:
            raise ParameterError("view_size", LEVI, f"{h.shape[1]}, what the view returns", m)
        return h

    def forward(
        self,
        inputs: torch.Tensor | None = None,
        *,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        layer_features: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> LEVIOutput | tuple[Any, ...]:
        """Return loss and logits.

        Args:
            inputs: the base's main input, for one that has no other name for it.
            input_ids: (B, T).
            attention_mask: (B, T), 0 at padding.
            token_type_ids: (B, T).
            pixel_values: (B, channels, height, width).
            layer_features: what `compute_layer_features` gives, (B, sum of feature sizes): the base is then not run.
            labels: see `core.ensemble_loss`.
            num_items_in_batch: labels of the whole accumulated batch, from the trainer.
            return_dict: False for a tuple.
            **kwargs: further inputs by name, for base and view.

        Raises:
            DataError: labels outside the head, or of another shape.
            ParameterError: a model returns something of another shape than stated.
        """
        config = self.config
        for name in ("output_hidden_states", "output_attentions", "use_cache"):
            kwargs.pop(name, None)
        given = {
            "inputs": inputs,
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "pixel_values": pixel_values,
            **kwargs,
        }
        if layer_features is None:
            layer_features = self.compute_layer_features(**given)
        elif layer_features.shape[-1] != sum(config.feature_sizes):
            raise ParameterError(
                "layer_features", LEVI, f"of width {sum(config.feature_sizes)}", tuple(layer_features.shape)
            )
        h = self.dropout(self._view_output(self.view, given, config.view_size))
        zs = torch.split(layer_features, config.feature_sizes, dim=1)
        o = self.heads(zs, h, config.ablate)
        logits = aggregate(o, config.aggregate, config.problem_type)
        loss = None
        if labels is not None:
            check_labels(labels, len(logits), config)
            loss = ensemble_loss(
                o,
                labels,
                loss=config.loss,
                how=config.aggregate,
                problem=config.problem_type,
                num_items=num_items_in_batch,
            )
        out = LEVIOutput(loss=loss, logits=logits, layer_logits=o)
        return out.to_tuple() if return_dict is False else out


def _split(
    inputs: dict[str, Any], names: frozenset[str] | None
) -> tuple[torch.Tensor | None, dict[str, Any]]:
    """Return the unnamed input, if there is one, and those of the others that bear one of the names."""
    found = {k: v for k, v in inputs.items() if v is not None and k not in ("inputs", "labels")}
    if names is not None:
        found = {k: v for k, v in found.items() if k in names}
    return inputs.get("inputs"), found


AutoConfig.register("levi", LeviConfig, exist_ok=True)
AutoModelForSequenceClassification.register(LeviConfig, LEVI, exist_ok=True)
