"""Find, rebuild and erase a planted trigger in a CLIP-type model.

Sun, Li, Liu, Du, Ge, Wang: "InverTune: A Backdoor Defense Method for Multimodal Contrastive Learning via
Backdoor-Adversarial Correlation Analysis", NDSS 2026; first version arXiv 2506.12411.
"""

from typing import TYPE_CHECKING

from tunesmith.core.lazy import lazy_exports

if TYPE_CHECKING:
    from tunesmith.audit.backdoor import attacks
    from tunesmith.audit.backdoor.auditing import audit_backdoor
    from tunesmith.audit.backdoor.encoders import DualEncoder
    from tunesmith.audit.backdoor.inversion import invert_trigger, invert_triggers
    from tunesmith.audit.backdoor.metrics import attack_success_rate, clean_accuracy
    from tunesmith.audit.backdoor.repair import Repair, remove_backdoor
    from tunesmith.audit.backdoor.targets import TargetReport, identify_target
    from tunesmith.audit.backdoor.triggers import Form, Trigger
    from tunesmith.audit.backdoor.tuning import ActivationTuner
    from tunesmith.audit.backdoor.zero_shot import zero_shot_weights

__all__ = [
    "ActivationTuner",
    "DualEncoder",
    "Form",
    "Repair",
    "TargetReport",
    "Trigger",
    "attack_success_rate",
    "attacks",
    "audit_backdoor",
    "clean_accuracy",
    "identify_target",
    "invert_trigger",
    "invert_triggers",
    "remove_backdoor",
    "zero_shot_weights",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "ActivationTuner": "tuning",
        "DualEncoder": "encoders",
        "Form": "triggers",
        "Repair": "repair",
        "TargetReport": "targets",
        "Trigger": "triggers",
        "attack_success_rate": "metrics",
        "attacks": "attacks",
        "audit_backdoor": "auditing",
        "clean_accuracy": "metrics",
        "identify_target": "targets",
        "invert_trigger": "inversion",
        "invert_triggers": "inversion",
        "remove_backdoor": "repair",
        "zero_shot_weights": "zero_shot",
    },
)
