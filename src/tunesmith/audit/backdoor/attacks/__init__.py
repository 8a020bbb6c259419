"""Attacks that plant a backdoor in a small CLIP-type model of one's own, so that a defence can be measured.

Each has ``apply(images)``, which puts its trigger on images in [0, 1], and ``poison(images, captions, target)``, which
makes the rows that a training is poisoned with. `BadCLIP` first learns its patch on the clean model (``fit``);
`BadEncoder` trains the image tower itself (``implant``); the others are planted by `fine_tune` on poisoned rows.
"""

from typing import TYPE_CHECKING

from tunesmith.core.lazy import lazy_exports

if TYPE_CHECKING:
    from tunesmith.audit.backdoor.attacks._base import Attack, Poisoned
    from tunesmith.audit.backdoor.attacks.bad_clip import BadCLIP
    from tunesmith.audit.backdoor.attacks.bad_encoder import BadEncoder
    from tunesmith.audit.backdoor.attacks.contrastive import contrastive_loss, fine_tune
    from tunesmith.audit.backdoor.attacks.patches import BadNet
    from tunesmith.audit.backdoor.attacks.whole_image import SIG, Blended, WaNet

__all__ = [
    "SIG",
    "Attack",
    "BadCLIP",
    "BadEncoder",
    "BadNet",
    "Blended",
    "Poisoned",
    "WaNet",
    "contrastive_loss",
    "fine_tune",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "Attack": "_base",
        "BadCLIP": "bad_clip",
        "BadEncoder": "bad_encoder",
        "BadNet": "patches",
        "Blended": "whole_image",
        "Poisoned": "_base",
        "SIG": "whole_image",
        "WaNet": "whole_image",
        "contrastive_loss": "contrastive",
        "fine_tune": "contrastive",
    },
)
