"""Novel class discovery in tables: known classes help to find new ones (Troisemaine et al. 2024, arXiv 2311.05440)."""

from typing import TYPE_CHECKING

from tunesmith.core.lazy import lazy_exports

if TYPE_CHECKING:
    from tunesmith.cluster.ncd.counting import estimate_n_novel
    from tunesmith.cluster.ncd.hidden import HiddenClassKFold
    from tunesmith.cluster.ncd.kmeans import NCDKMeans
    from tunesmith.cluster.ncd.pbn import PBN
    from tunesmith.cluster.ncd.search import NCDSearchCV
    from tunesmith.cluster.ncd.spectral import NCDSpectralClustering

__all__ = [
    "PBN",
    "HiddenClassKFold",
    "NCDKMeans",
    "NCDSearchCV",
    "NCDSpectralClustering",
    "estimate_n_novel",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "PBN": "pbn",
        "HiddenClassKFold": "hidden",
        "NCDKMeans": "kmeans",
        "NCDSearchCV": "search",
        "NCDSpectralClustering": "spectral",
        "estimate_n_novel": "counting",
    },
)
