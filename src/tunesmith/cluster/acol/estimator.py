"""ACOL as an estimator: coarse labels in, finer classes out.

Kilinc, Uysal, "Auto-clustering Output Layer: Automatic Learning of Latent Annotations in Neural Networks", 2017
(arXiv 1702.08648); parents made from the images: arXiv 1802.03063. Deviations: Adam by default (authors: SGD with
Nesterov momentum 0.95, ``optimizer="sgd"``), weights 0.1 for affinity and balance where the authors have 3 and 1 for
longer trainings of larger networks, batches of even size, restarts judged by the loss. The coactivity term is v1's
sum of N off the diagonal, not the copy of balance that the authors' code has become.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_array
from torch import Tensor, nn

from tunesmith.cluster._base import fitting
from tunesmith.cluster._network import NetworkClusterer
from tunesmith.cluster._torch import mlp, on_rows, private_rng, resolve_device, to_tensor, train
from tunesmith.cluster.acol.head import ACOLHead
from tunesmith.cluster.acol.objective import affinity, balance, gar_loss, parent_logits
from tunesmith.cluster.acol.pseudo import transform_images
from tunesmith.core.errors import DataError, ParameterError

__all__ = ["ACOLClusterer"]

_WEIGHT = [Interval(Real, 0, None, closed="left")]
_POSITIVE = [Interval(Integral, 1, None, closed="left")]


@dataclass
class _Run:
    """One training: loss of all rows, modules, loss per epoch, Z of all rows, whether the loss came to rest."""

    loss: float
    network: nn.Module
    head: ACOLHead
    curve: list[float]
    nodes: Tensor
    rests: bool


def _double(channels: int, maps: int) -> list[nn.Module]:
    """Two 3 x 3 convolutions and a halving of the size."""
    first, second = nn.Conv2d(channels, maps, 3, padding=1), nn.Conv2d(maps, maps, 3, padding=1)
    return [first, nn.ReLU(), second, nn.ReLU(), nn.MaxPool2d(2)]


class ACOLClusterer(NetworkClusterer):
    """Find sub-classes within known parent classes while learning to tell the parents apart (Kilinc and Uysal 2017).

    Every parent has k output nodes; the soft-max is pooled to parents for the cross-entropy, and `gar_loss` makes
    each node take rows of its own. Always compare with k-means inside each parent, on X and on ``transform(X)``: it
    is a strong baseline. Results vary between seeds, and the weights matter; judge runs by ``loss_``, ``affinity_``
    and ``n_active_nodes_``, never by true sub-classes. Scale X (StandardScaler).

    Time per epoch: one pass and gradient of the network plus O(N n) for n = parents * k nodes; memory O(N n).

    Args:
        k: nodes per parent; 1 to 3 times the sub-classes expected. Spare ones may stay empty.
        encoder: ``"mlp"``, ``"conv"`` (32-32-pool-64-64-pool and a dense layer, for images), ``"auto"`` (conv for
            images), or a module from rows to features (n, d); it is copied.
        image_shape: (C, H, W) if rows are flattened images.
        hidden_layer_sizes: of the perceptron, or of the dense layers after the convolutions.
        pseudo_parents: with images and without y, the transformations to tell apart, keys of
            ``acol.PSEUDO_PARENTS``; cluster ``transform(X)``, or use the nodes.
        c_alpha: weight of affinity.
        c_beta: weight of balance.
        c_f: weight of the squared activities, a sum over the batch.
        c_3: weight of the coactivity, from epoch ``c_3_start`` on.
        c_3_start: see ``c_3``.
        balance_type: which pairs of nodes count, see `gar_loss`.
        acol_dropout: on the nodes before the soft-max.
        dropout: after each hidden layer.
        optimizer: ``"adam"``, or ``"sgd"`` with Nesterov momentum 0.95.
        learning_rate: of the optimiser.
        batch_size: rows of a batch, at most; several times n.
        max_iter: epochs.
        tol: the training ends when the loss of an epoch was not better by this much for ``n_iter_no_change`` epochs.
        n_iter_no_change: see ``tol``; None runs all epochs.
        n_init: trainings; the one with the lowest ``loss_`` is kept.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, …
        random_state: seed of weights, dropout, order.

    Attributes:
        labels_: (N,) int64 nodes, argmax of Z over all n; the parent of node j is ``classes_[j % len(classes_)]``.
        classes_: the parents, sorted.
        network_: features.
        head_: `ACOLHead`; ``transform`` gives the features (n, d) before it.
        affinity_: of all rows, near 0 when every row excites one node.
        balance_: of all rows, near 1 when all nodes are in use alike.
        n_active_nodes_: nodes that some row of X is assigned to.
        loss_: cross-entropy plus `gar_loss` without its quadratic term, of all rows; the lower, the better the run.
        loss_curve_: mean loss per epoch.
        n_iter_: epochs run.

    Raises:
        ParameterError: a parameter outside its set.
        DataError: parents that are not whole numbers or text, or have one row only; images of another shape.
        TrainingError: the loss is not finite.
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "k": _POSITIVE,
        "encoder": [StrOptions({"auto", "mlp", "conv"}), nn.Module],
        "image_shape": [tuple, list, None],
        "hidden_layer_sizes": [tuple, list],
        "pseudo_parents": [tuple, list, None],
        "c_alpha": _WEIGHT,
        "c_beta": _WEIGHT,
        "c_f": _WEIGHT,
        "c_3": _WEIGHT,
        "c_3_start": [Interval(Integral, 0, None, closed="left")],
        "balance_type": [Interval(Integral, 0, 8, closed="both")],
        "acol_dropout": [Interval(Real, 0, 1, closed="left")],
        "dropout": [Interval(Real, 0, 1, closed="left")],
        "optimizer": [StrOptions({"adam", "sgd"})],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "batch_size": [Interval(Integral, 2, None, closed="left")],
        "max_iter": _POSITIVE,
        "tol": _WEIGHT,
        "n_iter_no_change": [*_POSITIVE, None],
        "n_init": _POSITIVE,
        "device": [str, torch.device],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        k: int = 5,
        *,
        encoder: Any = "auto",
        image_shape: Sequence[int] | None = None,
        hidden_layer_sizes: Sequence[int] = (128, 64),
        pseudo_parents: Sequence[str] | None = None,
        c_alpha: float = 0.1,
        c_beta: float = 0.1,
        c_f: float = 1e-6,
        c_3: float = 0.0,
        c_3_start: int = 0,
        balance_type: int = 1,
        acol_dropout: float = 0.0,
        dropout: float = 0.0,
        optimizer: Literal["adam", "sgd"] = "adam",
        learning_rate: float = 1e-3,
        batch_size: int = 128,
        max_iter: int = 100,
        tol: float = 1e-4,
        n_iter_no_change: int | None = 20,
        n_init: int = 1,
        device: str | torch.device = "auto",
        random_state: Any = None,
    ) -> None:
        self.k = k
        self.encoder = encoder
        self.image_shape = image_shape
        self.hidden_layer_sizes = hidden_layer_sizes
        self.pseudo_parents = pseudo_parents
        self.c_alpha = c_alpha
        self.c_beta = c_beta
        self.c_f = c_f
        self.c_3 = c_3
        self.c_3_start = c_3_start
        self.balance_type = balance_type
        self.acol_dropout = acol_dropout
        self.dropout = dropout
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.max_iter = max_iter
        self.tol = tol
        self.n_iter_no_change = n_iter_no_change
        self.n_init = n_init
        self.device = device
        self.random_state = random_state

    @fitting
    def fit(self, X: Any, y: Any = None) -> Self:
        """Train on X and its parents y, and label its rows.

        Args:
            X: (N, d) or images (N, C, H, W).
            y: (N,) parents, whole numbers or text. Without y the parents are ``pseudo_parents``, or all rows have
                one parent and GAR alone trains.
        """
        X = self._check(X, fitting=True)
        t = self._parents(X, y)
        n = len(self.classes_) * self.k
        if self.balance_type > 2 and self.k < 2:
            raise ParameterError("k", self, f"at least 2 for balance_type={self.balance_type}", self.k)
        if min(self.batch_size, len(X)) < n:
            warnings.warn(
                f"ACOLClusterer compares {n} nodes in batches of {min(self.batch_size, len(X))} rows: balance is "
                "mostly noise below several times as many rows. Raise batch_size or lower k.",
                UserWarning,
                stacklevel=3,
            )
        random_state = check_random_state(self.random_state)
        device = resolve_device(self.device, self)
        with private_rng(random_state, device) as generator:
            x, target = to_tensor(X, device), torch.as_tensor(t, device=device)
            runs = (self._train(x, target, generator) for _ in range(self.n_init))
            best = min(runs, key=lambda run: run.loss)
        if self.n_iter_no_change is not None and not best.rests:
            warnings.warn(
                f"ACOLClusterer did not converge: the loss still falls after max_iter={self.max_iter} epochs.",
                ConvergenceWarning,
                stacklevel=3,
            )
        self.network_, self.head_ = best.network.cpu(), best.head.cpu()
        self.loss_, self.loss_curve_, self.n_iter_ = best.loss, best.curve, len(best.curve)
        self._n_features_out = best.head.in_features
        Z, kind = best.nodes, self._kind(n)
        self.affinity_ = float(affinity(Z, len(self.classes_), kind)) if kind else 0.0
        self.balance_ = float(balance(Z, len(self.classes_), kind)) if kind else 1.0
        self.labels_ = Z.argmax(dim=1).cpu().numpy().astype(np.int64)
        self.n_active_nodes_ = len(np.unique(self.labels_))
        return self

    def _train(self, x: Tensor, t: Tensor, generator: torch.Generator) -> _Run:
        """Train once from new weights."""
        n_parents = len(self.classes_)
        network = self._build(x).to(x.device, x.dtype)
        with torch.no_grad():
            shape = network.eval()(x[:2]).shape
        if len(shape) != 2:
            raise ParameterError("encoder", self, "a module that gives features (rows, width)", tuple(shape))
        head = ACOLHead(shape[1], n_parents, self.k, self.acol_dropout).to(x.device, x.dtype)
        nn.init.xavier_uniform_(head.linear.weight)
        weights = [*network.parameters(), *head.parameters()]
        optimizer: torch.optim.Optimizer
        if self.optimizer == "adam":
            optimizer = torch.optim.Adam(weights, self.learning_rate, fused=x.device.type in ("cpu", "cuda"))
        else:
            optimizer = torch.optim.SGD(weights, self.learning_rate, momentum=0.95, nesterov=True)
        c_3, best, waited = 0.0, np.inf, 0

        def loss_of(rows: Tensor) -> Tensor:
            images, target = x[rows], t[rows]
            if self._made:
                target = torch.randint(n_parents, (len(rows),), generator=generator).to(x.device)
                images = transform_images(images, self._made, target)
            logits = head(network(images))
            return F.cross_entropy(logits, target) + self._gar(head.nodes, c_f=self.c_f, c_3=c_3)

        def before(epoch: int) -> None:
            nonlocal c_3
            c_3 = self.c_3 if epoch >= self.c_3_start else 0.0

        def rests(epoch: int, loss: float) -> bool:
            nonlocal best, waited
            waited = 0 if loss < best - self.tol else waited + 1
            best = min(best, loss)
            return self.n_iter_no_change is not None and waited >= self.n_iter_no_change

        network.train()
        head.train()
        epochs = self._phase("training", self.max_iter)
        curve = train(epochs, loss_of, optimizer, len(x), self.batch_size, generator, rests, before)
        network.eval()
        head.eval()
        Z = on_rows(lambda part: head.linear(network(part)), x)
        loss = float(F.cross_entropy(parent_logits(Z, n_parents), t) + self._gar(Z, c_f=0.0))
        return _Run(loss, network, head, curve, Z, waited >= (self.n_iter_no_change or np.inf))

    def _kind(self, n: int) -> int:
        """Return the balance type; 0 for a single node, which has nothing to be compared with."""
        return (self.balance_type or 1) if n > 1 else 0

    def _gar(self, Z: Any, c_f: float, c_3: float = 0.0) -> Tensor:
        kind = self.balance_type if Z.shape[1] > 1 else 0
        return gar_loss(
            Z,
            len(self.classes_),
            c_alpha=self.c_alpha,
            c_beta=self.c_beta,
            c_f=c_f,
            c_3=c_3,
            balance_type=kind,
        )

    def _parents(self, X: NDArray[Any], y: Any) -> NDArray[np.int64]:
        """Return parents as 0..n_parents-1 and set ``classes_``; without y those of the images, or a single one."""
        self._made = None
        if y is None and self.pseudo_parents is not None:
            if X.ndim != 4:
                raise ParameterError(
                    "pseudo_parents",
                    self,
                    "None for X without images (or set image_shape)",
                    self.pseudo_parents,
                )
            self._made = tuple(self.pseudo_parents)
            transform_images(torch.zeros(1, *X.shape[1:]), self._made, torch.zeros(1))  # checks the names
            self.classes_ = np.array(self._made)
            return np.zeros(len(X), dtype=np.int64)
        if y is None:
            self.classes_ = np.array([0])
            return np.zeros(len(X), dtype=np.int64)
        y = np.asarray(check_array(y, ensure_2d=False, dtype=None, input_name="y"))
        if y.shape != (len(X),):
            raise DataError(
                f"ACOLClusterer needs one parent per row: X has {len(X)} rows and y the shape {y.shape}."
            )
        if y.dtype.kind == "f" and np.any(y != np.floor(y)):
            raise DataError(
                f"ACOLClusterer needs whole numbers or text as parents; y has the type {y.dtype}."
            )
        self.classes_, t, counts = np.unique(y, return_inverse=True, return_counts=True)
        if counts.min() < 2:
            raise DataError(
                f"ACOLClusterer needs at least two rows per parent; parent {self.classes_[counts.argmin()]} has one."
            )
        return t.astype(np.int64)

    def _build(self, x: Tensor) -> nn.Module:
        """Return a network from rows like x to features; a module of the user is copied."""
        kind = self.encoder
        if not isinstance(kind, str):
            return copy.deepcopy(kind)
        if kind == "auto":
            kind = "mlp" if self.image_shape_ is None else "conv"
        blocks: list[nn.Module] = [nn.Flatten()]
        width = int(np.prod(x.shape[1:]))
        if kind == "conv":
            if self.image_shape_ is None:
                raise ParameterError(
                    "image_shape", self, "(C, H, W) for encoder='conv' and rows as vectors", None
                )
            c, height, wide = self.image_shape_
            if min(height, wide) < 4:
                raise ParameterError(
                    "image_shape", self, "at least 4 pixels high and wide", self.image_shape_
                )
            blocks = [*_double(c, 32), *_double(32, 64), nn.Flatten()]
            width = 64 * (height // 4) * (wide // 4)
        for block in mlp([width, *self.hidden_layer_sizes], nn.ReLU):
            blocks += [block, nn.Dropout(self.dropout)]
        return nn.Sequential(*blocks)

    def predict(self, X: Any) -> NDArray[np.int64]:
        """Return the sub-class (n,): the node of the largest activity."""
        return self._run(X, lambda H: self.head_.linear(H).argmax(dim=1)).astype(np.int64)

    def predict_proba(self, X: Any) -> NDArray[Any]:
        """Return the soft-max over all nodes (n, parents * k)."""
        return self._run(X, lambda H: torch.softmax(self.head_.linear(H), dim=1))

    def predict_parent(self, X: Any) -> NDArray[Any]:
        """Return the parent (n,) of the largest pooled probability, an element of ``classes_``."""
        return self.classes_[self.predict_parent_proba(X).argmax(axis=1)]

    def predict_parent_proba(self, X: Any) -> NDArray[Any]:
        """Return the pooled probabilities (n, parents)."""
        P = self.predict_proba(X)
        return P.reshape(len(P), self.k, len(self.classes_)).sum(axis=1)
