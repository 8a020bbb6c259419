"""LEVI: a pre-trained model and a small one from scratch, joined layer by layer (a reconstruction)."""

from typing import TYPE_CHECKING

from tunesmith.core.lazy import lazy_exports

__all__ = ["LEVI", "CachedFeatures", "LEVIOutput", "LeviConfig", "cache_features"]

if TYPE_CHECKING:
    from tunesmith.models.levi.caching import CachedFeatures, cache_features
    from tunesmith.models.levi.config import LeviConfig
    from tunesmith.models.levi.model import LEVI, LEVIOutput
else:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "LEVI": "model",
            "LEVIOutput": "model",
            "LeviConfig": "config",
            "CachedFeatures": "caching",
            "cache_features": "caching",
        },
    )
