"""The network, the loss and the training of PBN (arXiv 2311.05440, Sec. 3.4), in torch alone."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tunesmith.cluster._torch import on_rows
from tunesmith.core.errors import TrainingError

__all__ = ["ProjectionNetwork", "pbn_loss", "project", "train_network"]


class ProjectionNetwork(nn.Module):
    """Encoder, decoder and linear classifier; codes have length 1.

    Encoder: Linear(d, 3d/4) - ReLU - BatchNorm - Dropout - Linear(., d/2) - ReLU - BatchNorm - Dropout - Linear(.,
    latent), widths rounded down, at least 2; the decoder mirrors it.

    Args:
        d: columns.
        latent: columns of the code.
        n_classes: known classes; 0 leaves the classifier without outputs.
        dropout: probability.
    """

    def __init__(self, d: int, latent: int, n_classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        wide, narrow = max(2, 3 * d // 4), max(2, d // 2)
        self.encoder = _stack(d, wide, narrow, latent, dropout)
        self.decoder = _stack(latent, narrow, wide, d, dropout)
        self.classifier = nn.Linear(latent, n_classes) if n_classes else None

    def code(self, x: Tensor) -> Tensor:
        """Return ``z = f(x) / ||f(x)||``, ``(m, latent)``."""
        return F.normalize(self.encoder(x), dim=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return codes, logits ``(m, C^l)`` and reconstruction ``(m, d)``."""
        z = self.code(x)
        logits = z.new_zeros(len(z), 0) if self.classifier is None else self.classifier(z)
        return z, logits, self.decoder(z)


def _stack(first: int, second: int, third: int, last: int, dropout: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in ((first, second), (second, third)):
        layers += [nn.Linear(before, after), nn.ReLU(), nn.BatchNorm1d(after)]
        if dropout > 0:
            layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers, nn.Linear(third, last))


def pbn_loss(
    logits: Tensor, y: Tensor, reconstruction: Tensor, x: Tensor, w: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``w CE + (1 - w) R``, CE and R of one batch.

    CE is the mean cross-entropy over the known rows, 0 without any. R is the squared error *summed* over columns and
    averaged over all rows, so that a given w means another balance for another number of columns.

    Args:
        logits: ``(m, C^l)``.
        y: ``(m,)`` in 0 … C^l - 1, -1 for unlabelled rows.
        reconstruction: ``(m, d)``.
        x: ``(m, d)``.
        w: in [0, 1].
    """
    error = F.mse_loss(reconstruction, x, reduction="sum") / len(x)
    if logits.shape[1] == 0:
        entropy = error.new_zeros(())
    else:
        known = (y >= 0).sum().clamp(min=1)
        entropy = F.cross_entropy(logits, y, ignore_index=-1, reduction="sum") / known
    return w * entropy + (1 - w) * error, entropy, error


def train_network(
    network: ProjectionNetwork,
    X: Tensor,
    y: Tensor,
    *,
    w: float,
    learning_rate: float,
    batch_size: int,
    epochs: Iterable[int],
    shuffle: torch.Generator | None,
    weight_decay: float = 0.01,
) -> list[list[float]]:
    """Train by AdamW; return per epoch the means over batches of loss, CE and R.

    A batch of one row is skipped, since it has no variance to normalise by.

    Args:
        network: changed in place, left in evaluation mode.
        X: ``(n, d)``, all rows, on the network's device.
        y: ``(n,)`` int64, -1 for unlabelled rows.
        w: see `pbn_loss`.
        learning_rate: step size.
        batch_size: rows.
        epochs: one pass for each item.
        shuffle: on the CPU; ``None`` keeps the order of the rows, as the authors' code does.
        weight_decay: of AdamW.

    Raises:
        TrainingError: the loss is not finite.
    """
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=learning_rate, weight_decay=weight_decay, fused=True
    )
    n, curve = len(X), []
    network.train()
    for epoch in epochs:
        order = None if shuffle is None else torch.randperm(n, generator=shuffle).to(X.device)
        total, batches = X.new_zeros(3), 0
        for start in range(0, n, batch_size):
            at = slice(start, start + batch_size)
            rows = at if order is None else order[at]
            x, labels = X[rows], y[rows]
            if len(x) == 1:
                continue
            optimiser.zero_grad()
            _, logits, reconstruction = network(x)
            losses = torch.stack(pbn_loss(logits, labels, reconstruction, x, w))
            torch.autograd.backward(losses[0])
            optimiser.step()
            total += losses.detach()
            batches += 1
        curve.append((total / max(batches, 1)).tolist())
        if not torch.isfinite(total).all():
            raise TrainingError(
                f"PBN's loss is not finite in epoch {epoch + 1}. Scale the data (StandardScaler) or lower "
                f"learning_rate={learning_rate:g}."
            )
    network.eval()
    return curve


def project(network: ProjectionNetwork, X: Tensor, *, normalise: bool = True) -> Tensor:
    """Return the codes of all rows, ``(n, latent)``; without ``normalise`` the encoder's raw output."""
    network.eval()
    return on_rows(network.code if normalise else network.encoder, X, batch_size=16_384)
