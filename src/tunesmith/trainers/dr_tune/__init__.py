"""DR-Tune: fine-tuning whose head must also fit calibrated features of the pre-trained encoder (arXiv 2308.12058)."""

from typing import TYPE_CHECKING

from tunesmith.core.lazy import lazy_exports

__all__ = [
    "DRTuneRegularizer",
    "DRTuneTrainer",
    "calibrate",
    "confidence_weights",
    "dr_tune_loss",
    "head_lr_factor",
    "procrustes_rotation",
    "raise_head_lr",
    "rotate_bank",
    "translate_classes",
]

if TYPE_CHECKING:
    from tunesmith.trainers.dr_tune.calibration import (
        calibrate,
        confidence_weights,
        dr_tune_loss,
        procrustes_rotation,
        rotate_bank,
        translate_classes,
    )
    from tunesmith.trainers.dr_tune.rates import head_lr_factor, raise_head_lr
    from tunesmith.trainers.dr_tune.regularizer import DRTuneRegularizer
    from tunesmith.trainers.dr_tune.trainer import DRTuneTrainer
else:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "DRTuneRegularizer": "regularizer",
            "DRTuneTrainer": "trainer",
            "calibrate": "calibration",
            "confidence_weights": "calibration",
            "dr_tune_loss": "calibration",
            "head_lr_factor": "rates",
            "procrustes_rotation": "calibration",
            "raise_head_lr": "rates",
            "rotate_bank": "calibration",
            "translate_classes": "calibration",
        },
    )
