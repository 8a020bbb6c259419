"""Pooled features of any classifier: what goes into its last linear layer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from tunesmith.core.errors import ParameterError, TrainingError

__all__ = ["PooledFeatures", "find_head"]

WRAPPED = (".modules_to_save.", ".original_module", ".base_layer")
"""What PEFT puts between a layer that it keeps trainable or adapts, and the layer."""
ADAPTER = ("lora_", "adapter_", "tunesmith_")


def find_head(model: nn.Module, head: str | None = None, *, owner: Any = None) -> str:
    """Return the name of the layer whose output are the class logits.

    Args:
        model: a classifier of transformers, timm or your own, also wrapped by PEFT.
        head: its name, where it is known; by default the last ``nn.Linear``, of as many outputs as
            ``model.config.num_labels`` says where the model has a config.
        owner: whose parameter errors name.

    Raises:
        ParameterError: there is no such layer.
    """
    owner = owner or find_head
    if head is not None:
        found = dict(model.named_modules()).get(head)
        if found is None or _linear_in(found) is None:
            raise ParameterError("head", owner, "the name of a linear layer of the model", head)
        return head
    wanted = getattr(getattr(model, "config", None), "num_labels", None)
    names = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear) or any(part in name for part in ADAPTER):
            continue
        if wanted is None or module.out_features == wanted:
            names.append(name)
    if not names:
        raise ParameterError(
            "head", owner, "given: the model has no linear layer with an output per class", head
        )
    name = names[-1]
    for mark in WRAPPED:
        name = name.split(mark)[0]
    return name


def _linear_in(module: nn.Module) -> nn.Linear | None:
    return next((m for m in module.modules() if isinstance(m, nn.Linear)), None)


class PooledFeatures:
    """Runs a classifier and returns its pooled features beside its logits.

    By default the features are what a forward pass hands to the head. Where the head runs at every position and the
    model picks one afterwards (decoders of transformers), the same position is picked. The first call checks that the
    head's output are the logits.

    Args:
        model: the classifier.
        head: name of its last linear layer; found by default (`find_head`).
        features: ``features(model, inputs)`` -> (B, d), for models whose features a hook cannot see; the head is then
            run on them.
        owner: whose parameter errors name.

    Attributes:
        head: the layer's name.
        dim: d, inputs of the head.
        n_classes: outputs of the head.
    """

    def __init__(
        self,
        model: nn.Module,
        head: str | None = None,
        features: Callable[..., Any] | None = None,
        *,
        owner: Any = None,
    ) -> None:
        self.owner = owner or type(self)
        self.head = find_head(model, head, owner=self.owner)
        if features is not None and not callable(features):
            raise ParameterError("features", self.owner, "a callable or None", features)
        self.features = features
        linear = _linear_in(model.get_submodule(self.head))
        assert linear is not None
        self.dim, self.n_classes = linear.in_features, linear.out_features
        self._checked = False

    def module(self, model: nn.Module) -> nn.Module:
        """Return the head of a model or of a copy of it."""
        return model.get_submodule(self.head)

    def logits(self, model: nn.Module, z: torch.Tensor) -> torch.Tensor:
        """Return the head's output for features z (M, d), (M, C) in float32."""
        head = self.module(model)
        linear = _linear_in(head)
        assert linear is not None
        return head(z.to(linear.weight.dtype)).float()  # type: ignore[no-any-return]

    def __call__(
        self, model: nn.Module, inputs: Mapping[str, Any], *, inner: nn.Module | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return features (B, d) and logits (B, C), with gradients.

        Args:
            model: what is called: the classifier, a copy of it, or its ``DistributedDataParallel``.
            inputs: its keyword arguments; ``labels`` are left out. A plain module whose forward has other names takes
                the only tensor by position.
            inner: the classifier inside ``model``; the same by default.

        Raises:
            TrainingError: ``features`` gave something else than (B, d), or the head's output are not the logits.
        """
        inner = model if inner is None else inner
        given = {name: value for name, value in inputs.items() if name != "labels"}
        if self.features is not None:
            z = self.features(model, given)
            self._check_features(z)
            return z, self.logits(inner, z)
        seen: list[tuple[Any, Any]] = []
        handle = self.module(inner).register_forward_hook(lambda _, args, out: seen.append((args[0], out)))
        try:
            outputs = call(model, inner, given)
        finally:
            handle.remove()
        logits = logits_of(outputs)
        if not seen:
            raise TrainingError(
                f"The layer '{self.head}' did not run in the model's forward pass, so it gave no features. Name the "
                "layer that makes the logits: head=."
            )
        z, out = seen[-1]
        if (
            isinstance(logits, torch.Tensor)
            and isinstance(z, torch.Tensor)
            and z.dim() == 3
            and logits.dim() == 2
        ):
            rows = torch.arange(len(z), device=z.device)
            last = last_tokens(inner, given, z.device)
            z, out = z[rows, last], out[rows, last]
        self._check_features(z)
        if not self._checked:
            same = isinstance(logits, torch.Tensor) and logits.shape == out.shape
            if not same or not torch.allclose(logits.float(), out.float(), atol=1e-5, rtol=1e-3):
                raise TrainingError(
                    f"The output of the layer '{self.head}' are not the model's logits. Name the layer that makes "
                    "them: head=."
                )
            self._checked = True
        return z, logits

    def _check_features(self, z: Any) -> None:
        if isinstance(z, torch.Tensor) and z.dim() == 2 and z.shape[1] == self.dim:
            return
        got = (
            f"a tensor of shape {tuple(z.shape)}" if isinstance(z, torch.Tensor) else f"a {type(z).__name__}"
        )
        if z is None:
            got = "nothing (None)"
        raise TrainingError(
            f"Pooled features must be one tensor (rows, {self.dim}), what the layer '{self.head}' takes; "
            f"{'features= returned' if self.features else 'the model handed it'} {got}."
        )


def call(model: nn.Module, inner: nn.Module, given: Mapping[str, Any]) -> Any:
    """Run a model by its arguments' names; a plain module of one argument takes the only input by position."""
    parameters = inspect.signature(inner.forward).parameters
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    if open_ended or set(given) <= set(parameters):
        return model(**given)
    if len(given) == 1:
        return model(*given.values())
    raise TrainingError(
        f"The model's forward takes {', '.join(parameters) or 'nothing'}, and a batch holds {', '.join(given)}: name "
        "the columns as the model does."
    )


def logits_of(outputs: Any) -> Any:
    """Return the logits of whatever a classifier returns: an output object, a dict, a tuple or the tensor."""
    if isinstance(outputs, torch.Tensor):
        return outputs
    if isinstance(outputs, Mapping):
        return outputs.get("logits")
    if hasattr(outputs, "logits"):
        return outputs.logits
    return outputs[0] if isinstance(outputs, (tuple, list)) and outputs else None


def last_tokens(model: nn.Module, given: Mapping[str, Any], device: torch.device) -> torch.Tensor:
    """Return the position (B,) at which a decoder of transformers reads its class: the last that is not padding."""
    ids = given.get("input_ids")
    config: Any = getattr(model, "config", None)
    if ids is None or config is None:
        raise TrainingError(
            "The head runs at every position, and without input_ids it is not known which one the model reads. Give "
            "features=."
        )
    pad = config.get_text_config().pad_token_id
    if pad is None:
        return torch.full((len(ids),), ids.shape[1] - 1, device=device)
    positions = torch.arange(ids.shape[1], device=ids.device, dtype=torch.int32)
    return (positions * (ids != pad)).argmax(-1).to(device)
