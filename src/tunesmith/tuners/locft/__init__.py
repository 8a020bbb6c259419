"""LocFT-BF: where a model is edited and how, for `tunesmith.trainers.edit`.

Paper: Yang, Tang, Zang, Su, Cao, Wang, Shen, Cheng, Sun, "Fine-tuning Done Right in Model Editing", ICLR 2026,
arXiv 2509.22072.
"""

from typing import TYPE_CHECKING

from tunesmith.core.lazy import lazy_exports

__all__ = ["LocFTConfig", "Site", "default_layer", "find_sites", "proportional_layer"]

if TYPE_CHECKING:
    from tunesmith.tuners.locft.config import LocFTConfig
    from tunesmith.tuners.locft.sites import Site, default_layer, find_sites, proportional_layer
else:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "LocFTConfig": "config",
            "Site": "sites",
            "default_layer": "sites",
            "find_sites": "sites",
            "proportional_layer": "sites",
        },
    )
