"""Look methods up, narrow them down, and build the config of one."""

from __future__ import annotations

import inspect
import json
import sys
from functools import lru_cache
from importlib.resources import files
from typing import Any

from tunesmith.core.errors import ParameterError, TunesmithError, UnknownNameError
from tunesmith.tuners.catalogue.entry import FAMILIES, MODELS, MethodEntry

__all__ = ["build", "entries", "find", "get"]


@lru_cache(maxsize=1)
def entries() -> tuple[MethodEntry, ...]:
    """Return all methods: those written down here, then tuners of the installed PEFT that are new to us."""
    text = files("tunesmith.tuners.catalogue").joinpath("methods.json").read_text(encoding="utf-8")
    known = tuple(MethodEntry(**{**row, "models": tuple(row["models"])}) for row in json.loads(text))
    return known + _news({entry.reference for entry in known})


def _news(references: set[str | None]) -> tuple[MethodEntry, ...]:
    """Return an entry for each PEFT tuner that no reference names, its family read off its classes."""
    from peft import PromptLearningConfig
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

    found = []
    for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items():
        if f"peft:{config.__name__}" in references or not config.__module__.startswith("peft."):
            continue
        prompt = issubclass(config, PromptLearningConfig)
        folds = not prompt and _has_delta(PEFT_TYPE_TO_TUNER_MAPPING.get(kind))
        found.append(
            MethodEntry(
                key=str(kind.value).lower(),
                title=str(kind.value),
                family="prompt" if prompt else "reparameterization" if folds else "additive",
                subfamily="new in PEFT",
                models=("LLM",),
                mechanism="not described here yet",
                changes_structure=not folds,
                extra_inference_cost=not folds,
                mergeable=folds,
                reference=f"peft:{config.__name__}",
                guessed=True,
            )
        )
    return tuple(found)


def _has_delta(tuner: Any) -> bool:
    """Say whether a layer of the tuner can state its change of the weight, and so be merged."""
    layer = getattr(tuner, "tuner_layer_cls", None)
    if not inspect.isclass(layer):
        return False
    classes = [c for c in vars(sys.modules[layer.__module__]).values() if inspect.isclass(c)]
    return any(issubclass(c, layer) and hasattr(c, "get_delta_weight") for c in classes)


def get(key: str) -> MethodEntry:
    """Return a method by its key.

    Raises:
        UnknownNameError: there is none; names the nearest.
    """
    for entry in entries():
        if entry.key == key:
            return entry
    raise UnknownNameError("tuning method", key, [entry.key for entry in entries()])


def find(
    *,
    family: str | None = None,
    model: str | None = None,
    mergeable: bool | None = None,
    extra_inference_cost: bool | None = None,
    available: bool | None = None,
) -> list[MethodEntry]:
    """Return the methods that fit, the mergeable ones first, then those that are here, then by key.

    Args:
        family: one of `FAMILIES`.
        model: one of `MODELS`.
        mergeable: folds into the weights, or not.
        extra_inference_cost: costs something when used, or not.
        available: can be built with what is installed, or not.

    Raises:
        ParameterError: ``family`` or ``model`` is not known.
    """
    for name, value, valid in (("family", family, FAMILIES), ("model", model, MODELS)):
        if value is not None and value not in valid:
            raise ParameterError(name, find, "one of " + ", ".join(map(repr, valid)), value)
    chosen = [
        entry
        for entry in entries()
        if family in (None, entry.family)
        and (model is None or model in entry.models)
        and mergeable in (None, entry.mergeable)
        and extra_inference_cost in (None, entry.extra_inference_cost)
        and available in (None, entry.available)
    ]
    return sorted(chosen, key=lambda entry: (not entry.mergeable, not entry.available, entry.key))


def build(key: str, **parameters: Any) -> Any:
    """Return the config of a method, PEFT's or ours; see `tunesmith.tuners.peft_config` for the defaults of LoRA.

    Raises:
        UnknownNameError: there is no such method.
        TunesmithError: nothing here implements it, or the installed PEFT is too old; names the version.
        ParameterError: its config has no such field.
    """
    from tunesmith.tuners.catalogue.entry import has_peft, our_class, peft_class

    entry = get(key)
    kind, _, name = (entry.reference or "none:").partition(":")
    if kind == "none":
        hint = f" {entry.note[0].upper()}{entry.note[1:]}." if entry.note else ""
        raise TunesmithError(f"Nothing here implements {entry.title}.{hint}")
    if kind == "other":
        raise TunesmithError(f"{entry.title} is not a config: {entry.note}. See {name}.")
    if kind == "ours":
        config = our_class(name)
        if config is None:
            raise TunesmithError(f"{entry.title} is planned as tunesmith.{name} and does not work yet.")
        if not name.endswith("Config"):
            raise TunesmithError(
                f"{entry.title} is not a config: see tunesmith.{name}, or put tuner: {{type: {key}}} into a recipe."
            )
        return config(**parameters)
    if not has_peft(entry.min_version) or (config := peft_class(name)) is None:
        import peft

        raise TunesmithError(
            f"{entry.title} needs PEFT {entry.min_version} or newer; {peft.__version__} is installed: "
            "pip install --upgrade peft."
        )
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    from tunesmith.tuners.config import peft_config

    kinds = {found: str(kind.value).lower() for kind, found in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    return peft_config(kinds[config], **parameters)
