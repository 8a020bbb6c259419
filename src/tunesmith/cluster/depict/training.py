"""The phases of DEPICT (Sec. 3.3): reconstruction, initial labels, head, warm-up on hard labels, joint training."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor, nn

from tunesmith.cluster._torch import EarlyStop, on_rows, train
from tunesmith.cluster.depict.objective import cluster_loss, reconstruction_loss, target_distribution
from tunesmith.cluster.depict.path_integral import path_integral_labels

if TYPE_CHECKING:
    from tunesmith.cluster.depict.estimator import DEPICT

__all__ = ["DEAD_MASS", "JointTraining"]

# A cluster is dead when its probabilities sum to less than a thousandth of a row: its gradient has long vanished.
DEAD_MASS = 1e-3


class JointTraining:
    """One fit: network and head, the rows on the device, and the schedule of the estimator.

    Args:
        owner: gives parameters and phases.
        network: see `LayeredAutoencoder`.
        head: (d_z) -> (K).
        x: (N, ...) rows.
        generator: shuffles.
        random_state: seeds k-means and splits.
    """

    def __init__(
        self,
        owner: DEPICT,
        network: Any,
        head: nn.Linear,
        x: Tensor,
        generator: torch.Generator,
        random_state: np.random.RandomState,
    ) -> None:
        self.owner, self.network, self.head, self.x = owner, network, head, x
        self.generator, self.random_state = generator, random_state
        self.n = len(x)

    # --- passes ---

    def codes(self, x: Tensor | None = None) -> Tensor:
        """Return clean codes (N, d_z)."""
        return on_rows(lambda part: self.network.activations(part)[-1], self.x if x is None else x)

    @torch.no_grad()
    def probabilities(self, x: Tensor | None = None) -> Tensor:
        """Return clean P (N, K)."""
        return torch.softmax(self.head(self.codes(x)), dim=1)

    def clean(self, x: Tensor) -> list[Tensor]:
        """Return the clean activations, which are the targets of the decoder."""
        if self.owner.stop_gradient:
            with torch.no_grad():
                return self.network.activations(x)
        return self.network.activations(x)

    def joint_loss(self, x: Tensor, q: Tensor | None, clean: list[Tensor] | None) -> Tensor:
        """Return the loss of one batch; a term of weight 0 is not computed, so its part gets no gradient."""
        o = self.owner
        code = self.network.activations(x, noise=True)[-1]
        loss = code.new_zeros(())
        if q is not None and o.clustering_weight:
            loss = loss + o.clustering_weight * cluster_loss(self.head(code), q)
        if clean is not None:
            decoded = self.network.reconstructions(code)
            loss = loss + o.reconstruction_weight * reconstruction_loss(clean, decoded, o.inner_weight)
        return loss

    # --- phases ---

    def _optimizer(self, *modules: nn.Module) -> torch.optim.Optimizer:
        weights = [p for module in modules for p in module.parameters() if p.requires_grad]
        fused = self.x.device.type in ("cpu", "cuda")
        return torch.optim.Adam(weights, lr=self.owner.learning_rate, fused=fused)

    def _split(self) -> tuple[Tensor, Tensor]:
        """Return training rows and held-out rows; without early stopping all rows train and none are held out."""
        order = torch.from_numpy(self.random_state.permutation(self.n))
        held = 0 if self.owner.patience is None else int(self.owner.validation_fraction * self.n)
        return order[held:], order[:held]

    def pretrain(self) -> list[float]:
        """Train on the reconstruction alone; stop early on the clean loss of held-out rows, keep the best weights."""
        o = self.owner
        if not o.pretrain_epochs:
            return []
        rows, held = self._split()
        stop = EarlyStop([self.network], o.patience)

        def loss_of(batch: Tensor) -> Tensor:
            x = self.x[rows[batch]]
            clean = self.clean(x)
            decoded = self.network.reconstructions(self.network.activations(x, noise=True)[-1])
            return reconstruction_loss(clean, decoded, o.inner_weight)

        @torch.no_grad()
        def after(epoch: int, loss: float) -> bool:
            if not len(held):
                return False
            clean = self.network.activations(self.x[held])
            return stop(
                float(reconstruction_loss(clean, self.network.reconstructions(clean[-1]), o.inner_weight))
            )

        epochs = o._phase("reconstruction", o.pretrain_epochs)
        optimizer = self._optimizer(self.network)
        curve = train(epochs, loss_of, optimizer, len(rows), o.batch_size, self.generator, after)
        stop.restore()
        return curve

    def initial_labels(self) -> NDArray[np.int64]:
        """Cluster the clean codes."""
        o = self.owner
        codes = self.codes().cpu().numpy()
        if o.init == "acpic":
            return path_integral_labels(codes, o.n_clusters)
        kmeans = KMeans(o.n_clusters, n_init=o.n_init, random_state=self.random_state)
        return kmeans.fit_predict(codes).astype(np.int64)

    @torch.no_grad()
    def set_head(self, labels: NDArray[np.int64]) -> None:
        """Set column k to the mean code of cluster k at unit norm, the bias to 0; an empty cluster takes a row."""
        codes = self.codes()
        K = self.head.out_features
        label = torch.from_numpy(labels).to(codes.device)
        counts = torch.bincount(label, minlength=K)
        means = codes.new_zeros(K, codes.shape[1]).index_add_(0, label, codes) / counts.clamp_min(1)[:, None]
        empty = torch.nonzero(counts == 0).ravel()
        if len(empty):
            means[empty] = codes[torch.from_numpy(self.random_state.permutation(self.n)[: len(empty)])]
        self.head.weight.copy_(nn.functional.normalize(means, dim=1))
        self.head.bias.zero_()

    def warm_up(self, labels: NDArray[np.int64]) -> list[float]:
        """Train jointly on the initial labels; stop early on how well held-out ones are met (NMI), keep the best."""
        o = self.owner
        if not o.warmup_epochs:
            return []
        rows, held = self._split()
        target = torch.from_numpy(labels).to(self.x.device)
        stop = EarlyStop([self.network, self.head], o.patience)

        def loss_of(batch: Tensor) -> Tensor:
            x = self.x[rows[batch]]
            clean = self.clean(x) if o.reconstruction_weight else None
            return self.joint_loss(x, target[rows[batch]], clean)

        def after(epoch: int, loss: float) -> bool:
            if not len(held):
                return False
            found = self.probabilities(self.x[held]).argmax(dim=1).cpu().numpy()
            return stop(-float(normalized_mutual_info_score(labels[held.numpy()], found)))

        epochs = o._phase("warm-up", o.warmup_epochs)
        optimizer = self._optimizer(self.network, self.head)
        curve = train(epochs, loss_of, optimizer, len(rows), o.batch_size, self.generator, after)
        stop.restore()
        return curve

    def refine(self, prior: Tensor | None) -> list[float]:
        """Alternate target and parameter updates until Q rests; the last P is that of the final weights."""
        o = self.owner
        P = self.probabilities().clone()
        Q = target_distribution(P, o.target, prior)
        in_step = o.refresh == "batch"
        self.converged = False

        def before(epoch: int) -> bool:
            nonlocal Q
            if epoch == 0:
                return False
            if not in_step:
                P.copy_(self.probabilities())
            self._reseed(P)
            last, Q = Q, target_distribution(P, o.target, prior)
            # What the steps of the first epoch saw is partly the P before it, so its change says little.
            settled = epoch > 1 or not in_step
            self.converged = settled and float((Q - last).square().mean()) < o.tol
            return self.converged

        def loss_of(batch: Tensor) -> Tensor:
            x = self.x[batch]
            clean = self.clean(x) if o.reconstruction_weight or in_step else None
            if in_step and clean is not None:
                with torch.no_grad():
                    P[batch] = torch.softmax(self.head(clean[-1]), dim=1)
            return self.joint_loss(x, Q[batch], clean if o.reconstruction_weight else None)

        epochs = o._phase("joint training", o.max_iter)
        optimizer = self._optimizer(self.network, self.head)
        curve = train(epochs, loss_of, optimizer, self.n, o.batch_size, self.generator, before=before)
        if curve and not self.converged:
            warnings.warn(
                f"DEPICT did not converge: after {len(curve)} epochs the targets still change by more than tol="
                f"{o.tol:g} (mean square). Increase max_iter or tol.",
                ConvergenceWarning,
                stacklevel=4,
            )
        return curve

    @torch.no_grad()
    def _reseed(self, P: Tensor) -> None:
        """Point the columns of dead clusters at the rows whose cluster is least certain, and fill their P anew."""
        mass = P.sum(dim=0)
        dead = torch.nonzero(mass < DEAD_MASS).ravel()
        if not len(dead):
            return
        names = ", ".join(map(str, dead.tolist()))
        warnings.warn(
            f"DEPICT re-seeded cluster {names}, which had died (probabilities of all rows sum below {DEAD_MASS:g}). "
            "Fewer clusters may fit these data better.",
            ConvergenceWarning,
            stacklevel=6,
        )
        rows = P.max(dim=1).values.argsort(stable=True)[: len(dead)]
        codes = self.network.activations(self.x[rows])[-1]
        alive = mass >= DEAD_MASS
        size = self.head.weight[alive].norm(dim=1).mean()
        self.head.weight[dead] = nn.functional.normalize(codes, dim=1) * size
        self.head.bias[dead] = self.head.bias[alive].mean()
        P.copy_(self.probabilities())
