"""Find, rebuild and erase a planted trigger in a CLIP-type model.

Sun, Li, Liu, Du, Ge, Wang: "InverTune: A Backdoor Defense Method for Multimodal Contrastive Learning via
Backdoor-Adversarial Correlation Analysis", NDSS 2026; first version arXiv 2506.12411.
"""

from typing import TYPE_CHECKING

from tunesmith.core.lazy import lazy_exports

if TYPE_CHECKING:
    from tunesmith.audit.backdoor import attacks
    from tunesmith.audit.backdoor.encoders import DualEncoder

__all__ = ["DualEncoder", "attacks"]

__getattr__, __dir__ = lazy_exports(__name__, {"DualEncoder": "encoders", "attacks": "attacks"})
