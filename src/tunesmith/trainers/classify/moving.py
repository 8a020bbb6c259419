"""What of a classifier may move: everything, the head, an adapter and the head, or LEVI's view and heads."""

from __future__ import annotations

from typing import Any

from tunesmith.core.errors import ParameterError, TrainingError
from tunesmith.trainers.pooled import find_head

__all__ = ["prepared", "rate_of", "tuner_parameters"]

RATES = {"full": 2e-5, "head": 1e-3, "levi": 1e-3}
ADAPTER_RATE = 2e-4
LEVI_PARAMETERS = frozenset(
    [
        "adapter_width", "aggregate", "freeze_base", "layers", "lora", "loss", "norm", "pooling", "view",
        "view_dropout", "view_layers", "view_size",
    ]
)  # fmt: skip


def rate_of(tuner: dict[str, Any]) -> float:
    """Return the learning rate that a tuner has by default."""
    return RATES.get(tuner["type"], ADAPTER_RATE)


def tuner_parameters(kind: str) -> frozenset[str] | None:
    """Return the parameters of a tuner of ours; None for one of PEFT's."""
    return {"full": frozenset(), "head": frozenset(), "levi": LEVI_PARAMETERS}.get(kind)


def prepared(model: Any, tuner: dict[str, Any]) -> Any:
    """Return the classifier with what may move released.

    Args:
        model: a classifier of transformers, changed in place.
        tuner: ``type`` and parameters.

    Raises:
        ParameterError: a parameter that the tuner does not have, or outside its set.
        UnknownNameError: there is no such tuner.
        TrainingError: nothing is left of the model that could be trained.
    """
    values = dict(tuner)
    kind = values.pop("type")
    own = tuner_parameters(kind)
    for name, value in values.items():
        if own is not None and name not in own:
            known = ", ".join(sorted(own)) or "none"
            raise ParameterError(
                name, f"tuner '{kind}'", f"left out: it has no such parameter. Its parameters: {known}", value
            )
    if kind == "levi":
        return _levi(model, values)
    if kind == "full":
        return model.requires_grad_(True)
    head = find_head(model)
    if kind == "head":
        model.requires_grad_(False)
        model.get_submodule(head).requires_grad_(True)
        return model
    from peft import get_peft_model

    from tunesmith.tuners import check_target_modules, peft_config

    also = {head.split(".")[0], *(values.get("modules_to_save") or ())}
    config = peft_config(kind, **{**values, "task_type": "SEQ_CLS", "modules_to_save": sorted(also)})
    check_target_modules(model, config)
    wrapped = get_peft_model(model, config)
    if not any(p.requires_grad for p in wrapped.parameters()):
        raise TrainingError(f"The tuner '{kind}' leaves nothing of {type(model).__name__} to train.")
    return wrapped


def _levi(model: Any, values: dict[str, Any]) -> Any:
    from tunesmith.models import LEVI, LeviConfig

    config = model.config
    return LEVI(
        LeviConfig(
            num_labels=config.num_labels, id2label=config.id2label, label2id=config.label2id, **values
        ),
        model,
    )
