"""`DeepSubspaceClustering`: samples that express one another linearly in every layer of an encoder.

Lovro Sindicic, Ivica Kopriva: "Label-independent hyperparameter-free self-supervised single-view deep subspace
clustering" (2025), arXiv 2504.18179. The five ideas and the three stages are the paper's. Where it leaves a detail open
it is derived, or taken from the authors' code: the diagonal of C is held at 0 (the code lets it move, and C = I solves
its loss; ``zero_diagonal=False``), C starts at the ridge solution (the code at 1e-8; ``c_init="constant"``), the
encoder is pre-trained by reconstruction (the code: ``pretrain="distance_product"``), and the stages end when their
losses settle (the code runs fixed numbers of epochs).
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.validation import validate_data
from torch import nn

from tunesmith.cluster._base import Clusterer, fitting
from tunesmith.cluster._torch import private_rng, resolve_device, to_tensor
from tunesmith.cluster.deep_subspace.losses import (
    distance_product_loss,
    quality_loss,
    reconstruction_loss,
    self_expression_loss,
)
from tunesmith.cluster.deep_subspace.networks import ConvAutoencoder, MLPAutoencoder
from tunesmith.cluster.deep_subspace.spectral import (
    affinity_from_coefficients,
    ridge_coefficients,
    spectral_from_coefficients,
)
from tunesmith.core.errors import DataError, ParameterError, TrainingError

__all__ = ["DeepSubspaceClustering"]

_WINDOW = 5  # epochs over which a loss is averaged before its change is judged
_COLLAPSED = 0.05  # of a layer's norm before training: below this the encoder is on its way to 0


class DeepSubspaceClustering(Clusterer):
    """Subspace clustering with an encoder, for up to some thousand rows near a union of subspaces.

    Three stages, each ended by the relative change of its own loss, so no term has a weight: the encoder learns to
    reconstruct; encoder and one matrix C learn to write every sample by the others in all layers at once; C alone
    loses what links different clusters, which come from C itself (Sindicic and Kopriva 2025, arXiv 2504.18179). Labels
    are never looked at. Compare with ``stage_labels_["start"]``: on small data the linear start is hard to beat.

    Args:
        n_clusters: K in [1, n - 1]; 1 puts all rows together.
        encoder: ``"mlp"``, ``"conv"``, None (linear: C on the input alone), or a module whose forward takes (n, D) rows
            and returns the list of its layers' outputs; it is copied. ``decode(last output)`` of such a module, if it
            has one, serves the reconstruction.
        hidden: widths of the MLP's layers.
        image_shape: (channels, height, width) of a row, for ``"conv"``.
        channels: of the convolutions.
        kernel_size: of the convolutions, odd.
        subspace_dim: d, the coefficients kept per sample; by prior knowledge about 9 for faces and objects, 12 for
            digits.
        pretrain: ``"reconstruction"``, ``"distance_product"`` or None.
        c_init: ``"ridge"`` (closed form on the input) or ``"constant"`` (1e-8).
        ridge: its penalty, for rows of length 1.
        zero_diagonal: hold diag(C) at 0.
        normalize: scale rows to length 1 first.
        learning_rate: of Adam, all stages.
        pretrain_epochs: most epochs of the first stage.
        expression_epochs: of the second; 0 leaves it out.
        quality_epochs: of the third; 0 leaves it out.
        tol: stages 1 and 2 end when their loss, averaged over 5 epochs, changes by less than this share an epoch. On
            our toys 0.01 let stage 2 fit the noise.
        quality_tol: the same for stage 3.
        refresh_every: epochs of stage 3 between new clusterings of C.
        n_init: restarts of k-means.
        max_rows: refuse more rows: C and its optimiser take 16 n^2 bytes in float32.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``.
        random_state: of the network, k-means and Lanczos.

    Attributes:
        labels_: (n,) int64.
        coef_: (n, n) C.
        affinity_matrix_: (n, n) sparse, what was clustered.
        stage_labels_: labels by the coefficients at the start (ridge only) and after each stage.
        loss_curves_: losses per epoch, by stage.
        layer_norms_: (L + 1, 2) Frobenius norms of the input and each layer, before and after training.
        encoder_: the trained module, or None.
        n_iter_: epochs of all stages.
        n_features_in_: D.

    Raises:
        ParameterError: a parameter outside its set, or K >= n, d >= n.
        DataError: more rows than ``max_rows``, or an image shape that does not fit.
        TrainingError: a loss is not finite.

    Time O(n^2 sum D_l) per epoch of stage 2, O(n^2) and a sparse eigenproblem per epoch of stage 3, O(n^3) for the
    ridge start; memory O(n^2).
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "n_clusters": [Interval(Integral, 1, None, closed="left")],
        "encoder": [StrOptions({"mlp", "conv"}), None, HasMethods(["forward", "parameters"])],
        "hidden": ["array-like"],
        "image_shape": ["array-like", None],
        "channels": ["array-like"],
        "kernel_size": [Interval(Integral, 1, None, closed="left")],
        "subspace_dim": [Interval(Integral, 1, None, closed="left")],
        "pretrain": [StrOptions({"reconstruction", "distance_product"}), None],
        "c_init": [StrOptions({"ridge", "constant"})],
        "ridge": [Interval(Real, 0, None, closed="neither")],
        "zero_diagonal": ["boolean"],
        "normalize": ["boolean"],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "pretrain_epochs": [Interval(Integral, 1, None, closed="left")],
        "expression_epochs": [Interval(Integral, 0, None, closed="left")],
        "quality_epochs": [Interval(Integral, 0, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left")],
        "quality_tol": [Interval(Real, 0, None, closed="left")],
        "refresh_every": [Interval(Integral, 1, None, closed="left")],
        "n_init": [Interval(Integral, 1, None, closed="left")],
        "max_rows": [Interval(Integral, 1, None, closed="left")],
        "device": [str],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        encoder: Any = "mlp",
        hidden: Sequence[int] = (32, 16),
        image_shape: tuple[int, int, int] | None = None,
        channels: Sequence[int] = (3,),
        kernel_size: int = 15,
        subspace_dim: int = 9,
        pretrain: str | None = "reconstruction",
        c_init: str = "ridge",
        ridge: float = 1.0,
        zero_diagonal: bool = True,
        normalize: bool = True,
        learning_rate: float = 1e-3,
        pretrain_epochs: int = 1000,
        expression_epochs: int = 2000,
        quality_epochs: int = 500,
        tol: float = 0.05,
        quality_tol: float = 1e-4,
        refresh_every: int = 1,
        n_init: int = 20,
        max_rows: int = 10_000,
        device: str = "auto",
        random_state: Any = None,
    ):
        self.n_clusters = n_clusters
        self.encoder = encoder
        self.hidden = hidden
        self.image_shape = image_shape
        self.channels = channels
        self.kernel_size = kernel_size
        self.subspace_dim = subspace_dim
        self.pretrain = pretrain
        self.c_init = c_init
        self.ridge = ridge
        self.zero_diagonal = zero_diagonal
        self.normalize = normalize
        self.learning_rate = learning_rate
        self.pretrain_epochs = pretrain_epochs
        self.expression_epochs = expression_epochs
        self.quality_epochs = quality_epochs
        self.tol = tol
        self.quality_tol = quality_tol
        self.refresh_every = refresh_every
        self.n_init = n_init
        self.max_rows = max_rows
        self.device = device
        self.random_state = random_state

    @fitting
    def fit(self, X: Any, y: Any = None) -> DeepSubspaceClustering:
        """Cluster X (n, D) or (n, channels, height, width); y is not used."""
        X = self._rows(X)
        rng = check_random_state(self.random_state)
        device = resolve_device(self.device, self)
        with private_rng(rng, device):
            self._seed = int(rng.randint(np.iinfo(np.int32).max))
            self._train(X, to_tensor(X, device), device)
        del self._seed
        return self

    def _train(self, X: NDArray[Any], x: torch.Tensor, device: torch.device) -> None:
        """Run the stages and set the fitted attributes."""
        module = self._module(X.shape[1])
        self.encoder_ = None if module is None else module.to(device=device, dtype=x.dtype)
        self.loss_curves_: dict[str, list[float]] = {}
        self.stage_labels_: dict[str, NDArray[np.int64]] = {}
        before = self._norms(x)
        if self.encoder_ is not None and self.pretrain is not None:
            self._pretrain(self.encoder_, x)
        C = nn.Parameter(self._start(X, x))
        if self.c_init == "ridge":
            self.stage_labels_["start"] = self._cluster(C, X)
        if self.expression_epochs:
            self._express(C, x)
            self.stage_labels_["expression"] = self._cluster(C, X)
        if self.quality_epochs:
            start = next(reversed(self.stage_labels_.values()))
            self._improve(C, torch.as_tensor(start, device=device))
            self.stage_labels_["quality"] = self._cluster(C, X)
        self.labels_ = next(reversed(self.stage_labels_.values()))
        self.coef_ = C.detach().cpu().numpy()
        self.affinity_matrix_ = affinity_from_coefficients(self.coef_, self.subspace_dim)
        self.layer_norms_ = np.column_stack([before, self._norms(x)])
        self.n_iter_ = sum(len(curve) for curve in self.loss_curves_.values())
        gone = self.layer_norms_[:, 1] < _COLLAPSED * self.layer_norms_[:, 0]
        if gone.any():
            layers = ", ".join(str(i) for i in np.flatnonzero(gone))
            warnings.warn(
                f"the encoder has collapsed in layer {layers}: its outputs are almost 0.", stacklevel=4
            )

    def _pretrain(self, module: nn.Module, x: torch.Tensor) -> None:
        """Stage 1: the encoder, by reconstruction or the product of distances."""
        if self.pretrain == "reconstruction" and not hasattr(module, "decode"):
            expected = "'distance_product' or None where the encoder has no method decode"
            raise ParameterError("pretrain", self, expected, self.pretrain)
        optimizer = torch.optim.Adam(module.parameters(), lr=self.learning_rate)

        def loss() -> torch.Tensor:
            layers = module(x)
            if self.pretrain == "reconstruction":
                return reconstruction_loss(x, module.decode(layers[-1]))  # type: ignore[operator]
            return distance_product_loss([x, *layers])

        self._stage("pre-training", self.pretrain_epochs, loss, optimizer, self.tol)

    def _express(self, C: nn.Parameter, x: torch.Tensor) -> None:
        """Stage 2: encoder and C, by the joint self-expression."""
        module = self.encoder_
        encoder = [] if module is None else [p for p in module.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam([C, *encoder], lr=self.learning_rate)

        def loss() -> torch.Tensor:
            layers = [x] if module is None else [x, *module(x)]
            return self_expression_loss(C, layers, self.zero_diagonal)

        self._stage("self-expression", self.expression_epochs, loss, optimizer, self.tol)

    def _improve(self, C: nn.Parameter, labels: torch.Tensor) -> None:
        """Stage 3: C alone, with an optimiser of its own so that no momentum moves the encoder."""
        optimizer = torch.optim.Adam([C], lr=self.learning_rate)
        current = labels
        epoch = 0

        def loss() -> torch.Tensor:
            nonlocal current, epoch
            if epoch and epoch % self.refresh_every == 0:
                start = current.cpu().numpy()
                current = torch.as_tensor(self._cluster(C, None, start), device=C.device)
            epoch += 1
            return quality_loss(C, current)

        self._stage("clustering quality", self.quality_epochs, loss, optimizer, self.quality_tol)

    def _stage(
        self,
        name: str,
        most: int,
        loss_of: Callable[[], torch.Tensor],
        optimizer: torch.optim.Optimizer,
        tol: float,
    ) -> None:
        """Step until the loss has settled.

        Raises:
            TrainingError: the loss is not finite.
        """
        curve = self.loss_curves_.setdefault(name, [])
        steps: Iterator[int] = self._phase(name, most)
        for _ in steps:
            optimizer.zero_grad(set_to_none=True)
            loss = loss_of()
            curve.append(loss.item())
            if not math.isfinite(curve[-1]):
                raise TrainingError(
                    f"the loss of {name} became {curve[-1]} in epoch {len(curve)}; lower learning_rate."
                )
            if curve[-1] == 0 or _settled(curve, tol):
                return
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        if len(curve) == most:
            advice = (
                f"{name} did not settle in {most} epochs (relative change {tol:g}); raise its epochs or tol."
            )
            warnings.warn(advice, ConvergenceWarning, stacklevel=7)

    def _cluster(
        self, C: torch.Tensor, X: NDArray[Any] | None, start: NDArray[np.int64] | None = None
    ) -> NDArray[np.int64]:
        if self.n_clusters == 1:
            return np.zeros(len(C), dtype=np.int64)
        with warnings.catch_warnings():
            if X is None:  # within stage 3, where the final clustering will warn
                warnings.simplefilter("ignore", UserWarning)
            return spectral_from_coefficients(
                C.detach().cpu().numpy(),
                self.n_clusters,
                self.subspace_dim,
                X=X,
                n_init=self.n_init,
                random_state=self._seed,
                start=start,
            )

    def _start(self, X: NDArray[Any], x: torch.Tensor) -> torch.Tensor:
        if self.c_init == "ridge":
            return torch.as_tensor(ridge_coefficients(X, self.ridge), dtype=x.dtype, device=x.device)
        if not self.expression_epochs:
            expected = "'ridge' where expression_epochs is 0: equal coefficients say nothing of clusters"
            raise ParameterError("c_init", self, expected, self.c_init)
        C = torch.full((len(X), len(X)), 1e-8, dtype=x.dtype, device=x.device)
        return C.fill_diagonal_(0.0) if self.zero_diagonal else C

    def _norms(self, x: torch.Tensor) -> NDArray[np.float64]:
        with torch.no_grad():
            layers = [x] if self.encoder_ is None else [x, *self.encoder_(x)]
            return np.array([float(torch.linalg.norm(layer)) for layer in layers])

    def _rows(self, X: Any) -> NDArray[Any]:
        """Return X checked, flat, and with rows of length 1 where asked for."""
        X = validate_data(self, X, dtype=[np.float64, np.float32], allow_nd=True, ensure_min_samples=2)
        n = len(X)
        if n > self.max_rows:
            need = 16 * n**2 / 2**30 * X.itemsize / 4
            raise DataError(
                f"DeepSubspaceClustering keeps an n x n matrix: {n:,} rows need {need:.1f} GiB for the coefficients "
                f"and their optimiser, and max_rows is {self.max_rows:,}. Cluster a sample and give the other rows "
                "the label of their nearest row in it, or raise max_rows."
            )
        if self.n_clusters >= n:
            raise ParameterError("n_clusters", self, f"an int in [1, {n - 1}] for {n} rows", self.n_clusters)
        if self.subspace_dim >= n:
            raise ParameterError(
                "subspace_dim", self, f"an int in [1, {n - 1}] for {n} rows", self.subspace_dim
            )
        self._image_shape = X.shape[1:] if X.ndim == 4 else self.image_shape
        X = X.reshape(n, -1)
        if self.normalize:
            length = np.sqrt(np.einsum("ij,ij->i", X, X))[:, None]
            X = X / np.where(length > 0, length, 1)
        return X

    def _module(self, n_features: int) -> nn.Module | None:
        if self.encoder is None:
            return None
        if not isinstance(self.encoder, str):
            return copy.deepcopy(self.encoder)
        if self.encoder == "mlp":
            return MLPAutoencoder(n_features, [int(h) for h in self.hidden])
        shape = self._image_shape
        if shape is None or len(shape) != 3 or math.prod(shape) != n_features:
            raise DataError(
                f"the encoder 'conv' needs images of shape (channels, height, width) with {n_features} numbers; "
                f"image_shape is {shape}."
            )
        if self.kernel_size % 2 == 0:
            raise ParameterError("kernel_size", self, "odd", self.kernel_size)
        channels = [int(c) for c in self.channels]
        return ConvAutoencoder((int(shape[0]), int(shape[1]), int(shape[2])), channels, self.kernel_size)


def _settled(curve: list[float], tol: float) -> bool:
    """Tell whether the mean of the last epochs differs from that of the ones before by less than ``tol`` an epoch.

    Means, because under Adam the loss of stage 3 ends up swinging by more than it falls.
    """
    if len(curve) < 2 * _WINDOW:
        return False
    before, now = np.mean(curve[-2 * _WINDOW : -_WINDOW]), np.mean(curve[-_WINDOW:])
    return bool(abs(now - before) < tol * _WINDOW * abs(before))
