"""Clusterers under scikit-learn's contract: import each like ``sklearn.cluster.KMeans``."""

from typing import TYPE_CHECKING

from tunesmith.core.lazy import lazy_exports

if TYPE_CHECKING:
    from tunesmith.cluster.acol.estimator import ACOLClusterer
    from tunesmith.cluster.acol.head import ACOLHead
    from tunesmith.cluster.acol.objective import gar_loss
    from tunesmith.cluster.deep_subspace.estimator import DeepSubspaceClustering
    from tunesmith.cluster.deep_subspace.spectral import spectral_from_coefficients
    from tunesmith.cluster.depict.estimator import DEPICT
    from tunesmith.cluster.kmeans import KMeans
    from tunesmith.cluster.ncd.counting import estimate_n_novel
    from tunesmith.cluster.ncd.hidden import HiddenClassKFold
    from tunesmith.cluster.ncd.kmeans import NCDKMeans
    from tunesmith.cluster.ncd.pbn import PBN
    from tunesmith.cluster.ncd.search import NCDSearchCV
    from tunesmith.cluster.ncd.spectral import NCDSpectralClustering
    from tunesmith.cluster.sdp.kmeans_sdp import KMeansSDP
    from tunesmith.cluster.sdp.la_sdp import LikelihoodAdjustedSDP
    from tunesmith.cluster.transductive.estimator import TransductiveClustering
    from tunesmith.cluster.transductive.features import FeatureNormalizer

__all__ = [
    "DEPICT",
    "PBN",
    "ACOLClusterer",
    "ACOLHead",
    "DeepSubspaceClustering",
    "FeatureNormalizer",
    "HiddenClassKFold",
    "KMeans",
    "KMeansSDP",
    "LikelihoodAdjustedSDP",
    "NCDKMeans",
    "NCDSearchCV",
    "NCDSpectralClustering",
    "TransductiveClustering",
    "estimate_n_novel",
    "gar_loss",
    "spectral_from_coefficients",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "ACOLClusterer": "acol",
        "ACOLHead": "acol",
        "DEPICT": "depict",
        "DeepSubspaceClustering": "deep_subspace",
        "PBN": "ncd",
        "HiddenClassKFold": "ncd",
        "NCDKMeans": "ncd",
        "NCDSearchCV": "ncd",
        "NCDSpectralClustering": "ncd",
        "estimate_n_novel": "ncd",
        "FeatureNormalizer": "transductive",
        "KMeans": "kmeans",
        "KMeansSDP": "sdp",
        "LikelihoodAdjustedSDP": "sdp",
        "TransductiveClustering": "transductive",
        "spectral_from_coefficients": "deep_subspace",
        "gar_loss": "acol",
    },
)
