"""What may move while a model is trained: PEFT adapters of any kind, by name."""

from typing import TYPE_CHECKING

from tunesmith.core.lazy import lazy_exports

__all__ = [
    "HalfFineTuning",
    "HeadSelection",
    "IAAConfig",
    "LocFTConfig",
    "LofitConfig",
    "MosaConfig",
    "RosteConfig",
    "RotatedQuantLinear",
    "SparseDelta",
    "apply_roste",
    "check_target_modules",
    "global_top_k",
    "half_reset",
    "head_importance",
    "load_roste",
    "merged_adapter",
    "mosa_to_lora",
    "peft_config",
    "proportional_layer",
    "register",
    "search_rotations",
    "select_half",
    "select_heads",
    "tuner_names",
]

if TYPE_CHECKING:
    from tunesmith.tuners.config import check_target_modules, peft_config, tuner_names
    from tunesmith.tuners.hft import HalfFineTuning, half_reset, select_half
    from tunesmith.tuners.iaa import IAAConfig
    from tunesmith.tuners.locft import LocFTConfig, proportional_layer
    from tunesmith.tuners.lofit import HeadSelection, LofitConfig, head_importance, select_heads
    from tunesmith.tuners.mosa import MosaConfig, merged_adapter, mosa_to_lora
    from tunesmith.tuners.registration import register
    from tunesmith.tuners.roste import (
        RosteConfig,
        RotatedQuantLinear,
        apply_roste,
        load_roste,
        search_rotations,
    )
    from tunesmith.tuners.sparse import SparseDelta, global_top_k
else:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "LocFTConfig": "locft",
            "proportional_layer": "locft",
            "HalfFineTuning": "hft",
            "HeadSelection": "lofit",
            "IAAConfig": "iaa",
            "LofitConfig": "lofit",
            "MosaConfig": "mosa",
            "merged_adapter": "mosa",
            "mosa_to_lora": "mosa",
            "head_importance": "lofit",
            "select_heads": "lofit",
            "half_reset": "hft",
            "select_half": "hft",
            "RosteConfig": "roste",
            "RotatedQuantLinear": "roste",
            "apply_roste": "roste",
            "load_roste": "roste",
            "search_rotations": "roste",
            "SparseDelta": "sparse",
            "global_top_k": "sparse",
            "check_target_modules": "config",
            "peft_config": "config",
            "register": "registration",
            "tuner_names": "config",
        },
    )
