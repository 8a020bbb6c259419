"""The one place where tuners of ours become PEFT methods.

PEFT's list of methods is a closed enumeration and it has no plug-in mechanism; its maintainers tell users to edit the
library (huggingface/peft issue 2273). `register_tuner` extends the enumeration instead and then calls PEFT's own
``register_peft_method``, so that ``get_peft_model``, ``save_pretrained``, ``PeftModel.from_pretrained`` and every
trainer with a ``peft_config`` argument take our configs.

The types are called ``TUNESMITH_<NAME>``: a later PEFT method of the same name does not collide, and where an adapter
of ours is loaded in a program that has not called `register`, PEFT's ``KeyError: 'TUNESMITH_MOSA'`` says whose it is.
"""

from __future__ import annotations

import importlib
from typing import Any

from tunesmith.core.errors import TunesmithError

__all__ = ["BUILT_IN", "WHOLE_MODEL", "config_of", "our_names", "register", "register_tuner", "type_of"]

OWNER = "TUNESMITH_"
TESTED = "0.20 to 0.21"

BUILT_IN: tuple[str, ...] = ("iaa", "lofit", "mosa")
"""Names of our PEFT tuners; each is a package here that registers itself when it is imported."""


WHOLE_MODEL: tuple[str, ...] = ("full", "hft", "locft", "lt_sft", "roste")
"""What a recipe's ``tuner.type`` takes beside PEFT's methods and ours: ways that put nothing into the model."""


def type_of(name: str) -> str:
    """Return the PEFT type of our tuner ``name``: ``"mosa"`` -> ``"TUNESMITH_MOSA"``."""
    return OWNER + name.upper()


def register_tuner(name: str, config_cls: Any, model_cls: Any) -> None:
    """Make a tuner a PEFT method.

    Idempotent for the same classes. Its tensors are found in state dictionaries by the prefix ``name + "_"``, which
    ``model_cls.prefix`` must equal.

    Args:
        name: lower case, letters, digits and inner underscores.
        config_cls: a ``peft.PeftConfig`` whose ``peft_type`` is ``type_of(name)``; see `tunesmith.tuners._base`.
        model_cls: a ``peft.tuners.tuners_utils.BaseTuner``.

    Raises:
        TunesmithError: the installed PEFT keeps its methods in another way, or has another class under that name.
    """
    import peft
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    from tunesmith.tuners._enums import add_member

    kind = type_of(name)
    known = PEFT_TYPE_TO_CONFIG_MAPPING.get(kind)
    if known is config_cls:
        return
    try:
        from peft.utils import register_peft_method
        from peft.utils.peft_types import PeftType

        if known is not None:
            raise KeyError(f"{kind} is {known.__module__}.{known.__name__} already")
        add_member(PeftType, kind)
        register_peft_method(name=kind.lower(), config_cls=config_cls, model_cls=model_cls, prefix=f"{name}_")
    except (ImportError, TypeError, ValueError, KeyError) as error:
        raise TunesmithError(
            f"The tuner '{name}' cannot be registered with PEFT {peft.__version__}: {error}. tunesmith is tested with "
            f"PEFT {TESTED}. If a newer PEFT has a way in for outside tuners, tunesmith must be taught it: please "
            "report this."
        ) from error


def register() -> list[str]:
    """Register every tuner of ours with PEFT; return their names.

    Call it before ``peft.PeftModel.from_pretrained`` reads one of our adapters in a program that has not used the
    tuner's config. Idempotent. Imports PEFT and torch (seconds).
    """
    for name in BUILT_IN:
        importlib.import_module(f"tunesmith.tuners.{name}")
    return our_names()


def our_names() -> list[str]:
    """Return the names of the registered tuners that are ours, sorted."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    kinds = [str(kind.value) for kind in PEFT_TYPE_TO_CONFIG_MAPPING]
    return sorted(kind.removeprefix(OWNER).lower() for kind in kinds if kind.startswith(OWNER))


def config_of() -> dict[str, Any]:
    """Return the config class of each PEFT method by the name users write: ``"lora"``, ``"mosa"``; ours included.

    A method of PEFT's own wins over one of ours with the same name; ours is then ``"tunesmith_<name>"``.
    """
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    register()
    table = {str(kind.value).lower(): config for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    for long in [name for name in table if name.startswith(OWNER.lower())]:
        short = long.removeprefix(OWNER.lower())
        if short not in table:
            table[short] = table.pop(long)
    return table
