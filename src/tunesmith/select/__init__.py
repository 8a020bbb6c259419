"""Choose what to train on: selectors with ``fit(X, **features)`` and ``select(budget) -> indices``."""

from typing import TYPE_CHECKING

from tunesmith.core.lazy import lazy_exports

if TYPE_CHECKING:
    from tunesmith.select import feedback, lifelong
    from tunesmith.select._base import Selector, resolve_budget
    from tunesmith.select.clusters import choose_n_clusters, cluster_means, reweight
    from tunesmith.select.goracs.objective import poo_score
    from tunesmith.select.goracs.selector import GORACSSelector
    from tunesmith.select.gotd import GOTDSelector
    from tunesmith.select.image_text import ImageTextScorer
    from tunesmith.select.iterative import IterativeKMeansSelector
    from tunesmith.select.kmeans import KMeansSelector
    from tunesmith.select.labels import dialogue_quality, encode_tags, label_graph, propagation
    from tunesmith.select.lifelong.pool import LifelongPool
    from tunesmith.select.mig import MIGSelector
    from tunesmith.select.perplexity import PerplexitySelector
    from tunesmith.select.random import RandomSelector

__all__ = [
    "GORACSSelector",
    "GOTDSelector",
    "ImageTextScorer",
    "IterativeKMeansSelector",
    "KMeansSelector",
    "LifelongPool",
    "MIGSelector",
    "PerplexitySelector",
    "RandomSelector",
    "Selector",
    "choose_n_clusters",
    "cluster_means",
    "dialogue_quality",
    "encode_tags",
    "feedback",
    "label_graph",
    "lifelong",
    "poo_score",
    "propagation",
    "resolve_budget",
    "reweight",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "GORACSSelector": "goracs",
        "GOTDSelector": "gotd",
        "ImageTextScorer": "image_text",
        "IterativeKMeansSelector": "iterative",
        "KMeansSelector": "kmeans",
        "LifelongPool": "lifelong.pool",
        "MIGSelector": "mig",
        "PerplexitySelector": "perplexity",
        "RandomSelector": "random",
        "Selector": "_base",
        "choose_n_clusters": "clusters",
        "cluster_means": "clusters",
        "dialogue_quality": "labels",
        "encode_tags": "labels",
        "feedback": "feedback",
        "label_graph": "labels",
        "lifelong": "lifelong",
        "poo_score": "goracs",
        "propagation": "labels",
        "resolve_budget": "_base",
        "reweight": "clusters",
    },
)
