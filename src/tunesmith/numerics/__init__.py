"""The shared maths: splitting budgets, weighted draws, k-means, greedy choice with falling gains."""

from typing import TYPE_CHECKING

from tunesmith.core.lazy import lazy_exports

if TYPE_CHECKING:
    from tunesmith.numerics.allocation import allocate
    from tunesmith.numerics.coverage import Concave, ConcaveCoverage, GreedyResult
    from tunesmith.numerics.draws import group_softmax, row_gumbel, top_by_group, weighted_draw
    from tunesmith.numerics.greedy import lazy_greedy
    from tunesmith.numerics.lloyd import KMeansResult, kmeans, nearest_center

__all__ = [
    "Concave",
    "ConcaveCoverage",
    "GreedyResult",
    "KMeansResult",
    "allocate",
    "group_softmax",
    "kmeans",
    "lazy_greedy",
    "nearest_center",
    "row_gumbel",
    "top_by_group",
    "weighted_draw",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "Concave": "coverage",
        "ConcaveCoverage": "coverage",
        "GreedyResult": "coverage",
        "KMeansResult": "lloyd",
        "allocate": "allocation",
        "group_softmax": "draws",
        "kmeans": "lloyd",
        "lazy_greedy": "greedy",
        "nearest_center": "lloyd",
        "row_gumbel": "draws",
        "top_by_group": "draws",
        "weighted_draw": "draws",
    },
)
