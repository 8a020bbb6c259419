"""PBN, projection-based novel class discovery: a small network learns from known and unlabelled rows together.

Troisemaine, Reiffers-Masson, Gosselin, Lemaire, Vaton, "A Practical Approach to Novel Class Discovery in Tabular
Data", Data Mining and Knowledge Discovery 2024 (arXiv 2311.05440), Sec. 3.4.

Where the authors' code differs: it keeps one order of the rows in all epochs and clusters the encoder's output without
normalising it; ``variant="official"`` does the same. The paper tunes the latent size and selected 0.41 to 0.94 of d;
our default is in the middle.
"""

from __future__ import annotations

import warnings
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted, validate_data

from tunesmith.cluster._base import UNLABELLED
from tunesmith.cluster._torch import private_rng, resolve_device, to_tensor
from tunesmith.cluster.ncd._base import NCDClusterer
from tunesmith.cluster.ncd.lloyd import NovelClusters
from tunesmith.cluster.ncd.network import ProjectionNetwork, project, train_network
from tunesmith.core.errors import ParameterError
from tunesmith.numerics import nearest_center

__all__ = ["PBN"]


class PBN(ClassNamePrefixFeaturesOutMixin, TransformerMixin, NCDClusterer):
    """Cluster novel rows by k-means in a latent space learned from known and unlabelled rows (arXiv 2311.05440).

    An encoder maps rows to the unit sphere; a linear classifier tells the known classes apart there and a decoder
    rebuilds every row: ``w CE + (1 - w) ||g(z) - x||^2``. The reconstruction is what keeps novel classes apart: w = 1
    is far worse. The squared error is a sum over columns, so w is not comparable between tables. Standardise X first.

    Not made for unlabelled rows that mix known and novel classes. `NCDSpectralClustering` in the latent space:
    ``make_pipeline(PBN(), NCDSpectralClustering())``.

    Time O(epochs n d^2), memory O(n d); a million rows are fine.

    Args:
        n_novel: C^u, or ``"auto"``: `estimate_n_novel` on the unlabelled rows' codes.
        w: share of the classifier in the loss, in [0, 1]; without known classes it must be below 1.
        learning_rate: step size of AdamW; the paper tuned it in 1e-4 … 1e-2.
        dropout: in [0, 1); the paper's tables took 0.01 … 0.55.
        latent_dim: columns of the code; by default 3 d // 4, at least the number of known classes and 2.
        epochs: passes over all rows.
        batch_size: rows, known and unlabelled mixed.
        weight_decay: of AdamW.
        clustering: ``"kmeans"``, or ``"ncd_kmeans"``, whose draws keep away from the known classes.
        normalize: cluster and return codes of length 1; ``False`` the encoder's raw output.
        variant: ``"paper"`` or ``"official"``: rows in one order, raw output (whatever ``normalize`` says).
        device: ``"auto"`` (a GPU if there is one), or a torch device.
        n_init: restarts of k-means.
        max_iter: most steps of each.
        tol: stop when the squared sum of the centroids' displacements is less.
        k_max: largest count that ``"auto"`` tries.
        sample_size: rows that ``"auto"`` looks at; ``None`` for all.
        random_state: seed; torch's global state is left alone.

    Attributes:
        labels_: int64 ``(n,)``: novel clusters 0 … C^u - 1; -1 for rows of known classes.
        cluster_centers_: ``(C^u, latent_dim)``, in the latent space.
        network_: the trained module, on the CPU.
        losses_: ``(epochs, 3)``: loss, cross-entropy, reconstruction.
        latent_dim_, n_novel_, novel_scores_, known_classes_: as named.
        n_iter_: epochs trained.
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **NCDClusterer._parameter_constraints,
        "w": [Interval(Real, 0, 1, closed="both")],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "dropout": [Interval(Real, 0, 1, closed="left")],
        "latent_dim": [Interval(Integral, 1, None, closed="left"), None],
        "epochs": [Interval(Integral, 1, None, closed="left")],
        "batch_size": [Interval(Integral, 2, None, closed="left")],
        "weight_decay": [Interval(Real, 0, None, closed="left")],
        "clustering": [StrOptions({"kmeans", "ncd_kmeans"})],
        "normalize": ["boolean"],
        "variant": [StrOptions({"paper", "official"})],
        "device": [str],
    }

    def __init__(
        self,
        n_novel: int | str = "auto",
        *,
        w: float = 0.5,
        learning_rate: float = 1e-3,
        dropout: float = 0.1,
        latent_dim: int | None = None,
        epochs: int = 200,
        batch_size: int = 512,
        weight_decay: float = 0.01,
        clustering: str = "kmeans",
        normalize: bool = True,
        variant: str = "paper",
        device: str = "auto",
        n_init: int = 10,
        max_iter: int = 300,
        tol: float = 1e-4,
        k_max: int = 30,
        sample_size: int | None = 10_000,
        random_state: Any = None,
    ):
        self.n_novel = n_novel
        self.w = w
        self.learning_rate = learning_rate
        self.dropout = dropout
        self.latent_dim = latent_dim
        self.epochs = epochs
        self.batch_size = batch_size
        self.weight_decay = weight_decay
        self.clustering = clustering
        self.normalize = normalize
        self.variant = variant
        self.device = device
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.k_max = k_max
        self.sample_size = sample_size
        self.random_state = random_state

    def _seeding(self) -> dict[str, Any]:
        return {"known": self.clustering == "ncd_kmeans"}

    def _space(
        self, X: NDArray[Any], y: NDArray[Any], k: int | None, rng: np.random.RandomState
    ) -> NDArray[Any]:
        device = resolve_device(self.device, self)
        classes, code = np.unique(y[y != UNLABELLED], return_inverse=True)
        if not len(classes) and self.w == 1:
            raise ParameterError(
                "w", self, "below 1 when no class is known (nothing else is learned)", self.w
            )
        if len(classes) == 1 and self.w > 0:
            warnings.warn(
                "PBN found one known class only: its classifier has nothing to tell apart.", stacklevel=3
            )
        targets = np.full(len(X), -1, dtype=np.int64)
        targets[y != UNLABELLED] = code
        self.latent_dim_ = self.latent_dim or max(3 * X.shape[1] // 4, len(classes), 2)
        self._n_features_out = self.latent_dim_
        with private_rng(rng, device) as shuffle:
            inputs = to_tensor(X, device)
            network = ProjectionNetwork(X.shape[1], self.latent_dim_, len(classes), self.dropout)
            network = network.to(device, inputs.dtype)
            curve = train_network(
                network,
                inputs,
                torch.as_tensor(targets, device=device),
                w=self.w,
                learning_rate=self.learning_rate,
                batch_size=self.batch_size,
                epochs=self._phase("epochs", self.epochs),
                shuffle=None if self.variant == "official" else shuffle,
                weight_decay=self.weight_decay,
            )
        self.network_ = network.cpu()
        self.losses_ = np.array(curve)
        return self._codes(X)

    def _codes(self, X: NDArray[Any]) -> NDArray[Any]:
        normalise = self.normalize and self.variant == "paper"
        codes: NDArray[Any] = project(
            self.network_, to_tensor(X, torch.device("cpu")), normalise=normalise
        ).numpy()
        return codes

    def _finish(self, Z: NDArray[Any], found: NovelClusters) -> None:
        self.cluster_centers_ = found.centers
        self.n_iter_ = len(self.losses_)

    def transform(self, X: Any) -> NDArray[Any]:
        """Return the codes ``(m, latent_dim_)`` of rows ``(m, d)``, of length 1 unless ``normalize=False``."""
        check_is_fitted(self)
        return self._codes(self._checked(X))

    def predict(self, X: Any) -> NDArray[np.int64]:
        """Return the nearest novel centroid of each row, which is taken to be of a novel class.

        Args:
            X: ``(m, d)`` finite.

        Returns:
            int64 ``(m,)`` in 0 … C^u - 1.
        """
        return nearest_center(self.transform(X), self.cluster_centers_)[0].astype(np.int64)

    def _checked(self, X: Any) -> NDArray[Any]:
        """Rows in the type that the network was trained in."""
        dtype = next(self.network_.parameters()).dtype
        checked: NDArray[Any] = validate_data(
            self, X, reset=False, dtype=np.float64 if dtype == torch.float64 else np.float32
        )
        return checked

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags
