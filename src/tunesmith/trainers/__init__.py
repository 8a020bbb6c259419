"""How a model learns: trainers that stand on TRL's and transformers' stable ones."""

from typing import TYPE_CHECKING

from tunesmith.core.lazy import lazy_exports

__all__ = [
    "ClassBalancedSampler",
    "Consistency",
    "ConsistencyMixin",
    "CoreTuningTrainer",
    "DRTuneRegularizer",
    "DRTuneTrainer",
    "EarlyRun",
    "EarlySignalCallback",
    "EditResult",
    "EditSession",
    "LotteryTicket",
    "LotteryTicketMixin",
    "MaskRateCallback",
    "MaskedThought",
    "MaskedThoughtCollator",
    "MaskedThoughtMixin",
    "OnlineSelection",
    "OnlineSelectionMixin",
    "SFTResult",
    "add_mask_token",
    "consistency_loss",
    "core_tuning_loss",
    "edit",
    "focal_supcon_loss",
    "grid_search_1d",
    "hard_pair_mixup",
    "load_tuned",
    "rank_runs",
    "save_tuned",
    "selective_self_targets",
    "self_target_report",
    "sft_recipe",
    "train_sft",
]

if TYPE_CHECKING:
    from tunesmith.trainers.consistency import Consistency, ConsistencyMixin, consistency_loss
    from tunesmith.trainers.core_tuning import (
        ClassBalancedSampler,
        CoreTuningTrainer,
        core_tuning_loss,
        focal_supcon_loss,
        hard_pair_mixup,
    )
    from tunesmith.trainers.dr_tune import DRTuneRegularizer, DRTuneTrainer
    from tunesmith.trainers.editing import EditResult, EditSession, edit
    from tunesmith.trainers.lottery import LotteryTicket, LotteryTicketMixin
    from tunesmith.trainers.masked_thought import (
        MaskedThought,
        MaskedThoughtCollator,
        MaskedThoughtMixin,
        MaskRateCallback,
        add_mask_token,
    )
    from tunesmith.trainers.online import OnlineSelection, OnlineSelectionMixin
    from tunesmith.trainers.recipe_guide import (
        EarlyRun,
        EarlySignalCallback,
        grid_search_1d,
        rank_runs,
        sft_recipe,
    )
    from tunesmith.trainers.s3ft import selective_self_targets, self_target_report
    from tunesmith.trainers.saving import load_tuned, save_tuned
    from tunesmith.trainers.sft import SFTResult, train_sft
else:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "Consistency": "consistency",
            "ConsistencyMixin": "consistency",
            "add_mask_token": "masked_thought",
            "consistency_loss": "consistency",
            "DRTuneRegularizer": "dr_tune",
            "DRTuneTrainer": "dr_tune",
            "EarlyRun": "recipe_guide",
            "EarlySignalCallback": "recipe_guide",
            "ClassBalancedSampler": "core_tuning",
            "core_tuning_loss": "core_tuning",
            "CoreTuningTrainer": "core_tuning",
            "focal_supcon_loss": "core_tuning",
            "hard_pair_mixup": "core_tuning",
            "EditResult": "editing",
            "EditSession": "editing",
            "edit": "editing",
            "LotteryTicket": "lottery",
            "LotteryTicketMixin": "lottery",
            "MaskRateCallback": "masked_thought",
            "MaskedThought": "masked_thought",
            "MaskedThoughtCollator": "masked_thought",
            "MaskedThoughtMixin": "masked_thought",
            "OnlineSelection": "online",
            "OnlineSelectionMixin": "online",
            "SFTResult": "sft",
            "grid_search_1d": "recipe_guide",
            "load_tuned": "saving",
            "rank_runs": "recipe_guide",
            "save_tuned": "saving",
            "selective_self_targets": "s3ft",
            "self_target_report": "s3ft",
            "sft_recipe": "recipe_guide",
            "train_sft": "sft",
        },
    )
