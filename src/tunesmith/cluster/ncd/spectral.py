"""NCD spectral clustering: known and novel rows embedded together, the scale tuned on the known classes.

Troisemaine, Reiffers-Masson, Gosselin, Lemaire, Vaton, "A Practical Approach to Novel Class Discovery in Tabular
Data", Data Mining and Knowledge Discovery 2024 (arXiv 2311.05440), Sec. 3.3.

Inferred: in the tuning, the known rows are clustered into as many clusters as there are known classes. The graph of
nearest neighbours for many rows is ours; the paper uses all pairs.
"""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils._param_validation import Interval, StrOptions

from tunesmith.cluster._base import UNLABELLED
from tunesmith.cluster.ncd._base import NCDClusterer
from tunesmith.cluster.ncd.graph import (
    Distances,
    affinity,
    all_distances,
    kernel_width,
    neighbour_distances,
    spectral_embedding,
)
from tunesmith.cluster.ncd.lloyd import NovelClusters, cluster_novel
from tunesmith.core.errors import DataError, ParameterError
from tunesmith.metrics.clustering import clustering_accuracy

__all__ = ["NCDSpectralClustering"]

DENSE_ROWS = 10_000  # above, "auto" takes the graph of nearest neighbours
MOST_DENSE_ROWS = 30_000  # three matrices of 7 GB in float64


class NCDSpectralClustering(NCDClusterer):
    """Spectral clustering of novel rows in an embedding shared with known rows (arXiv 2311.05440, Sec. 3.3).

    The Gaussian kernel is as wide as the longest edge of a minimum spanning tree demands, so that the graph stays
    connected; its two hyperparameters may be lists, and the pair under which the *known* classes come out best is
    used (no label of a novel row is needed). One far outlier widens the kernel for all.

    Dense: time O(n^2 d + n^3) or Lanczos steps, memory about 3 n^2 numbers. Sparse: O(n^1.5 d) for the
    neighbours, memory O(n n_neighbors).

    Args:
        n_novel: C^u, or ``"auto"``: `estimate_n_novel` on the unlabelled rows of X.
        s_min: strength of the weakest tree link, in (0, 1), or candidates.
        n_components: u, the columns of the embedding, or candidates; by default C^u.
        exact_scale: make that link s_min; as published it is ``sqrt(s_min)``.
        seed_known: known classes' means in the embedding take part in the draws (the authors' class method).
        graph: ``"dense"``, ``"sparse"`` or ``"auto"`` (sparse above 10,000 rows).
        n_neighbors: of the sparse graph.
        n_init: restarts of k-means.
        max_iter: most steps of each.
        tol: stop when the squared sum of the centroids' displacements is less.
        k_max: largest count that ``"auto"`` tries.
        sample_size: rows that ``"auto"`` looks at; ``None`` for all.
        random_state: seed.

    Attributes:
        labels_: int64 ``(n,)``: novel clusters 0 … C^u - 1; -1 for rows of known classes.
        embedding_: ``(n, u)``, all rows.
        eigenvalues_: ``(u + 1,)``, of the normalised Laplacian, the first included.
        sigma2_: the kernel's sigma squared.
        s_min_, n_components_: the ones used.
        known_accuracies_: per candidate pair, accuracy on the known rows; empty without candidates.
        n_parts_: parts into which the graph of neighbours fell before it was joined; 1 for a dense graph.
        known_classes_, n_novel_, novel_scores_, n_iter_: as in `NCDKMeans`.
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **NCDClusterer._parameter_constraints,
        "s_min": [Interval(Real, 0, 1, closed="neither"), "array-like"],
        "n_components": [Interval(Integral, 1, None, closed="left"), "array-like", None],
        "exact_scale": ["boolean"],
        "seed_known": ["boolean"],
        "graph": [StrOptions({"auto", "dense", "sparse"})],
        "n_neighbors": [Interval(Integral, 1, None, closed="left")],
    }

    _counts_in_X = True

    def __init__(
        self,
        n_novel: int | str = "auto",
        *,
        s_min: float | ArrayLike = 0.5,
        n_components: int | ArrayLike | None = None,
        exact_scale: bool = False,
        seed_known: bool = False,
        graph: str = "auto",
        n_neighbors: int = 30,
        n_init: int = 10,
        max_iter: int = 1000,
        tol: float = 1e-10,
        k_max: int = 30,
        sample_size: int | None = 10_000,
        random_state: Any = None,
    ):
        self.n_novel = n_novel
        self.s_min = s_min
        self.n_components = n_components
        self.exact_scale = exact_scale
        self.seed_known = seed_known
        self.graph = graph
        self.n_neighbors = n_neighbors
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.k_max = k_max
        self.sample_size = sample_size
        self.random_state = random_state

    def _seeding(self) -> dict[str, Any]:
        return {"known": self.seed_known}

    def _finish(self, Z: NDArray[Any], found: NovelClusters) -> None:
        self.embedding_ = Z
        self.n_iter_ = found.n_iter

    def _space(
        self, X: NDArray[Any], y: NDArray[Any], k: int | None, rng: np.random.RandomState
    ) -> NDArray[Any]:
        count = self.n_novel if not isinstance(self.n_novel, str) else k
        widths = [self._checked_s_min(s) for s in np.atleast_1d(self.s_min)]
        wanted: Any = count if self.n_components is None else self.n_components
        sizes = [self._checked_components(u, len(X)) for u in np.atleast_1d(wanted)]
        distances = self._distances(X)
        self.known_accuracies_: dict[tuple[float, int], float] = {}
        best, chosen = -1.0, None
        for s_min in widths:
            sigma2 = kernel_width(distances.longest, s_min, exact=self.exact_scale)
            values, vectors = spectral_embedding(affinity(distances.squared, sigma2), max(sizes), rng)
            for u in sizes:
                Z = np.ascontiguousarray(vectors[:, :u])
                accuracy = self._known_accuracy(Z, y, rng) if len(widths) * len(sizes) > 1 else 0.0
                self.known_accuracies_[s_min, u] = accuracy
                if accuracy > best:
                    best, chosen = accuracy, (s_min, sigma2, values[: u + 1], Z)
        if len(self.known_accuracies_) == 1:
            self.known_accuracies_ = {}
        assert chosen is not None, "an accuracy is at least 0"
        self.s_min_, self.sigma2_, self.eigenvalues_, Z = chosen
        self.n_components_ = Z.shape[1]
        return Z

    def _checked_s_min(self, value: Any) -> float:
        if not 0 < value < 1:
            raise ParameterError("s_min", self, "a float in (0, 1), or some", self.s_min)
        return float(value)

    def _checked_components(self, value: Any, n: int) -> int:
        if int(value) != value or not 1 <= value < n:
            raise ParameterError(
                "n_components",
                self,
                f"an int in [1, {n - 1}] (below the number of rows), or some",
                value if self.n_components is None else self.n_components,
            )
        return int(value)

    def _distances(self, X: NDArray[Any]) -> Distances:
        n = len(X)
        self.n_parts_ = 1
        if self.graph == "sparse" or (self.graph == "auto" and n > DENSE_ROWS):
            distances, self.n_parts_ = neighbour_distances(X, self.n_neighbors)
            return distances
        if n > MOST_DENSE_ROWS:
            raise ParameterError("graph", self, f"'sparse' or 'auto' above {MOST_DENSE_ROWS:,} rows", "dense")
        return all_distances(X)

    def _known_accuracy(self, Z: NDArray[Any], y: NDArray[Any], rng: np.random.RandomState) -> float:
        """Accuracy of k-means on the known rows alone, with as many clusters as known classes (inferred)."""
        known = y != UNLABELLED
        classes = len(np.unique(y[known]))
        if classes < 2:
            raise DataError(
                f"NCDSpectralClustering chooses among candidates by the known classes and needs at least 2; y has "
                f"{classes}. Give one s_min and one n_components."
            )
        found = cluster_novel(Z[known], classes, None, rng, tol=self.tol, max_iter=self.max_iter)
        return float(clustering_accuracy(y[known], found.labels))
