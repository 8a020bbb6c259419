"""The shared maths: splitting budgets, weighted draws, k-means, greedy choice with falling gains, random
sketches, Hadamard rotations, per-example gradients."""

from typing import TYPE_CHECKING

from tunesmith.core.lazy import lazy_exports

if TYPE_CHECKING:
    from tunesmith.numerics.allocation import allocate
    from tunesmith.numerics.coverage import Concave, ConcaveCoverage, GreedyResult
    from tunesmith.numerics.draws import group_softmax, row_gumbel, top_by_group, weighted_draw
    from tunesmith.numerics.gradients import ExampleGradients, per_example_grad_norms, projected_gradients
    from tunesmith.numerics.greedy import lazy_greedy
    from tunesmith.numerics.hadamard import RandomHadamard, hadamard_block, walsh_hadamard
    from tunesmith.numerics.lloyd import KMeansResult, kmeans, nearest_center
    from tunesmith.numerics.neighbors import knn_graph, nearest_rows
    from tunesmith.numerics.sketches import HartleySketch, SignSketch, SparseSketch, hartley

__all__ = [
    "Concave",
    "ConcaveCoverage",
    "ExampleGradients",
    "GreedyResult",
    "HartleySketch",
    "KMeansResult",
    "RandomHadamard",
    "SignSketch",
    "SparseSketch",
    "allocate",
    "group_softmax",
    "hadamard_block",
    "hartley",
    "kmeans",
    "knn_graph",
    "lazy_greedy",
    "nearest_center",
    "nearest_rows",
    "per_example_grad_norms",
    "projected_gradients",
    "row_gumbel",
    "top_by_group",
    "walsh_hadamard",
    "weighted_draw",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "Concave": "coverage",
        "ConcaveCoverage": "coverage",
        "ExampleGradients": "gradients",
        "GreedyResult": "coverage",
        "HartleySketch": "sketches",
        "KMeansResult": "lloyd",
        "RandomHadamard": "hadamard",
        "SignSketch": "sketches",
        "SparseSketch": "sketches",
        "allocate": "allocation",
        "group_softmax": "draws",
        "hadamard_block": "hadamard",
        "hartley": "sketches",
        "kmeans": "lloyd",
        "knn_graph": "neighbors",
        "lazy_greedy": "greedy",
        "nearest_center": "lloyd",
        "nearest_rows": "neighbors",
        "per_example_grad_norms": "gradients",
        "projected_gradients": "gradients",
        "row_gumbel": "draws",
        "top_by_group": "draws",
        "walsh_hadamard": "hadamard",
        "weighted_draw": "draws",
    },
)
