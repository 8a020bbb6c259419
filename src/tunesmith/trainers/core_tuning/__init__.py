"""Core-tuning: fine-tuning with a supervised contrast of hard pairs, made by mixing features."""

from typing import TYPE_CHECKING

from tunesmith.core.lazy import lazy_exports

__all__ = [
    "ClassBalancedSampler",
    "CoreTuningLoss",
    "CoreTuningTrainer",
    "HardPairs",
    "ProjectionHead",
    "class_positives",
    "core_tuning_loss",
    "exact_label_positives",
    "focal_supcon_loss",
    "hard_pair_mixup",
]

if TYPE_CHECKING:
    from tunesmith.trainers.core_tuning.losses import (
        CoreTuningLoss,
        ProjectionHead,
        class_positives,
        core_tuning_loss,
        exact_label_positives,
        focal_supcon_loss,
    )
    from tunesmith.trainers.core_tuning.pairs import HardPairs, hard_pair_mixup
    from tunesmith.trainers.core_tuning.sampler import ClassBalancedSampler
    from tunesmith.trainers.core_tuning.trainer import CoreTuningTrainer
else:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "ClassBalancedSampler": "sampler",
            "CoreTuningLoss": "losses",
            "CoreTuningTrainer": "trainer",
            "HardPairs": "pairs",
            "ProjectionHead": "losses",
            "class_positives": "losses",
            "core_tuning_loss": "losses",
            "exact_label_positives": "losses",
            "focal_supcon_loss": "losses",
            "hard_pair_mixup": "pairs",
        },
    )
