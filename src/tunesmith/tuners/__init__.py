"""What may move while a model is trained: PEFT adapters of any kind, by name."""

from typing import TYPE_CHECKING

from tunesmith.core.lazy import lazy_exports

__all__ = [
    "HalfFineTuning",
    "IAAConfig",
    "check_target_modules",
    "half_reset",
    "peft_config",
    "register",
    "select_half",
    "tuner_names",
]

if TYPE_CHECKING:
    from tunesmith.tuners.config import check_target_modules, peft_config, tuner_names
    from tunesmith.tuners.hft import HalfFineTuning, half_reset, select_half
    from tunesmith.tuners.iaa import IAAConfig
    from tunesmith.tuners.registration import register
else:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "HalfFineTuning": "hft",
            "IAAConfig": "iaa",
            "half_reset": "hft",
            "select_half": "hft",
            "check_target_modules": "config",
            "peft_config": "config",
            "register": "registration",
            "tuner_names": "config",
        },
    )
