"""Transductive classification as clustering with some labels known (Ziko et al. 2021, arXiv 2106.09516)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunesmith.core.lazy import lazy_exports

if TYPE_CHECKING:
    from tunesmith.cluster.transductive.bound import BoundResult, bound_update, psd_shift, relaxed_energy
    from tunesmith.cluster.transductive.estimator import TransductiveClustering
    from tunesmith.cluster.transductive.features import FeatureNormalizer, align_queries, normalize_features
    from tunesmith.cluster.transductive.prototypes import bandwidth, mean_shift
    from tunesmith.cluster.transductive.solver import laplacian_shot

__all__ = [
    "BoundResult",
    "FeatureNormalizer",
    "TransductiveClustering",
    "align_queries",
    "bandwidth",
    "bound_update",
    "laplacian_shot",
    "mean_shift",
    "normalize_features",
    "psd_shift",
    "relaxed_energy",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "BoundResult": "bound",
        "FeatureNormalizer": "features",
        "TransductiveClustering": "estimator",
        "align_queries": "features",
        "bandwidth": "prototypes",
        "bound_update": "bound",
        "laplacian_shot": "solver",
        "mean_shift": "prototypes",
        "normalize_features": "features",
        "psd_shift": "bound",
        "relaxed_energy": "bound",
    },
)
