"""Trainers whose loss looks at pooled features: what Core-tuning and DR-Tune stand on."""

from typing import TYPE_CHECKING

from tunesmith.core.lazy import lazy_exports

__all__ = ["PooledFeatures", "PooledTrainer", "find_head"]

if TYPE_CHECKING:
    from tunesmith.trainers.pooled.features import PooledFeatures, find_head
    from tunesmith.trainers.pooled.trainer import PooledTrainer
else:
    __getattr__, __dir__ = lazy_exports(
        __name__, {"PooledFeatures": "features", "PooledTrainer": "trainer", "find_head": "features"}
    )
