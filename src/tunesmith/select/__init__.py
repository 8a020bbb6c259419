"""Choose what to train on: selectors with ``fit(X, **features)`` and ``select(budget) -> indices``."""

from typing import TYPE_CHECKING

from tunesmith.core.lazy import lazy_exports

if TYPE_CHECKING:
    from tunesmith.select._base import Selector, resolve_budget
    from tunesmith.select.clusters import choose_n_clusters, cluster_means, reweight
    from tunesmith.select.kmeans import KMeansSelector
    from tunesmith.select.labels import dialogue_quality, encode_tags, label_graph, propagation
    from tunesmith.select.mig import MIGSelector
    from tunesmith.select.random import RandomSelector

__all__ = [
    "KMeansSelector",
    "MIGSelector",
    "RandomSelector",
    "Selector",
    "choose_n_clusters",
    "cluster_means",
    "dialogue_quality",
    "encode_tags",
    "label_graph",
    "propagation",
    "resolve_budget",
    "reweight",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "KMeansSelector": "kmeans",
        "MIGSelector": "mig",
        "RandomSelector": "random",
        "Selector": "_base",
        "choose_n_clusters": "clusters",
        "cluster_means": "clusters",
        "dialogue_quality": "labels",
        "encode_tags": "labels",
        "label_graph": "labels",
        "propagation": "labels",
        "resolve_budget": "_base",
        "reweight": "clusters",
    },
)
