"""Build any PEFT config, PEFT's own or ours, by the lower-case name of its type, and check it before training.

PEFT ignores a misspelt target module as long as another one matches, and says only "target modules not
found" when none does (huggingface/peft issues 1959 and 1206). Here each entry must match, and the error lists
what is there.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from tunesmith.core.errors import ConfigError, ParameterError, UnknownNameError, nearest
from tunesmith.tuners._targets import refuse_unmatched
from tunesmith.tuners.registration import WHOLE_MODEL, config_of

__all__ = ["check_target_modules", "peft_config", "tuner_names"]

ALL_LINEAR = "all-linear"


def tuner_names() -> list[str]:
    """Return the names that `peft_config` takes, sorted: every method of the installed PEFT, and ours."""
    return sorted(config_of())


def peft_config(type: str = "lora", /, **parameters: Any) -> Any:
    """Return the config of a PEFT method for a causal language model.

    LoRA differs from PEFT's own defaults in two places: ``target_modules`` is ``"all-linear"`` (each linear
    layer but the output head, as in QLoRA, Dettmers et al. 2023, section 4) and ``lora_alpha`` is ``2 * r``,
    so that the scale of the update does not fall when ``r`` is raised. ``lora_dropout`` is PEFT's 0. All else
    is PEFT's.

    Args:
        type: the PEFT type in lower case (``"lora"``, ``"ia3"``, ``"oft"`` …; see `tuner_names`).
        **parameters: fields of the method's config; lists for those that are sets.

    Returns:
        A ``peft.PeftConfig`` with ``task_type="CAUSAL_LM"``.

    Raises:
        UnknownNameError: PEFT has no such method.
        ParameterError: the method's config has no such field.
        ConfigError: the config refuses the values.
    """
    table = config_of()
    if type not in table:
        raise UnknownNameError("tuner", type, [*table, *WHOLE_MODEL])
    config = table[type]
    fields = {field.name for field in dataclasses.fields(config) if field.init}
    for name, value in parameters.items():
        if name not in fields:
            raise ParameterError(
                name,
                config,
                f"left out: {config.__name__} has no such field.{_nearest_field(name, fields)} "
                f"Its fields: {', '.join(sorted(fields))}",
                value,
            )
    defaults: dict[str, Any] = {"task_type": "CAUSAL_LM"} if "task_type" in fields else {}
    if type == "lora":
        defaults["target_modules"] = ALL_LINEAR
        if isinstance(rank := parameters.get("r", 8), int):
            defaults["lora_alpha"] = 2 * rank
    try:
        return config(**{**defaults, **parameters})
    except ParameterError:  # one of ours: says it better
        raise
    except (TypeError, ValueError, KeyError) as error:
        raise ConfigError(f"The tuner '{type}' refuses its parameters: {error}") from error


def check_target_modules(model: Any, config: Any) -> None:
    """Check that each entry of ``config.target_modules`` names at least one module of ``model``.

    A list entry matches the whole name of a module or its end after a dot; a string is a regular expression
    for the whole name, as PEFT reads them. ``"all-linear"`` and an absent setting always pass. Time O(modules
    x entries).

    Raises:
        ParameterError: an entry matches nothing; lists the nearest names and the linear layers found.
    """
    targets = getattr(config, "target_modules", None)
    if not targets or targets == ALL_LINEAR:
        return
    modules = {name: module for name, module in model.named_modules() if name}
    linear = {name.rsplit(".", 1)[-1] for name, module in modules.items() if _is_linear(module)}
    refuse_unmatched(
        targets, modules, config, "modules in the model", ends=linear, label="Linear layers found"
    )


def _is_linear(module: Any) -> bool:
    # Conv1D is GPT-2's linear layer, with its weight transposed; quantised layers carry "Linear" in their
    # name.
    kind = type(module).__name__
    return "Linear" in kind or kind == "Conv1D"


def _nearest_field(name: str, fields: set[str]) -> str:
    known = {"rank": "r", "alpha": "lora_alpha", "dropout": "lora_dropout", "targets": "target_modules"}
    if known.get(name) in fields:
        return f" Did you mean '{known[name]}'?"
    return nearest(name, fields)
