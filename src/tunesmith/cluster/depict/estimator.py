"""DEPICT: an autoencoder and a soft-max cluster head trained together, guarded against empty clusters.

Dizaji, Herandi, Deng, Cai, Huang, "Deep Clustering via Joint Convolutional Autoencoder Embedding and Relative Entropy
Minimization", ICCV 2017 (arXiv 1704.06327). A noisy encoder predicts targets made from the clean one (Secs. 3.1, 3.2)
while a decoder fed by the noisy code restores every clean layer (Sec. 3.3).

Deviations: the target is that of the authors' code (``target="dec"``; the paper's closed form is ``"paper"``), as are
the weight 0.1 of inner layers and the gradients through clean targets, which keep hidden layers from growing
(``stop_gradient=True`` cuts them). One noisy pass serves all terms, as in the paper. The targets of an epoch come from
the clean passes of its steps (``refresh="epoch"``: one more pass at its begin, as in the paper). The mean row is taken
off the input, see `Centre`, and vectors are divided by one number, their overall deviation, so that the weights of the
loss mean the same at every scale; networks that you pass get X as it is. Dead clusters are re-seeded, labels are never
looked at, and batches have even sizes. The head's columns are the cluster means in the order of the labels: the
authors' code transposes or shifts them. Vectors, for which the paper has no network, get a mirrored perceptron.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from torch import Tensor, nn

from tunesmith.cluster._base import check_enough_rows, fitting
from tunesmith.cluster._network import NetworkClusterer
from tunesmith.cluster._torch import private_rng, resolve_device, to_tensor
from tunesmith.cluster.depict.networks import (
    Centre,
    LayeredAutoencoder,
    check_network,
    conv_autoencoder,
    mlp_autoencoder,
)
from tunesmith.cluster.depict.training import JointTraining
from tunesmith.core.errors import DataError, ParameterError

__all__ = ["DEPICT"]

_COUNT = [Interval(Integral, 0, None, closed="left")]
_POSITIVE = [Interval(Integral, 1, None, closed="left")]
_WEIGHT = [Interval(Real, 0, None, closed="left")]


class DEPICT(NetworkClusterer):
    """Cluster images or vectors by an autoencoder and a soft-max head that are trained together (Dizaji et al. 2017).

    X is (N, d), or images (N, C, H, W), or images as rows with ``image_shape``. Networks work in the floating type
    of X: float32 takes half the time of float64. Columns of unlike scale need a StandardScaler; images for the default
    tanh output must lie in [-1, 1].

    Time per epoch: a clean and a noisy pass through the encoder, one through the decoder, and their gradients, for N
    rows. Memory O(N K) beside data and network. ``init="acpic"`` adds a nearest-neighbour search, at most 20,000 rows.

    Args:
        n_clusters: K, at least 2.
        encoder: ``"mlp"``, ``"conv"`` (the paper's), ``"auto"`` (conv for images), a sequence of blocks
            (``nn.Sequential``; each ends with its activation, the last gives the code) together with ``decoder``, or
            a module with ``activations(x, noise)`` and ``reconstructions(code)`` as `LayeredAutoencoder` has them.
        decoder: the mirrored blocks, from the code back to the input.
        image_shape: (C, H, W) if rows are flattened images.
        hidden_layer_sizes: of the perceptron.
        n_filters: feature maps of the convolutions.
        kernel_sizes: of the convolutions; with strides and paddings they must reproduce the size of the images (the
            defaults do so for sides that 4 divides).
        strides: of the convolutions.
        paddings: of the convolutions.
        n_components: width d_z of the code, by default K.
        output: last layer of the decoder, ``"tanh"``, ``"linear"``, or ``"auto"``: tanh for conv, linear for mlp.
        dropout: noise; one rate for every layer but the last before the code, or one per level.
        target: ``"dec"`` sharpens; ``"paper"`` does not, and lets confidence decay in a long training: look at
            ``confidence_`` before you trust such labels.
        prior: (K,) expected shares of the clusters, by default equal; given to the initial clusters by size.
        clustering_weight: of the cross-entropy.
        reconstruction_weight: of the reconstruction.
        inner_weight: of hidden layers in the reconstruction: 0.1 as in the authors' code, 1 in the paper.
        stop_gradient: keep gradients out of the clean targets. Hidden layers then grow, and restoring them crowds out
            the input, whose reconstruction gets worse.
        init: initial labels of the codes: ``"kmeans"``, or ``"acpic"`` for small sets.
        n_init: restarts of that k-means (authors: 40).
        pretrain_epochs: of the reconstruction alone (authors: up to 4000).
        warmup_epochs: on the initial labels (authors: up to 1000).
        max_iter: epochs of the joint training (authors: up to 4000).
        tol: the joint training ends when the mean squared change of Q between epochs is below this.
        patience: epochs without a better held-out reconstruction (pretraining) or agreement with held-out initial
            labels (warm-up) before those phases end with their best weights (authors: 100 and 5). None: no rows are
            held out and every epoch is run.
        validation_fraction: held out for ``patience``.
        refresh: ``"batch"`` collects P in the steps of an epoch, ``"epoch"`` in a pass of its own.
        learning_rate: of Adam (authors: 1e-4 for thousands of epochs).
        batch_size: rows of a batch, at most.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, …
        random_state: seed of weights, noise, order, k-means.

    Attributes:
        labels_: (N,) int64, argmax of the clean probabilities.
        confidence_: mean over rows of the largest probability.
        network_: the trained autoencoder.
        head_: ``nn.Linear``, code to clusters; ``transform`` gives the codes (n, d_z).
        initial_labels_: (N,) labels of the codes after pretraining.
        pretrain_loss_curve_: mean reconstruction loss per epoch.
        warmup_loss_curve_: mean joint loss on the initial labels per epoch.
        loss_curve_: mean joint loss per epoch.
        n_iter_: epochs of the joint training.
        image_shape_: (C, H, W), or None for vectors.

    Raises:
        ParameterError: a parameter outside its set, K > N, a network that does not fit.
        DataError: images outside [-1, 1] for a tanh output, or X of another shape.
        TrainingError: the loss is not finite.
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "n_clusters": _POSITIVE,
        "encoder": [StrOptions({"auto", "mlp", "conv"}), nn.Module, list],
        "decoder": [nn.Module, list, None],
        "image_shape": [tuple, list, None],
        "hidden_layer_sizes": [tuple, list],
        "n_filters": [tuple, list],
        "kernel_sizes": [tuple, list],
        "strides": [tuple, list],
        "paddings": [tuple, list],
        "n_components": [*_POSITIVE, None],
        "output": [StrOptions({"auto", "tanh", "linear"})],
        "dropout": [Interval(Real, 0, 1, closed="left"), tuple, list],
        "target": [StrOptions({"dec", "paper"})],
        "prior": ["array-like", None],
        "clustering_weight": _WEIGHT,
        "reconstruction_weight": _WEIGHT,
        "inner_weight": _WEIGHT,
        "stop_gradient": ["boolean"],
        "init": [StrOptions({"kmeans", "acpic"})],
        "n_init": _POSITIVE,
        "pretrain_epochs": _COUNT,
        "warmup_epochs": _COUNT,
        "max_iter": _COUNT,
        "tol": _WEIGHT,
        "patience": [*_COUNT, None],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "refresh": [StrOptions({"batch", "epoch"})],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "batch_size": _POSITIVE,
        "device": [str, torch.device],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        encoder: Any = "auto",
        decoder: Any = None,
        image_shape: Sequence[int] | None = None,
        hidden_layer_sizes: Sequence[int] = (256, 64),
        n_filters: Sequence[int] = (50, 50),
        kernel_sizes: Sequence[int] = (4, 5),
        strides: Sequence[int] = (2, 2),
        paddings: Sequence[int] = (0, 2),
        n_components: int | None = None,
        output: Literal["auto", "tanh", "linear"] = "auto",
        dropout: float | Sequence[float] = 0.1,
        target: Literal["dec", "paper"] = "dec",
        prior: ArrayLike | None = None,
        clustering_weight: float = 1.0,
        reconstruction_weight: float = 1.0,
        inner_weight: float = 0.1,
        stop_gradient: bool = False,
        init: Literal["kmeans", "acpic"] = "kmeans",
        n_init: int = 10,
        pretrain_epochs: int = 100,
        warmup_epochs: int = 20,
        max_iter: int = 100,
        tol: float = 1e-5,
        patience: int | None = 10,
        validation_fraction: float = 0.1,
        refresh: Literal["batch", "epoch"] = "batch",
        learning_rate: float = 1e-3,
        batch_size: int = 128,
        device: str | torch.device = "auto",
        random_state: Any = None,
    ) -> None:
        self.n_clusters = n_clusters
        self.encoder = encoder
        self.decoder = decoder
        self.image_shape = image_shape
        self.hidden_layer_sizes = hidden_layer_sizes
        self.n_filters = n_filters
        self.kernel_sizes = kernel_sizes
        self.strides = strides
        self.paddings = paddings
        self.n_components = n_components
        self.output = output
        self.dropout = dropout
        self.target = target
        self.prior = prior
        self.clustering_weight = clustering_weight
        self.reconstruction_weight = reconstruction_weight
        self.inner_weight = inner_weight
        self.stop_gradient = stop_gradient
        self.init = init
        self.n_init = n_init
        self.pretrain_epochs = pretrain_epochs
        self.warmup_epochs = warmup_epochs
        self.max_iter = max_iter
        self.tol = tol
        self.patience = patience
        self.validation_fraction = validation_fraction
        self.refresh = refresh
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.device = device
        self.random_state = random_state

    @fitting
    def fit(self, X: Any, y: Any = None) -> Self:
        """Train on X and label its rows; y is ignored.

        Args:
            X: (N, d) or (N, C, H, W), dense.
            y: ignored.
        """
        X = self._check(X, fitting=True)
        if self.n_clusters < 2:
            raise ParameterError("n_clusters", self, "an int in the range [2, inf)", self.n_clusters)
        check_enough_rows(X, self.n_clusters, self)
        prior = self._check_prior()
        random_state = check_random_state(self.random_state)
        device = resolve_device(self.device, self)
        with private_rng(random_state, device) as generator:
            x = to_tensor(X, device)
            network = self._build(x)
            x = self._scaled(x)
            d_z = check_network(network.to(device, x.dtype).eval(), x, self)
            head = nn.Linear(d_z, self.n_clusters, device=device, dtype=x.dtype)
            run = JointTraining(self, network, head, x, generator, random_state)
            self.pretrain_loss_curve_ = run.pretrain()
            self.initial_labels_ = run.initial_labels()
            run.set_head(self.initial_labels_)
            self.warmup_loss_curve_ = run.warm_up(self.initial_labels_)
            u = None
            if prior is not None:
                rank = np.argsort(
                    -np.bincount(self.initial_labels_, minlength=self.n_clusters), kind="stable"
                )
                by_size = np.empty_like(prior)
                by_size[rank] = np.sort(prior)[::-1]
                u = to_tensor(by_size.astype(X.dtype), device)
            self.loss_curve_ = run.refine(u)
            P = run.probabilities()
        self.n_iter_ = len(self.loss_curve_)
        self.network_, self.head_ = network.cpu(), head.cpu()
        self._n_features_out = d_z
        self.labels_ = P.argmax(dim=1).cpu().numpy().astype(np.int64)
        self.confidence_ = float(P.max(dim=1).values.mean())
        return self

    def predict_proba(self, X: Any) -> NDArray[Any]:
        """Return the clean cluster probabilities (n, K)."""
        return self._run(X, lambda z: torch.softmax(self.head_(z), dim=1))

    def predict(self, X: Any) -> NDArray[np.int64]:
        """Return the label (n,) of the largest probability; the same for a row alone and in a batch."""
        return self._run(X, lambda z: self.head_(z).argmax(dim=1)).astype(np.int64)

    def _features(self, x: Tensor) -> Tensor:
        found: Tensor = self.network_.activations(self._scaled(x))[-1]
        return found

    def _scaled(self, x: Tensor) -> Tensor:
        """Return x centred and in units of its overall deviation for a linear output, else as it is."""
        return x if self._offset is None else (x - self._offset.to(x)) / self._scale

    def _check_prior(self) -> NDArray[np.float64] | None:
        if self.prior is None:
            return None
        prior = np.asarray(self.prior, dtype=np.float64)
        if prior.shape != (self.n_clusters,) or not (np.isfinite(prior).all() and (prior > 0).all()):
            raise ParameterError("prior", self, f"{self.n_clusters} positive numbers", self.prior)
        return prior / prior.sum()

    def _build(self, x: Tensor) -> Any:
        """Return a network for rows like x; a module of the user is copied, never trained itself."""
        self._offset: Tensor | None = None
        self._scale = 1.0
        kind = self.encoder
        if not isinstance(kind, str):
            if self.decoder is None:
                return copy.deepcopy(kind)
            return copy.deepcopy(LayeredAutoencoder(list(kind), list(self.decoder), self.dropout))
        if kind == "auto":
            kind = "mlp" if self.image_shape_ is None else "conv"
        if kind == "conv" and self.image_shape_ is None:
            raise ParameterError(
                "image_shape", self, "(C, H, W) for encoder='conv' and rows as vectors", None
            )
        code = self.n_components or self.n_clusters
        tanh = self.output == "tanh" or (self.output == "auto" and kind == "conv")
        if tanh and float(x.abs().max()) > 1:
            low, high = float(x.min()), float(x.max())
            raise DataError(
                f"DEPICT with a tanh output needs values in [-1, 1]; X ranges from {low:g} to {high:g}. Scale it, for "
                "pixels with (X - 127.5) / 127.5, or set output='linear'."
            )
        output = nn.Tanh() if tanh else nn.Identity()
        network = self._mlp(x, code, output) if kind == "mlp" else self._conv(code, output)
        mean = x.mean(dim=0)
        if tanh:  # the decoder gives pixels as they are
            network.encoder[0].insert(0, Centre(mean.cpu()))  # type: ignore[operator, union-attr]
        else:
            self._offset, self._scale = mean.cpu(), float((x - mean).square().mean().sqrt()) or 1.0
        return network

    def _mlp(self, x: Tensor, code: int, output: nn.Module) -> LayeredAutoencoder:
        width = int(np.prod(x.shape[1:]))
        network = mlp_autoencoder(width, self.hidden_layer_sizes, code, self.dropout, output)
        if x.ndim == 4:
            network.encoder[0].insert(0, nn.Flatten())  # type: ignore[operator, union-attr]
            network.decoder[-1].append(nn.Unflatten(1, x.shape[1:]))  # type: ignore[operator, union-attr]
        return network

    def _conv(self, code: int, output: nn.Module) -> LayeredAutoencoder:
        assert self.image_shape_ is not None
        return conv_autoencoder(
            self.image_shape_,
            self.n_filters,
            code,
            kernel_sizes=self.kernel_sizes,
            strides=self.strides,
            paddings=self.paddings,
            dropout=self.dropout,
            output=output,
        )
