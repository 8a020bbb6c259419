"""Clusterers under scikit-learn's contract: import each like ``sklearn.cluster.KMeans``."""

from typing import TYPE_CHECKING

from tunesmith.core.lazy import lazy_exports

if TYPE_CHECKING:
    from tunesmith.cluster.deep_subspace.estimator import DeepSubspaceClustering
    from tunesmith.cluster.deep_subspace.spectral import spectral_from_coefficients
    from tunesmith.cluster.transductive.estimator import TransductiveClustering
    from tunesmith.cluster.transductive.features import FeatureNormalizer

__all__ = [
    "DeepSubspaceClustering",
    "FeatureNormalizer",
    "TransductiveClustering",
    "spectral_from_coefficients",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "DeepSubspaceClustering": "deep_subspace",
        "FeatureNormalizer": "transductive",
        "TransductiveClustering": "transductive",
        "spectral_from_coefficients": "deep_subspace",
    },
)
