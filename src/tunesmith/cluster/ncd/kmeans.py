"""NCD k-means: k-means on the unlabelled rows whose seeding keeps away from the known classes.

Troisemaine, Reiffers-Masson, Gosselin, Lemaire, Vaton, "A Practical Approach to Novel Class Discovery in Tabular
Data", Data Mining and Knowledge Discovery 2024 (arXiv 2311.05440), Sec. 3.2.

Where the authors' code differs: it draws in proportion to the distance instead of its square, and compares restarts by
the sum of plain distances, measured before the last move; ``variant="official"`` does the same.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from sklearn.utils._param_validation import Options, StrOptions
from sklearn.utils.validation import check_is_fitted, validate_data

from tunesmith.cluster.ncd._base import NCDClusterer
from tunesmith.cluster.ncd.lloyd import NovelClusters
from tunesmith.numerics import nearest_center

__all__ = ["NCDKMeans"]


class NCDKMeans(NCDClusterer):
    """k-means for rows of classes never seen, beside known classes (arXiv 2311.05440, Sec. 3.2).

    Novel centroids are drawn as in k-means++, with the means of the known classes counted as centroids already there;
    then Lloyd's steps move the novel ones over the unlabelled rows. Without known classes this is k-means++ and
    Lloyd. An empty centroid keeps its place.

    Time O(n_init steps n_u C^u d), memory O(n d), a copy of X.

    Args:
        n_novel: C^u, the number of novel clusters, or ``"auto"``: `estimate_n_novel` on the unlabelled rows.
        init_power: rows are drawn in proportion to this power of their distance: 2, or 1 as the authors' code does.
        update_known: unlabelled rows may also be assigned to known centroids, which then move (an ablation, App. D).
        variant: ``"paper"`` or ``"official"``, which sets ``init_power=1`` and takes the inertia of the authors' code.
        n_init: restarts; the least inertia wins.
        max_iter: most steps of each.
        tol: stop when the squared sum of the centroids' displacements is less.
        k_max: largest count that ``"auto"`` tries.
        sample_size: rows that ``"auto"`` looks at; ``None`` for all.
        random_state: seed.

    Attributes:
        labels_: int64 ``(n,)``: novel clusters 0 … C^u - 1; -1 for rows of known classes.
        cluster_centers_: ``(C^u, d)``.
        known_centers_: ``(C^l, d)``, class means in the order of ``known_classes_``.
        known_classes_: ``(C^l,)``.
        n_novel_: C^u.
        novel_scores_: silhouette per count, under ``"auto"``.
        inertia_: sum of squared distances of the unlabelled rows to their centroids.
        n_iter_: steps of the best restart.
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **NCDClusterer._parameter_constraints,
        "init_power": [Options(int, {1, 2})],
        "update_known": ["boolean"],
        "variant": [StrOptions({"paper", "official"})],
    }

    def __init__(
        self,
        n_novel: int | str = "auto",
        *,
        init_power: int = 2,
        update_known: bool = False,
        variant: str = "paper",
        n_init: int = 10,
        max_iter: int = 300,
        tol: float = 1e-4,
        k_max: int = 30,
        sample_size: int | None = 10_000,
        random_state: Any = None,
    ):
        self.n_novel = n_novel
        self.init_power = init_power
        self.update_known = update_known
        self.variant = variant
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.k_max = k_max
        self.sample_size = sample_size
        self.random_state = random_state

    _counts_in_X = True

    def _space(
        self, X: NDArray[Any], y: NDArray[Any], k: int | None, rng: np.random.RandomState
    ) -> NDArray[Any]:
        return X

    def _seeding(self) -> dict[str, Any]:
        official = self.variant == "official"
        power = 1 if official else self.init_power
        return {
            "known": True,
            "init_power": power,
            "official": official,
            "update_known": self.update_known,
        }

    def _finish(self, Z: NDArray[Any], found: NovelClusters) -> None:
        self.cluster_centers_ = found.centers
        self.known_centers_ = found.known if found.known is not None else np.empty((0, Z.shape[1]), Z.dtype)
        self.inertia_ = found.inertia
        self.n_iter_ = found.n_iter

    def predict(self, X: Any) -> NDArray[np.int64]:
        """Return the nearest novel centroid of each row, which is taken to be of a novel class.

        Args:
            X: ``(m, d)`` finite.

        Returns:
            int64 ``(m,)`` in 0 … C^u - 1. O(m C^u d).
        """
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=[np.float64, np.float32])
        return nearest_center(X, self.cluster_centers_)[0].astype(np.int64)
